"""Making, finding, changing, ending and deleting calls."""

from __future__ import annotations

import asyncio
import base64
import re
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from hub.protocol.errors import (
    CallEnded,
    Conflict,
    Forbidden,
    HubError,
    InvalidCursor,
    MediaUnavailable,
    NotFound,
    PreconditionFailed,
    ValidationFailed,
)
from tests.actions.conftest import OTHER_TENANT, TENANT, Node, eventually

BRIEF = {
    "name": "Team Standup",
    "call_type": "group",
    "max_participants": 10,
    "recording_enabled": False,
    "screen_sharing_enabled": True,
    "file_sharing_enabled": True,
    "metadata": {"project": "AuraLink", "team": "Engineering"},
}


async def test_the_briefs_body_makes_a_call(hub: Node) -> None:
    """S-032, S-141, S-142, S-016: the answer has the brief's keys, the row and LiveKit's room what was asked for."""
    ann = hub.person("ann")
    created = msgspec.to_builtins(await ann.do("room:create", **BRIEF))
    assert set(created) == {"call_id", "room_id", "room_name", "status", "created_at"}
    assert re.fullmatch(r"room_[a-z0-9]+_\d+", created["room_name"])
    assert created["status"] == "waiting"
    assert created["created_at"].endswith("Z")
    room = hub.livekit.rooms[created["room_name"]].info
    assert (room.sid, room.max_participants, room.empty_timeout) == (created["room_id"], 10, 300)
    assert msgspec.json.decode(room.metadata) == BRIEF["metadata"]
    got = msgspec.to_builtins(await ann.do("room:get", call_id=created["call_id"]))
    assert {key: got[key] for key in BRIEF} == BRIEF
    assert (got["owner_id"], got["participant_count"]) == ("ann", 0)
    assert (got["duration_s"], got["quality_score"]) == (None, None)


async def test_screens_are_shared_by_default(hub: Node) -> None:
    """S-113, S-215: without the field it is on, and the token allows a screen; switched off, neither."""
    ann = hub.person("ann")
    on, off = await ann.room(), await ann.room(screen_sharing_enabled=False)
    for call_id, may in ((on, True), (off, False)):
        assert (await ann.do("room:get", call_id=call_id)).screen_sharing_enabled is may
        await ann.do("room:token", call_id=call_id)
        access = await ann.do("room:token", call_id=call_id)
        await hub.connects(call_id, "ann", token=access.token)
        sources = {"microphone", "camera"} | ({"screen_share", "screen_share_audio"} if may else set())
        (seen,) = await hub.media.list_participants(access.room_name)
        assert seen.grant is not None
        assert seen.grant.can_publish_sources == sources


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "max_participants": 0}, "max_participants"),
        ({"name": "x", "max_participants": 101}, "max_participants"),
        ({"name": "x", "call_type": "party"}, "call_type"),
        ({"name": "x", "colour": "red"}, "colour"),
        ({"name": "x", "region": "mars"}, "region"),
        ({"name": "x", "metadata": {"long": "x" * 9000}}, "metadata"),
        ({"name": "x", "metadata": {"nul": "\0"}}, "metadata.nul"),
        ({"max_participants": 2}, "name"),
    ],
)
async def test_a_bad_body_names_its_field(hub: Node, fields: dict[str, object], path: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await hub.person("ann").do("room:create", **fields)
    assert refused.value.errors[0].path == path
    assert hub.livekit.rooms == {}


async def test_text_that_only_looks_like_an_escape_is_fine(hub: Node) -> None:
    call_id = await hub.person("ann").room(metadata={"path": "C:\\u0000"})
    assert (await hub.person("ann").do("room:get", call_id=call_id)).metadata == {"path": "C:\\u0000"}


@pytest.mark.parametrize("number", [1e18, 9.2e18, 1e-30, 2**63 - 1, 0.1, 1e20, 1e308])
async def test_what_was_small_when_it_came_is_small_for_ever(hub: Node, number: float) -> None:
    """What counts against the limit is what the database gives back, or nothing that grows on the way is taken."""
    ann = hub.person("ann")
    given = {"x": [number] * (8000 // (len(msgspec.json.encode(number)) + 1))}
    try:
        call_id = await ann.room(metadata=given)
    except ValidationFailed as refusal:
        assert refusal.errors[0].path.startswith("metadata") and number >= 1e18
        return
    kept = msgspec.json.encode((await ann.do("room:get", call_id=call_id)).metadata)
    assert len(kept) <= min(8192, 2 * len(msgspec.json.encode(given)))
    assert await hub.value("SELECT octet_length(metadata::text) FROM calls") <= 8 * 8192


@pytest.mark.parametrize("name", ["room:create", "room:token"])
async def test_what_a_person_may_do_so_often_is_counted_over_all_nodes(hub: Node, name: str) -> None:
    """Another node has counted all but one already."""
    ann = hub.person("ann")
    call_id = await ann.room()
    command = hub.dispatcher.commands.get(name)
    assert command is not None
    used = 1 if name == "room:create" else 0
    for _ in range(command.rate.times - 1 - used):
        await hub.limits.allow(f"{name}:{TENANT}:ann", command.rate.times, command.rate.per_s)
    fields = {"name": "Team"} if name == "room:create" else {"call_id": call_id}
    assert [await ann.refused(name, **fields) for _ in range(2)] == ["ok", "rate_limited"]
    assert await hub.person("bob").refused(name, **fields) == "ok"


async def test_without_livekit_there_is_no_call(hub: Node) -> None:
    """S-037, S-043: LiveKit down: refused, and no row."""
    await hub.livekit.crash()
    with pytest.raises(MediaUnavailable):
        await hub.person("ann").room()
    assert await hub.value("SELECT count(*) FROM calls") == 0


async def test_without_a_row_there_is_no_room(hub: Node) -> None:
    """S-037, S-043: the database fails after LiveKit made the room: the room is gone again."""
    body = "BEGIN PERFORM pg_sleep(5); RETURN NEW; END"
    await hub.rows(f"CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    await hub.rows("CREATE TRIGGER broken BEFORE INSERT ON calls FOR EACH ROW EXECUTE FUNCTION broken()")
    with pytest.raises(HubError) as refused:
        await hub.person("ann").room()
    assert refused.value.code == "database_unavailable"
    assert hub.livekit.methods == ["CreateRoom", "DeleteRoom"]
    assert hub.livekit.rooms == {}


async def test_a_cancelled_create_leaves_no_room(hub: Node) -> None:
    """S-043, S-187: whoever asked went away in the middle."""
    blocker = await asyncpg.connect(hub.admin_dsn)
    await blocker.execute("BEGIN; LOCK TABLE calls")
    asking = asyncio.create_task(hub.person("ann").room())
    # It now waits for the table, with LiveKit's room made.
    await eventually(lambda: bool(hub.livekit.rooms))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: hub.livekit.rooms == {})
    await blocker.close()
    assert await hub.value("SELECT count(*) FROM calls") == 0


async def test_a_create_that_comes_to_its_deadline_does_not_wait_for_its_undoing(hub: Node) -> None:
    """LiveKit answers late, then the database not at all, then LiveKit not at all: an answer within the deadline."""
    blocker = await asyncpg.connect(hub.admin_dsn)
    await blocker.execute("BEGIN; LOCK TABLE calls")
    hub.livekit.faults.slow_s, hub.livekit.faults.hang = 2.2, {"DeleteRoom"}
    started = asyncio.get_running_loop().time()
    try:
        assert await hub.person("ann").refused("room:create", name="Team") == "timeout"
        assert asyncio.get_running_loop().time() - started < 3.6
    finally:
        await blocker.close()
    hub.livekit.faults.hang = set()


async def test_the_list_holds_own_and_visited_calls_only(hub: Node) -> None:
    """S-033: filters, and nobody else's calls."""
    ann, bob, eve = hub.person("ann"), hub.person("bob"), hub.person("eve", tenant=OTHER_TENANT)
    standup = await ann.room(name="Standup", call_type="group")
    webinar = await ann.room(name="Webinar 100%", call_type="webinar")
    await bob.do("room:token", call_id=standup)
    await eve.room()

    async def found(person_fields: dict[str, object]) -> list[UUID]:
        return [call.call_id for call in (await ann.do("room:list", **person_fields)).items]

    assert await found({}) == [webinar, standup]
    assert [call.call_id for call in (await bob.do("room:list")).items] == [standup]
    assert await found({"call_type": "webinar"}) == [webinar]
    assert await found({"q": "stand"}) == [standup]
    assert await found({"q": "100%"}) == [webinar]
    assert await found({"q": "%"}) == [webinar]
    assert await found({"status": "ended"}) == []
    await ann.do("room:end", call_id=standup)
    assert await found({"status": "ended"}) == [standup]
    now = datetime.now(UTC).isoformat()
    assert await found({"from": now}) == []
    assert await found({"to": now}) == [webinar, standup]


async def test_pages_are_complete_and_without_doubles_while_calls_are_made(hub: Node) -> None:
    """S-033: cursor pagination."""
    ann = hub.person("ann")
    made = [await ann.room() for _ in range(7)]
    seen: list[UUID] = []
    cursor = None
    while True:
        page = await ann.do("room:list", limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [call.call_id for call in page.items]
        await ann.room()
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == made[::-1]


@pytest.mark.parametrize("cursor", ["x", "!!!!", "eyJhIjoxfQ", "WyIyMDI1LTAxLTAxVDAwOjAwOjAwWiIsIngiXQ"])
async def test_a_made_up_cursor_is_refused(hub: Node, cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        await hub.person("ann").do("room:list", cursor=cursor)


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00"])
async def test_a_time_beyond_the_calendar_is_refused(hub: Node, at: str) -> None:
    """Each is a date where it was written, and none in UTC."""
    ann = hub.person("ann", admin=True)
    assert await ann.refused("room:list", **{"from": at}) == "validation_failed"
    assert await ann.refused("room:list", to=at) == "validation_failed"
    for command in ("room:list", "admin:rooms", "admin:inbox", "admin:audit"):
        assert await ann.refused(command, cursor=_cursor(at, str(uuid4()))) == "invalid_cursor", command


async def test_a_cursor_that_names_what_no_row_is_called_is_refused(hub: Node) -> None:
    boss, now = hub.person("boss", admin=True), datetime.now(UTC).isoformat()
    assert await boss.refused("admin:inbox", cursor=_cursor(now, "EV_\0")) == "invalid_cursor"
    assert await boss.refused("admin:audit", cursor=_cursor(now, str(2**63))) == "invalid_cursor"
    assert await boss.refused("admin:audit", cursor=_cursor(now, str(2**63 - 1))) == "ok"


def _cursor(at: str, id_: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([at, id_])).rstrip(b"=").decode()


async def test_update_changes_what_is_given_and_tells_everybody(hub: Node) -> None:
    """S-020: unrelated keys of the metadata stay, LiveKit and the others hear it."""
    ann = hub.person("ann")
    call_id = await ann.room(metadata={"project": "AuraLink", "team": "A"})
    bob = hub.person("bob").socket()
    await bob.join(call_id)
    answer = await ann.do(
        "room:update", call_id=call_id, name="New", locked=True, metadata={"team": "B", "project": None}
    )
    assert (answer.call.name, answer.call.locked, answer.call.metadata) == ("New", True, {"team": "B"})
    assert answer.call.chat_enabled is True
    name, event = bob.heard[-1]
    assert (name, event["call"]["name"], event["by"]["user_id"]) == ("room:updated", "New", "ann")
    room = hub.livekit.rooms[answer.call.room_name].info
    assert msgspec.json.decode(room.metadata) == {"team": "B"}


async def test_an_update_that_changes_nothing_is_not_told(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room(name="Same")
    socket = ann.socket()
    await socket.join(call_id)
    await ann.do("room:update", call_id=call_id, name="Same")
    assert "room:updated" not in socket.names()


async def test_a_stale_tag_is_refused(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    tag = (await ann.do("room:get", call_id=call_id)).etag
    answer = await hub.do(ann.actor, "room:update", {"call_id": call_id, "name": "One"}, if_match=tag)
    assert answer.etag != tag
    with pytest.raises(PreconditionFailed):
        await hub.do(ann.actor, "room:update", {"call_id": call_id, "name": "Two"}, if_match=tag)
    await hub.do(ann.actor, "room:update", {"call_id": call_id, "name": "Two"}, if_match=answer.etag)


async def test_who_comes_and_goes_does_not_change_the_tag(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    tag = (await ann.do("room:get", call_id=call_id)).etag
    await ann.socket().join(call_id)
    assert (await ann.do("room:get", call_id=call_id)).etag == tag


async def test_end_ends_for_everybody_and_for_ever(hub: Node) -> None:
    """S-024, S-040: sockets are told and out, LiveKit's room is gone, nothing brings it back."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    socket = bob.socket()
    await socket.join(call_id)
    await hub.connects(call_id, "bob")
    answer = await ann.do("room:end", call_id=call_id, reason="lunch")
    assert (answer.call.status, answer.call.end_reason) == ("ended", "ended_by_host")
    assert socket.names()[-2:] == ["participant:left", "room:ended"]
    assert hub.livekit.rooms == {}
    again = await ann.do("room:end", call_id=call_id)
    assert (again.call.ended_at, again.call.end_reason) == (answer.call.ended_at, "ended_by_host")
    with pytest.raises(CallEnded):
        await bob.do("room:token", call_id=call_id)
    with pytest.raises(CallEnded):
        await socket.join(call_id)
    with pytest.raises(CallEnded):
        await ann.do("room:update", call_id=call_id, name="x")


async def test_delete_takes_everything_along(hub: Node) -> None:
    """S-035: only the owner; LiveKit's room goes; again is not found."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    socket = bob.socket()
    await socket.join(call_id)
    with pytest.raises(Forbidden):
        await bob.do("room:delete", call_id=call_id)
    await ann.do("room:delete", call_id=call_id)
    assert hub.livekit.rooms == {}
    assert await hub.value("SELECT count(*) FROM calls") == 0
    assert await hub.value("SELECT count(*) FROM call_participants") == 0
    assert "room:ended" in socket.names()
    with pytest.raises(NotFound):
        await ann.do("room:delete", call_id=call_id)


async def test_a_call_is_deleted_while_livekit_is_away(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    await hub.livekit.crash()
    await ann.do("room:delete", call_id=call_id)
    assert await hub.value("SELECT count(*) FROM calls") == 0


async def test_the_same_op_id_makes_one_call(hub: Node) -> None:
    socket = hub.person("ann").socket()
    op_id = uuid4()
    call_id = await hub.person("ann").room()
    first = await socket.ack("room:update", call_id=call_id, name="Once", op_id=op_id)
    second = await socket.ack("room:update", call_id=call_id, name="Once", op_id=op_id)
    other = await socket.ack("room:update", call_id=call_id, name="Twice", op_id=op_id)
    assert (first.ok, first.replayed, second.ok, second.replayed) == (True, False, True, True)
    assert other.error is not None
    assert other.error.code == "op_id_conflict"


async def test_switching_screens_off_takes_them_down(hub: Node) -> None:
    """A feature that goes takes the right out of LiveKit, from the host as well."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    socket = bob.socket()
    access = (await socket.join(call_id)).media
    await hub.connects(call_id, "bob", token=access.token)
    await hub.publishes(call_id, "bob", "screen_share")
    await ann.do("room:update", call_id=call_id, features={"screen_share": False})
    name, event = socket.heard[-1]
    assert (name, event["sources"]) == ("media:revoked", ["screen_share"])
    room_name = (await ann.do("room:get", call_id=call_id)).room_name
    (seen,) = await hub.media.list_participants(room_name)
    assert seen.grant is not None
    assert seen.grant.can_publish_sources == {"microphone", "camera"}


async def test_a_guest_makes_and_lists_nothing(hub: Node) -> None:
    call_id = await hub.person("ann").room()
    guest = hub.person("guest:1", guest_of=call_id)
    assert await guest.refused("room:create", name="x") == "forbidden"
    assert await guest.refused("room:list") == "forbidden"


async def test_leave_yourself_instead_of_kicking(hub: Node) -> None:
    ann = hub.person("ann").socket()
    call_id = await hub.person("ann").room()
    me = (await ann.join(call_id)).self
    with pytest.raises(Conflict):
        await ann.do("participant:kick", call_id=call_id, participant_id=me.participant_id)


async def test_without_chat_there_is_no_data_in_the_sfu(hub: Node) -> None:
    """S-075: its clients chat by data, so who is in loses that with the room's chat, and gets it back."""
    ann = hub.person("ann")
    call_id = await ann.room()
    token = await ann.do("room:token", call_id=call_id)
    await ann.socket().join(call_id)
    await hub.connects(call_id, token.identity, token=token.token)
    person = next(iter(hub.livekit.rooms.values())).participants[token.identity]
    for on in (False, True):
        await ann.do("room:update", call_id=call_id, features={"chat": on})
        assert person.info.permission.can_publish_data is on
