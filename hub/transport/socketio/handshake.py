"""What is checked at the entrance: the HTTP request that opens a WebSocket, and the `auth` map of CONNECT."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from types import NoneType
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from hub.context import Position
from hub.protocol import errors
from hub.transport.socketio.codec import Codec, Json, Msgpack

PROTOCOL: Final = "1"
PATHS: Final = ("/socket.io/", "/socket.io")
_TOKEN_PARAMETERS = frozenset(("token", "access_token", "auth", "jwt"))
_TEXTS = ("token", "protocol", "client", "device_id", "locale", "user_since")
_TEXT = (str, NoneType)
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_POSITION = re.compile(r"[A-Za-z0-9]{1,64}:[0-9]{1,15}")
# A target, and at least one field: RFC 9112 §3 and §5.
_HEAD = re.compile(
    rb"GET ([\x21-\x7e]+) HTTP/1\.1\r\n"
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*"
    rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*)*)"
)
# 16 bytes in Base64.
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
# Longer targets are not kept.
_USUAL = 128
# Fields that a request may have more than once, for one value with commas.
_LISTS = frozenset(("x-forwarded-for", "connection", "upgrade", "sec-websocket-extensions", "sec-websocket-protocol"))
# RFC 6455 §1.3.
_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Request(msgspec.Struct, frozen=True):
    """A request, as far as the socket edge looks at it."""

    path: str
    query: Mapping[str, str]
    # Names in lower case.
    headers: Mapping[str, str]
    # Of the transport.
    address: str


class Auth(msgspec.Struct, frozen=True):
    """What CONNECT carries: a flat map of strings, since the Java client allows no other."""

    token: str
    client: str
    device_id: str | None
    locale: str | None
    # Up to where the client has heard what is meant for its user.
    user_since: Position | None


def read(head: bytes, address: str) -> Request | None:
    """A GET that asks for a WebSocket, or None: anything else, or anything odd. `head`: up to its empty line."""
    plain = _HEAD.fullmatch(head)
    if plain is None:
        return None
    headers: dict[str, str] = {}
    for field in plain[2].decode("latin-1").split("\r\n"):
        name, _, value = field.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name not in _LISTS:
                return None
            value = f"{headers[name]},{value}"
        headers[name] = value
    if not opens_websocket(headers):
        return None
    target = plain[1].decode()
    try:
        path, query = _usual(target) if len(target) <= _USUAL else _parts(target)
    except ValueError:
        return None
    return Request(path, query, headers, address)


def _parts(target: str) -> tuple[str, Mapping[str, str]]:
    path, _, query = target.partition("?")
    return path, dict(parse_qsl(query, keep_blank_values=True, max_num_fields=32))


# Nearly all clients ask for the same.
_usual = lru_cache(maxsize=256)(_parts)


def opens_websocket(headers: Mapping[str, str]) -> bool:
    return (
        headers.get("upgrade", "").lower() == "websocket"
        and "upgrade" in [token.strip() for token in headers.get("connection", "").lower().split(",")]
        and headers.get("sec-websocket-version") == "13"
        and _KEY.fullmatch(headers.get("sec-websocket-key", "")) is not None
        and "host" in headers
        # A body would be taken for frames.
        and "content-length" not in headers
        and "transfer-encoding" not in headers
    )


def switching(request: Request) -> bytes:
    """The answer that opens the WebSocket: no extension, no subprotocol."""
    digest = hashlib.sha1(request.headers["sec-websocket-key"].encode() + _ACCEPT, usedforsecurity=False).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


def of(request: web.Request) -> Request:
    headers = {name.lower(): ",".join(request.headers.getall(name)) for name in request.headers}
    return Request(request.path, dict(request.query), headers, request.remote or "")


def check(request: Request, origins: frozenset[str]) -> None:
    """Raises the refusal of a handshake that is not a browser or app of ours opening a WebSocket."""
    origin = request.headers.get("origin")
    if origin is not None and origin not in origins:
        raise errors.Forbidden("this origin is not allowed")
    query = request.query
    if not _TOKEN_PARAMETERS.isdisjoint(query):
        raise errors.BadRequest("a token never goes into the query: send it as auth.token with CONNECT")
    if query.get("EIO") != "4":
        raise errors.BadRequest("this server speaks Engine.IO 4: use a Socket.IO 4 client")
    if query.get("transport") != "websocket" or "sid" in query:
        raise errors.BadRequest('WebSocket only: connect with transports: ["websocket"]')
    if query.get("parser", "json") not in ("json", "msgpack"):
        raise errors.BadRequest("parser is json or msgpack")


def codec_of(request: Request, json: Json, msgpack: Msgpack) -> Codec:
    return msgpack if request.query.get("parser") == "msgpack" else json


def auth(data: Any) -> Auth:
    """Raises TokenMissing or ProtocolUnsupported. Unknown fields are let pass: stock clients add their own."""
    if not isinstance(data, dict) or not data.get("token"):
        raise errors.TokenMissing()
    for name in _TEXTS:
        if not isinstance(data.get(name, ""), _TEXT):
            raise errors.ProtocolUnsupported("auth is a flat map of strings")
    if data.get("protocol", PROTOCOL) != PROTOCOL:
        raise errors.ProtocolUnsupported()
    device_id = data.get("device_id")
    if device_id is not None and not _DEVICE.fullmatch(device_id):
        raise errors.ProtocolUnsupported("device_id is 1 to 64 letters, digits, dots, dashes and underscores")
    locale, since = data.get("locale"), data.get("user_since")
    if since is not None and not _POSITION.fullmatch(since):
        raise errors.ProtocolUnsupported("user_since is epoch:offset, as in session:ready")
    return Auth(
        data["token"],
        (data.get("client") or "")[:64],
        device_id,
        locale[:35] if locale else None,
        _position(since) if since else None,
    )


def _position(text: str) -> Position:
    epoch, _, offset = text.partition(":")
    return Position(epoch, int(offset))
