"""LiveKit's webhooks through the inbox into the tables, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from db import inbox, participants
from db.pool import Database
from hub.background.inbox import Inbox
from hub.media import webhooks
from hub.media.values import WebhookEvent
from tests.background.conftest import World, eventually


async def test_a_call_lives_its_life_by_webhooks_alone(world: World) -> None:
    """S-040, S-079, S-080, S-081, S-082, S-083, S-084, S-219, S-233, S-248: with no socket at all."""
    call = await world.call("anna", "bob")
    await world.work_off()
    assert (await world.row(call)).status == "waiting"

    world.livekit.join(call.livekit_room_name, "anna")
    world.livekit.join(call.livekit_room_name, "bob")
    track = world.livekit.publish(call.livekit_room_name, "anna", "camera")
    await world.work_off()
    row, people = await world.row(call), await world.people(call)
    assert (row.status, row.participant_count) == ("active", 2)
    assert row.started_at == people["anna"].joined_at
    assert (people["anna"].status, people["anna"].is_video_enabled) == ("joined", True)

    world.livekit.unpublish(call.livekit_room_name, "anna", track)
    world.livekit.leave(call.livekit_room_name, "bob")
    await world.work_off()
    people = await world.people(call)
    assert (people["anna"].is_video_enabled, people["bob"].status) == (False, "reconnecting")
    world.clock.forward(3)
    assert await world.due.once() == 1
    people = await world.people(call)
    assert (people["bob"].status, people["bob"].left_reason) == ("left", "left")

    world.livekit.close_room(call.livekit_room_name, "ROOM_CLOSED")
    await world.work_off()
    row, people = await world.row(call), await world.people(call)
    assert (row.status, row.participant_count, row.end_reason) == ("ended", 0, "room_finished")
    assert (people["anna"].status, people["anna"].left_reason) == ("left", "call_ended")
    names = world.bus.names(call.id)
    assert names[:1] == ["room:started"] and names[-1] == "room:ended"
    assert names.count("room:started") == names.count("room:ended") == 1
    assert {"participant:joined", "participant:left", "media:changed"} <= set(names)


async def test_each_event_counts_once_however_often_it_comes(world: World) -> None:
    """S-082, S-084, S-188: duplicates are no-ops."""
    world.livekit.faults.webhooks.duplicate = True
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    world.livekit.publish(call.livekit_room_name, "anna")
    await world.work_off()
    assert world.bus.names(call.id) == ["room:started", "participant:joined", "media:changed"] or world.bus.names(
        call.id
    ) == ["room:started", "participant:joined"]
    async with world.db.system() as tx:
        depth = await inbox.depth(tx)
    assert (depth.pending, depth.dead) == (0, 0)


async def test_reordered_events_end_in_the_same_picture(world: World) -> None:
    """S-040, S-082: `left` before `joined`, a track before its owner."""
    world.livekit.faults.webhooks.reorder = True
    call = await world.call("anna", "bob")
    name = call.livekit_room_name
    world.livekit.join(name, "anna")
    world.livekit.publish(name, "anna")
    world.livekit.join(name, "bob")
    world.livekit.leave(name, "bob")
    await world.work_off()
    world.clock.forward(3)
    await world.due.once()
    people = await world.people(call)
    assert (people["anna"].status, people["anna"].is_audio_enabled) == ("joined", True)
    assert people["bob"].status == "left"


async def test_a_full_reconnect_is_never_told_as_a_leave(world: World) -> None:
    call = await world.call("anna")
    name = call.livekit_room_name
    world.livekit.join(name, "anna")
    await world.work_off()
    world.livekit.leave(name, "anna", reason="CLIENT_INITIATED")
    await world.work_off()
    world.livekit.join(name, "anna")
    await world.work_off()
    world.livekit.join(name, "anna")  # DUPLICATE_IDENTITY takes the old one out
    await world.work_off()
    world.clock.forward(30)
    await world.due.once()
    assert await world.status(call, "anna") == "joined"
    assert world.bus.names(call.id).count("participant:joined") == 1
    assert "participant:left" not in world.bus.names(call.id)


async def test_the_kicked_are_removed_each_time_they_come_back(world: World) -> None:
    """S-018: an old LiveKit token lets nobody back in."""
    call = await world.call("anna", "bob")
    name = call.livekit_room_name
    world.livekit.join(name, "anna")
    world.livekit.join(name, "bob")
    await world.work_off()
    async with world.db.tenant(world.tenant_id) as tx:
        await participants.request_kick(tx, call.id, "anna", world.clock(), by="owner", reason="noise")
    await world.settle(call)
    await world.work_off()
    assert set(world.livekit.rooms[name].participants) == {"bob"}
    # The clock of the events is the database's, which may be a moment behind ours.
    await asyncio.sleep(0.02)
    world.livekit.join(name, "anna")
    await world.work_off()
    assert set(world.livekit.rooms[name].participants) == {"bob"}
    assert await world.status(call, "anna") == "kicked"
    assert world.bus.last("participant:left")["participants"][0]["left_reason"] == "noise"
    assert world.bus.names(call.id).count("participant:joined") == 1


async def test_a_stranger_with_a_token_of_his_own_is_removed(world: World) -> None:
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "mallory")
    await world.work_off()
    assert world.livekit.rooms[call.livekit_room_name].participants == {}
    assert (await world.row(call)).status == "waiting"


async def test_agents_and_recorders_are_left_alone(world: World) -> None:
    """S-079: they do not count."""
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "EG_1", kind="EGRESS")
    await world.work_off()
    assert set(world.livekit.rooms[call.livekit_room_name].participants) == {"EG_1"}
    assert (await world.row(call)).status == "waiting"


async def test_an_event_that_cannot_be_processed_is_tried_again_and_then_kept(world: World) -> None:
    """S-188: an exception costs no event; at last it lies there for an operator, with its error."""
    broken = True

    def parse(raw: bytes) -> WebhookEvent:
        event = webhooks.parse(raw)
        if broken and event.event == "participant_joined":
            raise RuntimeError("boom")
        return event

    world.inbox = Inbox(world, parse, poll_s=0.2)
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    await world.work_off()
    assert await world.status(call, "anna") == "joining"
    async with world.db.system() as tx:
        waiting = await inbox.page(tx, status="pending", limit=10)
    assert [event.event for event in waiting] == ["participant_joined"]
    assert waiting[0].last_error == "RuntimeError: boom"
    assert waiting[0].next_attempt_at > waiting[0].received_at + timedelta(milliseconds=500)

    broken = False
    await asyncio.sleep(1.1)
    await world.work_off()
    assert await world.status(call, "anna") == "joined"


async def test_an_event_is_given_up_with_its_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-188."""
    monkeypatch.setattr("hub.background.inbox._ATTEMPTS", 1)

    def parse(raw: bytes) -> WebhookEvent:
        raise RuntimeError("boom")

    world.inbox = Inbox(world, parse)
    await world.call("anna")
    await world.work_off()
    async with world.db.system() as tx:
        dead = await inbox.page(tx, status="dead", limit=10)
    assert [(event.event, event.last_error) for event in dead] == [("room_started", "RuntimeError: boom")]


async def test_a_webhook_may_come_before_its_call(world: World) -> None:
    """CreateRoom is answered, and its webhook sent, before the row of the call is committed."""
    call = await world.call("anna")
    world.livekit.faults.webhooks.drop = {"*"}
    other = await world.call("bob", room=False)
    world.livekit.faults.webhooks.drop = set()
    name = "room_early_1"
    await world.media.create_room(name)
    world.livekit.join(name, "bob")
    await world.work_off()
    async with world.db.system() as tx:
        early = await inbox.page(tx, status="pending", limit=10)
    assert {event.room_name for event in early} == {name}
    async with world.db.tenant(world.tenant_id) as tx:
        await tx.execute("UPDATE calls SET livekit_room_name = $2 WHERE id = $1", other.id, name)
    await asyncio.sleep(1.1)
    await world.work_off()
    assert (await world.row(other)).status == "active"
    assert (await world.row(call)).status == "waiting"


async def test_a_room_that_is_none_of_ours_is_let_be(world: World) -> None:
    await world.media.create_room("somebody_elses")
    world.livekit.join("somebody_elses", "x")
    await world.work_off()
    world.clock.forward(10)
    await asyncio.sleep(1.1)
    await world.work_off()
    async with world.db.system() as tx:
        assert (await inbox.depth(tx)).pending == 0
    assert set(world.livekit.rooms["somebody_elses"].participants) == {"x"}


async def test_the_worker_wakes_for_an_event(world: World) -> None:
    call = await world.call("anna")
    worker = asyncio.create_task(world.inbox.run())
    try:
        world.livekit.join(call.livekit_room_name, "anna")
        await eventually(lambda: world.status(call, "anna"), "joined", within_s=3)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def test_two_workers_tell_one_story(world: World) -> None:
    """Two nodes work off the same inbox."""
    other = Inbox(world, webhooks.parse, poll_s=0.1)
    calls = [await world.call("anna", "bob") for _ in range(4)]
    workers = [asyncio.create_task(each.run()) for each in (world.inbox, other)]
    try:
        for call in calls:
            for identity in ("anna", "bob"):
                world.livekit.join(call.livekit_room_name, identity)
        await world.livekit.settled()
        for call in calls:
            await eventually(lambda call=call: world.status(call, "bob"), "joined", within_s=5)
            await eventually(lambda call=call: world.status(call, "anna"), "joined", within_s=5)
        for call in calls:
            assert world.bus.names(call.id).count("room:started") == 1
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def test_durations_are_the_sum_of_the_stays(world: World) -> None:
    """S-041: by LiveKit's clock, within a second."""
    call = await world.call("anna", "bob")
    name = call.livekit_room_name
    world.livekit.join(name, "bob")
    world.livekit.join(name, "anna")
    await asyncio.sleep(1.2)
    world.livekit.leave(name, "anna")
    await world.livekit.settled()
    await asyncio.sleep(1.5)
    world.livekit.join(name, "anna")
    await asyncio.sleep(1.2)
    world.livekit.leave(name, "anna")
    world.livekit.leave(name, "bob")
    world.livekit.close_room(name, "ROOM_CLOSED")
    await world.work_off()
    people, row = await world.people(call), await world.row(call)
    assert row.duration_seconds == pytest.approx(3.9, abs=1)
    assert people["bob"].duration_seconds == pytest.approx(3.9, abs=1)
    assert people["anna"].duration_seconds == pytest.approx(2.4, abs=1)


class Stumbling:
    """A database whose first transaction across tenants runs into a bug."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.stumbled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def system(self) -> Any:
        if not self.stumbled:
            self.stumbled += 1
            raise LookupError("a bug")
        return self._db.system()


async def test_a_bug_does_not_end_the_worker(world: World) -> None:
    call = await world.call("anna")
    world.livekit.join(call.livekit_room_name, "anna")
    await world.livekit.settled()
    whole, stumbling = world.db, Stumbling(world.db)
    world.db = stumbling  # type: ignore[assignment]
    loop = asyncio.create_task(world.inbox.run())
    try:
        await eventually(lambda: world.status(call, "anna"), "joined")
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        world.db = whole
    assert stumbling.stumbled == 1
