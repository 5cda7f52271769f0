"""A node that stops: whatever a worker has committed by then is told, and the sweep's lock is free at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from db.calls import Call
from hub.background.due import LostSockets
from tests.background.conftest import World
from tests.background.test_due import Lost, Roster, attach


async def due(world: World, call: Call) -> Coroutine[Any, Any, None]:
    world.livekit.join(call.livekit_room_name, "anna")
    await world.work_off()
    world.livekit.leave(call.livekit_room_name, "anna")
    await world.work_off()
    world.clock.forward(30)
    return world.due.run()


async def lost_sockets(world: World, call: Call) -> Coroutine[Any, Any, None]:
    roster = Roster()
    entry = await attach(world, call, "anna")
    since = world.clock()
    world.clock.forward(30)
    roster.gone.append(Lost(call.id, entry, since))
    return LostSockets(world, roster).run()


async def inbox(world: World, call: Call) -> Coroutine[Any, Any, None]:
    await attach(world, call, "anna")
    world.livekit.join(call.livekit_room_name, "anna")
    world.livekit.close_room(call.livekit_room_name, "ROOM_CLOSED")
    await world.livekit.settled()
    return world.inbox.run()


async def sweep(world: World, call: Call) -> Coroutine[Any, Any, None]:
    world.listening = False
    world.livekit.join(call.livekit_room_name, "anna")
    await world.livekit.settled()
    world.clock.forward(5)
    return world.sweep.run()


@pytest.mark.parametrize("worker", [due, lost_sockets, inbox, sweep])
async def test_what_is_committed_is_told_although_the_worker_is_stopped(
    world: World, worker: Callable[[World, Call], Any]
) -> None:
    call = await world.call("anna")
    running = await worker(world, call)
    told, before = world.bus, len(world.bus.heard)
    telling = asyncio.Event()

    async def slowly(*args: Any, **kwargs: Any) -> None:
        telling.set()
        await asyncio.sleep(0.2)
        await told.__class__.to_room(told, *args, **kwargs)

    world.bus.to_room = slowly  # type: ignore[method-assign]
    task = asyncio.create_task(running)
    await asyncio.wait_for(telling.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert len(world.bus.heard) > before
