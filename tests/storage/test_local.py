"""The directory: what others may see of it, what is left behind, and who may follow a signed URL."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest

from storage import keys
from storage.errors import ObjectMissing, SignatureInvalid, StorageRefused, StorageUnavailable
from storage.local import Granted, LocalStore

from .conftest import SECRET

KEY = keys.content(uuid4(), uuid4(), uuid4())


async def body(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_nobody_else_on_the_machine_may_read_it(local: LocalStore, tmp_path: Path) -> None:
    await local.put(KEY, b"private")
    for path in (tmp_path / "store" / "objects").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_nothing_is_left_behind(local: LocalStore, tmp_path: Path) -> None:
    upload_id = await local.begin(KEY)
    part = await local.put_part(KEY, upload_id, 1, b"bytes")
    await local.complete(KEY, upload_id, [part])
    await local.delete(KEY)
    with pytest.raises(ValueError, match="more than"):
        await local.receive(Granted(KEY, "text/plain", size_bytes=3), body(b"four"))
    await local.list()
    left = [path for path in (tmp_path / "store").rglob("*") if path.parent != tmp_path / "store"]
    assert left == []


async def test_leftovers_of_a_crash_go_at_the_next_start(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, base_url="http://h", secret=SECRET)
    async with store:
        pass
    old, new, dropped = (tmp_path / "incoming" / name for name in ("old", "new", "dropped"))
    dropped.mkdir()
    for path in (old, new, dropped / "00001.aa"):
        path.write_bytes(b"half")
    for path in (old, dropped):
        os.utime(path, (time.time() - 86_400,) * 2)
    async with LocalStore(tmp_path, base_url="http://h", secret=SECRET):
        assert not old.exists() and not dropped.exists()
        assert new.exists(), "another node may be writing it"


async def test_a_signed_url_allows_what_it_says_until_it_ends(local: LocalStore) -> None:
    """S-027: a URL whose key, type or end was altered, or whose time is over, is refused."""
    signed = await local.sign_get(KEY, ttl_s=60, content_type="image/webp", disposition='attachment; filename="a b"')
    parts = urlsplit(signed.url)
    query = dict(parse_qsl(parts.query))
    assert parts.path == f"/storage/{KEY}"
    assert local.granted("GET", KEY, query) == Granted(KEY, "image/webp", 'attachment; filename="a b"')
    refused = [
        (KEY[:-1] + ("0" if KEY[-1] != "0" else "1"), query),
        (KEY, {**query, "type": "text/html"}),
        (KEY, {**query, "disposition": "inline"}),
        (KEY, {**query, "expires": str(int(query["expires"]) + 1)}),
        (KEY, {**query, "size": "1"}),
        (KEY, {**query, "signature": ""}),
        (KEY, {**query, "signature": "ü"}),
        (KEY, {}),
        ("../" + KEY, query),
    ]
    for key, changed in refused:
        with pytest.raises(SignatureInvalid):
            local.granted("GET", key, changed)
    with pytest.raises(SignatureInvalid):
        local.granted("PUT", KEY, query)
    local.granted("GET", KEY, query, now=time.time() + 58)
    with pytest.raises(SignatureInvalid, match="expired"):
        local.granted("GET", KEY, query, now=time.time() + 61)


async def test_another_secret_signs_other_urls(local: LocalStore, tmp_path: Path) -> None:
    async with LocalStore(tmp_path / "other", base_url="http://h", secret=b"another") as other:
        signed = await other.sign_get(KEY, ttl_s=60, content_type="a/b", disposition="attachment")
    with pytest.raises(SignatureInvalid):
        local.granted("GET", KEY, dict(parse_qsl(urlsplit(signed.url).query)))


async def test_what_a_client_sends_is_kept_only_as_long_as_announced(local: LocalStore) -> None:
    granted = Granted(KEY, "text/plain", size_bytes=2_500_000)
    pieces = [bytes([n]) * 250_000 for n in range(10)]
    for short_or_long in (pieces[:-1], [*pieces, b"x"]):
        with pytest.raises(ValueError, match="announced"):
            await local.receive(granted, body(*short_or_long))
        with pytest.raises(ObjectMissing):
            await local.head(KEY)
    stored = await local.receive(granted, body(*pieces))
    assert (stored.size_bytes, stored.content_type) == (2_500_000, "text/plain")
    assert (await local.path(KEY)).read_bytes() == b"".join(pieces)


async def test_a_disk_that_hangs_is_unavailable_in_time_and_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    real = os.fsync

    def stuck(number: int) -> None:
        hanging.wait(20)
        real(number)

    async with LocalStore(tmp_path, base_url="http://h", secret=SECRET, timeout_s=0.5) as store:
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
