"""Ends that come by the thousand: all of them seen to, in order, and the loop goes on between them."""

from __future__ import annotations

import asyncio
import time

from hub.transport.socketio.slices import Slices


async def test_a_thousand_ends_leave_the_loop_time_for_others() -> None:
    done: list[int] = []
    slices_over: list[int] = []

    def do(number: int) -> None:
        until = time.monotonic() + 0.0002
        while time.monotonic() < until:
            pass
        done.append(number)

    slices: Slices[int] = Slices(do, lambda: slices_over.append(len(done)))
    for number in range(500):
        slices.add(number)
    assert done == []
    turns = 0
    while len(done) < 500:
        await asyncio.sleep(0)
        turns += 1
    assert done == list(range(500))
    # Half a dozen milliseconds of work at a time at most, and each slice is reported.
    assert turns > 10
    assert slices_over[-1] == 500
    assert slices_over == sorted(set(slices_over))


async def test_what_crashes_ends_neither_the_slice_nor_the_rest() -> None:
    done: list[int] = []

    def do(number: int) -> None:
        if number == 3:
            raise ValueError
        done.append(number)
        if number == 4:
            slices.add(10)

    slices: Slices[int] = Slices(do, lambda: None)
    for number in range(6):
        slices.add(number)
    await asyncio.sleep(0.05)
    assert done == [0, 1, 2, 4, 5, 10]
