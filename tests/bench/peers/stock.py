"""The Python peer: python-socketio on aiohttp as its documentation sets it up, with the commands of the benchmark.

Environment: PORT, BENCH_SECRET, REDIS_URL (two nodes), BENCH_STALL=1 (watch the event loop)
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import jwt
import socketio
from aiohttp import web

from tests.bench.stall import Stall

# Above the load client's bursts of connections; the default of 128 would measure retransmissions.
_BACKLOG = 4096
_BUFFER_BYTES = 8_000_000


def make_server() -> Any:
    redis_url = os.environ.get("REDIS_URL")
    manager = {"client_manager": socketio.AsyncRedisManager(redis_url)} if redis_url else {}
    return socketio.AsyncServer(async_mode="aiohttp", max_http_buffer_size=_BUFFER_BYTES, **manager)


def register(server: Any, secret: str, stall: Stall) -> None:
    async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any]) -> None:
        try:
            claims = jwt.decode(auth["token"], secret, algorithms=["HS256"], audience="authenticated")
        except (jwt.PyJWTError, KeyError, TypeError):
            raise socketio.exceptions.ConnectionRefusedError("unauthorized") from None
        ready = {"session_id": sid, "user": {"user_id": claims["sub"]}}
        # The CONNECT packet is sent after this handler, and `session:ready` must follow it.
        server.start_background_task(server.emit, "session:ready", ready, to=sid)

    async def join(sid: str, data: dict[str, Any]) -> dict[str, Any]:
        await server.enter_room(sid, data["call_id"])
        return {"ok": True, "data": {}}

    async def say(sid: str, data: dict[str, Any]) -> None:
        await server.emit("bench:said", data, room=data["call_id"])

    async def echo(sid: str, data: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "data": data}

    async def relay(sid: str, data: dict[str, Any]) -> None:
        await server.emit("bench:relayed", data, room=data["call_id"])

    async def upload(sid: str, data: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "data": {"size": len(data["data"])}}

    async def ask_stall(sid: str, data: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "data": {"stall_ms": stall.worst_ms()}}

    server.on("connect", connect)
    for name, handler in (
        ("join", join),
        ("say", say),
        ("record", say),
        ("echo", echo),
        ("relay", relay),
        ("upload", upload),
        ("stall", ask_stall),
    ):
        server.on(f"bench:{name}", handler)


async def main() -> None:
    server, stall = make_server(), Stall()
    register(server, os.environ["BENCH_SECRET"], stall)
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"]), backlog=_BACKLOG).start()
    if os.environ.get("BENCH_STALL"):
        await stall.watch()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
