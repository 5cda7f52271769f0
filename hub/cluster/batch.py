"""Questions to Redis that go together: a script, a write and an answer for each cost several times what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from hub.gather import Gather
from hub.protocol.errors import ClusterUnavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batch(Generic[Item, Answer]):
    """`ask` brings the answers of many, in their order, or raises ClusterUnavailable for all; within a time of its own.

    They are asked in the order in which they came.
    """

    def __init__(self, ask: Callable[[Sequence[Item]], Coroutine[Any, Any, Sequence[Answer]]], *, most: int) -> None:
        self._ask = ask
        self._waiting: Gather[tuple[Item, asyncio.Future[Answer]]] = Gather(self._leave, most=most)
        self._asking: set[asyncio.Task[None]] = set()

    def ask(self, item: Item) -> asyncio.Future[Answer]:
        """The answer, or ClusterUnavailable. Whoever is cancelled may have asked all the same."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.add((item, future))
        return future

    def _leave(self, some: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(some))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _answer(self, some: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._ask([item for item, _ in some])
        except BaseException as error:
            for _, future in some:
                if not future.done():
                    # One for each: a shared one would gather the tracebacks of all.
                    refusal = ClusterUnavailable()
                    refusal.__cause__ = error
                    future.set_exception(refusal)
            if isinstance(error, ClusterUnavailable):
                return
            raise
        for (_, future), answer in zip(some, answers, strict=True):
            if not future.done():
                future.set_result(answer)
