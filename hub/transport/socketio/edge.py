"""The door for sockets: handshake, authentication, commands, what the bus brings, drain.

A connection is a protocol of asyncio's, without a task: what it says is heard where it arrives, its commands run one
after the other, in order, and what is due to it goes straight to its transport. Nothing here decides what a command
does: that is the dispatcher's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog
from aiohttp import hdrs, web
from msgspec import UNSET, UnsetType

from hub import metrics
from hub.commands import APPS, Event
from hub.context import Hub, Position, RosterEntry
from hub.dispatch import Dispatcher
from hub.gather import Gather
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.notices import (
    Recovery,
    ServerDegraded,
    ServerDraining,
    SessionReady,
    SessionResynced,
    UserPosition,
    You,
)
from hub.protocol.notices import Server as ServerView
from hub.protocol.rooms import RoomEnded
from hub.transport.address import client_address, networks
from hub.transport.problems import problem
from hub.transport.socketio import frames, handshake
from hub.transport.socketio.admission import Admission
from hub.transport.socketio.attendance import Attendance, RoomSubscriptions
from hub.transport.socketio.audience import Audience, UserSubscriptions
from hub.transport.socketio.chores import Chores
from hub.transport.socketio.engine import Heartbeat, beat
from hub.transport.socketio.fanout import Rooms
from hub.transport.socketio.gate import Malformed
from hub.transport.socketio.handshake import PATHS, Request
from hub.transport.socketio.options import EdgeOptions
from hub.transport.socketio.packets import CLOSED, CONNECTS, Packets
from hub.transport.socketio.server import Server
from hub.transport.socketio.session import Session
from hub.transport.socketio.slices import Slices
from hub.transport.socketio.socket import Socket

log = structlog.get_logger("hub.edge")

SESSIONS = metrics.Level("sessions", "Authenticated sockets")

# Sockets sent away per second of a drain, before the deadline forces more: a reconnect costs the others something.
_DRAIN_PER_S = 500
_DRAIN_JITTER_MS = 3000
# What everybody is told goes out in slices, so that the loop does not stall.
_SLICE = 500
# The deadline of a socket's command, and what it has beyond to tell what it has decided.
_COMMAND_S = 6.0


# Sessions let in by one question to the cluster.
_TOGETHER = 100


class Missed(Protocol):
    """An event that was meant for a user, as it would have been heard."""

    @property
    def event(self) -> str: ...
    @property
    def data(self) -> bytes: ...


class Subscriptions(RoomSubscriptions, UserSubscriptions, Protocol):
    """The bus, as a node that has sockets uses it."""

    def position_of_room(self, call_id: UUID) -> Position | None: ...
    def position_of_user(self, tenant_id: UUID, user_id: str) -> Position | None: ...
    async def missed_by_user(self, tenant_id: UUID, user_id: str, since: Position) -> Sequence[Missed] | None: ...


class Register(Protocol):
    """Where operators of all nodes see which sessions there are."""

    def opened(self, session: Session) -> None: ...
    def closed(self, session: Session) -> None: ...


# A session, and up to where its client has heard what is meant for its user.
_Arrival = tuple[Session, Position | None]


class Edge:
    """`attach` it to an application, `run` it in a TaskGroup, let the bus `listen` to it, `drain` it at the end."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        hub: Hub,
        subscriptions: Subscriptions,
        register: Register | None = None,
        options: EdgeOptions | None = None,
    ) -> None:
        self.options = options or EdgeOptions()
        self.draining = False
        # The node sends its sockets away and lives on: its lease would hold what they leave behind.
        self._staying = False
        self.rooms = Rooms(subscriptions.position_of_room)
        self.server = Server()
        self._hub = hub
        self._register_of_all = register
        self._proxies = networks(self.options.trusted_proxies)
        self._admission = Admission(self.options)
        self._heartbeat = Heartbeat(self.options.ping_ticks, self.options.pong_ticks)
        self._features = list(self.options.features)
        self._published = self.options.published()
        self._opens = self._opening(self.options)
        # The id of a connection opens nothing, since there is no other transport to take it up with: it need not be
        # hard to guess.
        self._prefix, self._number = secrets.token_urlsafe(9), 0
        self._server = ServerView(self.options.version, hub.node_id, self.options.region)
        self._sessions: dict[str, Session] = {}
        self._chores = Chores()
        self._subscriptions = subscriptions
        self._audience = Audience(subscriptions, self._chores, self.resynced_user)
        self.attendance = Attendance(hub, self.rooms, subscriptions, self._chores)
        self._packets = Packets(
            dispatcher, hub, self._admission, self.options, self.attendance, self._enter, self._spawn
        )
        self._tasks: asyncio.TaskGroup | None = None
        # What sockets that have ended leave behind is cleared away.
        self._arrivals: Gather[_Arrival] = Gather(self._arrived, most=_TOGETHER)
        self._endings = Slices(self._clear_away, self._tell_roster)
        # Sessions that have ended, and of which the roster does not know yet.
        self._gone: list[Session] = []
        # Those that were connections of aiohttp's before.
        self._taken_over: dict[Socket, asyncio.Future[None]] = {}
        # Connections, and commands that wait for something.
        self._serving = 0
        self._empty = asyncio.Event()
        self._empty.set()

    # Life

    def attach(self, app: web.Application) -> None:
        """What the front lets by comes here: `listening` of front.py makes it a server of both."""
        for path in PATHS:
            app.router.add_route("*", path, self.handle)

    async def run(self) -> None:
        """The pinger and what else the edge keeps going, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(beat(self._heartbeat, self.options.tick_s), name="socket pinger")
                tasks.create_task(self._chores.run(), name="socket chores")
        finally:
            self._tasks = None

    async def drain(self, *, staying: bool = False) -> None:
        """Send everybody away within `drain_s`, spread, so that the other nodes take them in one by one.

        The rosters stay as they are: nobody has left anything. With `staying` the node lives on, and the grace of those
        who do not come back begins.
        """
        self.draining, self._staying = True, staying
        await self._tell_all(lambda: ServerDraining(random.randint(0, _DRAIN_JITTER_MS)))
        sockets = list(self.server.eio.sockets.values())
        random.shuffle(sockets)
        over_s = min(self.options.drain_s, len(sockets) / _DRAIN_PER_S)
        started = time.monotonic()
        for number, socket in enumerate(sockets):
            wait_s = started + over_s * number / len(sockets) - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if socket.session is not None:
                socket.session.close("server_draining", "this node is going down", reconnect=True)
            else:
                socket.close(frames.RESTART)
        try:
            # They hang up by themselves, or are hung up on; their commands have the time that commands have.
            async with asyncio.timeout(self.options.hangup_s + _COMMAND_S):
                await self._empty.wait()
        except TimeoutError:
            log.warning("drained_with_commands_running", sockets=self._serving)

    def undrain(self) -> None:
        """Let people in again."""
        self.draining = self._staying = False

    async def tell_tenant(self, tenant_id: UUID, event: Event) -> int:
        """Tell all sessions of a tenant; how many."""
        sessions = [session for session in self._sessions.values() if session.actor.tenant_id == tenant_id]
        for number, session in enumerate(sessions):
            session.tell(event)
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        return len(sessions)

    async def _tell_all(self, event: Callable[[], Event]) -> None:
        for number, session in enumerate(list(self._sessions.values())):
            session.tell(event())
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)

    # What others ask of it

    def sessions(self) -> Iterable[Session]:
        return self._sessions.values()

    def session(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def tell(self, session_id: str, event: Event) -> None:
        """Say it to that session, if it is still there."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.tell(event)

    def load(self) -> dict[str, int]:
        return {"sockets": len(self.server.eio.sockets), "sessions": len(self._sessions), "rooms": len(self.attendance)}

    # The bus' listener

    def deliver_room(
        self, call_id: UUID, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        self.rooms.deliver(call_id, offset, epoch, name, body, skip_session)
        if name == RoomEnded.name:
            # However a call ends: who has heard of it has no room any more.
            self.rooms.then(call_id, lambda: self._over(call_id))

    def _over(self, call_id: UUID) -> None:
        for session in self.rooms.hearing(call_id):
            self.attendance.put_out(session, call_id)

    def deliver_user(self, tenant_id: UUID, user_id: str, name: str, body: bytes) -> None:
        for session in self._audience.of((tenant_id, user_id)):
            session.socket.write(session.socket.codec.event_json(name, body))

    def resynced(self, call_id: UUID) -> None:
        body = msgspec.json.encode({"call_id": call_id})
        self.rooms.deliver(call_id, None, "", "room:resynced", body)

    def resynced_user(self, tenant_id: UUID, user_id: str) -> None:
        event = SessionResynced(_view(self._subscriptions.position_of_user(tenant_id, user_id)))
        for session in self._audience.of((tenant_id, user_id)):
            session.tell(event)

    def degraded(self, on: bool) -> None:
        event = ServerDegraded(["cluster"] if on else [])
        self._chores.add(lambda: self._tell_all(lambda: event))

    def control(self, message: dict[str, Any]) -> None:
        match message.get("kind"):
            case "evict":
                try:
                    self._evict(message)
                except (KeyError, ValueError, TypeError):
                    log.exception("evict_misshapen")
            case "close":
                session = self._sessions.get(str(message.get("session_id")))
                if session is not None:
                    code, text = str(message.get("code", "closed")), str(message.get("message", ""))
                    CLOSED.labels("asked").inc()
                    session.close(code, text, reconnect=bool(message.get("reconnect", False)))
            case "yield":
                self._hub.transfers.asked(UUID(str(message.get("transfer_id"))))
            case _:
                # Of a newer version of the hub.
                log.info("control_unknown", kind=str(message.get("kind"))[:32])

    def _evict(self, message: dict[str, Any]) -> None:
        call_id = UUID(str(message["call_id"]))
        told = message.get("data") or {"reason": message.get("reason")}
        session_id, participant_id = message.get("session_id"), message.get("participant_id")
        for session in self.rooms.sessions(call_id):
            if session.id == session_id or str(session.joined.get(call_id)) == participant_id:
                session.send(str(message.get("event") or "room:left"), {"call_id": call_id, **told})
                self.attendance.put_out(session, call_id)

    def seen_as_lost(self, call_id: UUID, entry: RosterEntry) -> None:
        """This node was away for so long that the others gave its session up: the client has to join again."""
        session = self._sessions.get(entry.session_id)
        if session is not None:
            CLOSED.labels("seen_as_lost").inc()
            session.close("connection_lost", "this node lost the others for a while", reconnect=True)

    # Connections

    def open(self, request: Request, transport: asyncio.Transport) -> Socket | None:
        """The connection that `request` asks for, begun; None where it is to be refused, by `handle`."""
        if request.path not in PATHS:
            return None
        try:
            address = self._admit(request)
        except HubError:
            return None
        return self._opened(request, transport, address)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Refuse; or open, where a proxy uses a connection again that has been aiohttp's."""
        asked = handshake.of(request)
        try:
            if request.method != hdrs.METH_GET or not handshake.opens_websocket(asked.headers):
                handshake.check(asked, self.options.origins)
                raise errors.BadRequest("not a WebSocket handshake")
            address = self._admit(asked)
        except HubError as refusal:
            CONNECTS.add(1, refusal.code)
            return _refused(refusal)
        return await self._take_over(request, asked, address)

    async def _take_over(self, request: web.Request, asked: Request, address: str) -> web.StreamResponse:
        transport, http = request.transport, request.protocol
        if transport is None:
            self._admission.disconnect(address)
            return web.Response()
        loop = asyncio.get_running_loop()
        socket = self._opened(asked, transport, address)
        transport.set_protocol(socket)
        gone = self._taken_over[socket] = loop.create_future()
        await gone
        # Aiohttp finds the connection closed under its answer, and then hears that it was lost.
        loop.call_soon(http.connection_lost, None)
        return web.Response(status=101)

    def _admit(self, request: Request) -> str:
        """The client's address, counted. Raises the refusal."""
        handshake.check(request, self.options.origins)
        if self.draining or self._tasks is None:
            raise errors.ServerDraining(retry_after_ms=1000)
        forwarded_for = request.headers.get("x-forwarded-for", "")
        address = client_address(request.address, forwarded_for, self._proxies)
        self._admission.connect(address)
        return address

    def _opened(self, request: Request, transport: asyncio.Transport, address: str) -> Socket:
        codec = handshake.codec_of(request, self._packets.json, self._packets.msgpack)
        self._number += 1
        socket = Socket(f"{self._prefix}{self._number:x}", transport, codec, address, self.options, self)
        self.server.eio.add(socket)
        self._heartbeat.add(socket)
        self._begin()
        socket.within(self.options.auth_s, frames.POLICY)
        opening = frames.text(b'0{"sid":"%b"%b' % (socket.sid.encode(), self._opens))
        transport.write(handshake.switching(request) + opening)
        return socket

    @staticmethod
    def _opening(options: EdgeOptions) -> bytes:
        """Engine.IO's first packet, behind the id of the connection."""
        opening = {
            "upgrades": [],
            "pingInterval": int(options.ping_ticks * options.tick_s * 1000),
            "pingTimeout": int(options.pong_ticks * options.tick_s * 1000),
            "maxPayload": options.event_bytes,
        }
        return b",%b" % msgspec.json.encode(opening)[1:]

    # What sockets call

    def heard(self, socket: Socket, opcode: int, data: bytes) -> None:
        try:
            if opcode == frames.TEXT:
                self._packets.text(socket, data)
            elif opcode == frames.BINARY:
                self._packets.binary(socket, data)
            else:
                self._packets.ping(socket, data)
        except Malformed as refusal:
            CLOSED.labels("malformed").inc()
            log.info("packet_malformed", reason=str(refusal), address=socket.address)
            socket.close(frames.PROTOCOL_ERROR)
        except Exception:
            # One connection's bug ends one connection.
            log.exception("socket_crashed")
            socket.abort()

    def ending(self, socket: Socket) -> None:
        self._endings.add(socket)

    def _clear_away(self, socket: Socket) -> None:
        if not socket.seen_off:
            socket.seen_off = True
            self._see_off(socket)
        if socket.lost:
            if not socket.forgotten:
                socket.forgotten = True
                self._forget(socket)
        elif socket.silent:
            socket.hang_up()

    def _forget(self, socket: Socket) -> None:
        socket.settled()
        self._admission.disconnect(socket.address)
        self._end()
        gone = self._taken_over.pop(socket, None)
        if gone is not None and not gone.done():
            gone.set_result(None)

    def _see_off(self, socket: Socket) -> None:
        self.server.eio.remove(socket)
        self._heartbeat.remove(socket)
        socket.partial, socket.parts = None, ()
        session = socket.session
        if session is None:
            return
        self.server.manager.drop(socket.sid)
        session.forget_expiry()
        SESSIONS.value -= 1
        del self._sessions[session.id]
        if self._register_of_all is not None:
            self._register_of_all.closed(session)
        self._admission.leave(session.user)
        if session.namespace == APPS:
            self._audience.remove(session)
        if session.joined:
            self._gone.append(session)

    def _tell_roster(self) -> None:
        gone, self._gone = self._gone, []
        if gone:
            self.attendance.lost(gone, interrupt=not self.draining or self._staying)

    # What keeps a drain waiting

    def _begin(self) -> None:
        self._serving += 1
        self._empty.clear()

    def _end(self) -> None:
        self._serving -= 1
        if not self._serving:
            self._empty.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        self._begin()
        task.add_done_callback(lambda _: self._end())
        return task

    # Sessions

    def _enter(self, session: Session, since: Position | None) -> None:
        if session.namespace != APPS:
            # It hears what it is answered, and nothing else.
            self._welcome(session, None, None)
        else:
            session.socket.entering = True
            self._arrivals.add((session, since))

    def _arrived(self, arrivals: Sequence[_Arrival]) -> None:
        # After the end of `run` they are as good as cut off: their deadline closes them.
        if self._tasks is not None:
            self._spawn(self._let_in(arrivals))

    async def _let_in(self, arrivals: Sequence[_Arrival]) -> None:
        """First the ear for what is said to the users, then the news that they are in: so nothing falls between."""
        try:
            await self._audience.expect([session.user for session, _ in arrivals])
        except Exception:
            log.exception("arrivals_crashed")
            for session, _ in arrivals:
                session.socket.abort()
            return
        for session, since in arrivals:
            if since is not None:
                self._spawn(self._catch_up(session, since))
            else:
                self._settle_in(session, None, None)

    async def _catch_up(self, session: Session, since: Position) -> None:
        self._settle_in(session, since, await self._missed(session, since))

    def _settle_in(self, session: Session, since: Position | None, missed: Sequence[Missed] | None) -> None:
        socket = session.socket
        try:
            if socket.open:
                self._welcome(session, since, missed)
            else:
                self._audience.forget(session.user)
                self._admission.leave(session.user)
        except Exception:
            # One connection's bug ends one connection.
            log.exception("socket_crashed")
            socket.abort()
        socket.entering = False
        socket.free()

    async def _missed(self, session: Session, since: Position) -> Sequence[Missed] | None:
        try:
            return await self._subscriptions.missed_by_user(*session.user, since)
        except HubError:
            return None

    def _welcome(self, session: Session, since: Position | None, missed: Sequence[Missed] | None) -> None:
        """CONNECT, `session:ready` and what the user missed in one write; whatever else is due to it comes after."""
        socket = session.socket
        socket.settled()
        socket.session = session
        self._sessions[session.id] = session
        if session.namespace == APPS:
            self._audience.add(session)
        if self._register_of_all is not None:
            self._register_of_all.opened(session)
        SESSIONS.value += 1
        CONNECTS.add(1, "ok")
        session.watch_expiry()
        self.server.manager.connect(socket.sid, session.namespace, session.id)
        codec = socket.codec
        recovered = missed is not None if since is not None else UNSET
        ready = codec.event(SessionReady.name, self._ready(session, recovered))
        late = [codec.event_json(one.event, one.data) for one in missed or ()]
        socket.write(codec.connect(session.id) + ready + b"".join(late), 2 + len(late))
        log.info("session_started", session_id=session.id, user_id=session.actor.user_id, client=session.client)

    def _ready(self, session: Session, recovered: bool | UnsetType) -> SessionReady:
        actor = session.actor
        return SessionReady(
            session_id=session.id,
            user=You(actor.user_id, actor.role, actor.display_name),
            protocol=handshake.PROTOCOL,
            features=self._features,
            limits=self._published,
            server=self._server,
            token_expires_at=_utc(actor.expires_at),
            server_time=_utc(self._hub.clock()),
            recovery=Recovery(
                self._hub.rules.recovery_window_s,
                _view(self._subscriptions.position_of_user(*session.user)),
                recovered,
            ),
        )


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


def _view(position: Position | None) -> UserPosition | None:
    return UserPosition(position.epoch, position.offset) if position is not None else None


def _refused(refusal: HubError) -> web.Response:
    if isinstance(refusal, errors.ServerBusy | errors.TooManyConnections):
        # Codes of sockets; as an HTTP status a stock client tries again after either.
        response = problem(refusal, secrets.token_hex(8))
        response.set_status(503 if isinstance(refusal, errors.ServerBusy) else 429)
        return response
    return problem(refusal, secrets.token_hex(8))
