"""The door to Redis keeps what asyncio promises."""

from __future__ import annotations

import asyncio

import pytest

from hub.cluster.redis import Door
from hub.embedded import Valkey
from hub.protocol.errors import ClusterUnavailable


async def test_a_cancellation_is_never_swallowed(valkey: Valkey) -> None:
    """At whatever step of connecting and asking it comes: a loop that is told to end ends."""
    swallowed, cancelled = [], 0
    for step in range(40):
        for _ in range(3):
            door = Door(valkey.url)
            asked = asyncio.create_task(door.command("PING"))
            for _ in range(step):
                await asyncio.sleep(0)
            if asked.cancel():
                await asyncio.wait([asked])
                cancelled += 1
                if not asked.cancelled():
                    swallowed.append(step)
            await door.close()
    assert cancelled > 50
    assert swallowed == []


def test_a_connection_that_closes_under_a_write_is_a_redis_that_is_away(valkey: Valkey) -> None:
    """On the loop the hub runs on, which says so by an error of its own."""
    uvloop = pytest.importorskip("uvloop")

    async def write_to_a_closed_connection() -> None:
        door = Door(valkey.url)
        await door.command("PING")
        link = door._ways[None].link
        assert link is not None and link._transport is not None
        link._transport.abort()
        with pytest.raises(ClusterUnavailable):
            await door.command("PING")
        assert await door.command("PING")
        await door.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write_to_a_closed_connection())


async def test_many_commands_at_once_take_one_connection_and_keep_their_order(valkey: Valkey) -> None:
    door = Door(valkey.url)
    before = await door.command("INCR", "test:door")
    numbers = await asyncio.gather(*(door.command("INCR", "test:door") for _ in range(500)))
    assert numbers == list(range(before + 1, before + 501))
    clients = await door.command("CLIENT", "LIST")
    assert clients.count(f"id={await door.command('CLIENT', 'ID')} ".encode()) == 1
    await door.close()


async def test_a_server_that_does_not_answer_costs_half_a_second_once_and_is_asked_anew(valkey: Valkey) -> None:
    door = Door(valkey.url)
    await door.command("PING")
    clock = asyncio.get_running_loop().time
    valkey.freeze()
    try:
        started = clock()
        for _ in range(200):
            with pytest.raises(ClusterUnavailable):
                await door.command("PING")
        assert clock() - started < 3
    finally:
        valkey.thaw()
    thawed = clock()
    while True:
        try:
            assert await door.command("PING") == b"PONG"
            break
        except ClusterUnavailable:
            assert clock() - thawed < 10
            await asyncio.sleep(0.05)
    await door.close()
