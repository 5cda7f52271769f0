"""From a stream of bytes to an object: by parts, with its digest, never more than one part in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec

from storage.errors import StorageError
from storage.store import OCTETS, PART_BYTES, Part, Store

# What `sniff` wants to see of a file.
HEAD_BYTES = 8192


class TooLong(ValueError):
    """The stream is over its limit; what was kept of it is gone."""


class Received(msgspec.Struct, frozen=True):
    """What was kept: `sha256` in hex, `head` the first HEAD_BYTES."""

    size_bytes: int
    sha256: str
    head: bytes


async def receive(
    store: Store, key: str, body: AsyncIterator[bytes], *, most_bytes: int, content_type: str = OCTETS
) -> Received:
    """Keep all of `body` under `key`. Raises TooLong, and whatever `body` and the store do; then nothing is kept."""
    incoming = _Incoming(store, key, content_type)
    try:
        size = 0
        async for piece in body:
            size += len(piece)
            if size > most_bytes:
                raise TooLong(f"more than {most_bytes} bytes")
            await incoming.add(piece)
        return await incoming.finish()
    except BaseException:
        await incoming.abandon()
        raise


class _Incoming:
    def __init__(self, store: Store, key: str, content_type: str) -> None:
        self._store = store
        self._key = key
        self._content_type = content_type
        self._digest = hashlib.sha256()
        self._head = b""
        self._size = 0
        self._gathered = bytearray()
        self._upload_id: str | None = None
        self._parts: list[Part] = []

    async def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if len(self._head) < HEAD_BYTES:
            self._head += piece[: HEAD_BYTES - len(self._head)]
        self._gathered += piece
        while len(self._gathered) >= PART_BYTES:
            data = bytes(memoryview(self._gathered)[:PART_BYTES])
            del self._gathered[:PART_BYTES]
            await self._put(data)

    async def finish(self) -> Received:
        if self._upload_id is None:
            data = bytes(self._gathered)
            await asyncio.to_thread(self._digest.update, data)
            await self._store.put(self._key, data, content_type=self._content_type)
        else:
            if self._gathered:
                await self._put(bytes(self._gathered))
            await self._store.complete(self._key, self._upload_id, self._parts)
        return Received(self._size, self._digest.hexdigest(), self._head)

    async def abandon(self) -> None:
        """Shielded: whoever hung up must not leave parts behind; where the store is away, the sweep finds them."""
        if self._upload_id is not None:
            aborting = asyncio.ensure_future(self._abort(self._upload_id))
            await asyncio.shield(aborting)

    async def _abort(self, upload_id: str) -> None:
        with suppress(StorageError):
            await self._store.abort(self._key, upload_id)

    async def _put(self, data: bytes) -> None:
        if self._upload_id is None:
            self._upload_id = await self._store.begin(self._key, content_type=self._content_type)
        # Both at once: the digest of a part takes about as long as sending it to a store nearby.
        hashing = asyncio.to_thread(self._digest.update, data)
        number = len(self._parts) + 1
        _, part = await asyncio.gather(hashing, self._store.put_part(self._key, self._upload_id, number, data))
        self._parts.append(part)
