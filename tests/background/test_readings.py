"""Downloads by frames: one stream a session, read on from where it stands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from db.files import File
from hub.background import readings
from hub.background.readings import Readings
from hub.protocol import errors
from storage.local import LocalStore
from storage.signing import UrlSigner
from storage.store import Store


class Counting:
    """Counts the streams that were opened and closed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.opened = self.closed = 0

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        self.opened += 1
        try:
            async for piece in self._store.get(key, offset=offset, length=length):
                yield piece
        finally:
            self.closed += 1


def file_of(key: str, size: int) -> File:
    known: dict[str, Any] = {"id": uuid4(), "size_bytes": size, "storage_key": key}
    given = dict.fromkeys(File.__struct_fields__) | known
    return File(**cast("dict[str, Any]", given | {"created_at": datetime.now(UTC)}))


@asynccontextmanager
async def reading(tmp_path: Path, data: bytes) -> AsyncIterator[tuple[Readings, Counting, File]]:
    async with LocalStore(tmp_path, UrlSigner("http://hub", b"x" * 32)) as store:
        await store.put("a/b", data)
        counting = Counting(store)
        reads = Readings(cast(Store, counting))
        running = asyncio.create_task(reads.run())
        await asyncio.sleep(0)
        try:
            yield reads, counting, file_of("a/b", len(data))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert counting.opened == counting.closed


async def test_reading_on_takes_the_stream_that_is_open(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(2_000_000)
    async with reading(tmp_path, data) as (reads, store, file):
        got = b""
        for length in (1, 300_000, 262_144, 65_536, 5, 2_000_000):
            got += await reads.read("s", file, len(got), length)
        assert got == data and (store.opened, store.closed) == (1, 1)
        assert await reads.read("s", file, len(data), 10) == b""


async def test_reading_elsewhere_begins_anew(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(900_000)
    async with reading(tmp_path, data) as (reads, store, file):
        for offset in (0, 500_000, 100, 100):
            assert await reads.read("s", file, offset, 1000) == data[offset : offset + 1000]
        assert (store.opened, store.closed) == (4, 3)
        reads.left("s")
        await asyncio.sleep(0.05)
        assert store.closed == 4


async def test_only_so_many_streams_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_MOST", 3)
    data = random.Random(3).randbytes(700_000)
    async with reading(tmp_path, data) as (reads, store, file):
        for session in "abcd":
            await reads.read(session, file, 0, 10)
        assert store.opened - store.closed == 3
        # Whoever had to make room goes on all the same.
        assert await reads.read("a", file, 10, 10) == data[10:20]


async def test_a_file_that_is_gone_meanwhile_is_not_found(tmp_path: Path) -> None:
    async with reading(tmp_path, b"abc") as (reads, _, file):
        gone = file_of("a/nothing", 3)
        reads.know("s", gone)
        with pytest.raises(errors.NotFound):
            await reads.read("s", gone, 0, 3)
        assert reads.known("s", gone.id, 60) is None
        reads.know("s", file)
        assert reads.known("s", file.id, 60) is file and reads.known("s", gone.id, 60) is None
        assert reads.known("s", file.id, 0) is None
