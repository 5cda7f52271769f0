"""Downloads by frames: whoever reads on from where they stopped gets it out of the stream that is open already."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from uuid import UUID

import structlog

from db.files import File
from hub.protocol import errors
from storage.errors import ObjectMissing, StorageError
from storage.store import Store

log = structlog.get_logger("hub.readings")

# Streams open at once; who was quiet longest makes room.
_MOST = 256
_IDLE_S = 15.0
_LOOK_S = 5.0


class _Reading:
    """One session's stream. `gone` while somebody is at it: they close it when they are done."""

    def __init__(self, file: File, pieces: AsyncGenerator[bytes, None], at: int) -> None:
        self.file = file
        self.pieces = pieces
        self.at = at
        self.rest = b""
        self.busy = False
        self.gone = False
        self.used_at = time.monotonic()

    async def take(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end only."""
        parts, missing = [self.rest], length - len(self.rest)
        while missing > 0:
            piece = await anext(self.pieces, b"")
            if not piece:
                break
            parts.append(piece)
            missing -= len(piece)
        whole = b"".join(parts)
        data, self.rest = whole[:length], whole[length:]
        self.at += len(data)
        return data


class Readings:
    """`run()` until cancelled."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: asyncio.TaskGroup | None = None
        self._open: OrderedDict[str, _Reading] = OrderedDict()
        # What a session was allowed to read, and when that was looked at.
        self._known: dict[str, tuple[File, float]] = {}

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                while True:
                    await asyncio.sleep(_LOOK_S)
                    late = time.monotonic() - _IDLE_S
                    for session_id, reading in list(self._open.items()):
                        if reading.used_at < late:
                            await self._close(session_id)
        finally:
            self._tasks = None
            for session_id in list(self._open):
                await self._close(session_id)

    def known(self, session_id: str, file_id: UUID, seconds: float) -> File | None:
        """The file, where that session was allowed to read it so lately."""
        file, at = self._known.get(session_id, (None, 0.0))
        return file if file is not None and file.id == file_id and time.monotonic() - at < seconds else None

    def know(self, session_id: str, file: File) -> None:
        self._known[session_id] = file, time.monotonic()

    async def read(self, session_id: str, file: File, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on, fewer at the file's end only. Raises NotFound, StorageUnavailable."""
        if offset >= file.size_bytes:
            return b""
        try:
            reading = await self._at(session_id, file, offset)
            reading.busy = True
            try:
                return await reading.take(min(length, file.size_bytes - offset))
            except BaseException:
                reading.gone = True
                raise
            finally:
                reading.busy, reading.used_at = False, time.monotonic()
                if reading.gone or reading.at >= file.size_bytes:
                    await self._close(session_id, reading)
        except ObjectMissing:
            # Deleted, or moved, since it was looked at.
            self._known.pop(session_id, None)
            raise errors.NotFound() from None
        except StorageError as error:
            raise errors.StorageUnavailable(retry_after_ms=1000) from error

    async def _at(self, session_id: str, file: File, offset: int) -> _Reading:
        reading = self._open.get(session_id)
        if reading is not None and reading.file.storage_key == file.storage_key and reading.at == offset:
            self._open.move_to_end(session_id)
            return reading
        await self._close(session_id)
        while len(self._open) >= _MOST:
            await self._close(next(iter(self._open)))
        pieces = self._store.get(file.storage_key, offset=offset)
        reading = self._open[session_id] = _Reading(file, pieces, offset)
        return reading

    def left(self, session_id: str) -> None:
        """The session's socket is gone."""
        self._known.pop(session_id, None)
        if session_id in self._open and self._tasks is not None:
            self._tasks.create_task(self._close(session_id))

    async def _close(self, session_id: str, reading: _Reading | None = None) -> None:
        found = self._open.get(session_id)
        if found is not None and reading in (None, found):
            del self._open[session_id]
        reading = reading or found
        if reading is None:
            return
        reading.gone = True
        if not reading.busy:
            try:
                await reading.pieces.aclose()
            except Exception:
                # Nobody reads on from there.
                log.exception("stream_not_closed")
