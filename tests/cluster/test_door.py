"""The door to Redis keeps what asyncio promises."""

from __future__ import annotations

import asyncio

from hub.cluster.redis import Door
from hub.embedded import Valkey


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
