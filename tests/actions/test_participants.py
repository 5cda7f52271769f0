"""Moderation: roles, mute, kick, ban, and that each reaches LiveKit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import msgspec
import pytest

from hub.actions.rights import align
from hub.media.livekit import LiveKit
from hub.media.values import Server
from hub.protocol.errors import (
    Banned,
    Conflict,
    Forbidden,
    MediaError,
    MediaUnavailable,
    NotFound,
    NotInRoom,
    ValidationFailed,
)
from tests.actions.conftest import TENANT, Node, Socket, eventually


class Call:
    """A call of Ann's, with Bob and Mod in it by socket and by media."""

    def __init__(self, hub: Node, call_id: UUID) -> None:
        self.hub, self.id = hub, call_id
        self.sockets: dict[str, Socket] = {}
        self.participants: dict[str, UUID] = {}

    async def enter(self, user_id: str, **person: Any) -> Socket:
        socket = self.hub.person(user_id, **person).socket()
        joined = await socket.join(self.id)
        self.sockets[user_id], self.participants[user_id] = socket, joined.self.participant_id
        await self.hub.connects(self.id, user_id, token=joined.media.token)
        return socket

    async def room_name(self) -> str:
        return str(await self.hub.value("SELECT livekit_room_name FROM calls WHERE id = $1", self.id))

    async def media(self, user_id: str) -> Any:
        people = await self.hub.media.list_participants(await self.room_name())
        return next((each for each in people if each.identity == user_id), None)


@pytest.fixture
async def call(hub: Node) -> Call:
    call = Call(hub, await hub.person("ann").room())
    for user_id in ("ann", "mod", "bob"):
        await call.enter(user_id)
    await call.sockets["ann"].do(
        "participant:set_role", call_id=call.id, participant_id=call.participants["mod"], role="moderator"
    )
    return call


async def test_a_new_role_reaches_livekit_and_everybody(call: Call) -> None:
    bob = call.participants["bob"]
    ann = call.sockets["ann"]
    await call.hub.publishes(call.id, "bob", "microphone")
    answer = await ann.do("participant:set_role", call_id=call.id, participant_id=bob, role="viewer")
    assert answer.participant.role == "viewer"
    heard = dict(ann.heard[-3:])
    assert heard["participant:updated"]["participant"]["role"] == "viewer"
    assert heard["media:revoked"]["sources"] == ["microphone"]
    seen = await call.media("bob")
    assert seen.grant.can_publish_sources == frozenset()
    assert seen.attributes["role"] == "viewer"
    # And it holds for the next token, too.
    with pytest.raises(Forbidden):
        await call.sockets["bob"].do("hand:raise", call_id=call.id)
    log = await call.hub.rows("SELECT * FROM audit_log WHERE action = 'participant:set_role' ORDER BY id DESC LIMIT 1")
    assert msgspec.json.decode(log[0]["details"])["was"] == "participant"


async def test_a_role_is_a_persons_on_all_their_devices(call: Call) -> None:
    """Who was made a viewer is one on every device they have, and on every one they come with later."""
    hub, bob = call.hub, call.hub.person("bob")
    phone = bob.socket("phone")
    joined = await phone.join(call.id)
    await hub.connects(call.id, "bob:phone", token=joined.media.token)
    await hub.publishes(call.id, "bob:phone", "microphone")
    await call.sockets["ann"].do(
        "participant:set_role", call_id=call.id, participant_id=call.participants["bob"], role="viewer"
    )
    told = [event["participant"] for name, event in call.sockets["mod"].heard if name == "participant:updated"]
    assert {each["participant_id"] for each in told if each["role"] == "viewer"} == {
        str(call.participants["bob"]),
        str(joined.self.participant_id),
    }
    assert (await call.media("bob:phone")).grant.can_publish_sources == frozenset()
    late = bob.socket("late")
    third = await late.join(call.id)
    video = jwt.decode(third.media.token, hub.livekit.api_secret, algorithms=["HS256"])["video"]
    assert (third.self.role, video["canPublish"]) == ("viewer", False)
    token = (await bob.do("room:token", call_id=call.id, device_id="fourth")).token
    assert jwt.decode(token, hub.livekit.api_secret, algorithms=["HS256"])["video"]["canPublish"] is False
    for socket in (phone, late):
        with pytest.raises(Forbidden):
            await socket.do("hand:raise", call_id=call.id)


async def test_an_old_token_does_not_bring_old_rights(hub: Node) -> None:
    """S-174: whoever connects by a token from before a demotion has the rights of now, in LiveKit too."""
    call = Call(hub, await hub.person("ann").room())
    await call.enter("ann")
    bob = hub.person("bob").socket()
    joined = await bob.join(call.id)
    await hub.person("ann").do(
        "participant:edit", call_id=call.id, participant_id=joined.self.participant_id, role="viewer"
    )
    await hub.connects(call.id, "bob", token=joined.media.token)
    assert (await call.media("bob")).grant.can_publish
    people = await hub.media.list_participants(await call.room_name())
    assert await align(hub, TENANT, call.id, people) == 1
    assert not (await call.media("bob")).grant.can_publish
    # Now there is nothing to do.
    people = await hub.media.list_participants(await call.room_name())
    assert await align(hub, TENANT, call.id, people) == 0


async def test_a_livekit_that_hangs_delays_nobody_beyond_the_deadline(call: Call) -> None:
    call.hub.livekit.faults.hang.add("*")
    loop = asyncio.get_running_loop()
    started = loop.time()
    await call.sockets["ann"].do(
        "participant:set_role", call_id=call.id, participant_id=call.participants["bob"], role="viewer"
    )
    assert loop.time() - started < 3
    started = loop.time()
    await call.sockets["ann"].do("participant:kick", call_id=call.id, participant_id=call.participants["bob"])
    assert loop.time() - started < 3


async def test_nobody_acts_above_their_rank(call: Call) -> None:
    ann, mod = call.participants["ann"], call.sockets["mod"]
    commands: dict[str, dict[str, Any]] = {"participant:kick": {}, "participant:mute": {"sources": ["microphone"]}}
    for name, fields in commands.items():
        with pytest.raises(Forbidden):
            await mod.do(name, call_id=call.id, participant_id=ann, **fields)
    with pytest.raises(Forbidden):
        await mod.do("participant:set_role", call_id=call.id, participant_id=call.participants["mod"], role="host")


async def test_the_owner_stays_host(call: Call) -> None:
    with pytest.raises(Conflict):
        await call.sockets["ann"].do(
            "participant:set_role", call_id=call.id, participant_id=call.participants["ann"], role="viewer"
        )


async def test_the_last_host_hands_on_first(hub: Node) -> None:
    call = Call(hub, await hub.person("ann").room())
    bob = await call.enter("bob")
    await hub.person("ann").do(
        "participant:edit", call_id=call.id, participant_id=call.participants["bob"], role="host"
    )
    mine = {"call_id": call.id, "participant_id": call.participants["bob"], "role": "participant"}
    with pytest.raises(Conflict):
        await bob.do("participant:set_role", **mine)
    await call.enter("eve")
    await bob.do("participant:set_role", call_id=call.id, participant_id=call.participants["eve"], role="host")
    assert (await bob.do("participant:set_role", **mine)).participant.role == "participant"


async def test_a_kick_takes_effect_everywhere(call: Call) -> None:
    """S-018, S-178: out of LiveKit, off the socket, without rights, and told to the others with the reason."""
    ann, bob = call.sockets["ann"], call.sockets["bob"]
    reason = "not very nice, and this at some length, so that it would not fit into a short column at all"
    kick = {"call_id": call.id, "participant_id": call.participants["bob"], "reason": reason}
    await call.sockets["mod"].do("participant:kick", **kick)
    assert await call.media("bob") is None
    assert bob.rooms == {}
    assert bob.heard[-1] == ("room:left", {"reason": "kicked", "message": reason})
    name, event = ann.heard[-1]
    assert (name, event["participants"][0]["status"]) == ("participant:left", "kicked")
    for name in ("hand:raise", "media:authorize", "room:leave"):
        with pytest.raises(NotInRoom):
            await bob.do(name, call_id=call.id)
    assert await call.hub.person("bob").refused("room:get", call_id=call.id) == "not_in_room"
    row = (await call.hub.rows("SELECT * FROM audit_log WHERE action = 'participant:kick'"))[0]
    assert (row["actor"], row["reason"]) == ("mod", reason)
    # Without a ban, they may ask to come in again.
    await bob.join(call.id)


async def test_who_comes_back_with_an_old_token_is_removed_again(call: Call) -> None:
    await call.sockets["ann"].do("participant:kick", call_id=call.id, participant_id=call.participants["bob"])
    await call.hub.connects(call.id, "bob")
    assert await call.media("bob") is None


async def test_a_ban_holds_until_it_is_lifted(call: Call) -> None:
    """S-036"""
    ann, bob = call.sockets["ann"], call.sockets["bob"]
    await ann.do("participant:kick", call_id=call.id, participant_id=call.participants["bob"], ban_s=60)
    assert bob.heard[-1][1]["reason"] == "banned"
    with pytest.raises(Banned):
        await call.hub.person("bob").do("room:token", call_id=call.id)
    with pytest.raises(Banned):
        await call.hub.person("bob").do("room:token", call_id=call.id, device_id="phone")
    assert await _listed(call, "bob") == [] and await _listed(call, "mod") == [call.id] == await _listed(call, "ann")
    call.hub.ahead = timedelta(seconds=61)
    assert await _listed(call, "bob") == [call.id]
    call.hub.ahead = timedelta()
    await ann.do("participant:unban", call_id=call.id, user_id="bob")
    assert await _listed(call, "bob") == [call.id]
    await bob.join(call.id)
    with pytest.raises(NotFound):
        await ann.do("participant:unban", call_id=call.id, user_id="bob")


async def _listed(call: Call, user_id: str) -> list[UUID]:
    return [each.call_id for each in (await call.hub.person(user_id).do("room:list")).items]


async def test_a_kick_takes_all_devices(call: Call) -> None:
    phone = call.hub.person("bob").socket("phone")
    await phone.join(call.id)
    await call.sockets["ann"].do("participant:kick", call_id=call.id, participant_id=call.participants["bob"])
    assert phone.rooms == {}
    statuses = await call.hub.rows("SELECT status FROM call_participants WHERE user_id = 'bob'")
    assert [row["status"] for row in statuses] == ["kicked", "kicked"]


async def test_a_kick_holds_while_livekit_is_away(call: Call) -> None:
    await call.hub.livekit.crash()
    await call.sockets["ann"].do("participant:kick", call_id=call.id, participant_id=call.participants["bob"])
    assert call.sockets["bob"].rooms == {}
    row = await call.hub.rows("SELECT status FROM call_participants WHERE user_id = 'bob'")
    assert row[0]["status"] == "kicked"


async def test_an_unknown_participant_is_not_found(call: Call) -> None:
    """S-018"""
    commands: dict[str, dict[str, Any]] = {"kick": {}, "set_role": {"role": "viewer"}, "mute": {"sources": ["camera"]}}
    for name, fields in commands.items():
        with pytest.raises(NotFound):
            await call.sockets["ann"].do(f"participant:{name}", call_id=call.id, participant_id=uuid4(), **fields)


async def test_a_mute_mutes_in_livekit_and_is_told(call: Call) -> None:
    """S-022"""
    await call.hub.publishes(call.id, "bob", "microphone")
    await call.hub.publishes(call.id, "bob", "camera")
    bob = call.participants["bob"]
    mute = {"call_id": call.id, "participant_id": bob, "sources": ["microphone"], "muted": True}
    answer = await call.sockets["mod"].do("participant:mute", **mute)
    assert msgspec.to_builtins(answer.muted) == [{"participant_id": str(bob), "sources": ["microphone"]}]
    assert {track.source: track.muted for track in (await call.media("bob")).tracks} == {
        "microphone": True,
        "camera": False,
    }
    heard = dict(call.sockets["ann"].heard[-2:])
    assert heard["participant:muted"]["muted"] is True
    assert heard["media:changed"]["media"] == {"microphone": False, "camera": True, "screen_share": False}
    log = await call.hub.rows("SELECT actor, target_id FROM audit_log WHERE action = 'participant:mute'")
    assert [tuple(row) for row in log] == [("mod", str(bob))]
    # Muted already: nothing to do, nothing to tell.
    assert (await call.sockets["mod"].do("participant:mute", **mute)).muted == []


async def test_mute_all_spares_the_muter_and_those_above(call: Call) -> None:
    for user_id in ("ann", "mod", "bob"):
        await call.hub.publishes(call.id, user_id, "microphone")
    answer = await call.sockets["mod"].do("participant:mute", call_id=call.id, all=True, sources=["microphone"])
    assert [each.participant_id for each in answer.muted] == [call.participants["bob"]]


@pytest.mark.parametrize("remote_unmute", [True, False])
async def test_unmuting_others_is_the_media_servers_decision(call: Call, remote_unmute: bool) -> None:
    """S-022: an explicit refusal where the policy forbids it."""
    call.hub.livekit.remote_unmute = remote_unmute
    await call.hub.publishes(call.id, "bob", "microphone")
    mute = {"call_id": call.id, "participant_id": call.participants["bob"], "sources": ["microphone"]}
    ann = call.sockets["ann"]
    await ann.do("participant:mute", **mute, muted=True)
    if remote_unmute:
        await ann.do("participant:mute", **mute, muted=False)
        assert not (await call.media("bob")).tracks[0].muted
        return
    with pytest.raises(Forbidden) as refused:
        await ann.do("participant:mute", **mute, muted=False)
    assert refused.value.details == {"policy": "remote_unmute"}


class _Contrary(LiveKit):
    """Two mutes that fail in the same moment, each in its own way."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        super().__init__(servers)
        self.both = asyncio.Barrier(2)

    async def mute(self, room: str, identity: str, track_sid: str, muted: bool, *, region: str | None = None) -> None:
        await self.both.wait()
        raise MediaUnavailable() if identity == "bob" else MediaError("refused")


async def test_mutes_that_fail_in_different_ways_are_one_refusal(call: Call) -> None:
    for user_id in ("mod", "bob"):
        await call.hub.publishes(call.id, user_id, "microphone")
    async with _Contrary({"default": call.hub.livekit.server}) as contrary:
        call.hub.media = contrary
        with pytest.raises(MediaError):
            await call.sockets["ann"].do("participant:mute", call_id=call.id, all=True, sources=["microphone"])


async def test_mute_wants_one_or_all(call: Call) -> None:
    neither: dict[str, Any] = {}
    for fields in (neither, {"all": True, "participant_id": call.participants["bob"]}):
        with pytest.raises(ValidationFailed):
            await call.sockets["ann"].do("participant:mute", call_id=call.id, sources=["camera"], **fields)


async def test_ones_own_name_and_metadata_reach_everybody(call: Call) -> None:
    """S-021"""
    bob = call.sockets["bob"]
    await bob.do("participant:update", call_id=call.id, metadata={"a": 1, "b": 2})
    answer = await bob.do("participant:update", call_id=call.id, display_name="Bobby", metadata={"b": None})
    assert (answer.participant.display_name, answer.participant.metadata) == ("Bobby", {"a": 1})
    seen = await call.media("bob")
    assert (seen.name, msgspec.json.decode(seen.metadata)) == ("Bobby", {"a": 1})
    name, event = call.sockets["ann"].heard[-1]
    assert (name, event["participant"]["display_name"]) == ("participant:updated", "Bobby")


async def test_by_rest_only_oneself_is_renamed(call: Call) -> None:
    bob = call.hub.person("bob")
    mine, hers = call.participants["bob"], call.participants["ann"]
    await bob.do("participant:edit", call_id=call.id, participant_id=mine, display_name="Bobby")
    with pytest.raises(Forbidden):
        await bob.do("participant:edit", call_id=call.id, participant_id=hers, display_name="Bobby")
    with pytest.raises(Forbidden):
        await bob.do("participant:edit", call_id=call.id, participant_id=mine, role="host")
    with pytest.raises(Forbidden):
        await call.hub.person("ann").do("participant:edit", call_id=call.id, participant_id=mine, display_name="Robert")


async def test_everybody_who_was_there_is_listed_in_pages(call: Call) -> None:
    """S-017: as LiveKit has them."""
    await call.sockets["bob"].do("room:leave", call_id=call.id)
    ann = call.hub.person("ann")
    first = await ann.do("participant:list", call_id=call.id, limit=2)
    second = await ann.do("participant:list", call_id=call.id, limit=2, cursor=first.next_cursor)
    everybody = [*first.items, *second.items]
    assert [each.user_id for each in everybody] == ["bob", "mod", "ann"]
    assert second.next_cursor is None
    there = {each.identity for each in everybody if each.status == "joined"}
    assert there == {each.identity for each in await call.hub.media.list_participants(await call.room_name())}


async def test_who_left_has_no_rights(call: Call) -> None:
    """S-178"""
    bob = call.sockets["bob"]
    await bob.do("room:leave", call_id=call.id)
    for name in ("hand:raise", "media:authorize"):
        with pytest.raises(NotInRoom):
            await bob.do(name, call_id=call.id)


async def test_hands_stand_in_a_queue(call: Call) -> None:
    ann, bob, mod = (call.sockets[name] for name in ("ann", "bob", "mod"))
    await bob.do("hand:raise", call_id=call.id)
    queue = (await ann.do("hand:raise", call_id=call.id)).queue
    assert [hand.user_id for hand in queue] == ["bob", "ann"]
    again = (await bob.do("hand:raise", call_id=call.id)).queue
    assert again == queue
    assert mod.names()[-2:] == ["hand:raised", "hand:raised"]
    assert [each["user_id"] for each in mod.heard[-1][1]["queue"]] == ["bob", "ann"]
    assert [hand.user_id for hand in (await mod.join(call.id)).hands] == ["bob", "ann"]
    with pytest.raises(Forbidden):
        await bob.do("hand:lower", call_id=call.id, participant_id=call.participants["ann"])
    lowered = await mod.do("hand:lower", call_id=call.id, participant_id=call.participants["bob"])
    assert [hand.user_id for hand in lowered.queue] == ["ann"]
    assert (await mod.do("hand:lower", call_id=call.id, all=True)).queue == []
    assert ann.heard[-1][0] == "hand:lowered"
    # Nothing up, nothing told.
    before = len(ann.heard)
    await ann.do("hand:lower", call_id=call.id)
    assert len(ann.heard) == before


async def test_who_leaves_takes_the_hand_down(call: Call) -> None:
    bob = call.sockets["bob"]
    await bob.do("hand:raise", call_id=call.id)
    await bob.do("room:leave", call_id=call.id)
    assert (await call.sockets["ann"].join(call.id)).hands == []


async def test_data_reaches_the_addressees_only(call: Call) -> None:
    """S-023"""
    room_name, livekit = await call.room_name(), call.hub.livekit
    bob = call.sockets["bob"]
    await bob.do("data:send", call_id=call.id, topic="move", data="to all")
    await bob.do("data:send", call_id=call.id, topic="move", data="to ann", to=[call.participants["ann"]])
    assert livekit.received(room_name, "ann") == [b"to all", b"to ann"]
    assert livekit.received(room_name, "mod") == [b"to all"]
    await eventually(lambda: call.sockets["mod"].names()[-1:] == ["data:sent"])
    name, event = call.sockets["mod"].heard[-1]
    assert (name, event["data"], event["user_id"], "offset" in event) == ("data:sent", "to all", "bob", False)
    with pytest.raises(NotFound):
        await bob.do("data:send", call_id=call.id, topic="move", data="x", to=[uuid4()])
    assert (await bob.ack("data:send", call_id=call.id, topic="t", data="x" * 15_361)).error is not None
    umlauts = await bob.ack("data:send", call_id=call.id, topic="t", data="ä" * 8_000)
    assert umlauts.error is not None
    assert umlauts.error.code == "payload_too_large"
    assert await call.hub.person("eve").refused("data:send", call_id=call.id, topic="t", data="x") == "not_found"


async def test_what_one_says_about_ones_devices_is_told(hub: Node) -> None:
    call_id = await hub.person("ann").room(screen_sharing_enabled=False)
    ann, bob = hub.person("ann").socket(), hub.person("bob").socket()
    await ann.join(call_id)
    await bob.join(call_id)
    said = {"microphone": True, "camera": False, "screen_share": False}
    answer = await bob.do("media:set", call_id=call_id, **said)
    assert msgspec.to_builtins(answer.media) == said
    name, event = ann.heard[-1]
    assert (name, event["media"]) == ("media:changed", said)
    with pytest.raises(Forbidden):
        await bob.do("media:set", call_id=call_id, **{**said, "screen_share": True})


async def test_who_loses_a_right_shows_nothing_of_it_any_more(hub: Node) -> None:
    """Without the media server nobody else would ever take back what a client said about itself."""
    ann, bob = hub.person("ann").socket(), hub.person("bob").socket()
    call_id = await hub.person("ann").room()
    await ann.join(call_id)
    mine = (await bob.join(call_id)).self.participant_id
    on = {"microphone": True, "camera": True, "screen_share": True}
    await bob.do("media:set", call_id=call_id, **on)

    async def shown() -> dict[str, bool]:
        snapshot = await ann.do("room:sync", call_id=call_id, since={"epoch": "x", "offset": 0})
        media: dict[str, bool] = msgspec.to_builtins(
            next(each.media for each in snapshot.participants if each.participant_id == mine)
        )
        return media

    assert await shown() == on
    await ann.do("room:update", call_id=call_id, features={"screen_share": False})
    assert await shown() == {**on, "screen_share": False}
    assert ann.heard[-1][1]["sources"] == ["screen_share"]
    answer = await ann.do("participant:set_role", call_id=call_id, participant_id=mine, role="viewer")
    off = dict.fromkeys(on, False)
    assert await shown() == off == msgspec.to_builtins(answer.participant.media)
    assert ann.names()[-3:] == ["participant:updated", "media:changed", "media:revoked"]
    assert ann.heard[-2][1]["media"] == off and ann.heard[-1][1]["sources"] == ["camera", "microphone"]
    assert (await bob.ack("media:set", call_id=call_id, **{**off, "camera": True})).ok is False
    assert (await bob.ack("media:set", call_id=call_id, **off)).ok is True


async def test_media_access_is_given_again_with_the_present_rights(call: Call) -> None:
    access = await call.sockets["bob"].do("media:authorize", call_id=call.id)
    assert (access.provider, access.identity) == ("livekit", "bob")
