"""What a node hears in order: a room, or what is meant for one user. Each has a channel, a log and a place in it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from hub.cluster.envelope import Envelope
from hub.cluster.keys import LogKeys
from hub.cluster.order import CLOCKS_MS, Freshness, RoomOrder


class Listener(Protocol):
    """What a node does with what it hears. Called in the loop: none of these may block or raise."""

    def deliver_room(
        self, call_id: UUID, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        """`body` is the whole JSON object of the event, position included. No offset: ephemeral, or told while
        degraded.
        """
        ...

    def deliver_user(self, tenant_id: UUID, user_id: str, name: str, body: bytes) -> None:
        """`body` likewise, but without a call's id in its position."""
        ...

    def control(self, message: dict[str, Any]) -> None: ...

    def resynced(self, call_id: UUID) -> None:
        """Events of the room are missing for good, or its epoch changed: its members need a snapshot."""
        ...

    def resynced_user(self, tenant_id: UUID, user_id: str) -> None:
        """The same of what is meant for a user."""
        ...

    def degraded(self, on: bool) -> None: ...


class Stream:
    """One that is heard. `order` is None until its place in the log is known: `opening` is done then."""

    __slots__ = ("_fleeting", "_since_ms", "keys", "opening", "order")

    def __init__(self, keys: LogKeys, opening: asyncio.Future[None]) -> None:
        self.keys = keys
        self.opening = opening
        self.order: RoomOrder | None = None
        self._fleeting: Freshness | None = None
        self._since_ms = 0

    def opened(self, order: RoomOrder, now_ms: int) -> None:
        self.order, self._since_ms = order, now_ms - CLOCKS_MS
        self.opening.set_result(None)

    @property
    def fleeting(self) -> Freshness:
        """Of what has no offset. Made when first needed: most streams never hear any."""
        if self._fleeting is None:
            self._fleeting = Freshness(self._since_ms)
        return self._fleeting

    def deliver(self, listener: Listener, offset: int | None, epoch: str, envelope: Envelope) -> None:
        raise NotImplementedError

    def resynced(self, listener: Listener) -> None:
        raise NotImplementedError


class Room(Stream):
    __slots__ = ("call_id",)

    def __init__(self, call_id: UUID, keys: LogKeys, opening: asyncio.Future[None]) -> None:
        super().__init__(keys, opening)
        self.call_id = call_id

    def deliver(self, listener: Listener, offset: int | None, epoch: str, envelope: Envelope) -> None:
        body = place(self.call_id, epoch, offset, envelope)
        listener.deliver_room(self.call_id, offset, epoch, envelope.name, body, envelope.skip_session)

    def resynced(self, listener: Listener) -> None:
        listener.resynced(self.call_id)


class User(Stream):
    __slots__ = ("tenant_id", "user_id")

    def __init__(self, tenant_id: UUID, user_id: str, keys: LogKeys, opening: asyncio.Future[None]) -> None:
        super().__init__(keys, opening)
        self.tenant_id, self.user_id = tenant_id, user_id

    def deliver(self, listener: Listener, offset: int | None, epoch: str, envelope: Envelope) -> None:
        listener.deliver_user(self.tenant_id, self.user_id, envelope.name, place(None, epoch, offset, envelope))

    def resynced(self, listener: Listener) -> None:
        listener.resynced_user(self.tenant_id, self.user_id)


def place(call_id: UUID | None, epoch: str, offset: int | None, envelope: Envelope) -> bytes:
    """The event as clients get it: the position spliced in front of what the sender encoded."""
    moment = datetime.fromtimestamp(envelope.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    where = f'{{"epoch":"{epoch}",' if call_id is None else f'{{"call_id":"{call_id}","epoch":"{epoch}",'
    if offset is not None:
        where += f'"offset":{offset},'
    where += f'"ts":"{moment[:-6]}Z"'
    rest = envelope.body[1:]
    return where.encode() + (b"," + rest if rest != b"}" else rest)
