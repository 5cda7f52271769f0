"""Coroutines that run until they have to wait, before anybody pays for the waiting.

Many commands never wait. A task for each of them costs more than the command does: a turn of the loop, and a timer for
the deadline. So the first step runs at once; only what then waits becomes a task, and gets its timer. (Half of this is
`eager_start` of Python 3.12; the deadline is not.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from enum import Enum
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Waits(Enum):
    """In place of a result that is not there yet."""

    WAITS = 0


WAITS: Final = Waits.WAITS


def start(
    coro: Coroutine[Any, Any, T], spawn: Callable[[Coroutine[Any, Any, T], *Ts], asyncio.Task[None]], *args: *Ts
) -> T | Waits:
    """Run the first step of `coro` now. Its result; or WAITS, and `spawn` has been given the rest, for a task.

    What the first step raises is raised here. Not to be called from within a task.
    """
    global _spare
    loop, stand_in = asyncio.get_running_loop(), _spare
    # Public for implementations of tasks other than asyncio's own (the manual, "Extending").
    asyncio._enter_task(loop, stand_in)  # type: ignore[arg-type]
    try:
        waits_for = coro.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        asyncio._leave_task(loop, stand_in)  # type: ignore[arg-type]
    _spare = _StandIn()
    stand_in.task = spawn(_rest(coro, waits_for), *args)
    return WAITS


class within(Generic[T]):
    """The result of `coro`, which may wait `seconds` in all. Raises TimeoutError.

    `more` is asked once, when they are over: how many seconds it gets still.
    """

    __slots__ = ("_coro", "_more", "_seconds")

    def __init__(self, seconds: float, coro: Coroutine[Any, Any, T], more: Callable[[], float] | None = None) -> None:
        self._seconds, self._coro, self._more = seconds, coro, more

    def __await__(self) -> Generator[Any, Any, T]:
        try:
            waits_for = self._coro.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        return (yield from bounded(self._seconds, self._coro, waits_for, self._more).__await__())


async def bounded(seconds: float, coro: Coroutine[Any, Any, T], waits_for: Any, more: Callable[[], float] | None) -> T:
    """What `within` comes to once `coro` has run as far as to wait for `waits_for`: for who took that step itself."""
    limit = _Limit(seconds, more)
    try:
        return await Rest(coro, waits_for)
    except asyncio.CancelledError as error:
        if limit.over():
            raise TimeoutError from error
        raise
    finally:
        limit.lift()


class _Limit:
    """What `asyncio.timeout` does, without a context: half of what such a wait costs."""

    __slots__ = ("_cancelling", "_expired", "_more", "_task", "_timer")

    def __init__(self, seconds: float, more: Callable[[], float] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._more, self._expired = task, more, False
        self._cancelling = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        more, self._more = self._more, None
        seconds = more() if more is not None else 0
        if seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end)
            return
        self._expired = True
        self._task.cancel()

    def over(self) -> bool:
        """The task was cancelled from here, and from nowhere else."""
        expired, self._expired = self._expired, False
        return expired and self._task.uncancel() <= self._cancelling

    def lift(self) -> None:
        self._timer.cancel()
        # It came too late, or nobody minded it.
        self.over()


async def _rest(coro: Coroutine[Any, Any, T], waits_for: Any) -> T:
    return await Rest(coro, waits_for)


class Rest(Generic[T]):
    """What is left of a coroutine that has run as far as to wait for `waits_for`."""

    __slots__ = ("_coro", "_waits_for")

    def __init__(self, coro: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._coro, self._waits_for = coro, waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        coro, waits_for = self._coro, self._waits_for
        while True:
            try:
                yield waits_for
            except BaseException as error:
                # Cancelled, most likely. It may wait again, to clean up.
                try:
                    waits_for = coro.throw(error)
                except StopIteration as done:
                    result: T = done.value
                    return result
            else:
                return (yield from coro.__await__())


class _StandIn:
    """The current task while a first step runs: what `asyncio.timeout` and the like ask of one goes to the task that
    the rest becomes."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    def cancel(self, msg: Any = None) -> bool:
        return self.task is not None and self.task.cancel(msg)

    def cancelling(self) -> int:
        return self.task.cancelling() if self.task is not None else 0

    def uncancel(self) -> int:
        return self.task.uncancel() if self.task is not None else 0

    def done(self) -> bool:
        return self.task is not None and self.task.done()


# For the next coroutine. Whoever had it before has finished, and cannot be waiting for it any more.
_spare = _StandIn()
