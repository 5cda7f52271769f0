"""What happens to every HTTP request: id, origin, security headers, one log line, metrics, refusals in one shape.

`setup(app, …)` is all that `app.py` calls. Bodies and deadlines of commands are `rest.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestPayloadError

from hub import metrics
from hub.commands import Command
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.transport.problems import problem

log = structlog.get_logger("hub.http")

REQUESTS = metrics.counter("http_requests", "HTTP requests by route and status", "method", "route", "status")
SECONDS = metrics.histogram("http", "Time to answer an HTTP request", "route")

MALFORMED = metrics.counter("http_malformed", "Requests that are no HTTP, or too long to be read")

REQUEST_ID: Final = web.RequestKey("request_id", str)
COMMAND: Final = web.RequestKey("command", Command)

# How `app.py` has to start its AppRunner. A client that goes away cancels what it asked for, and a socket that sends
# no whole request head in 20 s is closed.
RUNNER: Final[Mapping[str, Any]] = {"handler_cancellation": True, "keepalive_timeout": 20.0, "access_log": None}

BODY_BYTES: Final = 64 * 1024
# 64 KiB at 6.5 KiB/s; who is slower keeps a handler busy on purpose.
BODY_DEADLINE_S: Final = 10.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# What pages of the allowed origins may call: the API, and the files that it hands out.
_API = ("/api/", "/storage/")
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # Nothing an API answers is a page: not to be framed, not to load or run anything.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-Match, X-Request-Id, traceparent"
_EXPOSED_HEADERS = (
    "Accept-Ranges, Content-Disposition, Content-Range, ETag, Idempotency-Replayed, Location, RateLimit, "
    "RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-Id"
)
_ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
# Names under which people try to send a token in the query, where it would end up in the logs of every proxy.
_TOKEN_PARAMETERS = frozenset({"token", "access_token", "jwt", "id_token", "authorization", "apikey"})


def setup(app: web.Application, *, origins: frozenset[str], https: bool) -> None:
    """`origins`: whose pages may call the API. `https`: the public URL is https, so browsers may insist on it."""
    # The same function every time: added once, however many apps there are.
    logging.getLogger("aiohttp.server").addFilter(_no_noise)
    app.middlewares.append(_edge(origins))
    app.on_response_prepare.append(_headers(origins, https))


def _no_noise(record: logging.LogRecord) -> bool:
    """Count requests that are no HTTP instead of logging them: anybody could fill the log with tracebacks.

    Nobody has to read a body that is not what its encoding says: aiohttp does, to get to the next request.
    """
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | RequestPayloadError):
        MALFORMED.inc()
        return False
    return True


def _edge(origins: frozenset[str]) -> Middleware:
    @web.middleware
    async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 499
        try:
            response = await _answer(request, handler, origins)
            status = response.status
            return response
        finally:
            # Also for a client that went away (499): the work was cancelled, the line stays.
            _record(request, status, time.perf_counter() - started)

    return edge


async def _answer(request: web.Request, handler: Handler, origins: frozenset[str]) -> web.StreamResponse:
    try:
        if request.path.startswith(_API):
            preflight = _guard(request, origins)
            if preflight is not None:
                return preflight
        return await handler(request)
    except HubError as error:
        command = request.get(COMMAND)
        return problem(
            error,
            request[REQUEST_ID],
            command=command.name if command else "",
            rate=command.rate if command else None,
        )
    except web.HTTPException as error:
        return _translated(request, error)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("http_crashed", route=_route(request), request_id=request[REQUEST_ID])
        return problem(errors.Internal(), request[REQUEST_ID])


def _guard(request: web.Request, origins: frozenset[str]) -> web.Response | None:
    """Refuse foreign pages and tokens in the query; answer a preflight."""
    origin = request.headers.get(hdrs.ORIGIN)
    # Compared as a whole: no suffix, no Host, no forwarded host.
    if origin is not None and origin not in origins:
        raise errors.Forbidden("this origin is not allowed here")
    if _TOKEN_PARAMETERS.intersection(name.lower() for name in request.query):
        raise errors.Unauthenticated("tokens belong into the Authorization header")
    if request.method == hdrs.METH_OPTIONS and origin and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: _ALLOWED_METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _ALLOWED_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: "600",
            },
        )
    return None


def _translated(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    """The router's own refusals in our shape; redirects as they are."""
    if error.status < 400:
        return error
    kinds: dict[int, type[HubError]] = {
        401: errors.Unauthenticated,
        403: errors.Forbidden,
        404: errors.NotFound,
        405: errors.MethodNotAllowed,
        413: errors.PayloadTooLarge,
        415: errors.UnsupportedMediaType,
    }
    refusal = kinds.get(error.status, errors.BadRequest if error.status < 500 else errors.Internal)
    response = problem(refusal(), request[REQUEST_ID])
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = _written_out(request) or error.headers[hdrs.ALLOW]
    return response


def _written_out(request: web.Request) -> str:
    """The methods of the path itself, where it is written out in a route: `/files/upload` is nobody's `/files/{id}`."""
    routes = (route for resource in request.app.router.resources() for route in resource)
    return ",".join(
        sorted(route.method for route in routes if route.resource and route.resource.canonical == request.path)
    )


def _headers(origins: frozenset[str], https: bool) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def add(request: web.Request, response: web.StreamResponse) -> None:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.pop(hdrs.SERVER, None)
        if https:
            response.headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
        request_id = request.get(REQUEST_ID)
        if request_id:
            response.headers["X-Request-Id"] = request_id
        if request.path.startswith(_API):
            response.headers[hdrs.VARY] = "Origin"
            origin = request.headers.get(hdrs.ORIGIN)
            if origin in origins:
                # Never with credentials: there are no cookies, and there shall be none.
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
                response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED_HEADERS

    return add


async def read_body(request: web.Request, limit: int = BODY_BYTES, deadline_s: float = BODY_DEADLINE_S) -> bytes:
    """The whole body. Raises PayloadTooLarge, or Timeout for one that trickles in.

    Counted as it arrives: Content-Length may lie, and a compressed body grows while it is read.
    """
    if (request.content_length or 0) > limit:
        raise errors.PayloadTooLarge(f"at most {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(deadline_s):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise errors.PayloadTooLarge(f"at most {limit} bytes")
    except TimeoutError:
        raise errors.Timeout(f"the body took longer than {deadline_s:g} s") from None
    except (web.HTTPException, ConnectionError):
        raise
    except (RequestPayloadError, ValueError) as error:
        # A body that is not what Content-Encoding or Transfer-Encoding says.
        raise errors.BadRequest("the body cannot be read") from error
    return bytes(body)


def _route(request: web.Request) -> str:
    """The template of the route: never a path, which holds ids and would make endless labels."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


def _record(request: web.Request, status: int, elapsed_s: float) -> None:
    route = _route(request)
    method = request.method if request.method in _METHODS else "other"
    REQUESTS.labels(method, route, str(status)).inc()
    if status == 101:
        # A WebSocket: its time is the session's, and the socket edge logs that.
        return
    SECONDS.labels(route).observe(elapsed_s)
    log.info(
        "http",
        method=method,
        route=route,
        status=status,
        ms=round(elapsed_s * 1000, 2),
        request_id=request[REQUEST_ID],
    )
