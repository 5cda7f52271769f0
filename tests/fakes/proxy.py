"""A TCP proxy that fails on demand: what stands between a node and its Redis, PostgreSQL or LiveKit in the fault tests.

pass         forwards
refuse       closes new connections at once and resets the existing ones
reset        resets existing connections once, then passes
blackhole    accepts, and forwards nothing in either direction, on new and existing connections
freeze       existing connections go silent, new ones pass: a half-open link
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Literal, Self

Mode = Literal["pass", "refuse", "reset", "blackhole", "freeze"]

_CHUNK = 64 * 1024


class Proxy:
    """`async with Proxy("127.0.0.1", port) as proxy`, then connect to `proxy.port` and `proxy.set(mode)`."""

    def __init__(self, host: str, port: int, *, latency_s: float = 0.0) -> None:
        self._target = (host, port)
        self.latency_s = latency_s
        self._mode: Mode = "pass"
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def set(self, mode: Mode) -> None:
        self._mode = "pass" if mode in ("freeze", "reset") else mode
        for pair in list(self._pairs):
            if mode in ("refuse", "reset"):
                pair.reset()
            elif mode in ("freeze", "blackhole"):
                pair.flowing.clear()
            elif mode == "pass" and not pair.frozen_for_good:
                pair.flowing.set()
            # What a half-open link swallowed does not come back when the network does.
            pair.frozen_for_good = pair.frozen_for_good or mode == "freeze"

    @property
    def connections(self) -> int:
        return len(self._pairs)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, far_writer)
        if self._mode == "pass":
            pair.flowing.set()
        self._pairs.add(pair)
        tasks = [
            asyncio.create_task(self._pump(pair, reader, far_writer)),
            asyncio.create_task(self._pump(pair, far_reader, writer)),
        ]
        self._tasks.update(tasks)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
                self._tasks.discard(task)
            self._pairs.discard(pair)
            pair.close()

    async def _pump(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await pair.flowing.wait()
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                writer.write(data)
                await writer.drain()
        # A frozen link does not pass the news of its end on either.
        await pair.flowing.wait()


class _Pair:
    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._writers = (near, far)
        self.flowing = asyncio.Event()
        self.frozen_for_good = False

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            if raw is not None:
                # Linger 0: the peer gets a RST, not a FIN.
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
