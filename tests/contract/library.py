"""python-socketio as it comes, to show the defects that the edge is tested against."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import socketio
from aiohttp import web

from tests.fakes.sockets import Raw

# Silent: as it comes it prints every bad frame with a traceback.
_LOGGER = logging.getLogger("tests.library")
_LOGGER.setLevel(logging.CRITICAL)


class Library:
    def __init__(self, sio: Any, port: int) -> None:
        self.sio = sio
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.handled: list[str] = []
        self.finished: list[float] = []
        self.remote_addresses: set[str] = set()

    @property
    def socket_url(self) -> str:
        return f"{self.url}/socket.io/?EIO=4&transport=websocket"

    async def connect(self, client: Raw) -> None:
        await client.say("40")
        assert (await client.hear()).startswith("40{")


@asynccontextmanager
async def library(**options: Any) -> AsyncIterator[Library]:
    sio = socketio.AsyncServer(
        async_mode="aiohttp", cors_allowed_origins="*", logger=_LOGGER, engineio_logger=_LOGGER, **options
    )
    app = web.Application()
    sio.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    lib = Library(sio, site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]

    @sio.on("connect")  # type: ignore[untyped-decorator]
    async def connected(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        lib.remote_addresses.add(environ["REMOTE_ADDR"])

    @sio.on("disconnect")  # type: ignore[untyped-decorator]
    async def disconnected(sid: str, reason: str = "") -> None:
        lib.handled.append("disconnect")

    @sio.on("join")  # type: ignore[untyped-decorator]
    async def join(sid: str, room: str) -> None:
        await sio.enter_room(sid, room)

    @sio.on("echo")  # type: ignore[untyped-decorator]
    async def echo(sid: str, data: Any) -> None:
        await sio.emit("echoed", data, to=sid)

    @sio.on("slow")  # type: ignore[untyped-decorator]
    async def slow(sid: str, seconds: float) -> None:
        lib.handled.append("slow")
        await asyncio.sleep(seconds)
        lib.finished.append(seconds)

    @sio.on("note")  # type: ignore[untyped-decorator]
    async def note(sid: str, text: str) -> None:
        lib.handled.append("note")

    try:
        yield lib
    finally:
        await runner.cleanup()
        await sio.shutdown()
