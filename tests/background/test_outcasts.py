"""Kicked people whose node was not told, against a real PostgreSQL."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from db import participants
from db.calls import Call
from hub.background.outcasts import Outcasts
from tests.background.conftest import World
from tests.background.test_due import attach


class Here(msgspec.Struct):
    id: str
    user: tuple[UUID, str]
    rooms: dict[UUID, UUID]


async def enter(world: World, call: Call, identity: str) -> Here:
    entry = await attach(world, call, identity)
    return Here(entry.session_id, (world.tenant_id, entry.user_id), {call.id: entry.participant_id})


async def kick(world: World, call: Call, user_id: str) -> None:
    async with world.db.tenant(world.tenant_id) as tx:
        await participants.request_kick(tx, call.id, user_id, world.clock(), by="owner", reason="noise")
    await world.settle(call)


async def test_whoever_was_kicked_and_is_still_here_is_put_out(world: World) -> None:
    """The order to do so was lost: Redis was away, or this node was deaf."""
    call, other = await world.call("ada", "ben"), await world.call("ben")
    here = [await enter(world, call, "ada"), await enter(world, call, "ben"), await enter(world, other, "ben")]
    orders: list[dict[str, Any]] = []
    outcasts = Outcasts(world.db, lambda: here, orders.append)
    assert await outcasts.once() == 0
    await kick(world, call, "ben")
    assert await outcasts.once() == 1
    assert orders == [
        {
            "kind": "evict",
            "call_id": str(call.id),
            "session_id": here[1].id,
            "event": "room:left",
            "data": {"reason": "kicked", "message": "noise"},
        }
    ]


async def test_whoever_was_let_in_again_stays(world: World) -> None:
    call = await world.call("ben")
    await enter(world, call, "ben")
    await kick(world, call, "ben")
    async with world.db.tenant(world.tenant_id) as tx:
        await participants.readmit(tx, call.id, "ben", world.clock())
    await world.invite(call, "ben")
    ben = await enter(world, call, "ben")
    orders: list[dict[str, Any]] = []
    assert await Outcasts(world.db, lambda: [ben], orders.append).once() == 0
    assert orders == []
