"""A stream of bytes into a store, part by part, with next to nothing of it in memory.

What comes in goes to a file on this machine's disk that holds two parts: one is filled while the other is sent. Parts
are in memory only while they are sent, a few at once over all streams. So a hundred slow senders cost disk, not memory,
and whoever sends faster than the store takes is not read from any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import IO, TypeVar

import msgspec

from storage.errors import StorageUnavailable
from storage.store import OCTETS, PART_BYTES, Part, Store

T = TypeVar("T")

# One write of what has gathered, so that small reads do not become a thread hop each.
GATHER_BYTES = 256 * 1024
_THREADS = 4
# Between tries of one write; each try has the store's own deadline.
_AGAIN_S = (0.1, 0.4, 1.5)
# When all has come somebody waits for the answer: what fails later than this is not tried again, so that together with
# the deadline of one call, 2.5 s, it is there within 3 s.
_TRYING_S = 0.45
# Parts in memory on their way to the store, over all streams.
_SLOTS = 2


class Poured(msgspec.Struct, frozen=True):
    """What is in the store. Without parts it is an object already; else `complete` makes one."""

    size_bytes: int
    sha256: str
    parts: tuple[Part, ...]


class Spill:
    """A file on disk that has no name: gone with its last handle, whatever happens to the process."""

    def __init__(self, directory: str | None) -> None:
        # Unbuffered: every write is a gathered one.
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115

    # By position: one part is read while the next is written, each in a thread of its own.

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            wrote = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[wrote:], offset + wrote

    def read(self, offset: int, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            more = os.pread(self._file.fileno(), length - len(found), offset + len(found))
            if not more:
                raise OSError("the spill is shorter than what was written to it")
            found += more
        return bytes(found)

    def close(self) -> None:
        self._file.close()


class Pours:
    """All streams of a node. `directory`: where the spills are; None: where the system keeps such files."""

    def __init__(self, store: Store, *, directory: str | None = None) -> None:
        self._store = store
        self._directory = directory
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pour")
        self._slots = asyncio.Semaphore(_SLOTS)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def apart(self, work: Callable[[], T]) -> T:
        """In one of the threads. Raises StorageUnavailable where the disk fails."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except (OSError, ValueError) as error:
            raise StorageUnavailable("this machine has no room for it") from error

    async def spill(self) -> Spill:
        return await self.apart(lambda: Spill(self._directory))

    def discard(self, spill: Spill) -> None:
        """In a thread, too: to give a hundred mebibytes back takes a disk its time."""
        with suppress(RuntimeError):
            self._threads.submit(spill.close)

    async def pour(
        self,
        key: str,
        pieces: AsyncIterator[bytes],
        *,
        content_type: str = OCTETS,
        begun: Callable[[str], Awaitable[None]],
        received: Callable[[int], Awaitable[None]],
    ) -> Poured:
        """Keep all of `pieces`. Less than a part is put at once; more is a multipart upload that waits for `complete`.

        `begun` hears the id of the multipart upload before anything is in it; `received` how many bytes there are,
        after each write. Raises what `pieces` and those two raise, StorageUnavailable, StorageRefused; then the
        multipart upload, if it was begun, is the caller's to abort.
        """
        spill = await self.spill()
        stream = _Stream(self, spill, key, content_type, begun)
        try:
            async for piece in pieces:
                if await stream.take(piece):
                    await received(stream.size_bytes)
            return await stream.end()
        finally:
            await stream.stop()
            self.discard(spill)

    async def send(
        self, spill: Spill, key: str, upload_id: str, number: int, offset: int, length: int, late: Callable[[], bool]
    ) -> Part:
        async with self._slots:
            data = await self.apart(lambda: spill.read(offset, length))
            return await self.patiently(lambda: self._store.put_part(key, upload_id, number, data), late)

    async def patiently(self, write: Callable[[], Awaitable[T]], late: Callable[[], bool]) -> T:
        """A write again where the store fails, until it is `late`: nobody could send a form's bytes again.

        Raises StorageUnavailable.
        """
        for wait_s in _AGAIN_S:
            try:
                return await write()
            except StorageUnavailable:
                if late():
                    raise
                await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))
                if late():
                    raise
        return await write()

    @property
    def store(self) -> Store:
        return self._store


class _Stream:
    def __init__(
        self, pours: Pours, spill: Spill, key: str, content_type: str, begun: Callable[[str], Awaitable[None]]
    ) -> None:
        self._pours, self._spill, self._key, self._content_type, self._begun = pours, spill, key, content_type, begun
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        # Of the part that is being filled: where it begins in the file, and how much of it is there.
        self._base = 0
        self._filled = 0
        self._upload_id: str | None = None
        self._parts: list[Part] = []
        self._sending: asyncio.Task[Part] | None = None
        # None while bytes are still coming.
        self._patient_until: float | None = None

    def _late(self) -> bool:
        return self._patient_until is not None and time.monotonic() > self._patient_until

    async def take(self, piece: bytes) -> bool:
        """Whether something was written."""
        wrote = False
        while piece:
            room = PART_BYTES - self._filled - self._gathered_bytes
            now, piece = piece[:room], piece[room:]
            self._gathered.append(now)
            self._gathered_bytes += len(now)
            self.size_bytes += len(now)
            full = self._filled + self._gathered_bytes == PART_BYTES
            if full or self._gathered_bytes >= GATHER_BYTES:
                await self._write()
                wrote = True
            if full:
                await self._send_part()
        return wrote

    async def end(self) -> Poured:
        self._patient_until = time.monotonic() + _TRYING_S
        await self._write()
        if not self._parts and self._sending is None:
            data = await self._pours.apart(lambda: self._spill.read(0, self._filled))
            put = partial(self._pours.store.put, self._key, data, content_type=self._content_type)
            await self._pours.patiently(put, self._late)
        else:
            if self._filled:
                await self._send_part()
            await self._sent()
        return Poured(self.size_bytes, self._digest.hexdigest(), tuple(self._parts))

    async def stop(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await self._sending

    async def _write(self) -> None:
        if not self._gathered:
            return
        data, at = b"".join(self._gathered), self._base + self._filled
        self._gathered, self._gathered_bytes = [], 0

        def write() -> None:
            self._spill.write(at, data)
            self._digest.update(data)

        await self._pours.apart(write)
        self._filled += len(data)

    async def _send_part(self) -> None:
        """Send what is filled, beside filling the other half of the file; the half is free when its part is sent."""
        if self._upload_id is None:
            begin = partial(self._pours.store.begin, self._key, content_type=self._content_type)
            self._upload_id = await self._pours.patiently(begin, self._late)
            await self._begun(self._upload_id)
        await self._sent()
        self._sending = asyncio.create_task(
            self._pours.send(
                self._spill, self._key, self._upload_id, len(self._parts) + 1, self._base, self._filled, self._late
            )
        )
        self._base, self._filled = PART_BYTES - self._base, 0

    async def _sent(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            try:
                self._parts.append(await sending)
                if self._patient_until is not None:
                    # It goes on, however slowly.
                    self._patient_until = time.monotonic() + _TRYING_S
            except BaseException:
                sending.cancel()
                raise
