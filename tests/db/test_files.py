"""Uploads, files, the space they take, and what is left of them: what the tables and their triggers guarantee."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from db import calls, files, system, tombstones, uploads, users
from db.calls import Call
from db.files import File
from db.pool import Database, Transaction
from db.uploads import Upload, UploadPart
from tests.db.people import NOW, after, make_call, tenant_id

_HASH = "a" * 64
# Tombstones are dated by the database's own clock.
_SOON, _LATE = NOW + timedelta(days=3650), NOW + timedelta(days=36_500)


async def _open(tx: Transaction, call: Call, user_id: str = "olga", **fields: Any) -> Upload:
    await users.seen(tx, user_id)
    upload_id = uuid4()
    given: dict[str, Any] = {
        "uploader_id": user_id,
        "source": "frames",
        "name": "notes.txt",
        "mime_type": "text/plain",
        "size_bytes": 100,
        "sha256": None,
        "access_level": "call_participants",
        "expires_in_hours": None,
        "storage_key": f"{call.tenant_id}/{call.id}/{upload_id}",
        "expires_at": after(86_400),
    }
    return await uploads.open_(tx, upload_id, call.id, **(given | fields))


async def _add(tx: Transaction, upload: Upload, **fields: Any) -> File:
    given: dict[str, Any] = {
        "uploader_id": upload.uploader_id,
        "name": upload.name,
        "size_bytes": upload.size_bytes,
        "mime_type": upload.mime_type,
        "detected_mime_type": None,
        "sha256": _HASH,
        "storage_key": upload.storage_key,
        "access_level": upload.access_level,
        "source": upload.source,
        "scan_status": "pending",
        "scanned_at": None,
        "preview_status": "pending",
        "expires_at": None,
        "now": NOW,
    }
    return await files.add(tx, upload.id, upload.call_id, **(given | fields))


async def _make(tx: Transaction, call: Call, user_id: str = "olga", **fields: Any) -> File:
    upload = await _open(tx, call, user_id)
    file = await _add(tx, upload, **fields)
    assert await uploads.finish(tx, upload.id, upload.fence)
    return file


async def _used(db: Database, tenant: UUID, call: Call) -> tuple[int, int, int, int]:
    async with db.tenant(tenant, "whoever") as tx:
        used = await uploads.usage(tx, call.id)
    return used.call_bytes, used.call_files, used.tenant_bytes, used.tenant_files


async def test_space_is_counted_from_the_upload_to_the_deletion(db: Database) -> None:
    """Private files of others count too: a quota is no secret, and no way around it."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call, other = await make_call(tx), await make_call(tx)
        upload = await _open(tx, call, size_bytes=1000, access_level="private")
    assert await _used(db, mine, call) == (1000, 1, 1000, 1)
    async with db.tenant(mine, "olga") as tx:
        file = await _add(tx, upload, size_bytes=700)
        assert await uploads.finish(tx, upload.id, upload.fence)
    assert await _used(db, mine, call) == (700, 1, 700, 1)
    async with db.tenant(mine, "olga") as tx:
        assert await files.move(tx, file.id, other.id, f"{mine}/{other.id}/{file.id}") is not None
    assert (await _used(db, mine, call), await _used(db, mine, other)) == ((0, 0, 700, 1), (700, 1, 700, 1))
    async with db.tenant(mine, "olga") as tx:
        await files.delete(tx, file.id)
        await uploads.drop(tx, (await _open(tx, call)).id)
    assert await _used(db, mine, other) == (0, 0, 0, 0)


async def test_reservations_at_once_add_up(db: Database) -> None:
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)

    async def one(user_id: str) -> int:
        async with db.tenant(mine, user_id) as tx:
            await _open(tx, call, user_id, size_bytes=10)
            return (await uploads.usage(tx, call.id)).call_bytes

    seen = await asyncio.gather(*(one(f"user{n}") for n in range(6)))
    # Each looked while it held the count: no two saw the same.
    assert sorted(seen) == [10, 20, 30, 40, 50, 60]


async def test_only_the_last_writer_writes_and_only_where_the_last_part_ended(db: Database) -> None:
    """S-116: one writer by a fencing token; a gap, an overlap and a byte too many are refused."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        upload = await _open(tx, await make_call(tx))
        first = await uploads.take(tx, upload.id, "node-a", NOW)
        second = await uploads.take(tx, upload.id, "node-b", NOW)
        assert first is not None and second is not None and second.fence == first.fence + 1
        assert not await uploads.begun(tx, upload.id, first.fence, "stale")
        assert await uploads.begun(tx, upload.id, second.fence, "m1")
        assert not await uploads.begun(tx, upload.id, second.fence, "m2")
        part = UploadPart(1, "etag", 60)
        assert await uploads.record_part(tx, upload.id, first.fence, 0, part) is None
        assert await uploads.record_part(tx, upload.id, second.fence, 10, part) is None
        assert await uploads.record_part(tx, upload.id, second.fence, 0, part) == 60
        assert await uploads.record_part(tx, upload.id, second.fence, 0, part) is None
        assert await uploads.record_part(tx, upload.id, second.fence, 60, UploadPart(2, "e", 41)) is None
        assert await uploads.record_part(tx, upload.id, second.fence, 60, UploadPart(2, "e", 40)) == 100
        kept = await uploads.get(tx, upload.id)
        assert kept is not None
        assert (kept.parts, kept.stored_bytes, kept.multipart_id) == ((part, UploadPart(2, "e", 40)), 100, "m1")


async def test_who_makes_the_file_shuts_writers_and_others_out(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        upload = await _open(tx, await make_call(tx))
        writer = await uploads.take(tx, upload.id, "node-a", NOW)
        assert writer is not None
        leased = await uploads.lease(tx, upload.id, after(60), NOW)
        assert leased is not None
        assert await uploads.lease(tx, upload.id, after(60), after(1)) is None
        assert await uploads.take(tx, upload.id, "node-b", after(1)) is None
        assert await uploads.record_part(tx, upload.id, writer.fence, 0, UploadPart(1, "e", 1)) is None
        await uploads.unlease(tx, upload.id, leased.fence)
        assert await uploads.take(tx, upload.id, "node-b", after(1)) is not None
        again = await uploads.lease(tx, upload.id, after(60), after(1))
        assert again is not None
        assert not await uploads.finish(tx, upload.id, leased.fence)
        assert await uploads.finish(tx, upload.id, again.fence)


async def test_an_expired_upload_has_no_writers(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        upload = await _open(tx, await make_call(tx), expires_at=after(10))
        assert await uploads.count_open(tx, "olga", after(9)) == 1
        assert await uploads.count_open(tx, "olga", after(11)) == 0
        assert await uploads.take(tx, upload.id, "node-a", after(11)) is None


async def test_bytes_that_no_row_names_any_more_have_a_tombstone(db: Database) -> None:
    """S-028, S-056: dropped, under another key than the file's, or gone with their call; not those of a file."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)
        dropped = await _open(tx, call)
        await uploads.begun(tx, dropped.id, 0, "m1")
        await uploads.drop(tx, dropped.id)
        put = await _open(tx, call, storage_key="a/put.incoming", open_until=_LATE)
        await _add(tx, put, storage_key="a/put", access_level="private")
        assert await uploads.finish(tx, put.id, put.fence)
        plain = await _make(tx, call)
        assert await tombstones.of_file(tx, plain.id, _LATE) == []
        (grave,) = await tombstones.of_file(tx, dropped.id, _SOON)
        assert (grave.storage_key, grave.multipart_id) == (dropped.storage_key, "m1")
        assert await tombstones.of_file(tx, put.id, _SOON) == []
        (late,) = await tombstones.of_file(tx, put.id, _LATE)
        assert late.storage_key == "a/put.incoming"
        await tombstones.postpone(tx, late.id, _SOON, "no store")
        left = await _open(tx, call)
    async with db.tenant(mine, "somebody else") as tx:
        await calls.delete(tx, call.id)
    async with db.system() as tx:
        due = [each for each in await system.due_tombstones(tx, _LATE, 100) if each.tenant_id == mine]
    assert {each.storage_key for each in due} == {
        *(dropped.storage_key, "a/put.incoming", "a/put", plain.storage_key, left.storage_key),
    }
    async with db.tenant(mine) as tx:
        await tombstones.clear(tx, [each.id for each in due])
    assert await _used(db, mine, call) == (0, 0, 0, 0)


async def test_what_is_expired_is_found_over_all_tenants(db: Database) -> None:
    ours, theirs = tenant_id(), tenant_id()
    made = {}
    for tenant in (ours, theirs):
        async with db.tenant(tenant, "olga") as tx:
            call = await make_call(tx)
            upload = await _open(tx, call, expires_at=after(10))
            file = await _make(tx, call, access_level="private", expires_at=after(20))
            await _make(tx, call)
            made[tenant] = (upload.id, file.id)
    async with db.system() as tx:
        assert await system.expired_uploads(tx, after(9), 10) == []
        assert {(each.tenant_id, each.upload_id) for each in await system.expired_uploads(tx, after(10), 10)} == {
            (tenant, upload_id) for tenant, (upload_id, _) in made.items()
        }
        assert await system.expired_files(tx, after(19), 10) == []
        found = await system.expired_files(tx, after(20), 10)
        assert {(each.tenant_id, each.uploader_id, each.file_id) for each in found} == {
            (tenant, "olga", file_id) for tenant, (_, file_id) in made.items()
        }


async def test_a_file_to_be_scanned_is_in_one_nodes_hands(db: Database) -> None:
    """S-054: claimed once for the lease, and again after it; scanned, it is not claimed any more."""
    mine, now = tenant_id(), NOW + timedelta(days=3650)
    async with db.tenant(mine, "olga") as tx:
        file = await _make(tx, await make_call(tx), access_level="private")
        assert file.scan_status == "pending"
    async with db.system() as tx:
        (claimed,) = await system.claim_files(tx, now, 10, 30)
        assert (claimed.tenant_id, claimed.file_id, claimed.attempts) == (mine, file.id, 1)
        assert await system.claim_files(tx, now + timedelta(seconds=29), 10, 30) == []
        (claimed,) = await system.claim_files(tx, now + timedelta(seconds=31), 10, 30)
        assert claimed.attempts == 2
    async with db.tenant(mine, "olga") as tx:
        clean = await files.scanned(tx, file.id, "clean", result=None, now=now, storage_key=file.storage_key)
        assert clean is not None and (clean.scan_status, clean.preview_status) == ("clean", "pending")
        assert await files.scanned(tx, file.id, "infected", result="x", now=now, storage_key=file.storage_key) is None
        shown = await files.previewed(tx, file.id, "ready", "a/preview")
        assert shown is not None and shown.preview_storage_key == "a/preview"
    async with db.system() as tx:
        assert await system.claim_files(tx, now + timedelta(days=1), 10, 30) == []
        known = await system.known_keys(tx, [file.storage_key, "a/preview", "a/orphan"])
    assert known == {file.storage_key, "a/preview"}


async def test_lists_are_newest_first_and_hold_what_may_be_seen(db: Database) -> None:
    """S-029, S-052: stable pages; private files only in their uploader's list, expired ones in nobody's."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)
        made = [await _make(tx, call, now=after(n // 2)) for n in range(5)]
        hidden = await _make(tx, call, access_level="private")
        public = await _make(tx, call, access_level="public", now=after(-1))
        await _make(tx, call, expires_at=after(1))
    async with db.tenant(mine, "bob") as tx:
        pages: list[File] = []
        while page := await files.of_call(
            tx,
            call.id,
            now=after(5),
            takes_part=True,
            after=(pages[-1].created_at, pages[-1].id) if pages else None,
            limit=2,
        ):
            pages += page
        expected = sorted([*made, public], key=lambda file: (file.created_at, file.id), reverse=True)
        assert [file.id for file in pages] == [file.id for file in expected]
        assert await files.get(tx, hidden.id) is None
        outside = await files.of_call(tx, call.id, now=after(5), takes_part=False, limit=10)
        assert [file.id for file in outside] == [public.id]
    async with db.tenant(mine, "olga") as tx:
        assert hidden in await files.of_call(tx, call.id, now=after(5), takes_part=False, limit=10)
        assert len(await files.of_uploader(tx, "olga", now=after(5), limit=10)) == 7
    async with db.system() as tx:
        assert await system.public_file(tx, public.id) == (mine, call.id)
        assert await system.public_file(tx, made[0].id) is None


async def test_files_that_cross_between_two_calls_do_not_wait_for_each_other(db: Database) -> None:
    """Both lock the counts of both calls in one order, whichever way they go."""
    tenant = tenant_id()
    async with db.tenant(tenant, "olga") as tx:
        low, high = sorted([await make_call(tx), await make_call(tx)], key=lambda call: call.id)
        there, back = await _make(tx, low), await _make(tx, high)

    async def move(file: File, call: Call) -> None:
        async with db.tenant(tenant, "olga") as tx:
            await files.move(tx, file.id, call.id, f"{file.storage_key}.moved")

    async with db.tenant(tenant, "olga") as tx:
        await tx.execute("SELECT 1 FROM call_file_usage WHERE call_id = $1 FOR UPDATE", low.id)
        moves = []
        # Each has come to where it has to wait before the next one begins.
        for file, call in ((back, low), (there, high)):
            moves.append(asyncio.create_task(move(file, call)))
            await asyncio.sleep(0.3)
    await asyncio.gather(*moves)
