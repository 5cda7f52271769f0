"""Streams into a store: whole or not at all, within their limit, a part at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from storage import keys
from storage.errors import ObjectMissing
from storage.local import LocalStore
from storage.receiving import TooLong, receive
from storage.store import PART_BYTES

KEY = keys.content(uuid4(), uuid4(), uuid4())


async def body(data: bytes, piece_bytes: int = 60_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), piece_bytes):
        yield data[at : at + piece_bytes]


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 7])
async def test_what_streams_in_is_kept_with_its_digest(local: LocalStore, size: int) -> None:
    data = os.urandom(size)
    received = await receive(local, KEY, body(data), most_bytes=size, content_type="text/plain")
    assert received.size_bytes == size
    assert received.sha256 == hashlib.sha256(data).hexdigest()
    assert received.head == data[:8192]
    assert (await local.head(KEY)).content_type == "text/plain"
    async with contextlib.aclosing(local.get(KEY)) as pieces:
        assert b"".join([piece async for piece in pieces]) == data


@pytest.mark.parametrize("size", [100, PART_BYTES + 100])
async def test_what_is_too_long_or_breaks_off_leaves_nothing(local: LocalStore, size: int) -> None:
    """S-049: one byte over the limit is cut, and nothing of it stays."""

    async def breaks_off() -> AsyncIterator[bytes]:
        async for piece in body(b"x" * size):
            yield piece
        raise ConnectionResetError

    with pytest.raises(TooLong):
        await receive(local, KEY, body(b"x" * size), most_bytes=size - 1)
    with pytest.raises(ConnectionResetError):
        await receive(local, KEY, breaks_off(), most_bytes=size * 2)
    with pytest.raises(ObjectMissing):
        await local.head(KEY)
    assert (await local.uploads()).items == ()


async def test_a_large_stream_takes_the_memory_of_a_few_parts(local: LocalStore) -> None:
    async def much() -> AsyncIterator[bytes]:
        for _ in range(640):
            yield bytes(65_536)

    tracemalloc.start()
    try:
        received = await receive(local, KEY, much(), most_bytes=10**8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received.size_bytes == 40 * 1024 * 1024
    assert peak < 4 * PART_BYTES
