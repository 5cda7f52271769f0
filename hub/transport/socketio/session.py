"""One authenticated client: who it is, which rooms it hears, when its token ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol
from uuid import UUID

from msgspec import UNSET

from hub.commands import APPS, Event
from hub.context import Actor, Position
from hub.protocol.notices import SessionClosing, SessionExpiring
from hub.state.bucket import Bucket
from hub.transport.socketio import frames
from hub.transport.socketio.gate import Flood
from hub.transport.socketio.options import EdgeOptions
from hub.transport.socketio.socket import Socket


class SessionHome(Protocol):
    """Where a session's rooms are kept."""

    async def enter(self, session: Session, call_id: UUID, participant_id: UUID) -> None: ...
    async def exit(self, session: Session, call_id: UUID) -> None: ...
    def seen(self, session: Session, call_id: UUID, position: Position) -> None: ...


class Session:
    """The `Session` port of `hub.context`, for one socket."""

    __slots__ = (
        "_clock",
        "_home",
        "_options",
        "_timer",
        "actor",
        "bucket",
        "client",
        "connected_at",
        "device_id",
        "entered",
        "flood",
        "goodbye",
        "id",
        "joined",
        "locale",
        "namespace",
        "number",
        "socket",
    )

    def __init__(
        self,
        socket: Socket,
        actor: Actor,
        home: SessionHome,
        clock: Callable[[], datetime],
        options: EdgeOptions,
        *,
        client: str,
        device_id: str | None,
        locale: str | None,
        namespace: str = APPS,
    ) -> None:
        self.id = secrets.token_urlsafe(15)
        self.socket = socket
        self.actor = actor
        self.client = client
        self.device_id = device_id
        self.locale = locale
        self.namespace = namespace
        self.connected_at = clock()
        self.joined: dict[UUID, UUID] = {}
        # Rooms entered by the command that is running; true where it was not in them before.
        self.entered: dict[UUID, bool] = {}
        # Ended on purpose, by either side, and not to be taken up again.
        self.goodbye = False
        self.number = 0
        # What a client may send in frames its window says; the bucket is for those who do not care.
        burst, per_s = options.events_burst, options.events_per_s
        if namespace != APPS:
            burst, per_s = options.frames_per_s, options.frames_per_s
        self.bucket = Bucket(burst, burst / per_s)
        self.flood = Flood(options.events_burst)
        self._home = home
        self._clock = clock
        self._options = options
        self._timer: asyncio.TimerHandle | None = None

    @property
    def user(self) -> tuple[UUID, str]:
        return self.actor.tenant_id, self.actor.user_id

    @property
    def rooms(self) -> Mapping[UUID, UUID]:
        """call_id → participant_id."""
        return MappingProxyType(self.joined)

    async def enter(self, call_id: UUID, participant_id: UUID) -> None:
        await self._home.enter(self, call_id, participant_id)

    def seen(self, call_id: UUID, position: Position) -> None:
        self._home.seen(self, call_id, position)

    async def exit(self, call_id: UUID) -> None:
        await self._home.exit(self, call_id)

    async def drained(self) -> None:
        """Until the client has read most of what it was sent."""
        if self.socket.clogged is not None:
            await self.socket.clogged

    def refresh(self, actor: Actor) -> None:
        """Go on under a new token. The caller has checked that it is the same user."""
        self.actor = actor
        self.watch_expiry()

    def send(self, name: str, payload: Any) -> None:
        self.socket.write(self.socket.codec.event(name, payload))

    def tell(self, event: Event) -> None:
        self.send(event.name, event)

    def close(self, code: str, message: str, *, reconnect: bool, retry_after_ms: int | None = None) -> None:
        """End it. Stock clients come back after a WebSocket close, and stay away after a Socket.IO disconnect."""
        codec = self.socket.codec
        wait_ms = UNSET if retry_after_ms is None else retry_after_ms
        closing = SessionClosing(code=code, message=message, reconnect=reconnect, retry_after_ms=wait_ms)
        last = codec.event(closing.name, closing)
        if reconnect:
            self.socket.close(frames.RESTART, last)
        else:
            self.goodbye = True
            self.socket.close(frames.NORMAL, last + codec.disconnect())

    def watch_expiry(self) -> None:
        """Warn before the token ends, then end the session."""
        self.forget_expiry()
        left_s = (self.actor.expires_at - self._clock()).total_seconds()
        loop = asyncio.get_running_loop()
        if left_s > self._options.expiring_s:
            self._timer = loop.call_later(left_s - self._options.expiring_s, self._expiring)
        else:
            # Connected with a token that is about to end: the warning is `token_expires_at` itself.
            self._timer = loop.call_later(max(0.0, left_s), self._expired)

    def forget_expiry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expiring(self) -> None:
        self.tell(SessionExpiring(self.actor.expires_at.astimezone(UTC)))
        left_s = (self.actor.expires_at - self._clock()).total_seconds()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._expired)

    def _expired(self) -> None:
        self.close("token_expired", "the token has ended", reconnect=False)
