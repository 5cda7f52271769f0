"""What every store does: one suite, run over the directory and over real S3-compatible servers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from storage import keys
from storage.errors import ObjectMissing, PartsMismatch, RangeInvalid, UploadMissing
from storage.store import PART_BYTES, SMALL_BYTES, Part, Store, Stored, abort_abandoned

pytestmark = pytest.mark.asyncio(loop_scope="session")

TYPE = "application/vnd.auralink.test"


def some_key() -> str:
    return keys.content(uuid4(), uuid4(), uuid4())


async def read(store: Store, key: str, **which: int) -> bytes:
    async with contextlib.aclosing(store.get(key, **which)) as pieces:
        return b"".join([piece async for piece in pieces])


async def put_parts(store: Store, key: str, *data: bytes) -> tuple[str, list[Part]]:
    upload_id = await store.begin(key, content_type=TYPE)
    return upload_id, [await store.put_part(key, upload_id, n, each) for n, each in enumerate(data, 1)]


async def test_what_is_put_is_there_with_its_size_and_type(store: Store) -> None:
    """S-026, S-249: an object is under its key with the right size and content type, on every store."""
    key, data = some_key(), os.urandom(300_000)
    put = await store.put(key, data, content_type=TYPE)
    seen = await store.head(key)
    assert (put.key, put.size_bytes) == (key, len(data)) == (seen.key, seen.size_bytes)
    assert seen.content_type == TYPE
    assert abs(datetime.now(UTC) - seen.modified_at) < timedelta(minutes=5)
    assert await read(store, key) == data


async def test_an_empty_object_is_an_object(store: Store) -> None:
    key = some_key()
    await store.put(key, b"")
    assert (await store.head(key)).size_bytes == 0
    assert await read(store, key) == b""


async def test_putting_again_replaces(store: Store) -> None:
    key = some_key()
    await store.put(key, b"first, and longer", content_type="text/plain")
    await store.put(key, b"second", content_type=TYPE)
    assert await read(store, key) == b"second"
    assert (await store.head(key)).content_type == TYPE


async def test_what_is_not_there_is_missing(store: Store) -> None:
    key = some_key()
    with pytest.raises(ObjectMissing):
        await store.head(key)
    with pytest.raises(ObjectMissing):
        await read(store, key)
    with pytest.raises(ObjectMissing):
        await store.copy(key, some_key())
    with pytest.raises(ObjectMissing):
        await store.move(key, some_key())
    await store.delete(key)


async def test_ranges_are_exact(store: Store) -> None:
    key, data = some_key(), os.urandom(700_000)
    await store.put(key, data)
    assert await read(store, key, offset=699_990) == data[-10:]
    assert await read(store, key, offset=5, length=600_000) == data[5:600_005]
    assert await read(store, key, length=1) == data[:1]
    assert await read(store, key, offset=699_999, length=50) == data[-1:]
    assert await read(store, key, length=0) == b""
    with pytest.raises(RangeInvalid):
        await read(store, key, offset=700_000)


async def test_reading_comes_in_bounded_pieces_and_may_stop_early(store: Store) -> None:
    key, data = some_key(), os.urandom(2_000_000)
    await store.put(key, data)
    async with contextlib.aclosing(store.get(key)) as pieces:
        async for piece in pieces:
            assert 0 < len(piece) <= 256 * 1024
            break
    assert await read(store, key) == data


async def test_parts_become_one_object_and_nothing_is_seen_before(store: Store) -> None:
    key, data = some_key(), os.urandom(2 * PART_BYTES + 1234)
    upload_id = await store.begin(key, content_type=TYPE)
    pieces = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
    # Out of order, and one twice: the one that is named last counts.
    parts = {}
    for number in (3, 1, 2, 1):
        parts[number] = await store.put_part(key, upload_id, number, pieces[number - 1])
    with pytest.raises(ObjectMissing):
        await store.head(key)
    done = await store.complete(key, upload_id, [parts[number] for number in sorted(parts)])
    assert done.size_bytes == len(data) == (await store.head(key)).size_bytes
    assert (await store.head(key)).content_type == TYPE
    digest = hashlib.sha256(await read(store, key)).digest()
    assert digest == hashlib.sha256(data).digest()


async def test_completing_twice_answers_twice(store: Store) -> None:
    key = some_key()
    upload_id, parts = await put_parts(store, key, b"only part")
    first = await store.complete(key, upload_id, parts)
    second = await store.complete(key, upload_id, parts)
    assert (first.key, first.size_bytes) == (second.key, second.size_bytes) == (key, 9)


async def test_parts_that_are_not_stored_do_not_complete(store: Store) -> None:
    key = some_key()
    upload_id, parts = await put_parts(store, key, b"x" * PART_BYTES, b"rest")
    with pytest.raises(PartsMismatch):
        await store.complete(key, upload_id, [parts[0], Part(2, parts[0].etag, parts[0].size_bytes)])
    with pytest.raises(ValueError, match="1, 2, 3"):
        await store.complete(key, upload_id, [parts[1]])
    with pytest.raises(ObjectMissing):
        await store.head(key)


async def test_an_aborted_upload_is_gone(store: Store) -> None:
    key = some_key()
    upload_id, parts = await put_parts(store, key, b"some")
    await store.abort(key, upload_id)
    await store.abort(key, upload_id)
    with pytest.raises(UploadMissing):
        await store.put_part(key, upload_id, 2, b"more")
    with pytest.raises(UploadMissing):
        await store.complete(key, upload_id, parts)
    assert [each for each in (await store.uploads(key)).items if each.upload_id == upload_id] == []


async def test_abandoned_uploads_are_found_and_aborted(store: Store) -> None:
    """S-056: what nobody completes does not stay for ever."""
    tenant, call = uuid4(), uuid4()
    prefix = keys.of_call(tenant, call)
    begun = {}
    for _ in range(3):
        key = keys.content(tenant, call, uuid4())
        begun[key] = (await put_parts(store, key, b"part"))[0]
    elsewhere = some_key()
    kept, _ = await put_parts(store, elsewhere, b"part")
    open_uploads = (await store.uploads(prefix)).items
    assert {each.key: each.upload_id for each in open_uploads} == begun

    async def among(asked: Sequence[str]) -> Sequence[str]:
        return [key for key in asked if key in ours]

    async def abort(hours: int, most: int = 1000) -> int:
        before = datetime.now(UTC) + timedelta(hours=hours)
        return await abort_abandoned(store, before=before, among=among, prefix=prefix, most=most)

    ours = set(list(begun)[:2])
    assert await abort(-1) == 0
    assert await abort(1) == 2
    ours = set(begun)
    assert await abort(1, most=0) == 0
    assert await abort(1, most=2) == 1
    assert (await store.uploads(prefix)).items == ()
    await store.abort(elsewhere, kept)


async def test_a_copy_leaves_both_and_a_move_leaves_one(store: Store) -> None:
    """S-030: move: old key absent, new present, same bytes; copy: both present."""
    first, second, third = some_key(), some_key(), some_key()
    data = os.urandom(100_000)
    await store.put(first, data, content_type=TYPE)
    copied = await store.copy(first, second)
    assert (copied.key, copied.size_bytes) == (second, len(data))
    assert await read(store, first) == await read(store, second) == data
    await store.move(first, third)
    with pytest.raises(ObjectMissing):
        await store.head(first)
    assert await read(store, third) == data
    assert (await store.head(third)).content_type == TYPE
    # Its answer was lost, and it is asked for again.
    assert (await store.move(first, third)).size_bytes == len(data)


async def test_what_is_deleted_is_gone(store: Store) -> None:
    """S-028: after a delete the object is absent."""
    key = some_key()
    await store.put(key, b"bytes")
    await store.delete(key)
    await store.delete(key)
    with pytest.raises(ObjectMissing):
        await store.head(key)


async def test_a_listing_pages_through_everything_in_the_order_of_keys(store: Store) -> None:
    """S-029: every object once, in a stable order."""
    tenant = uuid4()
    made = []
    for _ in range(3):
        call = uuid4()
        for _ in range(4):
            file = uuid4()
            made += [keys.content(tenant, call, file), keys.preview(tenant, call, file)]
    await asyncio.gather(*(store.put(key, key.encode()) for key in made))
    await store.put(some_key(), b"another tenant's")
    seen: list[Stored] = []
    cursor = None
    for _ in range(10):
        page = await store.list(f"{tenant}/", cursor=cursor, limit=5)
        assert len(page.items) <= 5
        seen += page.items
        cursor = page.cursor
        if cursor is None:
            break
    assert [each.key for each in seen] == sorted(made)
    assert {each.size_bytes for each in seen} == {len(key) for key in made} and len(seen) == 24
    assert (await store.list(f"{uuid4()}/")).items == ()


async def test_writing_and_deleting_side_by_side_loses_nothing(store: Store) -> None:
    tenant, call = uuid4(), uuid4()

    async def come_and_go(number: int) -> None:
        key = keys.content(tenant, call, uuid4())
        for _ in range(3):
            await store.put(key, bytes([number]) * 1000)
            assert await read(store, key) == bytes([number]) * 1000
            await store.delete(key)

    await asyncio.gather(*(come_and_go(number) for number in range(6)))
    assert (await store.list(keys.of_call(tenant, call))).items == ()


async def test_bad_keys_and_large_objects_are_refused_before_the_store_is_asked(store: Store) -> None:
    for key in ("", "/a", "a//b", "../a", "a/../b", "a/.hidden", "a b", "ä", "a/", "a" * 513, "a\n"):
        with pytest.raises(ValueError, match="storage key"):
            await store.put(key, b"")
        with pytest.raises(ValueError, match="storage key"):
            await store.delete(key)
        with pytest.raises(ValueError, match="storage key"):
            await store.sign_get(key, ttl_s=60, content_type=TYPE, disposition="attachment")
    with pytest.raises(ValueError, match="by parts"):
        await store.put(some_key(), b"x" * (SMALL_BYTES + 1))


async def test_a_store_that_is_well_says_so(store: Store) -> None:
    await store.ping()
