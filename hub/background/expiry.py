"""What files leave behind with time: uploads nobody finished, files whose time is over, bytes whose row is gone.

One node at a time does it. Each step is one transaction and may be done twice; a tombstone goes when the store has said
that the bytes are gone, and not before.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from db import calls, files, system, uploads
from db.errors import DatabaseUnavailable
from db.pool import Database
from db.system import ExpiredFile, ExpiredUpload
from db.tombstones import Tombstone
from hub import metrics
from hub.actions.bringing import UPLOAD_S
from hub.actions.burying import bury
from hub.actions.telling import Ears, tell_all
from hub.protocol.errors import ClusterUnavailable
from hub.protocol.files import FileDeleted
from hub.sealed import sealed
from hub.stocktaking import of_this_database
from storage.errors import StorageError
from storage.store import abort_abandoned

if TYPE_CHECKING:
    from db.files import File
    from hub.context import Rules
    from storage.store import Store

log = structlog.get_logger("hub.expiry")

CLEARED = metrics.counter("files_cleared", "What the sweep of files cleared away", "what")

_EVERY_S = 3.0
_BITE = 200
_SIDE_BY_SIDE = 8
# Multipart uploads that no row knows: begun in the moment in which a node died.
_STRAYS_EVERY_S = 3600.0


class Leader(Protocol):
    async def leads(self) -> bool:
        """Whether this node is the one that does it; asking also tries to become it. Raises ClusterUnavailable."""
        ...


class ExpiryDesk(Protocol):
    @property
    def db(self) -> Database: ...
    @property
    def bus(self) -> Ears: ...
    @property
    def store(self) -> Store: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def clock(self) -> Callable[[], datetime]: ...


class Cleared(msgspec.Struct, frozen=True):
    """How many went. `left`: tombstones that the store would not have yet."""

    uploads: int
    files: int
    tombstones: int
    left: int

    @property
    def more(self) -> bool:
        """Whether there may be more of it to do right away."""
        return max(self.uploads, self.files, self.tombstones) >= _BITE


class Expiry:
    """`run()` until cancelled; `once()` for who wants it now."""

    def __init__(self, desk: ExpiryDesk, leader: Leader, *, every_s: float = _EVERY_S) -> None:
        self._desk = desk
        self._leader = leader
        self._every_s = every_s

    async def run(self) -> None:
        strays_at = time.monotonic() + _STRAYS_EVERY_S * random.uniform(0.1, 1.0)
        while True:
            more = False
            try:
                if await self._leader.leads():
                    more = (await self.once()).more
                    if time.monotonic() >= strays_at:
                        strays_at = time.monotonic() + _STRAYS_EVERY_S
                        await self.strays()
            except (DatabaseUnavailable, ClusterUnavailable, StorageError) as error:
                log.warning("expiry_waits", error=str(error)[:200])
            except Exception:
                log.exception("expiry_crashed")
            if not more:
                await asyncio.sleep(self._every_s * random.uniform(0.8, 1.2))

    async def once(self) -> Cleared:
        """Raises DatabaseUnavailable."""
        desk, now = self._desk, self._desk.clock()
        async with desk.db.system() as tx:
            late = await system.expired_uploads(tx, now, _BITE)
            over = await system.expired_files(tx, now, _BITE)
        for upload in late:
            await self._drop(upload)
        for file in over:
            await sealed(self._delete(file))
        # Also of what went just now.
        async with desk.db.system() as tx:
            graves = await system.due_tombstones(tx, desk.clock(), _BITE)
        buried = await self._bury(graves)
        cleared = Cleared(len(late), len(over), buried, len(graves) - buried)
        for what, count in (("upload", cleared.uploads), ("file", cleared.files), ("object", cleared.tombstones)):
            if count:
                CLEARED.labels(what).inc(count)
        return cleared

    async def strays(self) -> int:
        """Abort multipart uploads of this database's calls that are older than any that may still be written.

        Raises StorageError, DatabaseUnavailable.
        """
        desk = self._desk
        before = desk.clock() - timedelta(seconds=2 * max(desk.rules.upload_ttl_s, UPLOAD_S))
        aborted = await abort_abandoned(desk.store, before=before, among=lambda keys: of_this_database(desk.db, keys))
        if aborted:
            log.warning("stray_uploads_aborted", count=aborted)
        return aborted

    async def _drop(self, late: ExpiredUpload) -> None:
        async with self._desk.db.tenant(late.tenant_id, late.uploader_id) as tx:
            await uploads.drop(tx, late.upload_id)

    async def _delete(self, over: ExpiredFile) -> None:
        desk = self._desk
        gone: list[File] = []

        async def tell() -> None:
            for file in gone:
                await tell_all(desk.bus, file, FileDeleted(file.id, file.call_id, "expired"))

        turn = over.call_id
        async with desk.db.tenant(over.tenant_id, over.uploader_id, turn=turn, then=tell) as tx:
            await calls.lock(tx, over.call_id)
            file = await files.get(tx, over.file_id)
            if file is not None and file.expires_at is not None and file.expires_at <= desk.clock():
                await files.delete(tx, file.id)
                gone.append(file)

    async def _bury(self, graves: Iterable[Tombstone]) -> int:
        gate = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(grave: Tombstone) -> bool:
            async with gate:
                return await bury(self._desk, grave)

        return sum(await asyncio.gather(*(one(grave) for grave in graves)))
