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
        (connection,) = door._redis.connection_pool._available_connections
        assert connection._writer is not None
        connection._writer.transport.abort()
        with pytest.raises(ClusterUnavailable):
            await door.command("PING")
        assert await door.command("PING")
        await door.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write_to_a_closed_connection())
