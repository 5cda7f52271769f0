"""The sweep against a real PostgreSQL and a LiveKit whose webhooks are lost, that dies, that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from db import participants
from hub.background.sweep import Sweep
from hub.context import Rules
from tests.background.conftest import World, eventually


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    """The node's own loops."""
    tasks = [asyncio.create_task(each.run()) for each in (world.inbox, world.sweep, world.due)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_sweep_alone_tells_the_whole_story(world: World) -> None:
    """S-189, S-248: every webhook is lost."""
    world.livekit.faults.webhooks.drop = {"*"}
    call = await world.call("anna", "bob")
    name = call.livekit_room_name
    world.livekit.join(name, "anna")
    world.livekit.join(name, "bob")
    track = world.livekit.publish(name, "anna", "microphone")
    report = await world.sweep.once()
    row, people = await world.row(call), await world.people(call)
    assert (row.status, row.participant_count) == ("active", 2)
    assert (people["anna"].status, people["anna"].is_audio_enabled) == ("joined", True)
    assert {correction.kind for correction in report.corrections} >= {"room:started", "participant:joined"}
    assert (report.calls, report.rooms, report.unreachable) == (1, 1, ())

    await world.media.mute(name, "anna", track, True)
    world.livekit.leave(name, "bob")
    for _ in range(2):
        world.clock.forward(10)
        await world.sweep.once()
    people = await world.people(call)
    assert (people["anna"].is_audio_enabled, people["bob"].status) == (False, "reconnecting")
    world.clock.forward(21)
    await world.due.once()
    assert await world.status(call, "bob") == "left"

    world.livekit.leave(name, "anna")
    world.livekit.close_room(name, "ROOM_CLOSED")
    for _ in range(3):
        world.clock.forward(25)
        await world.sweep.once()
        await world.due.once()
    world.clock.forward(60)
    await world.due.once()
    row = await world.row(call)
    assert (row.status, row.participant_count) == ("ended", 0)
    names = world.bus.names(call.id)
    assert names.count("room:started") == names.count("room:ended") == 1


async def test_a_sweep_of_what_is_right_changes_and_tells_nothing(world: World) -> None:
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    await world.work_off()
    heard = len(world.bus.heard)
    before = await world.people(call)
    world.clock.forward(10)
    report = await world.sweep.once()
    assert (report.corrections, report.skipped) == ((), 0)
    assert len(world.bus.heard) == heard
    assert await world.people(call) == before


async def test_a_dry_run_reports_and_changes_nothing(world: World) -> None:
    world.livekit.faults.webhooks.drop = {"*"}
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    for _ in range(2):
        report = await world.sweep.once(dry_run=True)
        assert {correction.kind for correction in report.corrections} == {"room:started", "participant:joined"}
        assert report.dry_run
    assert (await world.row(call)).status == "waiting"
    assert world.bus.heard == []


async def test_people_who_never_became_active_do_not_count(world: World) -> None:
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna", active=False)
    await world.sweep.once()
    assert (await world.row(call)).status == "waiting"


async def test_the_kicked_are_removed_by_the_sweep_too(world: World) -> None:
    """S-018: with every webhook lost."""
    world.livekit.faults.webhooks.drop = {"*"}
    call = await world.call("anna", "bob")
    name = call.livekit_room_name
    async with world.db.tenant(world.tenant_id) as tx:
        await participants.request_kick(tx, call.id, "anna", world.clock(), by="owner", reason=None)
    await world.settle(call)
    for identity in ("anna", "bob", "mallory"):
        world.livekit.join(name, identity)
    await world.sweep.once()
    assert set(world.livekit.rooms[name].participants) == {"bob"}


async def test_rooms_without_a_call_are_deleted_and_those_of_others_are_not(world: World) -> None:
    """S-043: what a failed creation left behind."""
    call = await world.call("anna")
    await world.media.create_room("room_hub0orphan_1")
    await world.media.create_room("somebody_elses")
    await world.media.create_room("room_hub1other_1")
    await world.sweep.once()
    assert "room_hub0orphan_1" in world.livekit.rooms
    world.clock.forward(61)
    report = await world.sweep.once()
    assert [c.room_name for c in report.corrections if c.kind == "orphan_room"] == ["room_hub0orphan_1"]
    assert set(world.livekit.rooms) == {call.livekit_room_name, "somebody_elses", "room_hub1other_1"}


async def test_a_room_that_outlives_its_call_is_deleted(world: World) -> None:
    """S-024: LiveKit was away when the call ended."""
    call = await world.call("anna")
    async with world.db.tenant(world.tenant_id) as tx:
        await tx.execute("UPDATE calls SET status = 'ended', ended_at = now() WHERE id = $1", call.id)
    world.clock.forward(61)
    await world.sweep.once()
    assert world.livekit.rooms == {}


async def test_one_failure_concludes_nothing(world: World) -> None:
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    await world.work_off()
    world.clock.forward(10)
    for method in ("ListRooms", "ListParticipants"):
        world.livekit.faults.fail_next(method, "internal")
        await world.sweep.once()
        assert await world.status(call, "anna") == "joined"


async def test_a_room_whose_node_is_gone_is_absent_although_it_is_listed(world: World) -> None:
    """A crashed node leaves its rooms in LiveKit's Redis: listed, and never answering."""
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    await world.work_off()
    world.livekit.faults.fail_next("ListParticipants", "internal", times=3)
    for _ in range(2):
        world.clock.forward(10)
        await world.sweep.once()
        assert await world.status(call, "anna") == "joined"
    world.clock.forward(10)
    report = await world.sweep.once()
    assert "MakeRoom" in {correction.kind for correction in report.corrections}


async def test_livekit_killed_and_started_again_costs_seconds_not_the_call(world: World) -> None:
    """Decision 3, S-189: the room is made again within 5 s of LiveKit's return, and who comes back goes on."""
    call = await world.call("anna", "bob")
    name = call.livekit_room_name
    for identity in ("anna", "bob"):
        world.livekit.join(name, identity)
    async with running(world):
        await eventually(lambda: world.status(call, "bob"), "joined")
        # So old that a list without it means something.
        world.clock.forward(5)
        await world.livekit.crash()
        await asyncio.sleep(0.5)
        await world.livekit.restart()

        async def made_again() -> bool:
            return name in world.livekit.rooms

        await eventually(made_again, True, within_s=5)
        await eventually(lambda: world.status(call, "anna"), "reconnecting")
        world.livekit.join(name, "anna")
        await eventually(lambda: world.status(call, "anna"), "joined")
        world.clock.forward(61)
        await eventually(lambda: world.status(call, "bob"), "left")
        row = await world.row(call)
    assert (row.status, row.livekit_room_sid) == ("active", world.livekit.rooms[name].info.sid)
    assert row.livekit_room_sid != call.livekit_room_sid
    names = world.bus.names(call.id)
    assert names.count("room:started") == 1 and "room:ended" not in names
    assert [p["identity"] for p in world.bus.last("participant:left")["participants"]] == ["bob"]


async def test_livekit_going_down_politely_costs_no_call_either(world: World) -> None:
    """SIGTERM: everybody left by SERVER_SHUTDOWN, the room finished, and the call goes on."""
    call = await world.call("anna")
    name = call.livekit_room_name
    world.livekit.join(name, "anna")
    await world.work_off()
    world.livekit.close_room(name, "SERVER_SHUTDOWN")
    await world.work_off()
    assert (await world.row(call)).status == "active"
    assert await world.status(call, "anna") == "reconnecting"
    # Made again at once, by the worker that heard of it.
    assert name in world.livekit.rooms
    world.livekit.join(name, "anna")
    await world.work_off()
    assert await world.status(call, "anna") == "joined"


async def test_livekit_gone_for_good_ends_its_calls_after_the_grace(world: World) -> None:
    """The grace is a setting; nothing is concluded from the first failures."""
    world.rules = Rules(absent_room_grace_s=6.0)
    call, waiting = await world.call("anna"), await world.call("bob")
    world.livekit.join(call.livekit_room_name, "anna")
    async with running(world):
        await eventually(lambda: world.status(call, "anna"), "joined")
        await world.livekit.crash()
        await asyncio.sleep(1)
        assert (await world.row(call)).status == "active"

        async def status() -> str:
            return (await world.row(call)).status

        await eventually(status, "ended", within_s=12)
    row = await world.row(call)
    assert row.end_reason == "media_lost"
    assert (await world.people(call))["anna"].left_reason == "call_ended"
    assert (await world.row(waiting)).status == "waiting"


async def test_a_call_that_waits_gets_its_room_back_only_for_somebody(world: World) -> None:
    call = await world.call()
    world.livekit.close_room(call.livekit_room_name, "ROOM_CLOSED")
    await world.work_off()
    row = await world.row(call)
    assert (row.status, row.livekit_room_sid, world.livekit.rooms) == ("waiting", None, {})
    world.clock.forward(10)
    await world.sweep.once()
    assert world.livekit.rooms == {}
    await world.invite(call, "anna")
    await world.sweep.once()
    assert set(world.livekit.rooms) == {call.livekit_room_name}


async def test_a_hub_that_was_down_is_right_after_one_sweep_interval(world: World) -> None:
    """S-189: joins, leaves and the end of a call pass while nobody listens."""
    call, over = await world.call("anna", "bob"), await world.call("carl")
    name = call.livekit_room_name
    world.livekit.join(name, "anna")
    world.livekit.join(over.livekit_room_name, "carl")
    await world.work_off()
    world.listening = False
    world.livekit.leave(name, "anna")
    world.livekit.join(name, "bob")
    world.livekit.close_room(over.livekit_room_name, "ROOM_CLOSED")
    await world.livekit.settled(30)
    world.listening = True
    world.clock.forward(60)
    world.sweep = Sweep(world, world.leader, regions=["default"])
    for _ in range(2):
        await world.sweep.once()
        world.clock.forward(10)
    await world.due.once()
    world.clock.forward(20)
    await world.due.once()
    assert (await world.status(call, "anna"), await world.status(call, "bob")) == ("left", "joined")
    world.clock.forward(61)
    await world.due.once()
    assert (await world.row(over)).status == "ended"


async def test_a_node_that_does_not_lead_does_not_sweep(world: World) -> None:
    world.leader.leading = False
    world.livekit.faults.webhooks.drop = {"*"}
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    before = len(world.livekit.calls)
    async with running(world):
        await asyncio.sleep(0.5)
        assert len(world.livekit.calls) == before
        world.leader.leading = True
        await eventually(lambda: world.status(call, "anna"), "joined")


async def test_the_sweep_outlives_a_database_that_is_away(world: World) -> None:
    call = await world.call("anna")
    world.livekit.faults.webhooks.drop = {"*"}
    world.livekit.join(call.livekit_room_name, "anna")
    async with running(world):
        async with world.db.system() as tx:
            # Every other connection of ours is cut.
            await tx.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND usename = 'hub_app' AND pid <> pg_backend_pid()"
            )
        await eventually(lambda: world.status(call, "anna"), "joined", within_s=8)


async def test_calls_of_many_tenants_are_swept(world: World) -> None:
    world.livekit.faults.webhooks.drop = {"*"}
    other = World(world.db, world.livekit, world.media, world.rules)
    mine, theirs = await world.call("anna"), await other.call("anna")
    world.livekit.join(mine.livekit_room_name, "anna")
    world.livekit.join(theirs.livekit_room_name, "anna")
    report = await world.sweep.once()
    assert report.calls == 2
    assert (await world.row(mine)).status == (await other.row(theirs)).status == "active"


async def test_two_reconciliations_in_a_row_conclude_no_more_than_one(world: World) -> None:
    """Each node has a sweep of its own; what counts is when LiveKit was asked."""
    world.livekit.faults.webhooks.drop = {"*"}
    call = await world.call("anna", "bob")
    for identity in ("anna", "bob"):
        world.livekit.join(call.livekit_room_name, identity)
    await world.sweep.once()
    world.livekit.leave(call.livekit_room_name, "bob")
    world.clock.forward(10)
    await asyncio.gather(*(Sweep(world, world.leader, regions=["default"]).once() for _ in range(2)))
    await world.sweep.once()
    assert await world.status(call, "bob") == "joined"
    world.clock.forward(2)
    await world.sweep.once()
    assert await world.status(call, "bob") == "reconnecting"


async def test_waiting_calls_expire(world: World) -> None:
    call = await world.call("anna")
    world.clock.forward(timedelta(days=2).total_seconds())
    await world.due.once()
    row = await world.row(call)
    assert (row.status, row.end_reason) == ("ended", "expired")
    await world.work_off()
    assert world.livekit.rooms == {}


async def test_calls_that_wait_for_nobody_are_passed_over(world: World) -> None:
    """Hundreds of calls that were made and never entered cost the sweep nothing, once it knows them."""
    ours = [await world.call(room=False) for _ in range(3)]
    joining = await world.call("anna", room=False)
    await _many(world, 400)
    world.clock.forward(10)
    assert (await world.sweep.once()).calls == 404
    world.clock.forward(10)
    report = await world.sweep.once()
    # The one with somebody on the way in is looked at each time.
    assert (report.calls, report.corrections) == (1, ())
    assert set(world.livekit.rooms) == {joining.livekit_room_name}
    # As soon as LiveKit has a room again, or somebody wants in, a call is looked at again.
    await world.media.create_room(ours[0].livekit_room_name)
    await world.invite(ours[1], "bob")
    assert (await world.sweep.once()).calls == 3
    assert ours[1].livekit_room_name in world.livekit.rooms


async def _many(world: World, number: int) -> None:
    """Calls that wait, as the hub made them, and whose rooms LiveKit has closed."""
    async with world.db.tenant(world.tenant_id) as tx:
        await tx.execute(
            "INSERT INTO calls (owner_id, name, call_type, livekit_room_name, region, waiting_expires_at)"
            " SELECT 'owner', 'Test', 'group', 'room_hub0many' || n || '_1', 'default', now() + interval '1 day'"
            " FROM generate_series(1, $1) n",
            number,
        )


async def test_livekit_is_looked_at_while_a_long_comparison_is_on(world: World) -> None:
    """A room that vanishes amid a round over hundreds of calls is made again before the round is over."""
    call = await world.call("anna")
    name = call.livekit_room_name
    world.livekit.join(name, "anna")
    await world.work_off()
    await _many(world, 400)
    world.clock.forward(10)
    world.sweep = Sweep(world, world.leader, regions=["default"], every_s=60, probe_s=0.05, turn_s=0.05)
    await world.sweep.probe(full=True)
    await world.livekit.crash()
    await world.livekit.restart()
    turns = 0
    while name not in world.livekit.rooms:
        assert not await world.sweep.probe(full=True), "the round is over, and the room is not there"
        turns += 1
    assert turns <= 3
    while not await world.sweep.probe(full=True):
        turns += 1
    assert turns > 3


async def test_a_round_of_many_turns_compares_every_call_once(world: World) -> None:
    await world.call("anna")
    await _many(world, 20)
    world.clock.forward(10)
    world.sweep = Sweep(world, world.leader, regions=["default"], turn_s=0)
    report = await world.sweep.once()
    assert (report.calls, report.skipped) == (21, 0)
