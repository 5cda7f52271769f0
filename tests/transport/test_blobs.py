"""The hub's own signed URLs: bytes out and in, to whoever has the URL and to nobody else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from hub.embedded import free_port
from hub.stores import PATH
from hub.transport import blobs, middleware
from storage import keys
from storage.errors import ObjectMissing
from storage.local import LocalStore
from storage.pour import Pours
from storage.signing import UrlSigner
from storage.store import Signed

KEY = keys.content(uuid4(), uuid4(), uuid4())
ATTACHED = 'attachment; filename="a.bin"'
DATA = os.urandom(600_000)


@dataclass
class Door:
    store: LocalStore
    http: aiohttp.ClientSession

    async def get(self, url: str, method: str = "GET", **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        async with self.http.request(method, URL(url, encoded=True), headers=headers) as response:
            return response, await response.read()

    async def put(self, signed: Signed, data: bytes | AsyncIterator[bytes], **headers: str) -> int:
        given = {**signed.headers, **headers}
        async with self.http.put(URL(signed.url, encoded=True), data=data, headers=given) as response:
            return response.status

    async def signed(self, key: str = KEY, ttl_s: int = 60, content_type: str = "application/pdf") -> str:
        signed = await self.store.sign_get(key, ttl_s=ttl_s, content_type=content_type, disposition=ATTACHED)
        return signed.url


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    port = free_port()
    signer = UrlSigner(f"http://127.0.0.1:{port}{PATH}", b"secret")
    app = web.Application()
    middleware.setup(app, origins=frozenset({"https://app.example"}), https=False)
    async with LocalStore(tmp_path, signer) as store, aiohttp.ClientSession() as http:
        pours = Pours(store, directory=str(tmp_path))
        blobs.setup(app, store=store, pours=pours, signer=signer, path=PATH)
        async with TestServer(app, port=port):
            yield Door(store, http)
        pours.close()


async def test_a_signed_url_gives_the_bytes_safely(door: Door) -> None:
    """S-027, S-048: 200 with identical bytes, as an attachment that no browser sniffs, runs or keeps."""
    await door.store.put(KEY, DATA)
    response, data = await door.get(await door.signed())
    assert (response.status, data) == (200, DATA)
    assert response.headers["Content-Type"] == "application/pdf"
    assert response.headers["Content-Disposition"] == ATTACHED
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "no-store" in response.headers["Cache-Control"]
    head, nothing = await door.get(await door.signed(), "HEAD")
    assert (head.status, head.headers["Content-Length"], nothing) == (200, "600000", b"")


async def test_an_altered_or_expired_url_gives_nothing(door: Door) -> None:
    """S-027: another key, another end, or a time that is over: 403. S-028: a deleted object's URL is dead."""
    await door.store.put(KEY, DATA)
    url = await door.signed()
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    other = keys.content(uuid4(), uuid4(), uuid4())
    later = urlencode({**query, "expires": str(int(query["expires"]) + 1000)})
    for altered in (url.replace(KEY, other), f"{parts._replace(query=later).geturl()}", url.partition("?")[0]):
        response, data = await door.get(altered)
        assert response.status == 403, data
    expired, _ = await door.get(await door.signed(ttl_s=-1))
    assert expired.status == 403
    await door.store.delete(KEY)
    gone, _ = await door.get(url)
    assert gone.status == 404


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-299999", 206, 100, 300_000),
        ("bytes=599990-", 206, 599_990, 600_000),
        ("bytes=-10", 206, 599_990, 600_000),
        ("bytes=-9999999", 200, 0, 600_000),
        ("bytes=0-9999999", 200, 0, 600_000),
        ("bytes=600000-", 416, 0, 0),
        ("bytes=5-2", 200, 0, 600_000),
        ("pieces=1-2", 200, 0, 600_000),
    ],
)
async def test_ranges(door: Door, asked: str, status: int, start: int, stop: int) -> None:
    """S-048: Range is supported."""
    await door.store.put(KEY, DATA)
    response, data = await door.get(await door.signed(), Range=asked)
    assert response.status == status
    assert data == DATA[start:stop]
    if status == 206:
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/600000"


async def test_a_resumed_download_is_of_the_same_bytes(door: Door) -> None:
    await door.store.put(KEY, DATA)
    first, _ = await door.get(await door.signed())
    etag = first.headers["ETag"]
    same, data = await door.get(await door.signed(), **{"Range": "bytes=10-", "If-Range": etag})
    assert (same.status, data) == (206, DATA[10:])
    other, data = await door.get(await door.signed(), **{"Range": "bytes=10-", "If-Range": '"another"'})
    assert (other.status, data) == (200, DATA)


async def test_what_is_put_has_the_size_and_type_that_were_signed(door: Door) -> None:
    """S-031: a presigned PUT is bound to its size and type."""
    signed = await door.store.sign_put(KEY, ttl_s=60, content_type="image/png", size_bytes=len(DATA))
    assert await door.put(signed, DATA + b"x") == 413
    assert await door.put(signed, DATA[:-1]) == 413
    assert await door.put(signed, DATA, **{"Content-Type": "text/html"}) == 415
    assert await door.put(signed, DATA, **{"Content-Encoding": "gzip"}) == 415
    with pytest.raises(ObjectMissing):
        await door.store.head(KEY)
    assert await door.put(signed, DATA) == 200
    stored = await door.store.head(KEY)
    assert (stored.size_bytes, stored.content_type) == (len(DATA), "image/png")
    # A URL to put is none to get, nor the other way round.
    response, _ = await door.get(signed.url)
    assert response.status == 403
    got = Signed(await door.signed(), signed.expires_at, headers=signed.headers)
    assert await door.put(got, DATA) == 403


async def test_an_upload_that_breaks_off_leaves_nothing(door: Door) -> None:
    big = 12 * 1024 * 1024
    signed = await door.store.sign_put(KEY, ttl_s=60, content_type="image/png", size_bytes=big)

    async def some() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(65_536)
        raise ConnectionResetError

    with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
        await door.put(signed, some(), **{"Content-Length": str(big)})
    for _ in range(200):
        if (await door.store.uploads()).items == ():
            break
        await asyncio.sleep(0.05)
    assert (await door.store.uploads()).items == ()
    with pytest.raises(ObjectMissing):
        await door.store.head(KEY)


async def test_pages_of_other_origins_may_not_use_the_urls(door: Door) -> None:
    await door.store.put(KEY, DATA)
    foreign, _ = await door.get(await door.signed(), Origin="https://evil.example")
    assert foreign.status == 403
    ours, _ = await door.get(await door.signed(), Origin="https://app.example")
    assert ours.status == 200
    assert ours.headers["Access-Control-Allow-Origin"] == "https://app.example"
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
    preflight, _ = await door.get(await door.signed(), "OPTIONS", **asked)
    assert preflight.status == 204
