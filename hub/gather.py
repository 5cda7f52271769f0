"""What comes from many at about the same time, taken together: one question, one write, one answer for all of them cost
little more than for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

# So far apart at least. With few items each leaves at the end of its loop turn; with many, what comes in a few
# milliseconds leaves together.
GAP_S = 0.010


class Gather(Generic[Item]):
    """`leave` is called with what was added, in that order, at most `most` at a time. It must not raise."""

    __slots__ = ("_leave", "_most", "_next_at", "_planned", "_waiting")

    def __init__(self, leave: Callable[[Sequence[Item]], None], *, most: int) -> None:
        self._leave = leave
        self._most = most
        self._waiting: list[Item] = []
        self._planned = False
        self._next_at = 0.0

    def add(self, item: Item) -> None:
        self._waiting.append(item)
        if not self._planned:
            self._planned = True
            loop = asyncio.get_running_loop()
            if loop.time() >= self._next_at:
                loop.call_soon(self._go, loop)
            else:
                loop.call_at(self._next_at, self._go, loop)

    def _go(self, loop: asyncio.AbstractEventLoop) -> None:
        self._planned = False
        self._next_at = loop.time() + GAP_S
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self._most):
            self._leave(waiting[start : start + self._most])
