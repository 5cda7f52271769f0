"""One file on its way in, on the node that has it in hand: chunks to the spool, parts to the store, names to the row.

`state/transfer.py` says what is next; here it is done. At most one write of the spool and one part are under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import structlog

from db import tombstones, uploads
from db.errors import DatabaseUnavailable
from db.pool import Database
from db.uploads import Upload, UploadPart
from hub import metrics
from hub.background.spool import Spool
from hub.context import Progress
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.state import transfer
from hub.state.transfer import Piece, Transfer
from storage import keys
from storage.errors import StorageError, UploadMissing
from storage.errors import StorageUnavailable as StoreUnavailable
from storage.store import PART_BYTES, Store

log = structlog.get_logger("hub.transfers")
T = TypeVar("T")

RECEIVED = metrics.Tally("transfer_received_bytes", "Bytes of chunks that were taken")
PARTS = metrics.counter("transfer_parts", "Parts handed to the store, by outcome", "outcome")

# Parts of one file that lie in the spool: one on its way, one complete behind it, one being filled.
ROOM_BYTES = 3 * PART_BYTES
# How long a chunk waits for a part before it to be stored; the answer is there within 3 s.
_ROOM_S = 2.0
# And an ack that would say that nothing more may come.
_OPENING_S = 0.5
_AGAIN_S = (0.2, 5.0)
# For the parts that are complete, and the tail, when a socket breaks or a node goes down.
_ASIDE_S = 4.0
# A tail nobody came back for is deleted with its upload, or by then.
_TAIL_FOR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Works:
    """What all of a node's uploads share."""

    db: Database
    store: Store
    clock: Callable[[], datetime]
    threads: Executor
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    # Each part that is being sent is in memory: so few at once, over all uploads.
    slots: asyncio.Semaphore

    async def apart(self, work: Callable[[], T]) -> T:
        """In a thread. Raises StorageUnavailable where the disk fails."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, work)
        except (OSError, ValueError) as error:
            # ValueError: the spool is closed, since the upload was given up meanwhile.
            raise errors.StorageUnavailable("this node has no room for it", retry_after_ms=2000) from error


class Receiving:
    """An upload whose fence is this node's, for one session. Raises what ended it, once it is over."""

    def __init__(
        self,
        works: Works,
        upload: Upload,
        session_id: str,
        progress: Progress,
        *,
        spool: Spool,
        tail: bytes,
        gather_bytes: int,
    ) -> None:
        self.upload = upload
        self.session_id = session_id
        self.progress = progress.at
        self.at = transfer.taken_up(
            size_bytes=upload.size_bytes,
            part_bytes=PART_BYTES,
            room_bytes=ROOM_BYTES,
            fence=upload.fence,
            kept=upload.stored_bytes,
            tail=len(tail),
        )
        self.active_at = time.monotonic()
        # Whether the uploader may still do this was looked at then.
        self.allowed_at = self.active_at
        # Being laid aside.
        self.leaving: asyncio.Task[None] | None = None
        # Of all bytes; None where some came in by another node, and the whole is to be read once more.
        self._digest = hashlib.sha256() if not upload.stored_bytes else None
        self._works = works
        self._gather_bytes = gather_bytes
        self._spool = spool
        self._spooled = upload.stored_bytes
        self._pending: list[bytes] = [tail] if tail else []
        self._pending_bytes = len(tail)
        self._writing: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._multipart_id = upload.multipart_id
        self._over: HubError | None = None
        # Being given up: what is in hand goes on to the store, nothing is added to it.
        self._closing = False
        # What keeps a part from being stored, for the time being.
        self._trouble: HubError | None = None
        self._news = asyncio.Event()
        self._write()

    @property
    def id(self) -> UUID:
        return self.upload.id

    @property
    def over(self) -> bool:
        return self._over is not None

    @property
    def multipart_id(self) -> str | None:
        return self._multipart_id

    # Chunks

    async def chunk(self, offset: int, data: bytes) -> Transfer:
        """Take the next chunk. Raises OffsetMismatch, FileTooLarge; StorageUnavailable, ServerBusy where it cannot be
        taken now; or what ended the upload."""
        self._demand_taking()
        transfer.expect(self.at, offset, len(data))
        if self._pending_bytes >= self._gather_bytes:
            await self._until(lambda: self._writing is None or self._closing)
            self._demand_taking()
            self._write()
        if not transfer.fits(self.at, len(data)):
            await self._until(lambda: transfer.fits(self.at, len(data)) or self._closing)
            self._demand_taking()
        # Between here and the end nothing waits: what is accepted is in hand.
        self.at = transfer.accept(self.at, offset, len(data))
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.active_at = time.monotonic()
        RECEIVED.add(len(data))
        if self._pending_bytes >= self._gather_bytes or self.at.whole:
            self._write()
        return self.at

    def _write(self) -> None:
        """What has gathered goes to the spool, where it is not being written to."""
        if self._writing is None and self._pending and self._over is None:
            batch, self._pending, self._pending_bytes = self._pending, [], 0
            self._writing = self._works.spawn(self._write_out(self._spooled, batch))

    async def _write_out(self, offset: int, batch: list[bytes]) -> None:
        def write() -> None:
            self._spool.write(offset, batch)
            if self._digest is not None:
                for chunk in batch:
                    self._digest.update(chunk)

        try:
            await self._works.apart(write)
        except HubError as error:
            self.end(error)
        except Exception:
            # One upload's bug ends one upload.
            log.exception("spool_crashed", transfer_id=str(self.id))
            self.end(errors.Internal())
        else:
            self._spooled = offset + sum(map(len, batch))
        finally:
            self._writing = None
            self._changed()
        if self.at.whole or self._pending_bytes >= self._gather_bytes:
            self._write()
        self._send()

    # Parts

    def _due(self) -> Piece | None:
        piece = transfer.next_part(self.at)
        return piece if piece is not None and piece.end <= self._spooled else None

    def _send(self) -> None:
        if self._sending is None and self._over is None and self._due() is not None:
            self._sending = self._works.spawn(self._send_parts())

    async def _send_parts(self) -> None:
        wait_s = _AGAIN_S[0]
        try:
            while self._over is None and (piece := self._due()) is not None:
                self.at = transfer.send(self.at, piece)
                try:
                    await self._send_part(piece)
                except (StoreUnavailable, DatabaseUnavailable, errors.StorageUnavailable) as error:
                    PARTS.labels("again").inc()
                    self.at = transfer.miss(self.at)
                    self._trouble = _as_refusal(error)
                    self._changed()
                    log.warning("part_waits", transfer_id=str(self.id), error=str(error)[:200])
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _AGAIN_S[1])
                except (StorageError, HubError) as error:
                    PARTS.labels("failed").inc()
                    self.end(_as_refusal(error))
                except Exception:
                    log.exception("part_crashed", transfer_id=str(self.id))
                    PARTS.labels("failed").inc()
                    self.end(errors.Internal())
                else:
                    PARTS.labels("kept").inc()
                    self.at = transfer.keep(self.at, piece)
                    self._trouble, wait_s = None, _AGAIN_S[0]
                    self._changed()
        finally:
            self._sending = None
            self._changed()

    async def _send_part(self, piece: Piece) -> None:
        store, key = self._works.store, self.upload.storage_key
        async with self._works.slots:
            if self._multipart_id is None:
                self._multipart_id = await self._begin()
            data = await self._works.apart(lambda: self._spool.read(piece.offset, piece.length))
            part = await store.put_part(key, self._multipart_id, piece.number, data)
            del data
        made = UploadPart(part.number, part.etag, part.size_bytes)
        async with self._works.db.tenant(self.upload.tenant_id, self.upload.uploader_id) as tx:
            stored = await uploads.record_part(tx, self.id, self.at.fence, piece.offset, made)
        if stored is None:
            raise _taken_over()

    async def _begin(self) -> str:
        """The multipart upload, known to the row before it has parts: whoever takes over goes on with it."""
        upload, store = self.upload, self._works.store
        multipart_id = await store.begin(upload.storage_key, content_type=upload.mime_type)
        async with self._works.db.tenant(upload.tenant_id, upload.uploader_id) as tx:
            kept = await uploads.begun(tx, self.id, self.at.fence, multipart_id)
        if not kept:
            with suppress(StorageError):
                await store.abort(upload.storage_key, multipart_id)
            raise _taken_over()
        return multipart_id

    async def opening(self, length: int) -> None:
        """Until there is room for so much more, or for a moment."""
        with suppress(errors.ServerBusy, errors.StorageUnavailable, errors.DatabaseUnavailable):
            await self._until(lambda: transfer.fits(self.at, length) or self.at.whole, _OPENING_S)

    # The end

    async def finish(self, seconds: float) -> str | None:
        """All of it is stored, but for a file of one part: `content` gives that. Its sha256 in hex, where it is known.

        Raises OffsetMismatch where bytes are missing, or what keeps them from being stored.
        """
        self._demand_open()
        if not self.at.whole:
            raise errors.OffsetMismatch(
                "bytes are missing", details={"expected_offset": self.at.received, "stored": self.at.stored}
            )
        self._write()
        await self._until(lambda: self._spooled == self.at.size_bytes and transfer.stage(self.at) == "ready", seconds)
        return self._digest.hexdigest() if self._digest is not None else None

    async def content(self) -> bytes:
        """All of a file of one part or less."""
        return await self._works.apart(lambda: self._spool.read(0, self.at.size_bytes))

    async def lay_aside(self) -> bool:
        """Give it up so that any node can go on where this one stands. False: what was not stored is lost."""
        if self._over is not None:
            return False
        # Before anything waits: bytes behind the tail that is being kept would belong between it and the parts.
        self._closing = True
        self._changed()
        try:
            async with asyncio.timeout(_ASIDE_S):
                await self._settle()
                piece = transfer.tail(self.at)
                key = await self._keep_tail(piece) if piece is not None else None
                self.end(_laid_aside())
                async with self._works.db.tenant(self.upload.tenant_id, self.upload.uploader_id) as tx:
                    kept = piece.length if piece is not None else None
                    aside = await uploads.lay_aside(tx, self.id, self.at.fence, self.at.kept, key, kept)
                if not aside:
                    await self._release()
                    return False
                if piece is not None:
                    self.at = transfer.lay_aside(self.at, piece)
            return True
        except (HubError, StorageError, DatabaseUnavailable, TimeoutError, AssertionError) as error:
            # An assertion of the state's: a tail that does not fit is none.
            log.warning("tail_lost", transfer_id=str(self.id), error=repr(error)[:200])
            await self._release()
            return False
        finally:
            self.end(_laid_aside())

    async def _release(self) -> None:
        """Whoever waits for it need not wait longer."""
        with suppress(DatabaseUnavailable):
            async with self._works.db.tenant(self.upload.tenant_id, self.upload.uploader_id) as tx:
                await uploads.release(tx, self.id, self.at.fence)

    async def _settle(self) -> None:
        """What is in hand is in the spool, and complete parts are in the store."""
        while True:
            await self._until(lambda: self._writing is None and self._sending is None, _ASIDE_S)
            if not self._pending:
                return
            self._write()

    async def _keep_tail(self, piece: Piece) -> str:
        """Under a key of this writer's own. First the tombstone: whatever happens, the object does not stay."""
        upload = self.upload
        key = keys.tail(upload.storage_key, self.at.fence)
        async with self._works.db.tenant(upload.tenant_id, upload.uploader_id) as tx:
            # Held, so that the end of the upload finds the tombstone, or there is none.
            if not await uploads.hold(tx, upload.id, self.at.fence):
                raise _taken_over()
            await tombstones.add(tx, upload.id, key, upload.expires_at + _TAIL_FOR)
        async with self._works.slots:
            data = await self._works.apart(lambda: self._spool.read(piece.offset, piece.length))
            await self._works.store.put(key, data)
        return key

    def end(self, why: HubError) -> None:
        """Nothing is taken any more. What was on its way comes to nothing, or is refused by its fence."""
        if self._over is None:
            self._over = why
            self._pending, self._pending_bytes = [], 0
            self._works.threads.submit(self._spool.close)
            self._changed()

    def _demand_open(self) -> None:
        if self._over is not None:
            raise self._over

    def _demand_taking(self) -> None:
        self._demand_open()
        if self._closing:
            raise _laid_aside()

    def _changed(self) -> None:
        self._news.set()

    async def _until(self, true: Callable[[], bool], seconds: float = _ROOM_S) -> None:
        """Raises what ended the upload, or what it waits for too long."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    self._demand_open()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise self._trouble or errors.ServerBusy("the store is slow", retry_after_ms=1000) from None
        self._demand_open()


def _taken_over() -> HubError:
    return errors.Conflict("another connection has taken this transfer up")


def _laid_aside() -> HubError:
    return errors.Conflict("this transfer was laid aside: take it up again with file:resume")


def _as_refusal(error: Exception) -> HubError:
    match error:
        case HubError():
            return error
        case DatabaseUnavailable():
            return errors.DatabaseUnavailable(retry_after_ms=1000)
        case UploadMissing():
            return errors.TransferExpired()
    return errors.StorageUnavailable(retry_after_ms=1000)
