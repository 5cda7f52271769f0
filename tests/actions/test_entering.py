"""Coming in and going out: seats, tokens, snapshots, recovery, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import msgspec
import pytest

from hub.protocol.errors import (
    AlreadyInRoom,
    ClusterUnavailable,
    Conflict,
    HubError,
    LobbyRequired,
    NotFound,
    NotInRoom,
    RoomFull,
    RoomLocked,
    ValidationFailed,
)
from tests.actions.conftest import OTHER_TENANT, Node, Socket


async def test_the_briefs_join_request_gives_a_token(hub: Node) -> None:
    """S-036, S-143, S-144, S-019: the brief's keys, and a token that says who, where and what."""
    ann, john = hub.person("ann"), hub.person("john")
    call_id = await ann.room()
    body = {"display_name": "John Doe", "metadata": '{"role":"engineer"}'}
    answer = msgspec.to_builtins(await john.do("room:token", call_id=call_id, **body))
    assert set(answer) == {"token", "call_id", "room_name", "identity", "participant_id", "url", "expires_at"}
    assert (answer["call_id"], answer["identity"]) == (str(call_id), "john")
    assert answer["url"].startswith("ws")
    claims = jwt.decode(answer["token"], hub.livekit.api_secret, algorithms=["HS256"])
    assert (claims["sub"], claims["name"]) == ("john", "John Doe")
    assert msgspec.json.decode(claims["metadata"]) == {"role": "engineer"}
    assert claims["exp"] - claims["nbf"] <= hub.rules.token_ttl_s
    video = claims["video"]
    assert (video["room"], video["roomJoin"], video["canUpdateOwnMetadata"]) == (answer["room_name"], True, False)
    assert "roomAdmin" not in video
    row = await hub.rows("SELECT * FROM call_participants WHERE id = $1", UUID(answer["participant_id"]))
    assert (row[0]["user_id"], row[0]["status"], row[0]["display_name"]) == ("john", "joining", "John Doe")


async def test_the_identity_is_stable_and_a_device_has_its_own(hub: Node) -> None:
    call_id = await hub.person("ann").room()
    john = hub.person("john")
    first, second = [await john.do("room:token", call_id=call_id) for _ in range(2)]
    phone = await john.do("room:token", call_id=call_id, device_id="phone")
    assert (first.identity, first.participant_id) == (second.identity, second.participant_id)
    assert phone.identity == "john:phone"
    assert phone.participant_id != first.participant_id


async def test_a_device_cannot_be_made_to_look_like_somebody_else(hub: Node) -> None:
    """S-173: user ids may hold a colon, as an identity with a device does."""
    call_id = await hub.person("ann").room()
    owner_of_the_name = await hub.person("john:phone").do("room:token", call_id=call_id)
    with pytest.raises(Conflict):
        await hub.person("john").do("room:token", call_id=call_id, device_id="phone")
    row = await hub.rows("SELECT user_id FROM call_participants WHERE id = $1", owner_of_the_name.participant_id)
    assert row[0]["user_id"] == "john:phone"


@pytest.mark.parametrize(
    "name", ["Ann\n", "\n", "Ann\x1b[31m", "\u202eAnn", "A\u2028nn", "A\x85nn", "\u200b", "\ufeffAnn", "\u200d \u2060"]
)
async def test_a_name_that_breaks_a_line_turns_text_or_shows_nothing_is_refused(hub: Node, name: str) -> None:
    call_id = await hub.person("ann").room()
    with pytest.raises(ValidationFailed):
        await hub.person("john").do("room:token", call_id=call_id, display_name=name)


@pytest.mark.parametrize(
    "metadata", ["{", "[1]", '"text"', "null", '{"a":"' + "x" * 8190 + '"}', {"a": "x" * 9000}, '{"a":"\\u0000"}', 7]
)
async def test_metadata_that_is_no_object_is_refused(hub: Node, metadata: object) -> None:
    """S-143"""
    call_id = await hub.person("ann").room()
    with pytest.raises(ValidationFailed):
        await hub.person("john").do("room:token", call_id=call_id, metadata=metadata)
    assert await hub.value("SELECT count(*) FROM call_participants") == 0


async def test_a_viewers_token_publishes_nothing(hub: Node) -> None:
    call_id = await hub.person("ann").room()
    guest = hub.person("guest:1", guest_of=call_id, role="viewer")
    answer = await guest.do("room:token", call_id=call_id)
    video = jwt.decode(answer.token, hub.livekit.api_secret, algorithms=["HS256"])["video"]
    assert (video["canPublish"], video["canPublishData"], video["canSubscribe"]) == (False, False, True)


async def test_what_a_link_denies_is_not_in_the_token(hub: Node) -> None:
    call_id = await hub.person("ann").room()
    guest = hub.person("guest:1", guest_of=call_id, denied=["publish_screen_share"])
    answer = await guest.do("room:token", call_id=call_id)
    video = jwt.decode(answer.token, hub.livekit.api_secret, algorithms=["HS256"])["video"]
    assert sorted(video["canPublishSources"]) == ["camera", "microphone"]


@pytest.mark.parametrize("way", ["token", "join"])
async def test_exactly_as_many_come_in_as_there_are_seats(hub: Node, way: str) -> None:
    """S-038, S-186: twenty at once for two seats; a leaver frees one."""
    call_id = await hub.person("ann").room(max_participants=2)
    people = [hub.person(f"user{number}") for number in range(20)]
    sockets = [person.socket() for person in people]

    async def try_one(number: int) -> str:
        if way == "token":
            return await people[number].refused("room:token", call_id=call_id)
        try:
            await sockets[number].join(call_id)
        except HubError as error:
            return error.code
        return "ok"

    outcomes = await asyncio.gather(*(try_one(number) for number in range(20)))
    assert sorted(outcomes) == ["ok"] * 2 + ["room_full"] * 18
    assert await hub.value("SELECT count(*) FROM call_participants") == 2
    inside = outcomes.index("ok")
    if way == "token":
        # Nobody came by it: after its life and LiveKit's own margins the seat is free.
        hub.ahead = timedelta(seconds=hub.rules.token_ttl_s + 125)
        assert await hub.person("late").refused("room:token", call_id=call_id) == "ok"
    else:
        await sockets[inside].do("room:leave", call_id=call_id)
        await hub.person("late").socket().join(call_id)


async def test_who_has_a_seat_keeps_it_in_a_full_room(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room(max_participants=1)
    await ann.do("room:token", call_id=call_id)
    await ann.do("room:token", call_id=call_id)
    await ann.socket().join(call_id)
    with pytest.raises(RoomFull):
        await hub.person("bob").socket().join(call_id)


async def test_one_person_takes_no_more_seats_than_devices_are_allowed(hub: Node) -> None:
    """Each device_id is a seat, by socket or by token; a seat that is given up makes room for another."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room(max_participants=6)
    assert hub.rules.published()["devices_per_call"] == 4
    sockets = [bob.socket(f"d{number}") for number in range(3)]
    for socket in sockets:
        await socket.join(call_id, media=False)
    assert await bob.refused("room:token", call_id=call_id, device_id="d3") == "ok"
    assert await bob.refused("room:token", call_id=call_id, device_id="d4") == "conflict"
    assert (await bob.socket("d5").ack("room:join", call_id=call_id)).ok is False
    assert await bob.refused("room:token", call_id=call_id, device_id="d3") == "ok"
    await sockets[0].do("room:leave", call_id=call_id)
    assert await bob.refused("room:token", call_id=call_id, device_id="d4") == "ok"
    assert await ann.refused("room:token", call_id=call_id) == "ok"


async def test_a_locked_room_lets_nobody_new_in(hub: Node) -> None:
    """S-242"""
    ann, bob, eve = hub.person("ann"), hub.person("bob"), hub.person("eve")
    call_id = await ann.room()
    socket = bob.socket()
    await socket.join(call_id)
    await ann.do("room:update", call_id=call_id, locked=True)
    with pytest.raises(RoomLocked):
        await eve.do("room:token", call_id=call_id)
    # Who is in may come again, and the host always may.
    await bob.socket().join(call_id)
    await ann.socket().join(call_id)


async def test_a_lobby_keeps_everybody_but_moderators_out(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room(lobby_enabled=True)
    with pytest.raises(LobbyRequired):
        await bob.do("room:token", call_id=call_id)
    with pytest.raises(LobbyRequired):
        await bob.socket().join(call_id)
    await ann.do("room:token", call_id=call_id)


async def test_a_waiting_call_gets_its_room_back(hub: Node) -> None:
    """LiveKit closes empty rooms; the next token makes it again, under its name."""
    ann = hub.person("ann")
    call_id = await ann.room()
    before = await ann.do("room:get", call_id=call_id)
    hub.livekit.close_room(before.room_name, "ROOM_CLOSED")
    await ann.do("room:token", call_id=call_id)
    after = await ann.do("room:get", call_id=call_id)
    assert (after.room_name, after.status) == (before.room_name, "waiting")
    assert after.room_id != before.room_id
    assert after.room_id == hub.livekit.rooms[before.room_name].info.sid


async def test_tokens_are_given_out_while_livekit_is_away(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    await hub.livekit.crash()
    assert (await ann.do("room:token", call_id=call_id)).token


async def test_join_tells_the_whole_picture_and_then_every_event(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    host, guest = ann.socket(), bob.socket()
    mine = await host.join(call_id, display_name="Ann A.", metadata={"seat": 1})
    assert (mine.self.display_name, mine.self.role, mine.self.status) == ("Ann A.", "host", "joined")
    assert [each.participant_id for each in mine.participants] == [mine.self.participant_id]
    assert (mine.call.status, mine.call.participant_count) == ("waiting", 1)
    assert mine.media.provider == "livekit"
    assert (mine.recovered, mine.missed) == (False, [])
    his = await guest.join(call_id, media=False)
    assert his.media is None
    assert {each.user_id for each in his.participants} == {"ann", "bob"}
    # His own coming is in his picture, and news to her.
    assert his.position.offset == mine.position.offset + 1
    assert guest.positions[call_id].offset == his.position.offset
    name, event = host.heard[-1]
    assert (name, event["offset"]) == ("participant:joined", his.position.offset)
    assert [each["user_id"] for each in event["participants"]] == ["bob"]
    assert event["by"]["user_id"] == "bob"


async def test_what_was_missed_comes_with_the_next_join(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    first = await bob.socket().join(call_id)
    await ann.do("room:update", call_id=call_id, name="One")
    await ann.do("room:update", call_id=call_id, name="Two")
    again = await bob.socket().join(call_id, since=first.position)
    assert again.recovered
    told = [(each.event, each.data["call"]["name"]) for each in again.missed]
    assert told == [("room:updated", "One"), ("room:updated", "Two")]
    assert again.missed[-1].data["offset"] == again.position.offset
    lost = await bob.socket().join(call_id, since={"epoch": "of another log", "offset": 1})
    assert (lost.recovered, lost.missed, lost.call.name) == (False, [], "Two")


async def test_sync_catches_up_in_the_room_only(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    socket, other = ann.socket(), ann.socket()
    joined = await socket.join(call_id)
    await ann.do("room:update", call_id=call_id, name="One")
    synced = await socket.do("room:sync", call_id=call_id, since=joined.position)
    assert [each.event for each in synced.missed] == ["room:updated"]
    with pytest.raises(NotInRoom):
        await other.do("room:sync", call_id=call_id, since=joined.position)


async def test_events_are_read_without_a_socket(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    start = (await ann.socket().join(call_id)).position
    await ann.do("room:update", call_id=call_id, name="One")
    read = await ann.do("room:events", call_id=call_id, since=f"{start.epoch}:{start.offset}")
    assert (read.recovered, [each.event for each in read.items]) == (True, ["room:updated"])
    old = await ann.do("room:events", call_id=call_id, since="other:0")
    assert (old.recovered, old.items, old.position) == (False, [], read.position)


async def test_a_newer_session_takes_over(hub: Node) -> None:
    """Without a device id there is one session to a person: the older one is told that it is out."""
    bob = hub.person("bob")
    call_id = await hub.person("ann").room()
    old, new, phone = bob.socket(), bob.socket(), bob.socket("phone")
    await old.join(call_id)
    await phone.join(call_id)
    await new.join(call_id)
    assert old.rooms == {}
    assert old.heard[-1] == ("room:left", {"reason": "taken_over", "message": ""})
    assert call_id in phone.rooms
    assert "participant:left" not in new.names()
    people = await hub.rows("SELECT status FROM call_participants WHERE user_id = 'bob'")
    assert [row["status"] for row in people] == ["joined", "joined"]


async def test_a_socket_acts_for_the_device_it_is_in_as_and_for_no_other(hub: Node) -> None:
    """Who was taken over, left, or never came in cannot speak for the device that is in."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    older, newer, phone = bob.socket(), bob.socket(), bob.socket("phone")
    await older.join(call_id)
    joined = await newer.join(call_id)
    nothing = {"microphone": False, "camera": False, "screen_share": False}
    commands: dict[str, dict[str, Any]] = {
        "hand:raise": {},
        "hand:lower": {},
        "participant:update": {"display_name": "From afar"},
        "media:authorize": {},
        "media:set": nothing,
        "data:send": {"topic": "t", "data": "x"},
        "room:sync": {"since": {"epoch": "x", "offset": 0}},
    }
    for outside in (older, phone):
        for name, fields in commands.items():
            ack = await outside.ack(name, call_id=call_id, **fields)
            assert ack.error is not None and ack.error.code == "not_in_room", name
        assert (await outside.ack("room:leave", call_id=call_id)).ok
    assert newer.rooms == {call_id: joined.self.participant_id}
    rows = await hub.rows("SELECT status, display_name, hand_raised_at FROM call_participants WHERE user_id = 'bob'")
    assert [tuple(row) for row in rows] == [("joined", "Bob", None)]
    for name, fields in commands.items():
        assert (await newer.ack(name, call_id=call_id, **fields)).ok, name
    # The owner acts as host from anywhere, but is nobody in the room from there.
    outside = ann.socket()
    assert (await outside.ack("room:update", call_id=call_id, name="Mine")).ok
    assert (await outside.ack("hand:lower", call_id=call_id, all=True)).ok
    ack = await outside.ack("participant:update", call_id=call_id, display_name="Nobody")
    assert ack.error is not None and ack.error.code == "not_in_room"


async def test_joining_twice_is_joining_once(hub: Node) -> None:
    bob = hub.person("bob").socket()
    call_id = await hub.person("ann").room()
    first, second = await bob.join(call_id), await bob.join(call_id)
    assert first.self.participant_id == second.self.participant_id
    assert second.position == first.position
    with pytest.raises(AlreadyInRoom):
        await bob.join(call_id, device_id="phone")


async def test_leaving_closes_the_socket_and_the_media(hub: Node) -> None:
    """S-003, S-041"""
    ann, bob = hub.person("ann").socket(), hub.person("bob").socket()
    call_id = await hub.person("ann").room()
    await ann.join(call_id)
    await bob.join(call_id)
    await hub.connects(call_id, "bob")
    await bob.do("room:leave", call_id=call_id)
    assert bob.rooms == {}
    name, event = ann.heard[-1]
    assert (name, event["participants"][0]["left_reason"]) == ("participant:left", "left")
    room = (await hub.person("ann").do("room:get", call_id=call_id)).room_name
    assert await hub.media.list_participants(room) == ()
    row = (await hub.rows("SELECT * FROM call_participants WHERE user_id = 'bob'"))[0]
    assert row["status"] == "left"
    assert row["duration_seconds"] is not None
    assert abs((row["left_at"] - row["joined_at"]).total_seconds() - row["duration_seconds"]) <= 0.5
    # Twice is once.
    await bob.do("room:leave", call_id=call_id)


async def test_a_join_that_fails_leaves_nobody_standing(hub: Node) -> None:
    """S-043: Redis fails in the middle of a join."""
    ann, bob = hub.person("ann").socket(), hub.person("bob").socket()
    call_id = await hub.person("ann").room()
    await ann.join(call_id)
    bob.fails = ClusterUnavailable()
    with pytest.raises(ClusterUnavailable):
        await bob.join(call_id)
    assert bob.rooms == {}
    row = (await hub.rows("SELECT * FROM call_participants WHERE user_id = 'bob'"))[0]
    assert (row["status"], row["hub_left_reason"]) != ("joined", None)
    assert row["hub_left_at"] is not None
    assert [each.user_id for each in await hub.roster.sessions(call_id)] == ["ann"]
    await bob.join(call_id)
    assert (await hub.value("SELECT participant_count FROM calls")) == 2


async def test_a_join_that_fails_does_not_put_another_session_out(hub: Node) -> None:
    old, new = (hub.person("bob").socket() for _ in range(2))
    call_id = await hub.person("ann").room()
    await old.join(call_id)
    new.fails = ClusterUnavailable()
    with pytest.raises(ClusterUnavailable):
        await new.join(call_id)
    assert call_id in old.rooms
    assert await hub.value("SELECT status FROM call_participants WHERE user_id = 'bob'") == "joined"


async def test_media_makes_the_call_active_and_a_socket_does_not(hub: Node) -> None:
    """S-040"""
    ann = hub.person("ann").socket()
    call_id = await hub.person("ann").room()
    joined = await ann.join(call_id)
    assert joined.call.status == "waiting"
    await hub.connects(call_id, "ann", token=joined.media.token)
    call = await hub.person("ann").do("room:get", call_id=call_id)
    assert (call.status, call.started_at is not None) == ("active", True)
    assert "room:started" in ann.names()


async def test_a_call_of_another_tenant_and_one_that_is_not_are_the_same(hub: Node) -> None:
    call_id = await hub.person("ann").room()
    eve = hub.person("eve", tenant=OTHER_TENANT)
    for asked in (call_id, uuid4()):
        with pytest.raises(NotFound) as refused:
            await eve.do("room:token", call_id=asked)
        assert refused.value.problem() == NotFound().problem()


async def test_a_guest_comes_into_one_call_only(hub: Node) -> None:
    ann = hub.person("ann")
    call_id, other = await ann.room(), await ann.room()
    guest = hub.person("guest:1", guest_of=call_id)
    socket: Socket = guest.socket()
    assert (await socket.join(call_id)).self.role == "participant"
    with pytest.raises(NotFound):
        await socket.join(other)
    assert await guest.refused("room:get", call_id=other) == "not_found"
