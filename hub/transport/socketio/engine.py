"""Our Engine.IO server under python-socketio's: WebSocket only, no queue, no task of its own per connection.

It is python-engineio's AsyncServer to whoever asks (`sockets`, `send_packet`, `disconnect`), but its sockets write
straight to their transports and one pinger serves them all.
"""

from __future__ import annotations

import asyncio
from typing import Any

import engineio

from hub import metrics
from hub.transport.socketio import frames
from hub.transport.socketio.socket import Socket

SOCKETS = metrics.Level("sockets", "Open sockets")

# So many are given up in one turn of the loop.
_AT_ONCE = 100

_PING = frames.text(b"2")


class Heartbeat:
    """Pings every socket once in `interval` ticks, a slot of them each tick; who says nothing for `timeout` is gone.

    Ticks, not clocks: a loop that stalled, or a clock that jumped, throws nobody out.
    """

    def __init__(self, interval: int, timeout: int) -> None:
        assert 0 < timeout < interval
        self._slots: list[dict[Socket, None]] = [{} for _ in range(interval)]
        self._slot_of: dict[Socket, int] = {}
        self._timeout = timeout
        self._turn = 0

    def add(self, socket: Socket) -> None:
        # The slot that has just had its turn: the first ping comes an interval from now.
        slot = (self._turn - 1) % len(self._slots)
        self._slots[slot][socket] = None
        self._slot_of[socket] = slot

    def remove(self, socket: Socket) -> None:
        slot = self._slot_of.pop(socket, None)
        if slot is not None:
            del self._slots[slot][socket]

    def tick(self) -> list[Socket]:
        """Ping whose turn it is. Those that are gone."""
        due = self._slots[(self._turn - self._timeout) % len(self._slots)]
        gone = [socket for socket in due if not socket.alive and not socket.busy]
        for socket in list(self._slots[self._turn]):
            socket.alive = False
            socket.write(_PING)
        self._turn = (self._turn + 1) % len(self._slots)
        return gone


class Engine(engineio.AsyncServer):  # type: ignore[misc]
    """The sockets of this node."""

    sockets: dict[str, Socket]

    def add(self, socket: Socket) -> None:
        self.sockets[socket.sid] = socket
        SOCKETS.value += 1

    def remove(self, socket: Socket) -> None:
        if self.sockets.pop(socket.sid, None) is not None:
            SOCKETS.value -= 1

    def _get_socket(self, sid: str) -> Socket:
        # Not the parent's: it wants a `closed` of sockets that close over several turns. Ours leave the table at once.
        return self.sockets[sid]

    async def disconnect(self, sid: str | None = None) -> None:
        for socket in list(self.sockets.values()) if sid is None else [self.sockets.get(sid)]:
            if socket is not None:
                socket.close(frames.NORMAL)

    async def handle_request(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("requests come in by the edge")


async def beat(heartbeat: Heartbeat, tick_s: float) -> None:
    """The pinger of all sockets."""
    while True:
        await asyncio.sleep(tick_s)
        for number, socket in enumerate(heartbeat.tick()):
            # Half open, most likely: nobody reads the goodbye, and the transport is aborted a moment later.
            socket.close(frames.GOING_AWAY)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
