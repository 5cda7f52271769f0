"""Settling on nobody's behalf: the room hears what changed, and LiveKit is told what it must do to agree.

LiveKit may be away. Then nothing here raises: each order is given again by whatever settles the call next, the sweep at
the latest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import structlog

from db.errors import DatabaseUnavailable
from hub.actions.settle import Settled, grace_of, settle
from hub.commands import Event
from hub.protocol.errors import ClusterUnavailable, HubError, NotFound
from hub.state.call import DeleteRoom, MakeRoom, Order, Remove
from hub.state.facts import FactEvent, RoomFinished, RoomStarted

if TYPE_CHECKING:
    from db.calls import Call
    from db.pool import Transaction
    from hub.context import Rules
    from hub.media.values import RoomInfo

log = structlog.get_logger("hub.orders")


class Tenants(Protocol):
    def tenant(
        self,
        tenant_id: UUID,
        user_id: str | None = None,
        *,
        turn: UUID | None = None,
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> AbstractAsyncContextManager[Transaction]: ...


class Voice(Protocol):
    async def to_room(self, call_id: UUID, name: str, payload: Any, *, recorded: bool = True) -> object: ...


class RoomMedia(Protocol):
    async def create_room(
        self,
        name: str,
        *,
        region: str | None = None,
        max_participants: int = 0,
        empty_timeout_s: int = 300,
        departure_timeout_s: int = 20,
        metadata: Mapping[str, Any] | None = None,
    ) -> RoomInfo: ...
    async def delete_room(self, name: str, *, region: str | None = None) -> None: ...
    async def remove_participant(self, room: str, identity: str, *, region: str | None = None) -> None: ...


class Desk(Protocol):
    """What it takes to settle, tell and order: a part of the node, as actions see it."""

    @property
    def db(self) -> Tenants: ...
    @property
    def bus(self) -> Voice: ...
    @property
    def media(self) -> RoomMedia: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def clock(self) -> Callable[[], datetime]: ...


async def learn(desk: Desk, tenant_id: UUID, call_id: UUID, news: Iterable[FactEvent] = ()) -> Settled:
    """Settle with these news, tell the room, order LiveKit. Raises NotFound or DatabaseUnavailable, nothing being done.

    From the commit on it never raises for what is away. Whoever may be cancelled runs it `sealed`.
    """
    async with deciding(desk, tenant_id, call_id) as (tx, due):
        settled = await settle(tx, call_id, desk.clock(), fold=news, grace=grace_of(desk.rules))
        due += settled.events
    await carry_out(desk, settled.call, settled.orders)
    return settled


@asynccontextmanager
async def deciding(desk: Desk, tenant_id: UUID, call_id: UUID) -> AsyncIterator[tuple[Transaction, list[Event]]]:
    """A transaction that changes the call, and the events that are told of it: right after the commit, before another
    one of this node has its turn."""
    due: list[Event] = []
    async with desk.db.tenant(tenant_id, turn=call_id, then=lambda: _announce(desk.bus, call_id, due)) as tx:
        yield tx, due


async def _announce(bus: Voice, call_id: UUID, events: Iterable[Event]) -> None:
    for event in events:
        try:
            await bus.to_room(call_id, event.name, event, recorded=event.recorded)
        except ClusterUnavailable:
            # The log begins a new epoch when it is back, and everybody takes a fresh snapshot.
            log.warning("event_not_told", event_name=event.name, call_id=str(call_id))


async def carry_out(desk: Desk, call: Call, orders: Iterable[Order]) -> None:
    for order in orders:
        try:
            news = await _obey(desk, call, order)
            if news:
                # What it orders now it would order again at the next settling.
                async with deciding(desk, call.tenant_id, call.id) as (tx, due):
                    due += (await settle(tx, call.id, desk.clock(), fold=news, grace=grace_of(desk.rules))).events
        except NotFound:
            # Gone already: what was wanted.
            continue
        except (HubError, DatabaseUnavailable) as error:
            log.warning("order_not_carried_out", order=type(order).__name__, error=str(error), call_id=str(call.id))


async def _obey(desk: Desk, call: Call, order: Order) -> list[FactEvent]:
    """Give the order; what LiveKit's answer tells about the room."""
    match order:
        case Remove():
            await desk.media.remove_participant(call.livekit_room_name, order.identity, region=call.region)
            return []
        case DeleteRoom():
            await desk.media.delete_room(call.livekit_room_name, region=call.region)
            now = desk.clock()
            return [RoomFinished(at=now, known_at=now, room_sid=sid, by="api") for sid in order.room_sids]
        case MakeRoom():
            room = await desk.media.create_room(
                call.livekit_room_name,
                region=call.region,
                max_participants=call.max_participants,
                empty_timeout_s=desk.rules.empty_timeout_s,
                departure_timeout_s=desk.rules.departure_timeout_s,
                metadata=call.metadata,
            )
            now = desk.clock()
            log.info("room_made_again", call_id=str(call.id), room_sid=room.sid)
            return [RoomStarted(at=now, known_at=now, room_sid=room.sid, room_created_at=room.created_at)]
