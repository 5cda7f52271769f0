"""What a connection says: packets in, sessions and commands out of them. Commands run one after the other, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
import structlog

from hub import eager, metrics
from hub.commands import FILES, NAMESPACES
from hub.context import Actor, Context, Hub, Position
from hub.dispatch import Ack, Dispatcher
from hub.eager import Waits
from hub.protocol import errors
from hub.protocol.errors import FieldError, HubError
from hub.transport.socketio import codec as codecs
from hub.transport.socketio import frames, gate, handshake
from hub.transport.socketio.admission import Admission
from hub.transport.socketio.codec import Codec, Json, Msgpack, Packet
from hub.transport.socketio.gate import Malformed
from hub.transport.socketio.options import EdgeOptions
from hub.transport.socketio.session import Session, SessionHome
from hub.transport.socketio.socket import Socket

log = structlog.get_logger("hub.edge")

CONNECTS = metrics.Tally("connects", "Connection attempts by outcome: ok, or the code of the refusal", "outcome")
CLOSED = metrics.counter("sockets_closed", "Sockets closed by the server, by reason", "reason")


# Commands of one client that wait for nothing but the log. Those behind wait for their turn.
_TELLING = 64
# CONNECT packets on one socket, for whatever namespace.
_ATTEMPTS = 10


class Home(SessionHome, Protocol):
    """Where sessions have their rooms."""

    def answered(self, session: Session, ok: bool) -> None: ...


class Packets:
    """One for all connections of a node. Raises Malformed for what no well-behaved client sends."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        hub: Hub,
        admission: Admission,
        options: EdgeOptions,
        home: Home,
        enter: Callable[[Session, Position | None], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._dispatcher = dispatcher
        self._hub = hub
        self._admission = admission
        self._options = options
        self._home = home
        self._enter = enter
        self._spawn = spawn
        self.json = Json(options.nesting, options.attachments)
        self.msgpack = Msgpack(options.nesting)
        self._in_files: dict[Codec, Codec] = {
            self.json: Json(options.nesting, options.attachments, FILES),
            self.msgpack: Msgpack(options.nesting, FILES),
        }
        # A name that stands here can be no reserved one.
        self._commands = frozenset(command.name for command in dispatcher.commands)
        self._takes_bytes = frozenset(command.name for command in dispatcher.commands if _has_bytes(command.message))
        self._gives_bytes = frozenset(command.name for command in dispatcher.commands if _has_bytes(command.answer))

    def ping(self, socket: Socket, data: bytes) -> None:
        if self.in_time(socket, None):
            socket.write(frames.frame(frames.PONG, data))

    def text(self, socket: Socket, data: bytes) -> None:
        if socket.codec is self.json and socket.partial is None and data.startswith(b"42"):
            event = self.json.plain_event(data)
            if event is not None and event[1] in self._commands:
                self._event(socket, *event, len(data))
                return
        kind = data[:1]
        if kind == b"4" and socket.codec.name == Json.name:
            self._packet(socket, self.json.decode(data[1:]), len(data))
        elif data == b"1":
            socket.close(frames.NORMAL)
        elif kind != b"3":
            raise Malformed("not an Engine.IO packet for a WebSocket")

    def binary(self, socket: Socket, data: bytes) -> None:
        if socket.codec.name == Msgpack.name:
            self._packet(socket, self.msgpack.decode(data), len(data))
            return
        whole = socket.attach(data)
        if whole is not None:
            packet, parts = whole
            packet.data = gate.rebuild(packet.data, parts, self._options.nesting + 1)
            packet.foreign = True
            self._event_packet(socket, packet, sum(map(len, parts)))

    def _packet(self, socket: Socket, packet: Packet, size: int) -> None:
        if socket.partial is not None:
            raise Malformed("a packet between a packet and its attachments")
        match packet.kind:
            case codecs.EVENT:
                self._event_packet(socket, packet, size)
            case codecs.CONNECT:
                self._connect(socket, packet)
            case codecs.BINARY_EVENT if socket.session is not None and packet.namespace == socket.session.namespace:
                socket.partial = packet
            case codecs.ACK:
                # Nobody asked.
                self.in_time(socket, None)
            case codecs.DISCONNECT if packet.namespace == socket.codec.namespace:
                if socket.session is not None:
                    socket.session.goodbye = True
                socket.close(frames.NORMAL)
            case _:
                raise Malformed("not a packet for a server")

    # One thing after the other

    def _finish_later(self, rest: Coroutine[Any, Any, None], socket: Socket) -> asyncio.Task[None]:
        """What had to wait: what the client says next waits with it."""
        socket.busy = True
        return self._spawn(self._finish(socket, rest))

    @staticmethod
    async def _finish(socket: Socket, rest: Coroutine[Any, Any, None]) -> None:
        try:
            await rest
        except Exception:
            # One connection's bug ends one connection.
            log.exception("socket_crashed")
            socket.abort()
        finally:
            if not socket.entering:
                socket.free()

    # Entering

    def _connect(self, socket: Socket, packet: Packet) -> None:
        if socket.session is not None and packet.namespace == socket.session.namespace:
            raise Malformed("connected already")
        socket.attempts += 1
        if socket.attempts > _ATTEMPTS:
            raise Malformed("too many attempts")
        eager.start(self._admit(socket, packet), self._finish_later, socket)
        if socket.entering:
            socket.busy = True

    async def _admit(self, socket: Socket, packet: Packet) -> None:
        try:
            if packet.namespace not in NAMESPACES:
                raise errors.NamespaceForbidden()
            if socket.session is not None:
                raise errors.NamespaceForbidden("each namespace on a connection of its own: connect with forceNew")
            auth = handshake.auth(packet.data)
            actor = await self._verify(socket, auth.token)
            if not socket.open:
                return
            self._admission.enter((actor.tenant_id, actor.user_id))
        except HubError as refusal:
            CONNECTS.add(1, refusal.code)
            data = {"code": refusal.code, "retryable": refusal.retryable}
            if refusal.retry_after_ms is not None:
                data["retry_after_ms"] = refusal.retry_after_ms
            socket.write(socket.codec.connect_error(refusal.message, data, packet.namespace[:64]))
            return
        session = Session(
            socket,
            actor,
            self._home,
            self._hub.clock,
            self._options,
            client=auth.client,
            device_id=auth.device_id,
            locale=auth.locale,
            namespace=packet.namespace,
        )
        if packet.namespace == FILES:
            socket.widen(self._in_files[socket.codec], self._options.frame_bytes)
        self._enter(session, auth.user_since)

    async def _verify(self, socket: Socket, token: str) -> Actor:
        try:
            return await self._hub.tokens.verify(token)
        except errors.TokenInvalid:
            self._admission.wrong(socket.address, time.monotonic())
            raise

    # Commands

    def _event_packet(self, socket: Socket, packet: Packet, size: int) -> None:
        if packet.namespace != socket.codec.namespace:
            raise Malformed("an event before CONNECT")
        name, payload = gate.event(packet.data)
        self._event(socket, packet.id, name, payload, size, foreign=packet.foreign)

    def _event(
        self, socket: Socket, number: int | None, name: str, payload: Any, size: int, *, foreign: bool = False
    ) -> None:
        session = socket.session
        if session is None:
            raise Malformed("an event before CONNECT")
        if not self.in_time(socket, number):
            return
        session.number += 1
        ctx = Context(
            self._hub,
            session.actor,
            f"{session.id}-{session.number}",
            session,
            session.device_id,
            client=session.client,
            namespace=session.namespace,
        )
        if size > socket.most or foreign:
            refusal = self._unacceptable(name, size, foreign, socket.most)
            if refusal is not None:
                self._answer(session, number, Ack(ok=False, error=refusal.problem(ctx.request_id)))
                return
        ack = eager.start(self._dispatcher.ack(ctx, name, payload), self._answer_later, session, number, ctx, name)
        if not isinstance(ack, Waits):
            self._answer(session, number, ack, holds_bytes=ack.ok and name in self._gives_bytes)

    def _answer_later(
        self, rest: Coroutine[Any, Any, Ack], session: Session, number: int | None, ctx: Context, name: str
    ) -> asyncio.Task[None]:
        socket = session.socket
        if ctx.telling and socket.telling < _TELLING and not session.entered:
            # This is its first step: what it waits for is the log, on a line that keeps the order.
            socket.telling += 1
            return self._spawn(self._tell(rest, session, number, ctx, name))
        return self._finish_later(self._command(rest, session, number, ctx, name), socket)

    async def _tell(
        self, rest: Coroutine[Any, Any, Ack], session: Session, number: int | None, ctx: Context, name: str
    ) -> None:
        """The rest of a command that the next one does not wait for. It entered no room, and enters none."""
        socket = session.socket
        try:
            ack = await rest
            if number is not None:
                self._acknowledge(session, number, ack, holds_bytes=ack.ok and name in self._gives_bytes)
        except Exception:
            # One connection's bug ends one connection.
            log.exception("socket_crashed")
            socket.abort()
        finally:
            socket.telling -= 1

    async def _command(
        self, rest: Coroutine[Any, Any, Ack], session: Session, number: int | None, ctx: Context, name: str
    ) -> None:
        late = False

        def overdue() -> None:
            nonlocal late
            late = True
            refusal = errors.Timeout(f"{name} took longer than it may; what it did is done")
            self._answer(session, number, Ack(ok=False, error=refusal.problem(ctx.request_id)))

        ctx.overdue = overdue
        ack = await rest
        if not late:
            self._answer(session, number, ack, holds_bytes=ack.ok and name in self._gives_bytes)
        elif session.entered:
            # The client was told that it is not in.
            self._home.answered(session, False)

    def _unacceptable(self, name: str, size: int, foreign: bool, most: int) -> HubError | None:
        if size > most:
            return errors.PayloadTooLarge(f"an event may have {most} bytes")
        if foreign and name not in self._takes_bytes:
            text = "binary data has no place in this command"
            return errors.ValidationFailed(text, errors=[FieldError("", text)])
        return None

    def _answer(self, session: Session, number: int | None, ack: Ack, *, holds_bytes: bool = False) -> None:
        """The ack, then what was held back for it."""
        if number is not None:
            ack = self._acknowledge(session, number, ack, holds_bytes=holds_bytes)
        if session.entered:
            self._home.answered(session, ack.ok)

    def _acknowledge(self, session: Session, number: int, ack: Ack, *, holds_bytes: bool) -> Ack:
        """What the client was told in the end."""
        codec, count = session.socket.codec, 1
        try:
            if holds_bytes:
                frame, count = codec.binary_ack(number, ack)
            else:
                frame = codec.ack(number, ack)
        except Exception:
            # The answer of a command that this serializer cannot write; whatever the reason, the socket lives.
            log.exception("ack_not_encoded")
            ack = Ack(ok=False, error=errors.Internal().problem())
            frame = codec.ack(number, ack)
        session.socket.write(frame, count)
        return ack

    def in_time(self, socket: Socket, number: int | None) -> bool:
        """One more packet of this connection, or one too many: refused, and in the end the client is sent away."""
        session, now = socket.session, time.monotonic()
        if session is None:
            raise Malformed("a packet before CONNECT")
        wait_ms = session.bucket.take(now)
        if not wait_ms:
            return True
        if number is not None:
            refusal = errors.RateLimited(f"{self._options.events_per_s} events per second", retry_after_ms=wait_ms)
            socket.write(socket.codec.ack(number, Ack(ok=False, error=refusal.problem())))
        if session.flood.refuse(now):
            CLOSED.labels("flood").inc()
            session.close("rate_limited", "too many events", reconnect=True, retry_after_ms=10_000)
        return False


def _has_bytes(message: type[Any]) -> bool:
    """A field of the message, at its top level, may hold bytes."""
    information = msgspec.inspect.type_info(message)
    if not isinstance(information, msgspec.inspect.StructType):
        return False
    return any(_may_be_bytes(field.type) for field in information.fields)


def _may_be_bytes(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _may_be_bytes(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(map(_may_be_bytes, kind.types))
    return isinstance(kind, msgspec.inspect.BytesType)
