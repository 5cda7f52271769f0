"""The passing of time, and sockets that stayed away, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db import participants
from db.calls import Call
from hub.background.due import Due, LostSockets
from hub.context import RosterEntry
from tests.background.conftest import World, eventually


class Lost(msgspec.Struct, frozen=True):
    call_id: UUID
    entry: RosterEntry
    since: datetime


class Roster:
    def __init__(self) -> None:
        self.here: dict[UUID, list[RosterEntry]] = {}
        self.gone: list[Lost] = []
        self.confirmed: list[Lost] = []

    async def lost(self, grace_s: float) -> Sequence[Lost]:
        return list(self.gone)

    async def confirm(self, lost: Lost) -> None:
        self.gone.remove(lost)
        self.confirmed.append(lost)

    async def sessions(self, call_id: UUID) -> Sequence[RosterEntry]:
        return self.here.get(call_id, [])


async def attach(world: World, call: Call, identity: str) -> RosterEntry:
    person = (await world.people(call))[identity]
    async with world.db.tenant(world.tenant_id) as tx:
        await participants.attach(tx, person.id, world.clock())
    await world.settle(call)
    return RosterEntry(f"session of {identity}", person.id, person.user_id, world.tenant_id, "node", "node/1")


async def test_a_socket_that_stays_away_is_a_leave(world: World) -> None:
    call, roster = await world.call("anna"), Roster()
    sockets = LostSockets(world, roster)
    entry = await attach(world, call, "anna")
    row = await world.row(call)
    assert (await world.status(call, "anna"), row.status, row.participant_count) == ("joined", "waiting", 1)
    world.clock.forward(100)
    since = world.clock()
    roster.gone.append(Lost(call.id, entry, since))
    world.clock.forward(30)
    assert await sockets.once() == 1
    anna = (await world.people(call))["anna"]
    assert (anna.status, anna.left_reason, anna.left_at) == ("left", "connection_lost", since)
    assert round(anna.duration_seconds or 0) == 100
    assert world.bus.names(call.id) == ["participant:joined", "participant:left"]
    assert len(roster.confirmed) == 1


async def test_whoever_is_back_in_time_never_left(world: World) -> None:
    call, roster = await world.call("anna", "bob"), Roster()
    sockets = LostSockets(world, roster)
    anna, bob = await attach(world, call, "anna"), await attach(world, call, "bob")
    since = world.clock()
    world.clock.forward(30)
    # Anna has another session already; Bob left and attached again after the one that is lost.
    roster.here[call.id] = [msgspec.structs.replace(anna, session_id="another")]
    async with world.db.tenant(world.tenant_id) as tx:
        await participants.detach(tx, [bob.participant_id], world.clock(), "connection_lost")
        await participants.attach(tx, bob.participant_id, world.clock())
    roster.gone += [Lost(call.id, anna, since), Lost(call.id, bob, since)]
    await sockets.once()
    assert await world.status(call, "anna") == await world.status(call, "bob") == "joined"
    assert roster.gone == []
    assert "participant:left" not in world.bus.names(call.id)


async def test_media_keeps_somebody_in_whose_socket_is_lost(world: World) -> None:
    call, roster = await world.call("anna"), Roster()
    entry = await attach(world, call, "anna")
    world.livekit.join(call.livekit_room_name, "anna")
    await world.work_off()
    since = world.clock()
    world.clock.forward(30)
    roster.gone.append(Lost(call.id, entry, since))
    await LostSockets(world, roster).once()
    assert await world.status(call, "anna") == "joined"


async def test_people_whom_no_roster_knows_any_more_are_detached(world: World) -> None:
    """S-189: node and Redis died together; the database alone remembers them."""
    call, roster = await world.call("anna", "bob"), Roster()
    sockets = LostSockets(world, roster)
    await attach(world, call, "anna")
    roster.here[call.id] = [await attach(world, call, "bob")]
    assert await sockets.strays() == 0
    world.clock.forward(31)
    assert await sockets.strays() == 0
    assert await world.status(call, "anna") == "joined"
    world.clock.forward(31)
    assert await sockets.strays() == 1
    assert (await world.status(call, "anna"), await world.status(call, "bob")) == ("left", "joined")


async def test_the_clock_loop_settles_what_is_due_without_being_asked(world: World) -> None:
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    await world.work_off()
    loop = asyncio.create_task(world.due.run())
    try:
        world.livekit.leave(call.livekit_room_name, "anna")
        await world.work_off()
        await eventually(lambda: world.status(call, "anna"), "left", within_s=6)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_two_clocks_tell_one_story(world: World) -> None:
    call = await world.call("anna", "bob")
    for identity in ("anna", "bob"):
        world.livekit.join(call.livekit_room_name, identity)
    await world.work_off()
    for identity in ("anna", "bob"):
        world.livekit.leave(call.livekit_room_name, identity, reason="CONNECTION_TIMEOUT")
    await world.work_off()
    world.clock.forward(21)
    other = Due(world)
    await asyncio.gather(world.due.once(), other.once())
    left = [payload for _, name, payload in world.bus.heard if name == "participant:left"]
    assert sorted(person["identity"] for event in left for person in event["participants"]) == ["anna", "bob"]


async def test_a_seat_held_by_a_token_is_given_back_in_time(world: World) -> None:
    """S-038: a token that nobody used holds its seat until it can no longer be used."""
    call = await world.call("anna")
    assert await world.status(call, "anna") == "joining"
    world.clock.forward(600 + 119)
    await world.due.once()
    assert await world.status(call, "anna") == "joining"
    world.clock.forward(2)
    await world.due.once()
    assert await world.status(call, "anna") == "invited"


async def test_one_lost_socket_that_cannot_be_settled_holds_up_no_other(world: World) -> None:
    call, roster = await world.call("anna", "bob"), Roster()
    anna, bob = await attach(world, call, "anna"), await attach(world, call, "bob")
    since = world.clock()
    world.clock.forward(30)
    broken = msgspec.structs.replace(anna, participant_id="no id at all")
    roster.gone += [Lost(call.id, broken, since), Lost(call.id, bob, since)]
    assert await LostSockets(world, roster).once() == 1
    assert (await world.status(call, "anna"), await world.status(call, "bob")) == ("joined", "left")
    assert [lost.entry for lost in roster.gone] == [broken]
