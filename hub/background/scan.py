"""What is done with a file once it is there: scanned for viruses, then given a preview.

Every node works; a file is leased to one of them at a time, so one whose node dies is taken up again by another. Until
the scanner has said that a file is clean nobody has its bytes, so everything here may be late, and nothing may be
skipped by accident: what cannot be scanned ends as `failed`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import structlog

from db import calls, files, participants, system, tombstones
from db.errors import DatabaseUnavailable
from db.files import File
from db.pool import Database, Transaction
from db.system import ClaimedFile
from hub import metrics
from hub.actions import sharing
from hub.actions.telling import Ears, tell_all
from hub.commands import Event
from hub.protocol.files import FileScanned, FileUpdated
from hub.sealed import sealed
from storage import keys
from storage.errors import ObjectMissing, StorageError
from storage.preview import PREVIEW_TYPE
from storage.scan import ScanFailed, ScannerUnavailable, Verdict

if TYPE_CHECKING:
    from hub.context import Rules
    from storage.store import Store

log = structlog.get_logger("hub.scan")

SCANS = metrics.counter("file_scans", "Scans of files by outcome", "outcome")
PREVIEWS = metrics.counter("file_previews", "Previews of files by outcome", "outcome")

# At once on this node. A scan waits for clamd, a preview takes a processor.
_WORKERS = 2
_LOOK_S = 1.0
# Longer than the slowest scan of the largest file.
_LEASE_S = 300.0
_AGAIN_S = (2.0, 300.0)
# Then it has failed: after some ten minutes without a scanner or a store.
_ATTEMPTS = 9
_PREVIEW_ATTEMPTS = 3
# A copy that was set aside and came to nothing is cleared away then.
_ASIDE_S = 3600.0


class Scanner(Protocol):
    async def scan(self, pieces: AsyncIterator[bytes]) -> Verdict:
        """Raises ScannerUnavailable, ScanFailed."""
        ...


class Previewer(Protocol):
    async def make(self, pieces: AsyncIterator[bytes], mime_type: str) -> bytes | None: ...


class ScanDesk(Protocol):
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


class Scan:
    """`run()` until cancelled; `once()` works off one file. `scanner` None: this node has none. What is
    to be scanned it leaves to those that have one, however long that takes: `skipped` is said of files when they are
    made, never of what a scanner was asked about."""

    def __init__(
        self, desk: ScanDesk, scanner: Scanner | None, previewer: Previewer, *, attempts: int = _ATTEMPTS
    ) -> None:
        self._desk = desk
        self._scanner = scanner
        self._previewer = previewer
        self._attempts = attempts

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WORKERS):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            worked = False
            try:
                worked = await self.once()
            except DatabaseUnavailable as error:
                log.warning("scan_waits", error=str(error)[:200])
            except Exception:
                # The lease ends, and it is tried again.
                log.exception("scan_crashed")
            if not worked:
                await asyncio.sleep(_LOOK_S * random.uniform(0.8, 1.2))

    async def once(self) -> bool:
        """Scan the longest waiting file, or make its preview. False: none waits. Raises DatabaseUnavailable."""
        desk = self._desk
        async with desk.db.system() as tx:
            claimed = await system.claim_files(tx, desk.clock(), 1, _LEASE_S, scans=self._scanner is not None)
        for each in claimed:
            async with desk.db.tenant(each.tenant_id, each.uploader_id) as tx:
                file = await files.get(tx, each.file_id)
            if file is None:
                continue
            if file.scan_status == "pending":
                # Without a scanner: a rescan was asked for since, and that made it free for all again.
                if self._scanner is not None:
                    await self._scan(self._scanner, file, each)
            elif file.preview_status == "pending":
                await self._preview(file, each)
        return bool(claimed)

    # Scanning

    async def _scan(self, scanner: Scanner, file: File, claimed: ClaimedFile) -> None:
        try:
            async with aclosing(self._desk.store.get(file.storage_key)) as pieces:
                verdict = await scanner.scan(pieces)
        except ObjectMissing:
            # Deleted at this moment, or lost: either way it is not to be had.
            await self._said(file, "failed", "the bytes are not there")
        except ScanFailed as error:
            await self._said(file, "failed", str(error))
        except (ScannerUnavailable, StorageError) as error:
            if claimed.attempts >= self._attempts:
                await self._said(file, "failed", f"not scanned after {claimed.attempts} tries")
            else:
                SCANS.labels("again").inc()
                log.warning("scan_again", attempts=claimed.attempts, error=str(error)[:200])
                await self._later(file, claimed)
        else:
            await self._said(file, "clean" if verdict.clean else "infected", verdict.signature)

    async def _said(self, file: File, status: str, result: str | None) -> None:
        """Keep what was said and tell it. An infected file's bytes first get a key that no URL leads to."""
        SCANS.labels(status).inc()
        if status != "infected":
            await sealed(self._keep(file, status, result, file.storage_key))
            return
        log.warning("file_infected", file_id=str(file.id), call_id=str(file.call_id), signature=result)
        key = keys.infected(file.tenant_id, file.call_id, file.id)
        try:
            async with self._desk.db.tenant(file.tenant_id, file.uploader_id) as tx:
                await tombstones.add(tx, file.id, key, self._desk.clock() + timedelta(seconds=_ASIDE_S))
            await self._desk.store.copy(file.storage_key, key)
        except StorageError as error:
            # That nobody gets another URL is more urgent.
            log.warning("infected_not_set_aside", file_id=str(file.id), error=str(error)[:200])
            key = file.storage_key
        await sealed(self._keep(file, status, result, key))

    async def _keep(self, file: File, status: str, result: str | None, key: str) -> None:
        desk, now = self._desk, self._desk.clock()
        heard: list[tuple[File, list[str]]] = []

        async def tell() -> None:
            for kept, besides in heard:
                await tell_all(desk.bus, kept, FileScanned(sharing.view(desk.rules, kept)), besides)

        async with desk.db.tenant(file.tenant_id, file.uploader_id, turn=file.call_id, then=tell) as tx:
            await calls.lock(tx, file.call_id)
            held = await files.lock(tx, file.id)
            if held is None or held.storage_key != file.storage_key:
                # Moved meanwhile: what was scanned are not its bytes any more; whoever claims it next scans those.
                return
            kept = await files.scanned(tx, file.id, status, result=result, now=now, storage_key=key)
            if kept is None:
                return
            if key != file.storage_key:
                await tombstones.spare(tx, file.id, key)
                await tombstones.add(tx, file.id, file.storage_key, now)
            alarming = status in ("infected", "failed") and kept.access_level != "private"
            heard.append((kept, await self._absent(tx, kept) if alarming else []))

    async def _absent(self, tx: Transaction, file: File) -> list[str]:
        """The uploader and the owner of the call, as far as they do not hear the room."""
        call = await calls.get(tx, file.call_id)
        there = {each.user_id for each in await participants.in_call(tx, file.call_id)}
        concerned = {file.uploader_id, *([call.owner_id] if call else [])}
        return sorted(concerned - there)

    # Previews

    async def _preview(self, file: File, claimed: ClaimedFile) -> None:
        key = keys.preview(file.tenant_id, file.call_id, file.id)
        try:
            async with aclosing(self._desk.store.get(file.storage_key)) as pieces:
                made = await self._previewer.make(pieces, file.detected_mime_type or "")
            if made is not None:
                if not await self._announce_key(file, key):
                    return
                await self._desk.store.put(key, made, content_type=PREVIEW_TYPE)
        except ObjectMissing:
            made = None
        except StorageError as error:
            if claimed.attempts < _PREVIEW_ATTEMPTS:
                log.warning("preview_again", attempts=claimed.attempts, error=str(error)[:200])
                await self._later(file, claimed)
                return
            made = None
        PREVIEWS.labels("none" if made is None else "made").inc()
        await sealed(self._shown(file, made is not None, key))

    async def _announce_key(self, file: File, key: str) -> bool:
        async with self._desk.db.tenant(file.tenant_id, file.uploader_id) as tx:
            return await files.previewing(tx, file.id, key)

    async def _shown(self, file: File, made: bool, key: str) -> None:
        desk = self._desk
        heard: list[tuple[File, Event]] = []

        async def tell() -> None:
            for kept, event in heard:
                await tell_all(desk.bus, kept, event)

        async with desk.db.tenant(file.tenant_id, file.uploader_id, turn=file.call_id, then=tell) as tx:
            await calls.lock(tx, file.call_id)
            kept = await files.previewed(tx, file.id, "ready" if made else "failed", key if made else None)
            if kept is not None:
                heard.append((kept, FileUpdated(sharing.view(desk.rules, kept))))
            elif made and await files.get(tx, file.id) is None:
                # Its tombstone may have been worked off before the preview was there.
                await tombstones.add(tx, file.id, key, desk.clock())

    async def _later(self, file: File, claimed: ClaimedFile) -> None:
        first_s, most_s = _AGAIN_S
        wait_s = min(most_s, first_s * 2 ** (claimed.attempts - 1)) * random.uniform(0.8, 1.2)
        async with self._desk.db.tenant(file.tenant_id, file.uploader_id) as tx:
            await files.later(tx, file.id, self._desk.clock() + timedelta(seconds=wait_s))
