"""One connection. Whatever is due to it goes straight to its transport, whose buffer is the only queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from hub import metrics
from hub.transport.socketio import frames
from hub.transport.socketio.codec import Codec
from hub.transport.socketio.gate import Malformed

if TYPE_CHECKING:
    from hub.transport.socketio.codec import Packet
    from hub.transport.socketio.options import EdgeOptions
    from hub.transport.socketio.session import Session

SLOW = metrics.counter("slow_consumers", "Sockets cut off because they did not read")
BYTES = metrics.counter("socket_sent_bytes", "Bytes written to sockets")


class Transport(Protocol):
    """What a connection needs of asyncio's transport."""

    def write(self, data: bytes) -> None: ...
    def get_write_buffer_size(self) -> int: ...


class _Gone:
    """In place of the transport of a connection that has ended: takes everything, keeps nothing."""

    def write(self, data: bytes) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


GONE = _Gone()


class Socket:
    """One WebSocket that speaks Engine.IO. `session` is there once its client is authenticated."""

    __slots__ = (
        "_deadline",
        "_ended",
        "_options",
        "_wire",
        "address",
        "alive",
        "attempts",
        "busy",
        "codec",
        "partial",
        "parts",
        "queued",
        "session",
        "sid",
        "transport",
    )

    def __init__(
        self,
        sid: str,
        transport: asyncio.Transport,
        codec: Codec,
        address: str,
        options: EdgeOptions,
        ended: Callable[[Socket], None],
    ) -> None:
        self.sid = sid
        self.codec = codec
        self.address = address
        self.transport: Transport = transport
        self._wire = transport
        self._options = options
        self._ended = ended
        self._deadline: asyncio.TimerHandle | None = None
        self.session: Session | None = None
        # Something was heard since the last ping.
        self.alive = True
        # A command is running: frames behind it wait, the pong among them.
        self.busy = False
        self.queued = 0
        self.attempts = 0
        # A packet whose attachments are still coming.
        self.partial: Packet | None = None
        self.parts: list[bytes] = []

    @property
    def open(self) -> bool:
        return self.transport is not GONE

    def write(self, data: bytes, count: int = 1) -> None:
        """`data` is `count` complete frames. A reader too far behind is cut off instead."""
        transport = self.transport
        size = transport.get_write_buffer_size()
        if size:
            self.queued += count
            if size > self._options.queued_bytes or self.queued > self._options.queued_frames:
                self.cut_off()
                return
        else:
            self.queued = 0
        transport.write(data)

    async def send(self, packet: Any) -> None:
        """One of python-engineio's packets."""
        data = packet.encode()
        self.write(frames.text(data.encode()) if isinstance(data, str) else frames.binary(data))

    def cut_off(self) -> None:
        """A slow consumer: what it has not read is dropped with it. It may come back and resume."""
        SLOW.inc()
        wire = self._wire
        self._end()
        wire.abort()

    def within(self, seconds: float, code: int) -> None:
        """Close, unless `settled` comes first."""
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.close, code)

    def settled(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def close(self, code: int, last: bytes = b"") -> None:
        """Say `last` and goodbye. The peer hangs up, so that it reads what it was told, or is hung up on."""
        if not self.open:
            return
        self.write(last + frames.close(code))
        if self.open:
            wire = self._wire
            self._end()
            self._deadline = asyncio.get_running_loop().call_later(self._options.hangup_s, wire.abort)

    def gone(self) -> None:
        """The peer has hung up, or has nothing more to hear."""
        self.settled()
        if self.open:
            self._end()
        self._wire.close()

    def attach(self, part: bytes) -> tuple[Packet, list[bytes]] | None:
        """One attachment of `partial`. The packet and all its parts once the last has come."""
        packet = self.partial
        if packet is None:
            raise Malformed("an attachment of nothing")
        self.parts.append(part)
        if sum(map(len, self.parts)) > self._options.event_bytes:
            raise Malformed("attachments over the limit")
        if len(self.parts) < packet.attachments:
            return None
        parts, self.parts, self.partial = self.parts, [], None
        return packet, parts

    def _end(self) -> None:
        self.settled()
        self.transport = GONE
        self.partial, self.parts = None, []
        self._ended(self)
