"""One port for two servers: reads the first request of a connection and hands it to whom it concerns.

A WebSocket for the socket edge never becomes a request of aiohttp's: that takes three times the work to open and keeps
twice the memory. Everything else is aiohttp's, byte for byte as it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

from aiohttp import web

from hub.transport.socketio import handshake
from hub.transport.socketio.handshake import Request

_HEAD_S = 8.0
# As much as aiohttp takes for a line and for each field.
_HEAD_BYTES = 16_384
_BACKLOG = 4096
_BEGINNING = b"GET /socket.io"


class Opener(Protocol):
    def open(self, request: Request, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """The protocol that goes on, or None: aiohttp shall answer."""
        ...


class Front(asyncio.Protocol):
    """One connection until its first request is known."""

    __slots__ = ("_deadline", "_head", "_http", "_opener", "_transport")

    def __init__(self, opener: Opener, http: Callable[[], asyncio.Protocol]) -> None:
        self._opener, self._http = opener, http
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not of that class with uvloop, but it has all of it.
        self._transport = cast(asyncio.Transport, transport)
        # A client that says nothing must not stay.
        self._deadline = asyncio.get_running_loop().call_later(_HEAD_S, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        self._head += data
        head = self._head
        if not head.startswith(_BEGINNING[: len(head)]):
            self._hand_over(self._http(), head)
            return
        end = head.find(b"\r\n\r\n")
        if end < 0:
            if len(head) > _HEAD_BYTES:
                self._hand_over(self._http(), head)
            return
        peer = self._transport.get_extra_info("peername")
        request = handshake.read(head[:end], peer[0] if isinstance(peer, tuple) else "")
        socket = self._opener.open(request, self._transport) if request is not None else None
        if socket is None:
            self._hand_over(self._http(), head)
        else:
            self._hand_over(socket, head[end + 4 :])

    def _hand_over(self, protocol: asyncio.Protocol, data: bytes) -> None:
        self._deadline.cancel()
        self._head = b""
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)


@asynccontextmanager
async def listening(runner: web.AppRunner, opener: Opener, host: str, port: int, **how: Any) -> AsyncIterator[int]:
    """Serve `runner`, which is set up, and the sockets of `opener` on one port. Its number. Raises OSError."""
    http = runner.server
    assert http is not None
    server = await asyncio.get_running_loop().create_server(
        lambda: Front(opener, http), host, port, backlog=_BACKLOG, **how
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # Not awaited: newer Pythons would wait for every connection.
        server.close()
