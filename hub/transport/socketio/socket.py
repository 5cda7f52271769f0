"""One connection, in asyncio's own terms. Whatever is due to it goes straight to the kernel, and what the kernel does
not take to its transport, whose buffer is the only queue; what it says is heard in the callback that brings it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Protocol

from hub import metrics
from hub.transport.socketio import frames
from hub.transport.socketio.codec import Codec
from hub.transport.socketio.gate import Malformed
from hub.transport.socketio.websocket import Broken, Reader

if TYPE_CHECKING:
    from hub.transport.socketio.codec import Packet
    from hub.transport.socketio.options import EdgeOptions
    from hub.transport.socketio.session import Session

SLOW = metrics.counter("slow_consumers", "Sockets cut off because they did not read")
BYTES = metrics.Tally("socket_sent_bytes", "Bytes written to sockets")

# What a client may say on while its command runs, before its connection is not read any more.
_AHEAD_BYTES = 65_536


_NORMAL = frames.NORMAL.to_bytes(2, "big")


class Home(Protocol):
    """Who has the sockets."""

    def heard(self, socket: Socket, opcode: int, data: bytes) -> None:
        """TEXT, BINARY or PING. Not called while `socket.busy`."""
        ...

    def ending(self, socket: Socket) -> None:
        """Nothing reaches it any more; or it is `silent`, and to be hung up on; or it is `lost`. Soon is soon enough:
        ten thousand that end at once would else stall the loop.
        """
        ...


class Transport(Protocol):
    """What a connection needs of asyncio's transport."""

    def write(self, data: bytes | memoryview) -> None: ...
    def get_write_buffer_size(self) -> int: ...


class _Gone:
    """In place of the transport of a connection that has ended: takes everything, keeps nothing."""

    def write(self, data: bytes | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


GONE = _Gone()


class Socket(asyncio.Protocol):
    """One WebSocket that speaks Engine.IO. `session` is there once its client is authenticated."""

    __slots__ = (
        "_corked",
        "_deadline",
        "_descriptor",
        "_direct",
        "_home",
        "_options",
        "_paused",
        "_reader",
        "_wire",
        "address",
        "alive",
        "attempts",
        "busy",
        "clogged",
        "codec",
        "entering",
        "forgotten",
        "lost",
        "most",
        "partial",
        "parts",
        "queued",
        "seen_off",
        "session",
        "sid",
        "silent",
        "telling",
        "transport",
    )

    def __init__(
        self,
        sid: str,
        transport: asyncio.Transport,
        codec: Codec,
        address: str,
        options: EdgeOptions,
        home: Home,
    ) -> None:
        self.sid = sid
        self.codec = codec
        self.address = address
        self.transport: Transport = transport
        self._wire = transport
        # What it is to the kernel, or -1 where only the transport may write.
        self._descriptor = _descriptor(transport)
        # The same while nothing waits in the transport, as far as this knows.
        self._direct = -1
        # Several commands came in one piece: their acks leave in one.
        self._corked = False
        self._options = options
        self._home = home
        # One event over the limit is still answered; anything larger is not even read.
        self._reader = Reader(4 * options.event_bytes)
        self._paused = False
        self._deadline: asyncio.TimerHandle | None = None
        self.session: Session | None = None
        # Something was heard since the last ping.
        self.alive = True
        # Bytes an event may have.
        self.most = options.event_bytes
        # There while the client does not read: done once it has.
        self.clogged: asyncio.Future[None] | None = None
        # A command is waiting for something: frames behind it wait, the pong among them.
        self.busy = False
        # Its session is on the way in, and not told so yet: busy with that.
        self.entering = False
        self.lost = self.silent = False
        # How far whoever has the sockets has seen to its end.
        self.seen_off = self.forgotten = False
        self.queued = 0
        # Commands that are done but for the answer of the log.
        self.telling = 0
        self.attempts = 0
        # A packet whose attachments are still coming.
        self.partial: Packet | None = None
        self.parts: tuple[bytes, ...] = ()

    @property
    def open(self) -> bool:
        return self.transport is not GONE

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It was made before: the request that opened it has been read."""

    def data_received(self, data: bytes) -> None:
        self.alive = True
        if not self.busy and self.open:
            text = self._reader.lone_text(data)
            if text is not None:
                self._home.heard(self, frames.TEXT, text)
                return
        self._reader.feed(data)
        if not self.busy:
            self.proceed()
        elif self._reader.held > _AHEAD_BYTES and not self._paused:
            self._paused = True
            self._wire.pause_reading()

    def eof_received(self) -> bool:
        self._let_go()
        self.silent = True
        self._home.ending(self)
        # It is not closed yet.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        self.lost = True
        self.resume_writing()
        self._home.ending(self)

    def free(self) -> None:
        """What it was busy with is done: what has arrived meanwhile is heard from the next turn on."""
        self.busy = False
        if self._reader.held or self._paused:
            asyncio.get_running_loop().call_soon(self.proceed)

    def proceed(self) -> None:
        """Hear what has arrived, as far as nothing has to be waited for. Not to be called from within a task."""
        while not self.busy and not self.lost:
            try:
                message = self._reader.next()
            except Broken as broken:
                self.close(broken.code)
                # What follows cannot be read; until the peer hangs up it is thrown away.
                self._reader = _DEAF
                break
            if message is None:
                break
            self._corked, self._direct = True, -1
            self._hear(*message)
        self._corked = False
        if self._paused and not self.busy and not self.lost:
            self._paused = False
            self._wire.resume_reading()

    def _hear(self, opcode: int, data: bytes) -> None:
        if opcode == frames.CLOSE:
            # Said first or in answer: either way it has said all. A page that is left says 1001, or no code.
            if self.session is not None and self.open and data[:2] == _NORMAL:
                self.session.goodbye = True
            self.close(frames.NORMAL)
            self._wire.close()
        elif self.open and opcode != frames.PONG:
            self._home.heard(self, opcode, data)

    # What asyncio calls of its writing

    def pause_writing(self) -> None:
        self.clogged = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self.clogged is not None and not self.clogged.done():
            self.clogged.set_result(None)
        self.clogged = None

    # What is due to it

    def write(self, data: bytes, count: int = 1) -> None:
        """`data` is `count` complete frames. A reader too far behind is cut off instead."""
        descriptor = self._direct
        if descriptor < 0:
            size = self.transport.get_write_buffer_size()
            if size:
                self.queued += count
                if size > self._options.queued_bytes or self.queued > self._options.queued_frames:
                    self.cut_off()
                    return
            else:
                self.queued = 0
            if size or self._corked or self._descriptor < 0:
                self.transport.write(data)
                return
            descriptor = self._direct = self._descriptor
        try:
            sent = os.write(descriptor, data)
        except OSError:
            # Full, or broken: the transport finds out which.
            sent = 0
        if sent < len(data):
            self._direct, self.queued = -1, 0
            self.transport.write(memoryview(data)[sent:] if sent else data)

    async def send(self, packet: Any) -> None:
        """One of python-engineio's packets."""
        data = packet.encode()
        self.write(frames.text(data.encode()) if isinstance(data, str) else frames.binary(data))

    def cut_off(self) -> None:
        """A slow consumer: what it has not read is dropped with it. It may come back and resume."""
        SLOW.inc()
        self.abort()

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

    def hang_up(self) -> None:
        """Close the connection, once what is due has been read, or after a while."""
        if self._wire.get_write_buffer_size():
            self.settled()
            self._deadline = asyncio.get_running_loop().call_later(self._options.hangup_s, self._wire.abort)
        self._wire.close()

    def abort(self) -> None:
        """End it without a word."""
        wire = self._wire
        if self.open:
            self._end()
        wire.abort()

    def widen(self, codec: Codec, most: int) -> None:
        """It speaks in another namespace from here on, where events may have `most` bytes."""
        self.codec, self.most = codec, most
        self._reader.widen(most + self._options.event_bytes)

    def attach(self, part: bytes) -> tuple[Packet, tuple[bytes, ...]] | None:
        """One attachment of `partial`. The packet and all its parts once the last has come."""
        packet = self.partial
        if packet is None:
            raise Malformed("an attachment of nothing")
        parts = self.parts = (*self.parts, part)
        if sum(map(len, parts)) > self.most:
            raise Malformed("attachments over the limit")
        if len(parts) < packet.attachments:
            return None
        self.partial, self.parts = None, ()
        return packet, parts

    def _end(self) -> None:
        self.settled()
        self._let_go()
        self._home.ending(self)

    def _let_go(self) -> None:
        """Nothing is written any more. Before anybody closes it: from then on the number is somebody else's."""
        self.transport = GONE
        self._descriptor = self._direct = -1


def _descriptor(transport: asyncio.Transport) -> int:
    """Behind TLS, what is written is not what is sent."""
    wire = transport.get_extra_info("socket")
    if wire is None or transport.get_extra_info("sslcontext") is not None:
        return -1
    number: int = wire.fileno()
    return number


class _Deaf(Reader):
    """Hears nothing."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        pass


_DEAF = _Deaf(0)
