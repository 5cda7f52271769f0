"""Refusals as HTTP answers: RFC 9457 `application/problem+json`, made by one function for every door.

All members of an ack's error object are there under the same names, so that one piece of client code reads both.
"""

from __future__ import annotations

import math

import msgspec
from aiohttp import web

from hub.commands import Rate
from hub.protocol.errors import HubError, NotFound, TokenExpired, TokenInvalid, Unauthenticated
from hub.protocol.problems import CONTENT_TYPE, HttpProblem

# Where `/docs` explains the code.
TYPE = "/docs#error-"
# Stock clients try again by themselves after a 429 or a 503.
_HANDSHAKE = {"server_busy": 503, "too_many_connections": 429, "token_missing": 401}


def problem(error: HubError, request_id: str, *, command: str = "", rate: Rate | None = None) -> web.Response:
    """The answer for `error`. `command` and `rate`: what ran, for the RateLimit fields of a 429.

    The refusals of sockets have no status of their own; a handshake that is refused has one all the same.
    """
    title = (type(error).__doc__ or error.code).strip().splitlines()[0].rstrip(".")
    # Missing and hidden must be one answer to the byte, whatever the action said.
    hidden = isinstance(error, NotFound)
    text = title if hidden else error.message
    status = error.status or _HANDSHAKE.get(error.code, 400)
    body = HttpProblem(
        type=TYPE + error.code,
        title=title,
        status=status,
        detail=text,
        code=error.code,
        message=text,
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms,
        details=None if hidden else error.details,
        errors=[] if hidden else error.errors,
        request_id=request_id,
    )
    response = web.Response(status=status, body=msgspec.json.encode(body), content_type=CONTENT_TYPE)
    if error.retry_after_ms is not None or (status == 503 and error.retryable):
        response.headers["Retry-After"] = str(max(1, math.ceil((error.retry_after_ms or 1000) / 1000)))
    if status == 429 and rate is not None:
        reset = max(1, math.ceil((error.retry_after_ms or 1000) / 1000))
        response.headers["RateLimit-Policy"] = f'"{command}";q={rate.times};w={max(1, math.ceil(rate.per_s))}'
        response.headers["RateLimit"] = f'"{command}";r=0;t={reset}'
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = 'Bearer realm="auralink"'
    elif isinstance(error, TokenInvalid | TokenExpired):
        response.headers["WWW-Authenticate"] = 'Bearer realm="auralink", error="invalid_token"'
    return response
