"""Is what the store holds what the database knows of it? Both ways: files without bytes, and bytes without a file.

A store may be shared with others, another environment of the same hub among them: bytes are this database's only where
it knows the call that their key names. Those of others are counted, and never touched.

A comparison of two things that go on changing. So nothing young is called stray, and what seems to be missing is looked
for once more, row and all, before it is said.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

import msgspec

from db import system
from db.pool import Database
from db.system import StoredFile
from storage import keys
from storage.errors import ObjectMissing
from storage.store import Store, Stored, Upload

# An upload may be that old before its row says that it is a file; a copy is there before its row is.
YOUNG: Final = timedelta(hours=24)
# Of each kind so many are named; all are counted.
MOST_NAMED: Final = 1000
_PAGE: Final = 500
_SIDE_BY_SIDE: Final = 16
_HASHED_BYTES: Final = 4 * 1024 * 1024

What = Literal["missing", "size", "sha256", "preview_missing"]


class Wrong(msgspec.Struct, frozen=True):
    """A file whose bytes are not what they should be."""

    tenant_id: UUID
    file_id: UUID
    storage_key: str
    what: What


class Stock(msgspec.Struct):
    """What was found. `strays`: keys of bytes that nothing knows, and of multipart uploads that nobody completes.

    `foreign`: objects and multipart uploads that are none of this database's.
    """

    files: int = 0
    objects: int = 0
    bytes: int = 0
    wrong: int = 0
    stray_objects: int = 0
    stray_uploads: int = 0
    removed: int = 0
    foreign: int = 0
    wrong_files: list[Wrong] = []
    strays: list[str] = []

    @property
    def sound(self) -> bool:
        return not self.wrong and self.stray_objects + self.stray_uploads == self.removed


async def take(db: Database, store: Store, now: datetime, *, fix: bool = False, deep: bool = False) -> Stock:
    """Compare everything. `fix` removes strays; what is missing only people can bring back. `deep` reads every byte.

    Raises DatabaseUnavailable, StorageError.
    """
    stock = Stock()
    await _look_for_files(stock, db, store, deep=deep)
    await _look_at_objects(stock, db, store, now - YOUNG, fix=fix)
    await _look_at_uploads(stock, db, store, now - YOUNG, fix=fix)
    return stock


async def _look_for_files(stock: Stock, db: Database, store: Store, *, deep: bool) -> None:
    after = UUID(int=0)
    while True:
        async with db.system() as tx:
            page = await system.stored_files(tx, after, _PAGE)
        if not page:
            return
        after = page[-1].file_id
        stock.files += len(page)
        for few in _in_bites(page):
            found = await asyncio.gather(*(_examine(db, store, file, deep=deep) for file in few))
            for wrong in filter(None, found):
                stock.wrong += 1
                if len(stock.wrong_files) < MOST_NAMED:
                    stock.wrong_files.append(wrong)


async def _examine(db: Database, store: Store, file: StoredFile, *, deep: bool) -> Wrong | None:
    what = await _difference(store, file, deep=deep)
    if what is None:
        return None
    # Deleted or moved while we looked?
    async with db.system() as tx:
        again = await system.stored_files(tx, UUID(int=file.file_id.int - 1), 1)
    if not again or again[0] != file:
        return None
    return Wrong(file.tenant_id, file.file_id, file.storage_key, what)


async def _difference(store: Store, file: StoredFile, *, deep: bool) -> What | None:
    try:
        stored = await store.head(file.storage_key)
        if stored.size_bytes != file.size_bytes:
            return "size"
        if deep and await _hash(store, file.storage_key) != file.sha256:
            return "sha256"
    except ObjectMissing:
        return "missing"
    if file.preview_storage_key is not None:
        try:
            await store.head(file.preview_storage_key)
        except ObjectMissing:
            return "preview_missing"
    return None


async def _hash(store: Store, key: str) -> str:
    digest, gathered = hashlib.sha256(), bytearray()
    async with aclosing(store.get(key)) as pieces:
        async for piece in pieces:
            gathered += piece
            if len(gathered) >= _HASHED_BYTES:
                await asyncio.to_thread(digest.update, gathered)
                gathered = bytearray()
    await asyncio.to_thread(digest.update, gathered)
    return digest.hexdigest()


async def _look_at_objects(stock: Stock, db: Database, store: Store, before: datetime, *, fix: bool) -> None:
    async for page in _objects(store):
        stock.objects += len(page)
        stock.bytes += sum(each.size_bytes for each in page)
        old = [each.key for each in page if each.modified_at < before]
        unknown = await _unknown(db, old)
        ours = await of_this_database(db, unknown)
        stock.foreign += len(unknown) - len(ours)
        for key in ours:
            stock.stray_objects += 1
            _name(stock, key)
            if fix:
                await store.delete(key)
                stock.removed += 1


async def _look_at_uploads(stock: Stock, db: Database, store: Store, before: datetime, *, fix: bool) -> None:
    async for page in _uploads(store):
        old = [each for each in page if each.started_at < before]
        unknown = set(await _unknown(db, {each.key for each in old}))
        ours = set(await of_this_database(db, unknown))
        stock.foreign += sum(each.key in unknown - ours for each in old)
        for each in old:
            if each.key not in ours:
                continue
            stock.stray_uploads += 1
            _name(stock, each.key)
            if fix:
                await store.abort(each.key, each.upload_id)
                stock.removed += 1


def _name(stock: Stock, key: str) -> None:
    if len(stock.strays) < MOST_NAMED:
        stock.strays.append(key)


async def _unknown(db: Database, found: Iterable[str]) -> list[str]:
    asked = list(found)
    if not asked:
        return []
    async with db.system() as tx:
        known = await system.known_keys(tx, asked)
    return [key for key in asked if key not in known]


async def of_this_database(db: Database, found: Iterable[str]) -> list[str]:
    """Of these keys those that name a call it knows. Raises DatabaseUnavailable."""
    calls = {key: call for key in found if (call := keys.call_of(key)) is not None}
    if not calls:
        return []
    async with db.system() as tx:
        known = await system.known_calls(tx, set(calls.values()))
    return [key for key, call in calls.items() if call in known]


async def _objects(store: Store) -> AsyncIterator[tuple[Stored, ...]]:
    cursor = None
    while True:
        page = await store.list(cursor=cursor)
        yield page.items
        cursor = page.cursor
        if cursor is None:
            return


async def _uploads(store: Store) -> AsyncIterator[tuple[Upload, ...]]:
    # First all of them: aborting between two pages could move the rest.
    cursor, pages = None, []
    while True:
        page = await store.uploads(cursor=cursor)
        pages.append(page.items)
        cursor = page.cursor
        if cursor is None:
            break
    for items in pages:
        yield items


def _in_bites(page: list[StoredFile]) -> list[list[StoredFile]]:
    return [page[at : at + _SIDE_BY_SIDE] for at in range(0, len(page), _SIDE_BY_SIDE)]
