"""Work that nobody breaks off in the middle."""

from __future__ import annotations

import asyncio

import pytest

from hub.sealed import sealed


async def test_a_cancelled_caller_waits_for_the_end() -> None:
    began, done = asyncio.Event(), []

    async def work() -> None:
        began.set()
        await asyncio.sleep(0.05)
        done.append("done")

    caller = asyncio.create_task(sealed(work()))
    await began.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == ["done"]


async def test_it_does_not_wait_for_ever() -> None:
    began, cut_off = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(30)
        finally:
            cut_off.set()

    caller = asyncio.create_task(sealed(work(), within_s=0.05))
    await began.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(caller, 5)
    await asyncio.wait_for(cut_off.wait(), 5)


async def test_a_result_and_an_error_come_through() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise LookupError

    assert await sealed(answer()) == 42
    with pytest.raises(LookupError):
        await sealed(fail())
