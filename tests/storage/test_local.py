"""The directory: what others may see of it, what is left behind, and a disk that hangs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from storage import keys
from storage.errors import ObjectMissing, StorageRefused, StorageUnavailable
from storage.local import LocalStore

from .conftest import SIGNER

KEY = keys.content(uuid4(), uuid4(), uuid4())


async def test_nobody_else_on_the_machine_may_read_it(local: LocalStore, tmp_path: Path) -> None:
    await local.put(KEY, b"private")
    for path in (tmp_path / "store" / "objects").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_nothing_is_left_behind(local: LocalStore, tmp_path: Path) -> None:
    upload_id = await local.begin(KEY)
    part = await local.put_part(KEY, upload_id, 1, b"bytes")
    await local.complete(KEY, upload_id, [part])
    await local.delete(KEY)
    await local.list()
    left = [path for path in (tmp_path / "store").rglob("*") if path.parent != tmp_path / "store"]
    assert left == []


async def test_leftovers_of_a_crash_go_at_the_next_start(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, SIGNER)
    async with store:
        pass
    old, new, dropped = (tmp_path / "incoming" / name for name in ("old", "new", "dropped"))
    dropped.mkdir()
    for path in (old, new, dropped / "00001.aa"):
        path.write_bytes(b"half")
    for path in (old, dropped):
        os.utime(path, (time.time() - 86_400,) * 2)
    async with LocalStore(tmp_path, SIGNER):
        assert not old.exists() and not dropped.exists()
        assert new.exists(), "another node may be writing it"


async def test_a_disk_that_hangs_is_unavailable_in_time_and_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    real = os.fsync

    def stuck(number: int) -> None:
        hanging.wait(20)
        real(number)

    async with LocalStore(tmp_path, SIGNER, timeout_s=0.5) as store:
        await store.put(KEY, b"before")
        monkeypatch.setattr(os, "fsync", stuck)
        started = time.monotonic()
        results = await asyncio.gather(*(store.put(KEY, b"after") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, StorageUnavailable) for result in results)
        assert time.monotonic() - started < 5
        hanging.set()
        monkeypatch.setattr(os, "fsync", real)
        for _ in range(100):
            try:
                await store.put(KEY, b"again")
                break
            except StorageUnavailable:
                continue
        assert (await store.head(KEY)).size_bytes == 5


async def test_a_directory_that_is_gone_is_refused(local: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "store" / "objects").rmdir()
    with pytest.raises(StorageRefused):
        await local.ping()


async def test_the_calls_are_seen(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    async with LocalStore(
        tmp_path, SIGNER, observe=lambda name, outcome, seconds: seen.append((name, outcome))
    ) as store:
        with pytest.raises(ObjectMissing):
            await store.head(KEY)
        await store.put(KEY, b"")
    assert seen == [("prepare", "ok"), ("head", "ObjectMissing"), ("put", "ok")]
