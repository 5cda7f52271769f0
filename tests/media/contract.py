"""What the hub expects of LiveKit, and the door of the hub: one suite over the fake server and the real one.

Each `test_contract_*.py` takes these tests and says what its `world` is.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from hub.media.values import SOURCES, Grant
from hub.protocol.errors import MediaError, NotFound
from tests.fakes.livekit import JoinRefused
from tests.media.worlds import World


async def test_a_room_is_made_with_its_limits_and_listed(world: World) -> None:
    """S-016, S-015, S-097, S-129, S-228: create and list, with an authenticated call each."""
    made = await world.door.create_room(
        world.room, max_participants=5, empty_timeout_s=60, departure_timeout_s=7, metadata={"topic": "tea"}
    )
    assert made.sid.startswith("RM_")
    assert (made.name, made.max_participants, made.empty_timeout_s, made.departure_timeout_s) == (world.room, 5, 60, 7)
    assert json.loads(made.metadata) == {"topic": "tea"}
    assert abs(made.created_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert await world.door.list_rooms([world.room]) == (made,)
    assert made in await world.door.list_rooms()
    assert await world.door.list_rooms([]) == ()


async def test_a_room_that_lives_keeps_the_settings_it_was_made_with(world: World) -> None:
    first = await world.door.create_room(world.room, max_participants=5, metadata={"a": 1})
    again = await world.door.create_room(world.room, max_participants=9, metadata={"b": 2})
    assert (again.sid, again.max_participants, again.metadata) == (first.sid, 5, first.metadata)


async def test_a_deleted_room_is_gone_and_may_be_deleted_again(world: World) -> None:
    """S-024: LiveKit's room is gone, its people are put out."""
    await world.door.create_room(world.room)
    anna = await world.join("anna")
    await world.door.delete_room(world.room)
    assert await anna.gone() == "ROOM_DELETED"
    assert await world.door.list_rooms([world.room]) == ()
    await world.door.delete_room(world.room)
    await world.event("room_finished")


async def test_room_metadata_is_replaced(world: World) -> None:
    """S-020."""
    await world.door.create_room(world.room, metadata={"a": 1, "b": 2})
    await world.door.update_room_metadata(world.room, {"a": 3})
    (room,) = await world.door.list_rooms([world.room])
    assert json.loads(room.metadata) == {"a": 3}


async def test_people_are_listed_with_state_and_tracks(world: World) -> None:
    """S-017: identity, name, state and tracks."""
    await world.door.create_room(world.room)
    anna, _ = await world.join("anna"), await world.join("ben")
    sid = await anna.publish("microphone")
    listed = {who.identity: who for who in await world.door.list_participants(world.room)}
    assert set(listed) == {"anna", "ben"}
    assert (listed["anna"].name, listed["anna"].state, listed["anna"].countable) == ("Anna", "active", True)
    assert [(track.sid, track.source, track.muted) for track in listed["anna"].tracks] == [(sid, "microphone", False)]
    assert listed["ben"].tracks == ()
    assert listed["anna"].grant == Grant(can_publish_sources=SOURCES)
    assert await world.door.get_participant(world.room, "ben") == listed["ben"]


async def test_a_removed_person_is_put_out(world: World) -> None:
    """S-018: disconnected with the reason, unknown afterwards."""
    await world.door.create_room(world.room)
    anna = await world.join("anna")
    await world.door.remove_participant(world.room, "anna", just_joined=True)
    assert await anna.gone() == "PARTICIPANT_REMOVED"
    left = await world.event("participant_left")
    assert left.participant is not None
    assert (left.participant.identity, left.participant.disconnect_reason) == ("anna", "PARTICIPANT_REMOVED")
    with pytest.raises(NotFound):
        await world.door.remove_participant(world.room, "anna")


async def test_only_what_is_given_of_a_person_changes(world: World) -> None:
    """S-021: an update of attributes alone leaves the metadata as it was, to the byte."""
    await world.door.create_room(world.room)
    await world.join("anna")

    async def anna() -> tuple[str, str, dict[str, str]]:
        who = await world.door.get_participant(world.room, "anna")
        return who.name, who.metadata, dict(who.attributes)

    metadata = '{"role":"participant"}'
    assert await anna() == ("Anna", metadata, {"color": "green"})
    await world.door.update_participant(world.room, "anna", attributes={"hand": "up"})
    assert await anna() == ("Anna", metadata, {"color": "green", "hand": "up"})
    await world.door.update_participant(world.room, "anna", attributes={"color": "", "hand": "down"})
    assert await anna() == ("Anna", metadata, {"hand": "down"})
    await world.door.update_participant(world.room, "anna", name="Änne")
    assert await anna() == ("Änne", metadata, {"hand": "down"})
    await world.door.update_participant(world.room, "anna", metadata={})
    assert await anna() == ("Änne", "{}", {"hand": "down"})
    await world.door.update_participant(world.room, "anna")
    assert await anna() == ("Änne", "{}", {"hand": "down"})


async def test_a_track_is_muted_and_unmuted(world: World) -> None:
    """S-022."""
    await world.door.create_room(world.room)
    anna = await world.join("anna")
    sid = await anna.publish("microphone")
    for muted in (True, False):
        await world.door.mute(world.room, "anna", sid, muted)
        (track,) = (await world.door.get_participant(world.room, "anna")).tracks
        assert track.muted is muted
    with pytest.raises(NotFound):
        await world.door.mute(world.room, "anna", "TR_unknown", True)


async def test_data_reaches_those_it_is_for(world: World) -> None:
    """S-023: to one, to all, to nobody."""
    await world.door.create_room(world.room)
    anna, ben = await world.join("anna"), await world.join("ben")
    await world.door.send_data(world.room, b"nobody", topic="t", identities=[])
    await world.door.send_data(world.room, b"ben", topic="t", identities=["ben", "somebody else"])
    await ben.hears("ben")
    await world.door.send_data(world.room, b"all", topic="t")
    await anna.hears("all")
    await ben.hears("all")
    assert (anna.heard(), ben.heard()) == (["all"], ["ben", "all"])


async def test_a_lost_right_unpublishes_and_other_rights_stay(world: World) -> None:
    await world.door.create_room(world.room)
    anna = await world.join("anna", Grant(can_publish_sources=SOURCES, can_subscribe=False))
    microphone, camera = await anna.publish("microphone"), await anna.publish("camera")
    wanted = Grant(can_publish_sources=frozenset({"microphone"}), can_subscribe=False)
    await world.door.set_permissions(world.room, "anna", wanted)
    await world.event("track_unpublished", lambda event: event.track is not None and event.track.sid == camera)
    who = await world.door.get_participant(world.room, "anna")
    assert who.grant == wanted
    assert [track.sid for track in who.tracks] == [microphone]
    # And nothing at all is nothing, not LiveKit's "all".
    await world.door.set_permissions(world.room, "anna", Grant())
    who = await world.door.get_participant(world.room, "anna")
    assert who.grant == Grant()
    assert who.tracks == ()


async def test_subscriptions_are_changed(world: World) -> None:
    await world.door.create_room(world.room)
    anna, ben = await world.join("anna"), await world.join("ben")
    sid = await anna.publish("microphone")
    await ben.subscribed(sid)
    await world.door.update_subscriptions(world.room, "ben", [sid], False)
    await ben.unsubscribed(sid)
    await world.door.update_subscriptions(world.room, "ben", [sid], True)
    await ben.subscribed(sid)


async def test_what_is_not_there_is_said_at_once(world: World) -> None:
    """S-018: an unknown room or person is NotFound, where LiveKit itself is silent for 3 s about some of them."""
    await world.door.create_room(world.room)
    for room in (world.room, "room_unknown_1"):
        for call in (
            world.door.get_participant(room, "x"),
            world.door.remove_participant(room, "x"),
            world.door.update_participant(room, "x", name="X"),
            world.door.set_permissions(room, "x", Grant()),
            world.door.mute(room, "x", "TR_x", True),
            world.door.update_subscriptions(room, "x", ["TR_x"], True),
        ):
            with pytest.raises(NotFound):
                await call
    with pytest.raises(NotFound):
        await world.door.update_room_metadata("room_unknown_1", {})
    with pytest.raises(NotFound):
        await world.door.send_data("room_unknown_1", b"x", topic="t")


async def test_too_much_metadata_is_a_refusal_that_says_so(world: World) -> None:
    await world.door.create_room(world.room)
    with pytest.raises(MediaError, match="metadata size exceeds limits") as caught:
        await world.door.update_room_metadata(world.room, {"x": "y" * 20_000})
    assert caught.value.details == {"code": "invalid_argument", "status": 400}


async def test_a_token_opens_its_own_room_only(world: World) -> None:
    """S-130: a token for another room is refused by LiveKit, and so is anybody's for a room that is not there."""
    with pytest.raises(JoinRefused):
        await world.join("anna")
    await world.door.create_room(world.room)
    # LiveKit takes the room from the token; one for a room that nobody made opens nothing, this one neither.
    with pytest.raises(JoinRefused):
        await world.join("anna", token=world.token("anna", room="room_other_1"))
    assert await world.door.list_participants(world.room) == ()


async def test_a_calls_life_is_told_by_webhooks(world: World) -> None:
    """S-131: each verifies, and sids tie them together."""
    room = await world.door.create_room(world.room)
    anna = await world.join("anna")
    sid = await anna.publish("microphone")
    published = await world.event("track_published")
    await anna.leave()
    joined, left = await world.event("participant_joined"), await world.event("participant_left")
    assert (await world.event("room_started")).room_sid == room.sid == left.room_sid
    assert joined.participant is not None
    assert left.participant is not None
    assert published.participant is not None
    assert published.track is not None
    assert joined.participant.sid == left.participant.sid == published.participant.sid
    assert (joined.participant.state, joined.participant.name) == ("active", "Anna")
    assert (left.participant.state, left.participant.disconnect_reason) == ("disconnected", "CLIENT_INITIATED")
    assert (published.track.sid, published.track.source) == (sid, "microphone")
    await world.event("track_unpublished")
    ids = [event.event_id for event in world.events]
    assert len(set(ids)) == len(ids)
    assert all(b"turnPassword" not in event.raw for event in world.events)
