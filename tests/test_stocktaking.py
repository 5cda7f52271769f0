"""Files without bytes, bytes without a file: found both ways, over all tenants, and nothing else is touched."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from db import files
from db.files import File
from db.pool import Database
from hub.stocktaking import Stock, take
from storage import keys
from storage.errors import ObjectMissing
from storage.local import LocalStore
from storage.signing import UrlSigner
from tests.conftest import TestDatabase
from tests.db.people import make_call, tenant_id


@dataclass
class House:
    db: Database
    store: LocalStore
    directory: Path

    async def file(self, *, tenant: UUID | None = None, data: bytes = b"bytes", access: str = "private") -> File:
        """A file with its bytes, as an upload leaves them."""
        tenant, file_id = tenant or tenant_id(), uuid4()
        async with self.db.tenant(tenant, "olga") as tx:
            call = await make_call(tx)
            row = await files.add(
                tx,
                file_id,
                call.id,
                uploader_id="olga",
                name="a.bin",
                size_bytes=len(data),
                mime_type="application/octet-stream",
                detected_mime_type=None,
                sha256=hashlib.sha256(data).hexdigest(),
                storage_key=keys.content(tenant, call.id, file_id),
                access_level=access,
                source="rest",
                scan_status="skipped",
                scanned_at=None,
                preview_status="none",
                expires_at=None,
                now=datetime.now(UTC),
            )
        await self.store.put(row.storage_key, data)
        return row

    async def stray(self, *, days_old: float) -> str:
        key = await self.key()
        await self.put_old(key, days_old)
        return key

    async def key(self) -> str:
        """Of a call that there is, and of no file."""
        tenant = tenant_id()
        async with self.db.tenant(tenant, "olga") as tx:
            call = await make_call(tx)
        return keys.content(tenant, call.id, uuid4())

    async def put_old(self, key: str, days_old: float) -> None:
        await self.store.put(key, b"stray")
        then = time.time() - days_old * 86_400
        os.utime(self.directory / "objects" / key, (then, then))

    async def take(self, *, fix: bool = False, deep: bool = False) -> Stock:
        return await take(self.db, self.store, datetime.now(UTC), fix=fix, deep=deep)


@pytest.fixture
async def house(database: TestDatabase, tmp_path: Path) -> AsyncIterator[House]:
    db = await Database.open(database.app_dsn, statement_timeout_s=10.0, acquire_timeout_s=10.0)
    async with LocalStore(tmp_path, UrlSigner("http://hub", b"secret")) as store:
        yield House(db, store, tmp_path)
    await db.close()


async def test_what_agrees_is_sound(house: House) -> None:
    """S-055: keys, sizes and hashes in the database match the store, private files of all tenants included."""
    for number in range(40):
        await house.file(data=os.urandom(100 + number), access=("private", "public", "call_participants")[number % 3])
    stock = await house.take(deep=True)
    assert stock.sound
    assert (stock.files, stock.objects, stock.bytes) == (40, 40, sum(range(100, 140)))


async def test_a_file_whose_bytes_are_gone_or_others_is_named(house: House) -> None:
    """S-055"""
    gone, shorter, other, well = [await house.file() for _ in range(4)]
    await house.store.delete(gone.storage_key)
    await house.store.put(shorter.storage_key, b"byte")
    await house.store.put(other.storage_key, b"BYTES")
    stock = await house.take(fix=True)
    assert {(wrong.file_id, wrong.what) for wrong in stock.wrong_files} == {(gone.id, "missing"), (shorter.id, "size")}
    assert not stock.sound
    deep = await house.take(deep=True)
    assert {wrong.file_id: wrong.what for wrong in deep.wrong_files}[other.id] == "sha256"
    assert deep.wrong == 3
    # What is wrong with a file is for people to mend.
    async with house.db.tenant(well.tenant_id, "olga") as tx:
        assert await files.get(tx, well.id) is not None


async def test_bytes_that_nothing_knows_are_strays_once_they_are_old(house: House) -> None:
    """S-055, S-056: zero orphans after the check has mended them."""
    kept = await house.file()
    young, old = await house.stray(days_old=0), await house.stray(days_old=2)
    stock = await house.take()
    assert (stock.stray_objects, stock.strays, stock.removed) == (1, [old], 0)
    assert not stock.sound
    mended = await house.take(fix=True)
    assert mended.sound and mended.removed == 1
    with pytest.raises(ObjectMissing):
        await house.store.head(old)
    for key in (young, kept.storage_key):
        await house.store.head(key)
    assert (await house.take()).sound


async def test_bytes_that_are_to_be_deleted_are_no_strays(house: House) -> None:
    row = await house.file()
    then = time.time() - 3 * 86_400
    os.utime(house.directory / "objects" / row.storage_key, (then, then))
    async with house.db.tenant(row.tenant_id, "olga") as tx:
        await files.delete(tx, row.id)
    assert (await house.take(fix=True)).sound
    await house.store.head(row.storage_key)


async def test_uploads_that_nobody_completes_are_strays_too(house: House) -> None:
    key = await house.key()
    upload_id = await house.store.begin(key)
    await house.store.put_part(key, upload_id, 1, b"part")
    assert (await house.take()).stray_uploads == 0
    later = datetime.fromtimestamp(time.time() + 2 * 86_400, UTC)
    stock = await take(house.db, house.store, later, fix=True)
    assert (stock.stray_uploads, stock.removed) == (1, 1)
    assert (await house.store.uploads()).items == ()


async def test_what_others_keep_in_the_same_store_is_left_alone(house: House) -> None:
    """Another environment's files, of calls that this database does not know, and keys that no hub makes."""
    ours = await house.key()
    foreign = [keys.content(uuid4(), uuid4(), uuid4()), "backups/2026-01-01.tar", f"{ours}.old", ours.upper()]
    tails = [keys.tail(ours, 3), f"{ours}.preview", f"{ours}.incoming", f"{ours}.infected"]
    for key in (ours, *tails, *foreign):
        await house.put_old(key, 2)
    begun = [(key, await house.store.begin(key)) for key in (ours, *foreign)]
    later = datetime.fromtimestamp(time.time() + 3 * 86_400, UTC)
    stock = await take(house.db, house.store, later, fix=True)
    assert (stock.stray_objects, stock.stray_uploads, stock.removed, stock.foreign) == (5, 1, 6, 8)
    assert {each.key for each in (await house.store.list()).items} == set(foreign)
    assert {(each.key, each.upload_id) for each in (await house.store.uploads()).items} == set(begun[1:])
