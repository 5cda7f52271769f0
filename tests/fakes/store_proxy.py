"""An HTTP proxy before a real object store that fails as stores fail: busy, slow, cut in the middle of a body."""

from __future__ import annotations

import asyncio
import random
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class StoreProxy:
    """`async with StoreProxy(endpoint) as proxy`, then talk to `proxy.endpoint`. Everything else is set as it runs."""

    def __init__(self, target: str, *, seed: int = 1) -> None:
        self._target = target
        self._random = random.Random(seed)
        # The share of requests that are answered with 503.
        self.busy = 0.0
        self.delay_s = 0.0
        # Answers do not say that they are ranges, as those of servers that do not know them.
        self.whole = False
        # So many of the next bodies are cut in their middle, by a reset.
        self.cut_uploads = 0
        self.cut_downloads = 0
        self.requests = 0
        # (method, headers) of what came.
        self.seen: list[tuple[str, CIMultiDictProxy[str]]] = []
        self.refused = 0
        self.endpoint = ""

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.seen.append((request.method, request.headers))
        if self._random.random() < self.busy:
            self.refused += 1
            await request.read()
            return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>", content_type="application/xml")
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.cut_uploads and (request.content_length or 0) > 1_000_000:
            self.cut_uploads -= 1
            await request.content.readexactly((request.content_length or 0) // 2)
            return _abort(request)
        body = await request.read()
        # Headers as they were, `Host` too: it is signed.
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
        url = URL(self._target + request.raw_path, encoded=True)
        async with self._http.request(
            request.method, url, data=body, headers=headers, skip_auto_headers=("User-Agent", "Content-Type")
        ) as answer:
            data = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            told = not self.whole or kept.pop("Content-Range", None) is None
            response = web.StreamResponse(status=answer.status if told else 200, headers=kept)
            head = request.method == "HEAD"
            response.content_length = int(answer.headers.get("Content-Length", 0)) if head else len(data)
            await response.prepare(request)
            if self.cut_downloads and len(data) > 1_000_000:
                self.cut_downloads -= 1
                await response.write(data[: len(data) // 2])
                await asyncio.sleep(0.05)
                return _abort(request)
            if not head:
                await response.write(data)
            await response.write_eof()
            return response


def _abort(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
