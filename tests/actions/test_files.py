"""Files of a call: brought by all ways that REST has, found, fetched, moved, deleted."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
import pytest

from hub.protocol.errors import (
    CallEnded,
    ChecksumMismatch,
    Conflict,
    FileExpired,
    FileTooLarge,
    FileTypeBlocked,
    Forbidden,
    NotFound,
    QuotaExceeded,
    RateLimited,
    Unauthenticated,
)
from storage import keys
from storage.errors import ObjectMissing
from tests.actions.conftest import OTHER_TENANT, TENANT, Node, Person, eventually
from tests.actions.sharing import Room, brought, bytes_of, granted, put, shared

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
MIB = 1024 * 1024


@pytest.fixture
async def room(hub: Node) -> Room:
    return await shared(hub)


async def test_a_file_that_is_brought_is_there_for_the_others(hub: Node, room: Room) -> None:
    """S-004, S-026, S-044, S-115, S-117: the row, the object under a key of ids, the event, the download."""
    data = secrets.token_bytes(70_000)
    file = await brought(room.bob, data, call_id=room.call_id, name="notes.bin", expires_in_hours=24)
    assert (file.uploader_id, file.size_bytes, file.access_level) == ("bob", len(data), "call_participants")
    assert (file.sha256, file.scan_status) == (hashlib.sha256(data).hexdigest(), "skipped")
    assert file.expires_at is not None
    assert abs(file.expires_at - datetime.now(UTC) - timedelta(hours=24)) < timedelta(seconds=5)
    row = (await hub.rows("SELECT * FROM files"))[0]
    assert row["storage_key"] == keys.content(TENANT, room.call_id, file.file_id)
    assert (row["name"], row["size_bytes"], row["source"], row["status"]) == ("notes.bin", len(data), "rest", "ready")
    stored = await hub.store.head(row["storage_key"])
    assert stored.size_bytes == len(data)
    assert await hub.value("SELECT count(*) FROM uploads") == 0
    assert await hub.value("SELECT count(*) FROM file_tombstones") == 0
    for socket in (room.ann_socket, room.bob_socket):
        (announced,) = [event for name, event in socket.heard if name == "file:announced"]
        assert announced["file"]["file_id"] == str(file.file_id)
    link = await room.ann.do("file:download", file_id=file.file_id)
    assert link.expires_at <= datetime.now(UTC) + timedelta(seconds=61)
    assert await bytes_of(hub, link.url) == data


@pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 11 * MIB])
async def test_every_size_arrives_whole(hub: Node, room: Room, size: int) -> None:
    """S-116: none, less than a part, parts to the byte."""
    data = secrets.token_bytes(size)
    file = await brought(room.bob, data, call_id=room.call_id)
    assert await bytes_of(hub, (await room.ann.do("file:download", file_id=file.file_id)).url) == data


async def test_one_byte_too_many_is_refused_and_leaves_nothing(hub: Node, room: Room) -> None:
    """S-049, S-180"""
    hub.rules = msgspec.structs.replace(hub.rules, file_bytes=6 * MIB)
    await brought(room.bob, bytes(6 * MIB), call_id=room.call_id)
    with pytest.raises(FileTooLarge):
        await brought(room.bob, bytes(6 * MIB + 1), call_id=room.call_id)
    assert await hub.value("SELECT count(*) FROM files") == 1
    assert await left_behind(hub) == (1, 0)
    assert await hub.value("SELECT bytes FROM call_file_usage") == 6 * MIB


async def left_behind(hub: Node) -> tuple[int, int]:
    """Objects, and rows of uploads and tombstones."""
    objects = len((await hub.store.list()).items) + len((await hub.store.uploads()).items)
    rows = await hub.value("SELECT (SELECT count(*) FROM uploads) + (SELECT count(*) FROM file_tombstones)")
    return objects, rows


async def test_a_sender_who_goes_away_leaves_nothing(hub: Node, room: Room) -> None:
    """S-056, S-195"""
    with pytest.raises(ConnectionError):
        await brought(room.bob, bytes(7 * MIB), call_id=room.call_id, breaks_after=6 * MIB)
    assert await left_behind(hub) == (0, 0)
    assert await hub.value("SELECT sum(bytes) FROM call_file_usage") == 0
    assert "file:announced" not in room.ann_socket.names()


async def test_what_hashes_to_something_else_is_refused(hub: Node, room: Room) -> None:
    with pytest.raises(ChecksumMismatch):
        await brought(room.bob, b"abc", call_id=room.call_id, sha256="0" * 64)
    assert await left_behind(hub) == (0, 0)


async def test_progress_is_told_a_few_times_a_second_and_not_of_private_files(hub: Node, room: Room) -> None:
    await brought(room.bob, bytes(8 * MIB), call_id=room.call_id)
    told = [event for name, event in room.ann_socket.heard if name == "file:progressed"]
    assert told and told[0]["uploader_id"] == "bob" and "offset" not in told[0]
    assert [each["received_bytes"] for each in told] == sorted(each["received_bytes"] for each in told)
    assert len(told) < 30
    for socket in (room.ann_socket, room.bob_socket):
        socket.heard.clear()
    await brought(room.bob, bytes(8 * MIB), call_id=room.call_id, access_level="private")
    await eventually(lambda: {"file:announced", "file:progressed"} <= set(room.bob_socket.names()))
    assert room.ann_socket.names() == []


# --- what is refused


async def test_a_program_is_refused_by_every_way(hub: Node, room: Room) -> None:
    """S-181, S-031: renamed to .png it is still what its bytes say, and nothing of it stays."""
    program = b"MZ" + bytes(300)
    with pytest.raises(FileTypeBlocked):
        await brought(room.bob, program, call_id=room.call_id, name="cat.png", content_type="image/png")
    asked = await room.bob.do("file:presign", call_id=room.call_id, name="cat.png", size_bytes=len(program))
    await put(hub, asked, program)
    with pytest.raises(FileTypeBlocked):
        await room.bob.do("file:confirm", file_id=asked.file_id)
    assert await hub.value("SELECT count(*) FROM files") == 0
    # The key that the URL still leads to is cleared again when it has expired.
    assert await hub.value("SELECT array_agg(storage_key) FROM file_tombstones") == [
        keys.incoming(TENANT, room.call_id, asked.file_id)
    ]
    await _nothing_under(hub, asked.file_id, room.call_id)


async def _nothing_under(hub: Node, file_id: UUID, call_id: UUID) -> None:
    with pytest.raises(ObjectMissing):
        await hub.store.head(keys.content(TENANT, call_id, file_id))


async def test_where_files_are_switched_off_nobody_brings_or_fetches_one(hub: Node, room: Room) -> None:
    """S-141, S-057: the feature takes it from everybody, the host included; deleting is left."""
    file = await brought(room.bob, b"abc", call_id=room.call_id, access_level="public")
    await room.ann.do("room:update", call_id=room.call_id, features={"files": False})
    for person in (room.ann, room.bob):
        with pytest.raises(Forbidden):
            await brought(person, b"abc", call_id=room.call_id)
        assert await person.refused("file:download", file_id=file.file_id) == "forbidden"
        assert await person.refused("file:list", call_id=room.call_id) == "forbidden"
    assert (await room.cat.socket().join(room.call_id)).files == []
    await room.bob.do("file:delete", file_id=file.file_id)


async def test_an_ended_call_takes_no_files_and_gives_those_it_has(hub: Node, room: Room) -> None:
    """S-115: after the call they are there for whoever took part; not for whoever did not."""
    file = await brought(room.bob, b"abc", call_id=room.call_id)
    await room.ann.do("room:end", call_id=room.call_id)
    with pytest.raises(CallEnded):
        await brought(room.bob, b"abc", call_id=room.call_id)
    assert await bytes_of(hub, (await room.bob.do("file:download", file_id=file.file_id)).url) == b"abc"
    assert await hub.person("stranger").refused("file:get", file_id=file.file_id) == "not_found"


async def test_space_is_reserved_before_the_first_byte(hub: Node, room: Room) -> None:
    """Quotas of the call and the tenant, in bytes and files; what is given up is given back."""
    hub.rules = msgspec.structs.replace(hub.rules, call_file_bytes=1000, files_per_call=3)
    asked = [await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=size) for size in (600, 300)]
    with pytest.raises(QuotaExceeded) as refused:
        await brought(room.bob, bytes(200), call_id=room.call_id)
    assert refused.value.details == {"quota": "call_bytes", "limit": 1000}
    await brought(room.bob, b"", call_id=room.call_id)
    with pytest.raises(QuotaExceeded, match="files"):
        await brought(room.bob, b"", call_id=room.call_id)
    hub.rules = msgspec.structs.replace(hub.rules, tenant_file_bytes=900, files_per_call=9)
    with pytest.raises(QuotaExceeded, match="tenant"):
        await brought(room.bob, b"x", call_id=room.call_id)
    await put(hub, asked[0], bytes(600))
    file = await room.bob.do("file:confirm", file_id=asked[0].file_id)
    await room.bob.do("file:delete", file_id=file.file_id)
    await brought(room.bob, bytes(500), call_id=room.call_id)


async def test_twenty_at_once_do_not_pass_a_quota_together(hub: Node, room: Room) -> None:
    hub.rules = msgspec.structs.replace(hub.rules, call_file_bytes=500, uploads_per_user=100)

    async def ask() -> bool:
        try:
            await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=100)
        except QuotaExceeded:
            return False
        return True

    assert sum(await asyncio.gather(*(ask() for _ in range(12)))) == 5


async def test_nobody_has_more_uploads_open_than_they_may(hub: Node, room: Room) -> None:
    hub.rules = msgspec.structs.replace(hub.rules, uploads_per_user=2)
    for _ in range(2):
        await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=1)
    with pytest.raises(RateLimited):
        await brought(room.bob, b"x", call_id=room.call_id)
    await brought(room.ann, b"x", call_id=room.call_id)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("../../etc/passwd", "passwd"), ("C:\\x\\y.txt", "y.txt"), ("a\r\nSet-Cookie: x.txt", "a Set-Cookie: x.txt")],
)
async def test_a_hostile_name_is_only_a_name(hub: Node, room: Room, given: str, kept: str) -> None:
    """Never in a key, and one line in the header."""
    file = await brought(room.bob, b"abc", call_id=room.call_id, name=None, body_name=given)
    assert file.name == kept
    key = await hub.value("SELECT storage_key FROM files")
    assert key == keys.content(TENANT, room.call_id, file.file_id)
    url = (await room.bob.do("file:download", file_id=file.file_id)).url
    disposition = granted("GET", url).disposition
    assert disposition.startswith("attachment; filename=") and "\n" not in disposition and "\r" not in disposition


# --- direct uploads


async def test_bytes_put_to_a_url_become_a_file_when_they_are_checked(hub: Node, room: Room) -> None:
    """S-031: nothing is seen before; a second completion is the first one; the bytes have left the key of the URL."""
    asked = await room.bob.do(
        "file:presign", call_id=room.call_id, name="a.png", size_bytes=len(PNG), mime_type="image/png"
    )
    assert (asked.method, urlsplit(asked.url).scheme) == ("PUT", "http")
    with pytest.raises(Conflict):
        await room.bob.do("file:confirm", file_id=asked.file_id)
    await put(hub, asked, PNG)
    assert await room.bob.refused("file:get", file_id=asked.file_id) == "not_found"
    assert await room.ann.refused("file:confirm", file_id=asked.file_id) == "not_found"
    file = await room.bob.do("file:confirm", file_id=asked.file_id, sha256=hashlib.sha256(PNG).hexdigest())
    again = await room.bob.do("file:confirm", file_id=asked.file_id)
    assert file == again
    assert (file.mime_type, file.detected_mime_type, file.source) == ("image/png", "image/png", "presigned")
    assert room.ann_socket.names().count("file:announced") == 1
    # Whoever puts something else there now changes nothing.
    await put(hub, asked, bytes(len(PNG)))
    assert await bytes_of(hub, (await room.ann.do("file:download", file_id=file.file_id)).url) == PNG


async def test_a_wrong_hash_of_a_direct_upload_removes_it(hub: Node, room: Room) -> None:
    asked = await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=3, sha256="1" * 64)
    await put(hub, asked, b"abc")
    with pytest.raises(ChecksumMismatch):
        await room.bob.do("file:confirm", file_id=asked.file_id)
    await _nothing_under(hub, asked.file_id, room.call_id)
    assert await room.bob.refused("file:confirm", file_id=asked.file_id) == "not_found"


async def test_only_one_completes_an_upload_at_a_time(hub: Node, room: Room) -> None:
    asked = await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=3)
    await put(hub, asked, b"abc")

    async def confirm() -> str:
        return await room.bob.refused("file:confirm", file_id=asked.file_id)

    said = await asyncio.gather(*(confirm() for _ in range(6)))
    assert "ok" in said and set(said) <= {"ok", "timeout"}
    assert await hub.value("SELECT count(*) FROM files") == 1
    assert room.ann_socket.names().count("file:announced") == 1


async def test_who_is_put_out_before_the_end_brings_nothing(hub: Node, room: Room) -> None:
    """S-178: the right is looked at when the file is made, too."""
    asked = await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=3)
    await put(hub, asked, b"abc")
    await room.ann.do("participant:kick", call_id=room.call_id, participant_id=room.bob_id)
    assert await room.bob.refused("file:confirm", file_id=asked.file_id) == "not_in_room"
    assert await hub.value("SELECT count(*) FROM files") == 0
    await _nothing_under(hub, asked.file_id, room.call_id)


# --- finding and deleting


async def test_a_list_pages_through_all_files_while_new_ones_come(hub: Node, room: Room) -> None:
    """S-029, S-045: newest first, complete, nothing twice."""
    made = [(await brought(room.bob, b"x", call_id=room.call_id)).file_id for _ in range(5)]
    seen: list[UUID] = []
    cursor: str | None = None
    while True:
        page = await room.ann.do("file:list", call_id=room.call_id, limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [file.file_id for file in page.items]
        await brought(room.bob, b"y", call_id=room.call_id)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == made[::-1]
    assert len((await room.bob.do("file:list")).items) >= 8
    assert (await room.ann.do("file:list")).items == []
    assert await hub.person("stranger").refused("file:list", call_id=room.call_id) == "not_found"
    assert await room.ann.refused("file:list", call_id=room.call_id, cursor="nonsense") == "invalid_cursor"


async def test_whoever_comes_in_sees_the_files_that_are_there(hub: Node, room: Room) -> None:
    """Snapshot and events agree: announced, and gone."""
    kept, gone, hidden = [
        await brought(room.bob, b"x", call_id=room.call_id, access_level=level)
        for level in ("public", "call_participants", "private")
    ]
    await room.bob.do("file:delete", file_id=gone.file_id)
    snapshot = await room.cat.socket().join(room.call_id)
    assert [file.file_id for file in snapshot.files] == [kept.file_id]
    assert {file.file_id for file in (await room.bob.socket().join(room.call_id)).files} == {
        kept.file_id,
        hidden.file_id,
    }
    known: dict[str, Any] = {}
    for name, event in room.ann_socket.heard:
        if name in ("file:announced", "file:scanned", "file:updated"):
            known[event["file"]["file_id"]] = event["file"]
        elif name == "file:deleted":
            del known[event["file_id"]]
    fresh = (await room.ann.socket("other").join(room.call_id)).files
    assert list(known.values()) == msgspec.json.decode(msgspec.json.encode(fresh))


async def test_a_deleted_file_is_gone_row_and_bytes(hub: Node, room: Room) -> None:
    """S-028, S-047, S-134: by the uploader or the host, told to the room; its URL is dead; others may not."""
    first, second = [await brought(room.bob, b"abc", call_id=room.call_id) for _ in range(2)]
    url = (await room.cat.do("file:download", file_id=first.file_id)).url
    assert await room.cat.refused("file:delete", file_id=first.file_id) == "forbidden"
    await room.bob.do("file:delete", file_id=first.file_id)
    with pytest.raises(ObjectMissing):
        await bytes_of(hub, url)
    assert await room.bob.refused("file:get", file_id=first.file_id) == "not_found"
    assert await room.bob.refused("file:delete", file_id=first.file_id) == "not_found"
    await room.ann.do("file:delete", file_id=second.file_id)
    assert [event["reason"] for name, event in room.cat_socket.heard if name == "file:deleted"] == ["deleted"] * 2
    assert await left_behind(hub) == (0, 0)
    assert await hub.value("SELECT count(*) FROM audit_log WHERE action = 'file:delete'") == 1


async def test_a_file_whose_time_is_over_is_gone(hub: Node, room: Room) -> None:
    """S-053: 410 at once, whoever asks."""
    file = await brought(room.bob, b"abc", call_id=room.call_id, expires_in_hours=1, access_level="public")
    hub.ahead = timedelta(hours=1, seconds=1)
    for person in (room.bob, room.ann):
        assert await person.refused("file:download", file_id=file.file_id) == "file_expired"
        assert await person.refused("file:get", file_id=file.file_id) == "file_expired"
    assert (await room.ann.do("file:list", call_id=room.call_id)).items == []
    with pytest.raises(FileExpired):
        await nobody(hub).do("file:download", file_id=file.file_id)
    await room.bob.do("file:delete", file_id=file.file_id)


def nobody(hub: Node) -> Person:
    person = hub.person("x")
    return Person(hub, msgspec.structs.replace(person.actor, user_id="", tenant_id=UUID(int=0), role="anon"))


async def test_a_public_file_takes_no_token_and_no_other_does(hub: Node, room: Room) -> None:
    """S-050, S-126: with its id alone; nothing tells what is there from what is not."""
    public = await brought(room.bob, b"abc", call_id=room.call_id, access_level="public")
    closed = await brought(room.bob, b"abc", call_id=room.call_id)
    assert await bytes_of(hub, (await nobody(hub).do("file:download", file_id=public.file_id)).url) == b"abc"
    other = hub.person("eve", tenant=OTHER_TENANT)
    assert await bytes_of(hub, (await other.do("file:download", file_id=public.file_id)).url) == b"abc"
    assert await other.refused("file:get", file_id=public.file_id) == "not_found"
    for file_id in (closed.file_id, room.call_id):
        with pytest.raises(Unauthenticated):
            await nobody(hub).do("file:download", file_id=file_id)
        with pytest.raises(NotFound):
            await other.do("file:download", file_id=file_id)
    with pytest.raises(Forbidden):
        guest = hub.person("guest:1", guest_of=room.call_id)
        await guest.socket().join(room.call_id)
        await brought(guest, b"abc", call_id=room.call_id, access_level="public")


# --- copying and moving


async def test_a_copy_is_another_file_with_the_same_bytes(hub: Node, room: Room) -> None:
    """S-030: both are there; in another call, and as somebody else's."""
    file = await brought(room.bob, PNG, call_id=room.call_id, name="a.png")
    other = await room.cat.room()
    copied = await room.cat.do("file:copy", file_id=file.file_id, call_id=other)
    assert (copied.uploader_id, copied.call_id, copied.sha256) == ("cat", other, file.sha256)
    assert copied.file_id != file.file_id and copied.source == "copy"
    for person, file_id in ((room.bob, file.file_id), (room.cat, copied.file_id)):
        assert await bytes_of(hub, (await person.do("file:download", file_id=file_id)).url) == PNG
    assert len((await hub.store.list()).items) == 2
    assert await hub.person("dan").refused("file:copy", file_id=file.file_id, call_id=other) == "not_found"
    assert await room.cat.refused("file:copy", file_id=room.call_id, call_id=other) == "not_found"


async def test_a_moved_file_is_the_same_file_in_another_call(hub: Node, room: Room) -> None:
    """S-030: the old key is gone, the new one has the bytes, the row follows; both rooms hear of it."""
    file = await brought(room.bob, PNG, call_id=room.call_id)
    other = await room.bob.room()
    socket = room.bob.socket("elsewhere")
    await socket.join(other)
    old_key = await hub.value("SELECT storage_key FROM files")
    assert await room.cat.refused("file:move", file_id=file.file_id, call_id=other) == "not_found"
    moved = await room.bob.do("file:move", file_id=file.file_id, call_id=other)
    assert (moved.file_id, moved.call_id, moved.sha256) == (file.file_id, other, file.sha256)
    assert [item.key for item in (await hub.store.list()).items] == [keys.content(TENANT, other, file.file_id)] or len(
        (await hub.store.list()).items
    ) == 1
    with pytest.raises(ObjectMissing):
        await hub.store.head(old_key)
    assert await bytes_of(hub, (await room.bob.do("file:download", file_id=file.file_id)).url) == PNG
    assert [event["reason"] for name, event in room.ann_socket.heard if name == "file:deleted"] == ["moved"]
    assert "file:announced" in socket.names()
    assert await room.ann.refused("file:get", file_id=file.file_id) == "not_found"
    assert await room.bob.refused("file:move", file_id=file.file_id, call_id=other) == "conflict"
    assert await left_behind(hub) == (1, 0)
    used = await hub.rows("SELECT call_id, bytes, files FROM call_file_usage ORDER BY bytes")
    assert [(row["call_id"], row["bytes"], row["files"]) for row in used] == [
        (room.call_id, 0, 0),
        (other, len(PNG), 1),
    ]


async def test_a_call_that_is_deleted_takes_its_files_along(hub: Node, room: Room) -> None:
    """S-056: private ones too."""
    await brought(room.bob, b"abc", call_id=room.call_id)
    await brought(room.bob, b"abc", call_id=room.call_id, access_level="private")
    await room.ann.do("room:delete", call_id=room.call_id)
    assert await hub.value("SELECT count(*) FROM files") == 0
    assert await hub.value("SELECT count(*) FROM file_tombstones") == 2
