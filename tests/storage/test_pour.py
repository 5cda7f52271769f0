"""Streams into a store: whole at every size, in few bytes of memory, and nothing half done that nobody knows of."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from storage.errors import StorageUnavailable
from storage.local import LocalStore
from storage.pour import Pours, Spill
from storage.signing import UrlSigner
from storage.store import PART_BYTES


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    async with LocalStore(tmp_path / "store", UrlSigner("http://hub.test/storage", b"a secret")) as store:
        yield store


@pytest.fixture
async def pours(store: LocalStore, tmp_path: Path) -> AsyncIterator[Pours]:
    pours = Pours(store, directory=str(tmp_path))
    yield pours
    pours.close()


async def _pieces(data: bytes, sizes: random.Random) -> AsyncIterator[bytes]:
    at = 0
    while at < len(data):
        size = sizes.choice((1, 700, 65_536, 300_000))
        yield data[at : at + size]
        at += size


async def _pour(pours: Pours, store: LocalStore, key: str, data: bytes, seed: int = 0) -> bytes:
    begun: list[str] = []
    seen: list[int] = []

    async def note(upload_id: str) -> None:
        begun.append(upload_id)

    async def received(size_bytes: int) -> None:
        seen.append(size_bytes)

    poured = await pours.pour(key, _pieces(data, random.Random(seed)), begun=note, received=received)
    assert (poured.size_bytes, poured.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert seen == sorted(seen) and (not seen or seen[-1] <= len(data))
    assert [part.size_bytes for part in poured.parts[:-1]] == [PART_BYTES] * (len(poured.parts) - 1)
    if poured.parts:
        await store.complete(key, begun[0], poured.parts)
    else:
        assert not begun
    async with aclosing(store.get(key)) as pieces:
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 17_000_001])
async def test_every_byte_arrives_in_its_place(pours: Pours, store: LocalStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert await _pour(pours, store, "t/c/f", data) == data


async def test_streams_side_by_side_do_not_mix(pours: Pours, store: LocalStore) -> None:
    datas = [random.Random(n).randbytes(12_000_000 + n) for n in range(5)]
    got = await asyncio.gather(*(_pour(pours, store, f"t/c/{n}", data, n) for n, data in enumerate(datas)))
    assert got == datas


async def test_what_breaks_off_raises_and_leaves_a_known_upload(pours: Pours, store: LocalStore) -> None:
    begun: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(PART_BYTES + 1)
        raise ConnectionResetError("gone")

    async def note(upload_id: str) -> None:
        begun.append(upload_id)

    async def received(_: int) -> None: ...

    with pytest.raises(ConnectionResetError):
        await pours.pour("t/c/f", pieces(), begun=note, received=received)
    assert [upload.upload_id for upload in (await store.uploads()).items] == begun
    await store.abort("t/c/f", begun[0])
    assert (await store.uploads()).items == ()


async def test_a_store_that_fails_now_and_then_costs_nothing(pours: Pours, store: LocalStore) -> None:
    """Every third write fails; the bytes that came are sent again from the disk."""
    calls = 0

    def failing(write: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def sometimes(*args: object, **how: object) -> object:
            nonlocal calls
            calls += 1
            if calls % 3 == 1:
                raise StorageUnavailable("503")
            return await write(*args, **how)

        return sometimes

    for name in ("put", "begin", "put_part"):
        setattr(store, name, failing(getattr(store, name)))
    for size in (100, 17_000_001):
        data = random.Random(size).randbytes(size)
        assert await _pour(pours, store, f"t/c/{size}", data) == data
    assert calls >= 8


@pytest.mark.parametrize(("size", "name"), [(100, "put"), (PART_BYTES + 100, "put_part")])
async def test_a_store_that_hangs_is_not_waited_for_again_once_all_has_come(
    pours: Pours, store: LocalStore, size: int, name: str
) -> None:
    """Each try takes the whole deadline of a call, and somebody waits for the answer: within 3 s."""
    tries = 0

    async def hang(*_: object, **__: object) -> object:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.6)
        raise StorageUnavailable("no answer")

    setattr(store, name, hang)
    with pytest.raises(StorageUnavailable):
        await _pour(pours, store, "t/c/f", bytes(size))
    assert tries == 1


async def test_a_full_disk_is_the_stores_trouble(pours: Pours) -> None:
    spill = await pours.spill()
    spill.close()
    with pytest.raises(StorageUnavailable):
        await pours.apart(lambda: spill.write(0, b"x"))


def test_a_spill_has_no_name(tmp_path: Path) -> None:
    spill = Spill(str(tmp_path))
    spill.write(10, b"abc")
    assert spill.read(10, 3) == b"abc"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        spill.read(10, 4)
    spill.close()
