"""The S3 store where things go wrong, and what its signed URLs allow: against SeaweedFS, directly and by a bad line."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from hub.embedded import free_port
from hub.transport import blobs, middleware
from storage import keys, s3
from storage.errors import ObjectMissing, StorageRefused, StorageUnavailable
from storage.pour import Pours
from storage.s3 import S3Store
from storage.signing import UrlSigner
from storage.store import PART_BYTES, Signed
from tests.fakes.proxy import Proxy
from tests.fakes.store_proxy import StoreProxy

from .servers import S3Server

Opened = Callable[..., AbstractAsyncContextManager[S3Store]]


def some_key() -> str:
    return keys.content(uuid4(), uuid4(), uuid4())


async def read(store: S3Store, key: str) -> bytes:
    async with contextlib.aclosing(store.get(key)) as pieces:
        return b"".join([piece async for piece in pieces])


@pytest.fixture
async def proxy(seaweedfs_server: S3Server) -> AsyncIterator[StoreProxy]:
    async with StoreProxy(seaweedfs_server.endpoint) as proxy:
        yield proxy


@asynccontextmanager
async def by(server: S3Server, endpoint: str, **over: object) -> AsyncIterator[S3Store]:
    async with S3Store(server.options(endpoint=endpoint, **over)) as store:
        yield store


async def test_a_busy_store_costs_time_and_nothing_else(seaweedfs_server: S3Server, proxy: StoreProxy) -> None:
    """S-184: 503 in 30 % of calls: an upload by parts comes through, and nothing of it is lost or there twice."""
    proxy.busy = 0.3
    data = os.urandom(3 * PART_BYTES + 1000)
    async with by(seaweedfs_server, proxy.endpoint) as store:
        key, copied = some_key(), some_key()
        upload_id = await store.begin(key)
        pieces = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
        parts = [await store.put_part(key, upload_id, number, piece) for number, piece in enumerate(pieces, 1)]
        await store.complete(key, upload_id, parts)
        assert hashlib.sha256(await read(store, key)).digest() == hashlib.sha256(data).digest()
        await store.move(key, copied)
        await store.delete(copied)
        with pytest.raises(ObjectMissing):
            await store.head(copied)
    assert proxy.refused > 2


async def test_a_part_that_is_cut_in_its_middle_is_sent_again(seaweedfs_server: S3Server, proxy: StoreProxy) -> None:
    data = os.urandom(PART_BYTES)
    async with by(seaweedfs_server, proxy.endpoint) as store:
        key = some_key()
        upload_id = await store.begin(key)
        proxy.cut_uploads = 2
        part = await store.put_part(key, upload_id, 1, data)
        assert proxy.cut_uploads == 0
        await store.complete(key, upload_id, [part])
        assert await read(store, key) == data


async def test_a_download_goes_on_where_it_was_cut(seaweedfs_server: S3Server, proxy: StoreProxy) -> None:
    data = os.urandom(6_000_000)
    async with by(seaweedfs_server, proxy.endpoint) as store:
        key = some_key()
        await store.put(key, data)
        proxy.cut_downloads = 2
        assert await read(store, key) == data
        assert proxy.cut_downloads == 0


async def test_streams_that_are_held_keep_nobody_from_writing(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many downloads as there are places, all of them taken slowly: writes go on, and the store is not called
    away; one download more is refused, until another ends."""
    monkeypatch.setattr(s3, "_READS", 70)
    async with by(seaweedfs_server, seaweedfs_server.endpoint) as store, contextlib.AsyncExitStack() as held:
        key = some_key()
        # More than fits into the buffers of a connection.
        await store.put(key, os.urandom(8_000_000))
        for _ in range(70):
            pieces = await held.enter_async_context(contextlib.aclosing(store.get(key)))
            await anext(pieces)
        monkeypatch.setattr(store, "_options", seaweedfs_server.options(timeout_s=0.5))
        for _ in range(8):
            with pytest.raises(StorageUnavailable):
                await anext(store.get(key))
        monkeypatch.setattr(store, "_options", seaweedfs_server.options())
        for _ in range(8):
            await store.put(some_key(), b"written")
        await pieces.aclose()
        assert len(await read(store, key)) == 8_000_000


async def test_a_store_that_does_not_know_ranges_is_not_believed(seaweedfs_server: S3Server, proxy: StoreProxy) -> None:
    """What it sends from its beginning is not what was asked for from the middle."""
    proxy.whole = True
    async with by(seaweedfs_server, proxy.endpoint) as store:
        key = some_key()
        await store.put(key, b"0123456789")
        assert await read(store, key) == b"0123456789"
        for offset, length in ((4, None), (0, 4), (4, 2)):
            with pytest.raises(StorageRefused, match="range"):
                async with contextlib.aclosing(store.get(key, offset=offset, length=length)) as pieces:
                    [piece async for piece in pieces]


async def test_a_slow_store_is_waited_for_within_the_deadline(seaweedfs_server: S3Server, proxy: StoreProxy) -> None:
    proxy.delay_s = 0.3
    async with by(seaweedfs_server, proxy.endpoint) as store:
        key = some_key()
        await store.put(key, b"late")
        assert await read(store, key) == b"late"
    proxy.delay_s = 10.0
    async with by(seaweedfs_server, proxy.endpoint, timeout_s=0.5) as store:
        started = time.monotonic()
        with pytest.raises(StorageUnavailable):
            await store.head(key)
        assert time.monotonic() - started < 3


async def test_a_store_that_is_gone_is_said_so_in_time_and_found_again(seaweedfs_server: S3Server) -> None:
    """S-184: errors within 3 s, at once when it has failed for a while; back by itself."""
    async with (
        Proxy("127.0.0.1", seaweedfs_server.port) as line,
        by(seaweedfs_server, f"http://127.0.0.1:{line.port}", timeout_s=1.5) as store,
    ):
        key = some_key()
        await _until_served(store, key)
        for mode in ("refuse", "blackhole"):
            line.set(mode)
            waits = []
            for _ in range(6):
                started = time.monotonic()
                with pytest.raises(StorageUnavailable):
                    await store.head(key)
                waits.append(time.monotonic() - started)
            assert max(waits) < 4
            assert waits[-1] < 1.2, "it is not asked any more"
            line.set("reset")
            await _until_served(store, key)


async def _until_served(store: S3Store, key: str) -> None:
    for _ in range(100):
        with contextlib.suppress(StorageUnavailable):
            await store.put(key, b"here")
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it does not come back")


async def test_what_is_configured_wrong_is_refused_by_name(seaweedfs_server: S3Server) -> None:
    """S-025, S-155: wrong credentials or a missing bucket are told from a store that is away."""
    endpoint = seaweedfs_server.endpoint
    async with by(seaweedfs_server, endpoint, secret_access_key="wrong") as store:
        with pytest.raises(StorageRefused):
            await store.ping()
        with pytest.raises(StorageRefused):
            await store.put(some_key(), b"")
    async with by(seaweedfs_server, endpoint, bucket="another-bucket") as store:
        with pytest.raises(StorageRefused, match="no such bucket"):
            await store.ping()
    async with by(seaweedfs_server, f"http://127.0.0.1:{free_port()}", timeout_s=1.0) as store:
        with pytest.raises(StorageUnavailable):
            await store.ping()


async def test_the_checksums_of_aws_may_be_asked_for(seaweedfs_server: S3Server) -> None:
    async with by(seaweedfs_server, seaweedfs_server.endpoint, checksums="when_supported") as store:
        key, data = some_key(), os.urandom(300_000)
        await store.put(key, data)
        assert await read(store, key) == data
        upload_id = await store.begin(key)
        part = await store.put_part(key, upload_id, 1, data[:1000])
        await store.complete(key, upload_id, [part])
        assert await read(store, key) == data[:1000]


async def test_encryption_at_rest_is_asked_for(seaweedfs_server: S3Server, proxy: StoreProxy) -> None:
    """S-183: the header is sent with whatever makes an object, where it is set."""
    async with by(seaweedfs_server, proxy.endpoint, encryption="AES256") as store:
        key = some_key()
        for make in (store.put(key, b"secret"), store.begin(key), store.copy(key, some_key())):
            with contextlib.suppress(StorageRefused):
                await make
    made = [headers for method, headers in proxy.seen if method in ("PUT", "POST")]
    assert len(made) >= 3
    assert {headers.get("x-amz-server-side-encryption") for headers in made} == {"AES256"}


async def test_a_store_that_clients_cannot_reach_is_had_through_the_hub(seaweedfs_server: S3Server) -> None:
    """S-048, S-136: the hub's own URLs over an S3 store, with Range; and bytes put to them end in the bucket."""
    port = free_port()
    signer = UrlSigner(f"http://127.0.0.1:{port}/storage", b"secret")
    app = web.Application()
    middleware.setup(app, origins=frozenset(), https=False)
    data = os.urandom(PART_BYTES + 1000)
    async with S3Store(seaweedfs_server.options(), signer=signer) as store:
        pours = Pours(store)
        blobs.setup(app, store=store, pours=pours, signer=signer, path="/storage")
        async with TestServer(app, port=port):
            key = some_key()
            put = await store.sign_put(key, ttl_s=60, content_type="image/png", size_bytes=len(data))
            assert (await fetch(put.url, "PUT", data=data, headers=dict(put.headers)))[0] == 200
            got = await store.sign_get(key, ttl_s=60, content_type="image/png", disposition="attachment")
            assert got.url.startswith(f"http://127.0.0.1:{port}/storage/")
            status, whole, _ = await fetch(got.url)
            assert (status, whole) == (200, data)
            status, part, _ = await fetch(got.url, headers={"Range": f"bytes={PART_BYTES - 5}-{PART_BYTES + 4}"})
            assert (status, part) == (206, data[PART_BYTES - 5 : PART_BYTES + 5])
        pours.close()


async def test_the_calls_are_seen(seaweedfs_server: S3Server) -> None:
    seen: list[tuple[str, str]] = []
    options = seaweedfs_server.options()
    async with S3Store(options, observe=lambda name, outcome, seconds: seen.append((name, outcome))) as store:
        with pytest.raises(ObjectMissing):
            await store.head(some_key())
        await store.ping()
    assert seen == [("head_object", "ObjectMissing"), ("head_bucket", "ok")]


async def fetch(url: str, method: str = "GET", **how: Any) -> tuple[int, bytes, aiohttp.ClientResponse]:
    async with aiohttp.ClientSession() as http, http.request(method, URL(url, encoded=True), **how) as response:
        return response.status, await response.read(), response


async def test_a_signed_url_gives_the_bytes_as_they_shall_be_shown_until_it_ends(seaweedfs_server: S3Server) -> None:
    """S-027, S-136, S-176: 200 before the end, 403 after it or altered; the bucket itself is not public."""
    async with by(seaweedfs_server, seaweedfs_server.endpoint) as store:
        key, other = some_key(), some_key()
        for each in (key, other):
            await store.put(each, b"0123456789", content_type="text/html")
        shown = {"content_type": "application/pdf", "disposition": "attachment; filename*=UTF-8''%E4%B8%AD.pdf"}
        signed = await store.sign_get(key, ttl_s=60, **shown)
        status, data, response = await fetch(signed.url)
        assert (status, data) == (200, b"0123456789")
        assert response.headers["Content-Type"] == shown["content_type"]
        assert response.headers["Content-Disposition"] == shown["disposition"]
        status, data, _ = await fetch(signed.url, headers={"Range": "bytes=2-4"})
        assert (status, data) == (206, b"234")
        for altered in (
            signed.url.replace(key, other),
            signed.url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
            signed.url.replace("application%2Fpdf", "text%2Fhtml"),
            signed.url.partition("?")[0],
        ):
            assert altered != signed.url
            assert (await fetch(altered))[0] == 403
        short = await store.sign_get(key, ttl_s=1, **shown)
        await asyncio.sleep(2.1)
        assert (await fetch(short.url))[0] == 403


async def test_a_signed_put_takes_the_size_and_type_that_were_signed(seaweedfs_server: S3Server) -> None:
    """S-031: size and type are bound."""
    async with by(seaweedfs_server, seaweedfs_server.endpoint) as store:
        key = some_key()
        signed: Signed = await store.sign_put(key, ttl_s=60, content_type="image/png", size_bytes=5)
        for data, headers in (
            (b"123456", dict(signed.headers)),
            (b"1234", dict(signed.headers)),
            (b"12345", {"Content-Type": "text/html"}),
        ):
            assert (await fetch(signed.url, "PUT", data=data, headers=headers))[0] == 403
        with pytest.raises(ObjectMissing):
            await store.head(key)
        assert (await fetch(signed.url, "PUT", data=b"12345", headers=dict(signed.headers)))[0] == 200
        stored = await store.head(key)
        assert (stored.size_bytes, stored.content_type) == (5, "image/png")


async def test_a_bucket_may_be_named_as_a_host(seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-249: virtual-host addressing, signed URLs included."""
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **how: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith("localhost") else host, *rest, **how)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    endpoint = f"http://localhost:{seaweedfs_server.port}"
    async with by(seaweedfs_server, endpoint, addressing="virtual") as store:
        key = some_key()
        await store.put(key, b"by host", content_type="text/plain")
        assert await read(store, key) == b"by host"
        signed = await store.sign_get(key, ttl_s=60, content_type="text/plain", disposition="attachment")
        assert signed.url.startswith(f"http://auralink-files.localhost:{seaweedfs_server.port}/{key}?")
        assert (await fetch(signed.url))[:2] == (200, b"by host")
