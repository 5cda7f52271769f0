"""Work that comes by the thousand at one moment, as when a network drops, done so that the loop never stalls for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger("hub.edge")

Item = TypeVar("Item")

# So long the loop does nothing else at a time. Between two slices it hears what has arrived, and its timers.
_SLICE_S = 0.001
# The clock is looked at after so many.
_FEW = 4


class Slices(Generic[Item]):
    """`do` is called with what is added, from the next turn on and in that order; `after` hears that a slice is over.

    Its limit is that of whoever adds to it: each connection of a node, a few times in its life.
    """

    def __init__(self, do: Callable[[Item], None], after: Callable[[], None]) -> None:
        self._do, self._after = do, after
        self._waiting: deque[Item] = deque()

    def add(self, item: Item) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._slice)
        self._waiting.append(item)

    def _slice(self) -> None:
        waiting, do, over_at = self._waiting, self._do, time.monotonic() + _SLICE_S
        while waiting and time.monotonic() < over_at:
            for _ in range(min(_FEW, len(waiting))):
                try:
                    # Taken out when it is done: while there is some, nobody plans another slice.
                    do(waiting[0])
                except Exception:
                    log.exception("slice_crashed")
                waiting.popleft()
        self._after()
        if waiting:
            asyncio.get_running_loop().call_soon(self._slice)
