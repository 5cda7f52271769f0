"""A file to and from a hub in frames, over as many connections as it takes. The command line's, and the drills'."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import google_crc32c

from hub.cli.frames import Frames, Lost, Refused

# Without any progress.
_PATIENCE_S = 60.0
_PAUSE_S = (0.2, 5.0)
_READS = 4
_READ_BYTES = 262_144
# After these there is nothing to go on with on this connection, but maybe on a new one.
_TAKE_UP_AGAIN = frozenset(("not_found", "conflict", "transfer_expired"))

Told = Callable[[int], None]


class Failed(Exception):
    """It will not be; the text says why, in one line."""


class Upload:
    """One file on its way to a hub whose nodes are at `urls`, each connection to the next of them.

    `transfer_id` may be that of one that was begun before. `sent_bytes` counts what went out, twice where it had to.
    """

    def __init__(
        self,
        urls: Iterable[str],
        token: str,
        path: Path,
        offer: Mapping[str, Any],
        *,
        transfer_id: str | None = None,
        chunk_bytes: int | None = None,
        begun: Callable[[str], None] = lambda transfer_id: None,
        told: Told = lambda offset: None,
    ) -> None:
        self._urls = itertools.cycle(urls)
        self._token = token
        self._path = path
        self._offer = {**offer, "size_bytes": path.stat().st_size, "op_id": str(uuid4())}
        self.transfer_id = transfer_id
        self._chunk_bytes = chunk_bytes
        self._begun, self._told = begun, told
        self.sent_bytes = 0
        self.connections = 0
        self._moved_at = time.monotonic()
        self._furthest = -1

    @property
    def size_bytes(self) -> int:
        return int(self._offer["size_bytes"])

    async def run(self) -> dict[str, Any]:
        """The file, as the hub shows it. Raises Failed."""
        digest = asyncio.create_task(asyncio.to_thread(_sha256, self._path))
        pause_s = _PAUSE_S[0]
        self._moved_at = time.monotonic()
        try:
            with self._path.open("rb") as file:
                while True:
                    before = self._furthest
                    try:
                        return await self._by_one_connection(file, digest)
                    except Refused as error:
                        self._weigh(error)
                        pause_s = max(pause_s, error.wait_s) if error.retryable else pause_s
                        why = str(error)
                    except Lost as error:
                        why = str(error)
                    if self._furthest > before:
                        self._moved_at, pause_s = time.monotonic(), _PAUSE_S[0]
                    if time.monotonic() - self._moved_at > _PATIENCE_S:
                        raise Failed(f"no progress for {_PATIENCE_S:.0f} s: {why}")
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(2 * pause_s, _PAUSE_S[1])
        finally:
            digest.cancel()

    def _weigh(self, error: Refused) -> None:
        if error.code in _TAKE_UP_AGAIN and self.transfer_id is not None:
            return
        if not error.retryable:
            raise Failed(str(error)) from error

    async def _by_one_connection(self, file: BinaryIO, digest: asyncio.Task[str]) -> dict[str, Any]:
        async with Frames(next(self._urls), self._token) as frames:
            self.connections += 1
            state = await self._take_up(frames)
            if not state.get("completed"):
                await self._send(frames, file, state)
            return await self.complete(frames, await digest)

    async def complete(self, frames: Frames, sha256: str) -> dict[str, Any]:
        done = await frames.ask("file:complete", transfer_id=self.transfer_id, sha256=sha256)
        return dict(done["file"])

    async def _take_up(self, frames: Frames) -> dict[str, Any]:
        if self.transfer_id is not None:
            try:
                return await frames.ask("file:resume", transfer_id=self.transfer_id)
            except Refused as error:
                if error.code not in ("not_found", "transfer_expired"):
                    raise
                # Gone, with its call's or its own time: once more from the beginning.
                self.transfer_id, self._offer["op_id"] = None, str(uuid4())
        state = await frames.ask("file:offer", **self._offer)
        self.transfer_id = str(state["transfer_id"])
        self._begun(self.transfer_id)
        return state

    async def _send(self, frames: Frames, file: BinaryIO, state: dict[str, Any]) -> None:
        size, chunk_bytes = self.size_bytes, self._chunk_bytes or int(state["chunk_bytes"])
        at, window = int(state["offset"]), int(state["window"])
        waiting: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._reached(at)
        while at < size or waiting:
            if not waiting and not window:
                await asyncio.sleep(0.5)
                state = await frames.ask("file:resume", transfer_id=self.transfer_id)
                at, window = int(state["offset"]), int(state["window"])
                continue
            while at < size and len(waiting) < window:
                file.seek(at)
                data = file.read(min(chunk_bytes, size - at))
                if not data:
                    raise Failed("the file became shorter while it was sent")
                waiting.append(await self.send_chunk(frames, at, data))
                at += len(data)
            try:
                ack = await waiting.popleft()
            except Refused as error:
                # What was sent behind it is refused as well: the hub says where to go on.
                await asyncio.gather(*waiting, return_exceptions=True)
                waiting.clear()
                at, window = await self._after(frames, error)
            else:
                window = int(ack["window"])
                self._reached(int(ack["offset"]))

    async def send_chunk(self, frames: Frames, offset: int, data: bytes) -> asyncio.Future[dict[str, Any]]:
        """The answer, to come."""
        self.sent_bytes += len(data)
        return await frames.send(
            "file:chunk",
            transfer_id=self.transfer_id,
            offset=offset,
            data=data,
            crc32c=google_crc32c.value(data),
        )

    async def _after(self, frames: Frames, error: Refused) -> tuple[int, int]:
        """Where to go on after a chunk was refused. Raises it again where that is not on this connection."""
        if error.code not in ("offset_mismatch", "chunk_corrupt"):
            if not error.retryable or time.monotonic() - self._moved_at > _PATIENCE_S:
                raise error
            await asyncio.sleep(error.wait_s)
        state = await frames.ask("file:resume", transfer_id=self.transfer_id)
        return int(state["offset"]), int(state["window"])

    def _reached(self, offset: int) -> None:
        if offset > self._furthest:
            self._furthest, self._moved_at = offset, time.monotonic()
        self._told(offset)


class Download:
    """One file from a hub to `path`, by way of `path.part`, which the next attempt goes on with."""

    def __init__(
        self, urls: Iterable[str], token: str, file: Mapping[str, Any], path: Path, *, told: Told = lambda offset: None
    ) -> None:
        self._urls = itertools.cycle(urls)
        self._token = token
        self._file = file
        self._path = path
        self._told = told

    async def run(self) -> None:
        """Raises Failed."""
        part = self._path.with_name(self._path.name + ".part")
        moved_at, pause_s = time.monotonic(), _PAUSE_S[0]
        size = int(self._file["size_bytes"])
        with part.open("ab") as target:
            if target.tell() > size:
                target.truncate(0)
            while (before := target.seek(0, 2)) < size:
                try:
                    await self._by_one_connection(target, before, size)
                except Refused as error:
                    if not error.retryable:
                        raise Failed(str(error)) from error
                    pause_s = max(pause_s, error.wait_s)
                except Lost:
                    pass
                target.flush()
                if target.tell() > before:
                    moved_at, pause_s = time.monotonic(), _PAUSE_S[0]
                elif time.monotonic() - moved_at > _PATIENCE_S:
                    raise Failed(f"no progress for {_PATIENCE_S:.0f} s")
                if target.tell() < size:
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(2 * pause_s, _PAUSE_S[1])
        if await asyncio.to_thread(_sha256, part) != self._file["sha256"]:
            part.unlink()
            raise Failed("the bytes do not match the file's hash: get it once more")
        part.replace(self._path)

    async def _by_one_connection(self, target: BinaryIO, at: int, size: int) -> None:
        async with Frames(next(self._urls), self._token) as frames:
            waiting: deque[asyncio.Future[dict[str, Any]]] = deque()
            self._told(at)
            while at < size or waiting:
                while at < size and len(waiting) < _READS:
                    length = min(_READ_BYTES, size - at)
                    waiting.append(
                        await frames.send("file:read", file_id=self._file["file_id"], offset=at, length=length)
                    )
                    at += length
                target.write((await waiting.popleft())["data"])
                self._told(target.tell())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
