"""What a node hears in order: a room, or what is meant for one user. Each has a channel, a log and a place in it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import lru_cache
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

    __slots__ = (
        "_begins",
        "_epoch",
        "_fleeting",
        "_since_ms",
        "alone",
        "arrivals",
        "keys",
        "opening",
        "order",
        "waits",
    )

    def __init__(self, keys: LogKeys, opening: asyncio.Future[None]) -> None:
        self.keys = keys
        self.opening = opening
        self.order: RoomOrder | None = None
        # No other node hears it, as far as Redis has told; whoever begins to says so.
        self.alone = False
        # How often another node has said so: an answer of Redis from before that is out of date.
        self.arrivals = 0
        # The last message of this node that is still on its way through Redis; 0: there is none.
        self.waits = 0
        self._fleeting: Freshness | None = None
        self._since_ms = 0
        self._epoch = ""
        self._begins = b""

    def opened(self, order: RoomOrder, now_ms: int) -> None:
        self.order, self._since_ms = order, now_ms - CLOCKS_MS
        self.opening.set_result(None)

    @property
    def fleeting(self) -> Freshness:
        """Of what has no offset. Made when first needed: most streams never hear any."""
        if self._fleeting is None:
            self._fleeting = Freshness(self._since_ms)
        return self._fleeting

    @property
    def direct(self) -> bool:
        """What is not recorded may be told here at once: nobody else hears it, and it overtakes nothing."""
        return self.alone and not self.waits and self.order is not None and not self.order.repairing

    def company(self) -> None:
        """Somebody else hears it, or may."""
        self.alone = False
        self.arrivals += 1

    def counted(self, hearers: int, arrivals: int) -> None:
        """Redis knew so many nodes that hear it; `arrivals` as it was when Redis was asked."""
        if arrivals == self.arrivals:
            self.alone = hearers == 1

    def deliver(
        self,
        listener: Listener,
        offset: int | None,
        epoch: str,
        at_ms: int,
        name: str,
        body: bytes,
        skip_session: str | None,
    ) -> None:
        """`body` as its sender encoded it."""
        if epoch != self._epoch:
            self._epoch, self._begins = epoch, self._begin(epoch)
        self._hand(listener, offset, epoch, name, _placed(self._begins, offset, at_ms, body), skip_session)

    def _begin(self, epoch: str) -> bytes:
        raise NotImplementedError

    def _hand(
        self, listener: Listener, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        raise NotImplementedError

    def resynced(self, listener: Listener) -> None:
        raise NotImplementedError


class Room(Stream):
    __slots__ = ("call_id",)

    def __init__(self, call_id: UUID, keys: LogKeys, opening: asyncio.Future[None]) -> None:
        super().__init__(keys, opening)
        self.call_id = call_id

    def _begin(self, epoch: str) -> bytes:
        return _beginning(self.call_id, epoch)

    def _hand(
        self, listener: Listener, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        listener.deliver_room(self.call_id, offset, epoch, name, body, skip_session)

    def resynced(self, listener: Listener) -> None:
        listener.resynced(self.call_id)


class User(Stream):
    __slots__ = ("tenant_id", "user_id")

    def __init__(self, tenant_id: UUID, user_id: str, keys: LogKeys, opening: asyncio.Future[None]) -> None:
        super().__init__(keys, opening)
        self.tenant_id, self.user_id = tenant_id, user_id

    def _begin(self, epoch: str) -> bytes:
        return _beginning(None, epoch)

    def _hand(
        self, listener: Listener, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        listener.deliver_user(self.tenant_id, self.user_id, name, body)

    def resynced(self, listener: Listener) -> None:
        listener.resynced_user(self.tenant_id, self.user_id)


def place(call_id: UUID | None, epoch: str, offset: int | None, envelope: Envelope) -> bytes:
    """The event as clients get it: the position spliced in front of what the sender encoded."""
    return _placed(_beginning(call_id, epoch), offset, envelope.at_ms, envelope.body)


def _beginning(call_id: UUID | None, epoch: str) -> bytes:
    where = f'{{"epoch":"{epoch}"' if call_id is None else f'{{"call_id":"{call_id}","epoch":"{epoch}"'
    return where.encode()


def _placed(begins: bytes, offset: int | None, at_ms: int, body: bytes) -> bytes:
    where = begins if offset is None else b'%b,"offset":%d' % (begins, offset)
    return b"%b%b%b%b" % (where, _stamp(at_ms), b"," if len(body) > 2 else b"", body[1:])


# Hundreds of events may happen within a millisecond, and a moment takes longer to write than an event does.
@lru_cache(maxsize=256)
def _stamp(at_ms: int) -> bytes:
    moment = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return f',"ts":"{moment[:-6]}Z"'.encode()
