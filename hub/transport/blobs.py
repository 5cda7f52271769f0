"""Signed URLs of our own: the bytes of files out and in, for stores that cannot sign or that clients cannot reach.

The signature is all that is asked for: whoever was given the URL may use it until it ends. What is served is never a
page of ours: an attachment unless the URL says otherwise, not sniffed, sandboxed, on no browser's disk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from hub.protocol import errors
from storage.errors import ObjectMissing, RangeInvalid, SignatureInvalid, StorageError
from storage.pour import Pours
from storage.signing import Granted, Method, UrlSigner
from storage.store import Store

# A client that takes or sends nothing for so long is gone.
STALLED_S: Final = 20.0
# Each has a piece of 256 KiB in hand, or two parts of 5 MiB on this machine's disk.
MOST_DOWNLOADS: Final = 200
MOST_UPLOADS: Final = 64
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"


def setup(app: web.Application, *, store: Store, pours: Pours, signer: UrlSigner, path: str) -> None:
    """Add GET, HEAD and PUT of `path`/{key}."""
    downloads, uploads = _Places(MOST_DOWNLOADS), _Places(MOST_UPLOADS)

    async def get(request: web.Request) -> web.StreamResponse:
        granted = _granted(signer, "GET", request)
        with downloads.taken(), _translated():
            return await _send(request, store, granted)

    async def put(request: web.Request) -> web.Response:
        granted = _granted(signer, "PUT", request)
        if request.content_length is None:
            raise errors.BadRequest("Content-Length is needed")
        if request.content_length != granted.size_bytes:
            raise errors.PayloadTooLarge(f"exactly {granted.size_bytes} bytes")
        if request.headers.get(hdrs.CONTENT_TYPE) != granted.content_type:
            raise errors.UnsupportedMediaType(f"exactly {granted.content_type}")
        if hdrs.CONTENT_ENCODING in request.headers:
            raise errors.UnsupportedMediaType("no Content-Encoding")
        with uploads.taken(), _translated():
            await _keep(store, pours, granted, _body(request))
        return web.Response(status=200)

    route = path + "/{key:.+}"
    app.router.add_get(route, get)
    app.router.add_put(route, put)


async def _send(request: web.Request, store: Store, granted: Granted) -> web.StreamResponse:
    stored = await store.head(granted.key)
    # Objects never change under their keys.
    etag = f'"{hashlib.sha256(granted.key.encode()).hexdigest()[:32]}"'
    try:
        offset, length = _wanted(request, stored.size_bytes, etag)
    except RangeInvalid:
        return web.Response(status=416, headers={hdrs.CONTENT_RANGE: f"bytes */{stored.size_bytes}"})
    partial = length != stored.size_bytes
    response = web.StreamResponse(status=206 if partial else 200)
    response.headers.update(
        {
            hdrs.CONTENT_TYPE: granted.content_type,
            hdrs.CONTENT_DISPOSITION: granted.disposition,
            hdrs.ACCEPT_RANGES: "bytes",
            hdrs.ETAG: etag,
            hdrs.CACHE_CONTROL: "private, no-store",
            "Content-Security-Policy": POLICY,
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
    )
    if partial:
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {offset}-{offset + length - 1}/{stored.size_bytes}"
    response.content_length = length
    if request.method == hdrs.METH_HEAD:
        await response.prepare(request)
        return response
    async with aclosing(store.get(granted.key, offset=offset, length=length)) as pieces:
        # The first one before the head: a store that fails then is still a 503.
        first = await anext(pieces, b"")
        await response.prepare(request)
        try:
            await _write(response, first)
            async for piece in pieces:
                await _write(response, piece)
        except (StorageError, TimeoutError):
            # Too late for a refusal. Cut off, so that nobody takes what came for the whole.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the download broke off") from None
    await response.write_eof()
    return response


async def _keep(store: Store, pours: Pours, granted: Granted, body: AsyncIterator[bytes]) -> None:
    """All of `body`, or nothing: also of one that breaks off."""
    begun: list[str] = []

    async def note(upload_id: str) -> None:
        begun.append(upload_id)

    try:
        poured = await pours.pour(granted.key, body, content_type=granted.content_type, begun=note, received=_unheard)
        if poured.parts:
            await store.complete(granted.key, begun[0], poured.parts)
    except BaseException:
        if begun:
            await asyncio.shield(_abort(store, granted.key, begun[0]))
        raise


async def _unheard(_size_bytes: int) -> None:
    """Nobody follows how far it is."""


async def _abort(store: Store, key: str, upload_id: str) -> None:
    # Where the store is away, the sweep of abandoned uploads comes by.
    with suppress(StorageError):
        await store.abort(key, upload_id)


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    async with asyncio.timeout(STALLED_S):
        await response.write(piece)


def _wanted(request: web.Request, size: int, etag: str) -> tuple[int, int]:
    """Offset and length. A range that cannot be read is no range. Raises RangeInvalid."""
    if request.headers.get(hdrs.IF_RANGE, etag) != etag:
        return 0, size
    try:
        asked = request.http_range
    except ValueError:
        return 0, size
    if asked.start is None or size == 0:
        return 0, size
    start = max(0, size + asked.start) if asked.start < 0 else asked.start
    if start >= size:
        raise RangeInvalid(f"from byte {start} of {size}")
    return start, min(asked.stop or size, size) - start


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    pieces = request.content.iter_any()
    while True:
        try:
            async with asyncio.timeout(STALLED_S):
                piece = await anext(pieces, b"")
        except TimeoutError:
            raise errors.Timeout(f"nothing came for {STALLED_S:g} s") from None
        except RequestPayloadError as error:
            raise errors.BadRequest("the body broke off") from error
        if not piece:
            return
        yield piece


def _granted(signer: UrlSigner, method: Method, request: web.Request) -> Granted:
    try:
        return signer.granted(method, request.match_info["key"], request.query)
    except SignatureInvalid as error:
        raise errors.Forbidden(str(error)) from None


class _Places:
    """How many at once."""

    def __init__(self, most: int) -> None:
        self._free = most

    @contextmanager
    def taken(self) -> Iterator[None]:
        if not self._free:
            raise errors.StorageUnavailable("too many at once on this node", retry_after_ms=1000)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ObjectMissing:
        raise errors.NotFound() from None
    except StorageError as error:
        raise errors.StorageUnavailable(retry_after_ms=1000) from error
