"""Coroutines whose first step runs at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hub.eager import start, within

Coro = Coroutine[Any, Any, None]


class Spawned:
    """What did not finish at once."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, coro: Coro) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(coro))
        return self.tasks[-1]


async def called_back(work: Any) -> None:
    """Run `work` where the protocol of a transport runs: in the loop, in no task."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def call() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    loop.call_soon(call)
    await done


async def test_what_never_waits_is_done_at_once_and_has_no_task() -> None:
    spawned, heard = Spawned(), []

    async def quick() -> None:
        heard.append("done")

    await called_back(lambda: heard.append(str(start(quick(), spawned))))
    assert heard == ["done", "None"] and not spawned.tasks


async def test_what_waits_goes_on_as_a_task_with_timeouts_of_its_first_step() -> None:
    spawned, heard = Spawned(), []

    async def slow() -> None:
        async with asyncio.timeout(0.01):
            heard.append("began")
            try:
                await asyncio.sleep(5)
            finally:
                heard.append("ended")

    await called_back(lambda: start(slow(), spawned))
    assert heard == ["began"]
    with pytest.raises(TimeoutError):
        await spawned.tasks[0]
    assert heard == ["began", "ended"]


async def test_a_task_group_of_the_first_step_is_cancelled_by_its_children() -> None:
    spawned = Spawned()

    async def fail() -> None:
        raise LookupError

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(5)

    await called_back(lambda: start(both(), spawned))
    with pytest.raises(BaseExceptionGroup):
        await spawned.tasks[0]


async def test_the_rest_can_be_cancelled_and_clean_up_by_waiting() -> None:
    spawned, heard = Spawned(), []

    async def tidy() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            await asyncio.sleep(0.001)
            heard.append("tidied")

    await called_back(lambda: start(tidy(), spawned))
    spawned.tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawned.tasks[0]
    assert heard == ["tidied"]


async def test_an_error_of_the_first_step_is_raised_and_nothing_is_current_after_it() -> None:
    async def bad() -> None:
        assert asyncio.current_task() is not None
        raise LookupError

    def work() -> None:
        with pytest.raises(LookupError):
            start(bad(), Spawned())
        assert asyncio.current_task() is None

    await called_back(work)


async def test_within_gives_the_result_or_times_out() -> None:
    async def answer(seconds: float) -> int:
        if seconds:
            await asyncio.sleep(seconds)
        return 42

    assert await within(0.01, answer(0)) == 42
    assert await within(1, answer(0.01)) == 42
    with pytest.raises(TimeoutError):
        await within(0.01, answer(5))


async def test_within_lets_its_own_task_be_cancelled() -> None:
    async def forever() -> None:
        await asyncio.sleep(5)

    async def wait() -> None:
        await within(5, forever())

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_within_gives_more_time_to_what_asks_for_it() -> None:
    async def answer(seconds: float) -> int:
        await asyncio.sleep(seconds)
        return 42

    assert await within(0.01, answer(0.05), lambda: 5) == 42
    with pytest.raises(TimeoutError):
        await within(0.01, answer(5), lambda: 0.01)
    with pytest.raises(TimeoutError):
        await within(0.01, answer(5), lambda: 0)


async def test_a_deadline_that_nobody_minds_leaves_no_cancellation_behind() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            return "all the same"
        return "never"

    assert await within(0.01, stubborn()) == "all the same"
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()
    await asyncio.sleep(0)


async def test_who_is_cancelled_by_somebody_else_is_cancelled_and_not_out_of_time() -> None:
    waiting = asyncio.ensure_future(_waits())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def _waits() -> None:
    await within(5, asyncio.sleep(5))
