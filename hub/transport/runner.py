"""aiohttp's server, but for what it answers to what is no HTTP: neither its own version nor what was sent to it."""

from __future__ import annotations

from uuid import uuid4

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler

from hub.protocol import errors
from hub.transport.middleware import HEADERS
from hub.transport.problems import problem


class _Handler(RequestHandler):
    """One connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # Logs what is a bug, and raises where an answer has begun already.
        super().handle_error(request, status, exc, message)
        refusal = errors.BadRequest("this cannot be read as HTTP") if status < 500 else errors.Internal()
        response = problem(refusal, uuid4().hex)
        response.headers.update(HEADERS)
        response.headers[hdrs.SERVER] = "auralink-hub"
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
