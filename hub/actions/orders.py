"""After the commit of a settling: the room hears what changed, and LiveKit is told what it must do to agree.

LiveKit may be away. Then nothing here raises: each order is given again by whatever settles the call next, the sweep at
the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
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
    def tenant(self, tenant_id: UUID, user_id: str | None = None) -> AbstractAsyncContextManager[Transaction]: ...


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


async def conclude(desk: Desk, settled: Settled) -> None:
    """Tell everybody, then order LiveKit. Never raises for what is away."""
    await announce(desk.bus, settled.call.id, settled.events)
    await carry_out(desk, settled.call, settled.orders)


async def announce(bus: Voice, call_id: UUID, events: Iterable[Event]) -> None:
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
                await _learn(desk, call, news)
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


async def _learn(desk: Desk, call: Call, news: list[FactEvent]) -> None:
    async with desk.db.tenant(call.tenant_id) as tx:
        settled = await settle(tx, call.id, desk.clock(), fold=news, grace=grace_of(desk.rules))
    await announce(desk.bus, call.id, settled.events)
