"""The door for sockets: handshake, authentication, commands, what the bus brings, drain.

A connection is one task that reads; what is due to it goes straight to its transport. Its commands run one after the
other, in order. Nothing here decides what a command does: that is the dispatcher's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import UTC
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog
from aiohttp import WSMsgType, web

from hub import metrics
from hub.commands import Event
from hub.context import Hub, RosterEntry
from hub.dispatch import Dispatcher
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.notices import Recovery, ServerDegraded, ServerDraining, SessionReady, You
from hub.protocol.notices import Server as ServerView
from hub.protocol.rooms import RoomEnded
from hub.transport.address import client_address, networks
from hub.transport.problems import problem
from hub.transport.socketio import frames, handshake
from hub.transport.socketio.admission import Admission
from hub.transport.socketio.attendance import Attendance, RoomSubscriptions
from hub.transport.socketio.chores import Chores
from hub.transport.socketio.engine import Heartbeat, beat, receive
from hub.transport.socketio.fanout import Rooms
from hub.transport.socketio.gate import Malformed
from hub.transport.socketio.options import EdgeOptions
from hub.transport.socketio.packets import CLOSED, CONNECTS, Packets
from hub.transport.socketio.server import Server
from hub.transport.socketio.session import Session
from hub.transport.socketio.socket import Socket

log = structlog.get_logger("hub.edge")

SESSIONS = metrics.gauge("sessions", "Authenticated sockets")

_PATH = "/socket.io/"
# Sockets sent away per second of a drain, before the deadline forces more: a reconnect costs the others something.
_DRAIN_PER_S = 500
_DRAIN_JITTER_MS = 3000
# What everybody is told goes out in slices, so that the loop does not stall.
_SLICE = 500


class Subscriptions(RoomSubscriptions, Protocol):
    """The bus, as a node that has sockets uses it. Subscribing raises ClusterUnavailable."""

    async def subscribe_user(self, tenant_id: UUID, user_id: str) -> None: ...
    def unsubscribe_user(self, tenant_id: UUID, user_id: str) -> None: ...


class Register(Protocol):
    """Where operators of all nodes see which sessions there are."""

    def opened(self, session: Session) -> None: ...
    def closed(self, session_id: str) -> None: ...


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
        self.rooms = Rooms()
        self.server = Server()
        self._hub = hub
        self._subscriptions = subscriptions
        self._register_of_all = register
        self._proxies = networks(self.options.trusted_proxies)
        self._admission = Admission(self.options)
        self._heartbeat = Heartbeat(self.options.ping_ticks, self.options.pong_ticks)
        self._features = list(self.options.features)
        self._published = self.options.published()
        self._server = ServerView(self.options.version, hub.node_id, self.options.region)
        self._recovery = Recovery(hub.rules.recovery_window_s)
        self._sessions: dict[str, Session] = {}
        self._users: dict[tuple[UUID, str], dict[Session, None]] = {}
        self._chores = Chores()
        self.attendance = Attendance(hub, self.rooms, subscriptions, self._chores)
        self._packets = Packets(dispatcher, hub, self._admission, self.options, self.attendance, self._welcome)
        self._tasks: asyncio.TaskGroup | None = None
        self._serving = 0
        self._empty = asyncio.Event()
        self._empty.set()

    # Life

    def attach(self, app: web.Application) -> None:
        app.router.add_route("*", _PATH, self.handle)
        app.router.add_route("*", _PATH.rstrip("/"), self.handle)

    async def run(self) -> None:
        """The pinger and what else the edge keeps going, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(beat(self._heartbeat, self.options.tick_s), name="socket pinger")
                tasks.create_task(self._chores.run(), name="socket chores")
        finally:
            self._tasks = None

    async def drain(self) -> None:
        """Send everybody away within `drain_s`, spread, so that the other nodes take them in one by one.

        The rosters stay as they are: nobody has left anything.
        """
        self.draining = True
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
            # They hang up by themselves, or are hung up on.
            async with asyncio.timeout(self.options.hangup_s + 1):
                await self._empty.wait()
        except TimeoutError:
            log.warning("drained_with_commands_running", sockets=self._serving)

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
        for session in list(self._users.get((tenant_id, user_id), ())):
            session.socket.write(session.socket.codec.event_json(name, body))

    def resynced(self, call_id: UUID) -> None:
        body = msgspec.json.encode({"call_id": call_id})
        self.rooms.deliver(call_id, None, "", "room:resynced", body)

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

    async def handle(self, request: web.Request) -> web.StreamResponse:
        address = client_address(request, self._proxies)
        try:
            handshake.check(request, self.options.origins)
            if self.draining or self._tasks is None:
                raise errors.ServerDraining(retry_after_ms=1000)
            self._admission.connect(address)
        except HubError as refusal:
            CONNECTS.labels(refusal.code).inc()
            return _refused(refusal)
        try:
            websocket: web.WebSocketResponse[Any] = web.WebSocketResponse(
                # One event over the limit is still answered; anything larger is not even read.
                max_msg_size=4 * self.options.event_bytes,
                # Shared frames are only possible without, and a deflate window per socket costs 100 KB.
                compress=False,
                decode_text=False,
                autoclose=False,
                autoping=False,
                timeout=0.5,
            )
            await websocket.prepare(request)
            # A task of its own: the handler is cancelled when its client goes, a running command is not.
            await asyncio.shield(self._tasks.create_task(self._contained(request, websocket, address)))
        finally:
            self._admission.disconnect(address)
        return websocket

    async def _contained(self, request: web.Request, websocket: web.WebSocketResponse[Any], address: str) -> None:
        """One connection's bug ends one connection."""
        try:
            await self._serve(request, websocket, address)
        except Exception:
            log.exception("socket_crashed")

    async def _serve(self, request: web.Request, websocket: web.WebSocketResponse[Any], address: str) -> None:
        transport = request.transport
        if transport is None:
            return
        codec = handshake.codec_of(request, self._packets.json, self._packets.msgpack)
        socket = Socket(secrets.token_urlsafe(15), transport, codec, address, self.options, self._ended)
        self.server.eio.add(socket)
        self._heartbeat.add(socket)
        self._serving += 1
        self._empty.clear()
        socket.within(self.options.auth_s, frames.POLICY)
        socket.write(self._opening(socket))
        try:
            await self._read(socket, websocket)
            if not websocket.closed:
                # The peer said goodbye first.
                socket.close(frames.NORMAL)
        except Malformed as refusal:
            CLOSED.labels("malformed").inc()
            log.info("packet_malformed", reason=str(refusal), address=address)
            socket.close(frames.PROTOCOL_ERROR)
            await self._until_hung_up(websocket)
        finally:
            self._serving -= 1
            if not self._serving:
                self._empty.set()
            socket.gone()

    def _opening(self, socket: Socket) -> bytes:
        options = self.options
        opening = {
            "sid": socket.sid,
            "upgrades": [],
            "pingInterval": int(options.ping_ticks * options.tick_s * 1000),
            "pingTimeout": int(options.pong_ticks * options.tick_s * 1000),
            "maxPayload": options.event_bytes,
        }
        return frames.text(b"0" + msgspec.json.encode(opening))

    async def _read(self, socket: Socket, websocket: web.WebSocketResponse[Any]) -> None:
        while (message := await receive(websocket)) is not None:
            kind, data = message
            socket.alive = True
            if not socket.open:
                # Told to go already: what it still says is not heard.
                continue
            if kind is WSMsgType.TEXT:
                await self._packets.text(socket, data)
            elif kind is WSMsgType.BINARY:
                await self._packets.binary(socket, data)
            elif kind is WSMsgType.PING and self._packets.in_time(socket, None):
                socket.write(frames.frame(frames.PONG, data))

    async def _until_hung_up(self, websocket: web.WebSocketResponse[Any]) -> None:
        try:
            async with asyncio.timeout(self.options.hangup_s):
                while await receive(websocket) is not None:
                    pass
        except TimeoutError:
            return

    def _ended(self, socket: Socket) -> None:
        """Nothing reaches this socket any more. Called once, by the socket."""
        self.server.eio.remove(socket)
        self._heartbeat.remove(socket)
        session = socket.session
        if session is None:
            return
        self.server.manager.drop(socket.sid)
        session.forget_expiry()
        SESSIONS.dec()
        del self._sessions[session.id]
        if self._register_of_all is not None:
            self._register_of_all.closed(session.id)
        self._admission.leave(session.user)
        mates = self._users[session.user]
        del mates[session]
        if not mates:
            del self._users[session.user]
            self._subscriptions.unsubscribe_user(*session.user)
        self.attendance.lost(session, interrupt=not self.draining)

    # Sessions

    def _welcome(self, session: Session) -> None:
        """CONNECT and `session:ready` in one write; whatever else is due to it comes after."""
        socket = session.socket
        socket.settled()
        socket.session = session
        self._sessions[session.id] = session
        mates = self._users.setdefault(session.user, {})
        mates[session] = None
        if len(mates) == 1:
            self._chores.add(lambda: self._hear_user(session.user))
        if self._register_of_all is not None:
            self._register_of_all.opened(session)
        SESSIONS.inc()
        CONNECTS.labels("ok").inc()
        session.watch_expiry()
        sid = self.server.manager.connect(socket.sid, "/")
        codec = socket.codec
        socket.write(codec.connect(sid) + codec.event(SessionReady.name, self._ready(session)), 2)
        log.info("session_started", session_id=session.id, user_id=session.actor.user_id, client=session.client)

    def _ready(self, session: Session) -> SessionReady:
        actor = session.actor
        return SessionReady(
            session_id=session.id,
            user=You(actor.user_id, actor.role, actor.display_name),
            protocol=handshake.PROTOCOL,
            features=self._features,
            limits=self._published,
            server=self._server,
            token_expires_at=actor.expires_at.astimezone(UTC),
            server_time=self._hub.clock().astimezone(UTC),
            recovery=self._recovery,
        )

    async def _hear_user(self, user: tuple[UUID, str]) -> None:
        if user in self._users:
            await self._subscriptions.subscribe_user(*user)
            if user not in self._users:
                self._subscriptions.unsubscribe_user(*user)


def _refused(refusal: HubError) -> web.Response:
    if isinstance(refusal, errors.ServerBusy | errors.TooManyConnections):
        # Codes of sockets; as an HTTP status a stock client tries again after either.
        response = problem(refusal, secrets.token_hex(8))
        response.set_status(503 if isinstance(refusal, errors.ServerBusy) else 429)
        return response
    return problem(refusal, secrets.token_hex(8))
