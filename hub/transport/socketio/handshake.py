"""What is checked before and at the entrance: the HTTP handshake, and the `auth` map of CONNECT."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web

from hub.protocol import errors
from hub.transport.socketio.codec import Codec, Json, Msgpack

PROTOCOL: Final = "1"
_TOKEN_PARAMETERS = ("token", "access_token", "auth", "jwt")
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Auth(msgspec.Struct, frozen=True):
    """What CONNECT carries: a flat map of strings, since the Java client allows no other."""

    token: str
    client: str
    device_id: str | None
    locale: str | None


def check(request: web.Request, origins: frozenset[str]) -> None:
    """Raises the refusal of a handshake that is not a browser or app of ours opening a WebSocket."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin not in origins:
        raise errors.Forbidden("this origin is not allowed")
    query = request.query
    if any(name in query for name in _TOKEN_PARAMETERS):
        raise errors.BadRequest("a token never goes into the query: send it as auth.token with CONNECT")
    if query.get("EIO") != "4":
        raise errors.BadRequest("this server speaks Engine.IO 4: use a Socket.IO 4 client")
    if query.get("transport") != "websocket" or "sid" in query:
        raise errors.BadRequest('WebSocket only: connect with transports: ["websocket"]')
    if query.get("parser", "json") not in ("json", "msgpack"):
        raise errors.BadRequest("parser is json or msgpack")
    if request.method != hdrs.METH_GET or request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
        raise errors.BadRequest("not a WebSocket handshake")


def codec_of(request: web.Request, json: Json, msgpack: Msgpack) -> Codec:
    return msgpack if request.query.get("parser") == "msgpack" else json


def auth(data: Any) -> Auth:
    """Raises TokenMissing or ProtocolUnsupported. Unknown fields are let pass: stock clients add their own."""
    if not isinstance(data, dict) or not data.get("token"):
        raise errors.TokenMissing()
    if not all(
        isinstance(data.get(name), str | None) for name in ("token", "protocol", "client", "device_id", "locale")
    ):
        raise errors.ProtocolUnsupported("auth is a flat map of strings")
    if data.get("protocol", PROTOCOL) != PROTOCOL:
        raise errors.ProtocolUnsupported()
    device_id = data.get("device_id")
    if device_id is not None and not _DEVICE.fullmatch(device_id):
        raise errors.ProtocolUnsupported("device_id is 1 to 64 letters, digits, dots, dashes and underscores")
    locale = data.get("locale")
    return Auth(data["token"], (data.get("client") or "")[:64], device_id, locale[:35] if locale else None)
