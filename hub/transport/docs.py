"""`/openapi.json`, `/asyncapi.json` and `/docs`: made once when the node starts, then the same bytes for everybody."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import hdrs, web

from hub.transport import reference


def setup(app: web.Application, openapi: dict[str, Any], asyncapi: dict[str, Any]) -> None:
    """Serve both documents and the page made of them."""
    page = reference.page(openapi, asyncapi).encode()
    app.router.add_get("/openapi.json", _constant(msgspec.json.encode(openapi), "application/json"))
    app.router.add_get("/asyncapi.json", _constant(msgspec.json.encode(asyncapi), "application/json"))
    app.router.add_get("/docs", _constant(page, "text/html", policy=_policy()))


def _constant(body: bytes, content_type: str, policy: str = "") -> Callable[[web.Request], Awaitable[web.Response]]:
    # Weak, since it names the packed bytes and the plain ones.
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if policy:
        headers["Content-Security-Policy"] = policy
    packed = gzip.compress(body, mtime=0)

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get(hdrs.IF_NONE_MATCH) == etag:
            return web.Response(status=304, headers=headers)
        if "gzip" not in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)
        response = web.Response(body=packed, content_type=content_type, charset="utf-8", headers=headers)
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        return response

    return answer


def _policy() -> str:
    """Our one style and our one script, by their hashes: nothing else runs, loads or is sent anywhere.

    Hashes do what a nonce would, and let the page stay the same bytes for everybody.
    """
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (reference.STYLE, reference.SCRIPT)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
