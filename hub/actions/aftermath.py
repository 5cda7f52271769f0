"""What follows a commit and its telling: LiveKit is brought in line, sessions that are out are put out.

The commit is what happened. Nothing here can undo it, so nothing here raises for a neighbour that is away: what LiveKit
did not hear now the sweep says again, and a session on a node that cannot be reached has lost its room with that node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import structlog

from db.calls import Call
from db.participants import Participant
from hub.actions import members, orders, rights
from hub.actions import settle as settling
from hub.actions.settle import Settled
from hub.context import Context
from hub.policy import Permissions, publish_sources
from hub.protocol.errors import HubError, NotFound
from hub.protocol.media import MediaRevoked
from hub.protocol.rooms import RoomLeft
from hub.state.call import Remove
from hub.state.facts import FactEvent

if TYPE_CHECKING:
    from db.pool import Transaction

log = structlog.get_logger("hub.aftermath")

# LiveKit takes 5–10 ms a call; more at once than this only makes it wait.
_SIDE_BY_SIDE = 8
# Out of the three seconds that a command has.
LIVEKIT_S = 1.5


async def settle(
    ctx: Context, tx: Transaction, call_id: UUID, now: datetime, fold: Iterable[FactEvent] = ()
) -> Settled:
    """Settle in the command's deciding transaction. What that changed is told after the commit; the orders are left."""
    settled = await settling.settle(tx, call_id, now, fold=fold, grace=settling.grace_of(ctx.hub.rules))
    ctx.due(call_id, settled.events)
    return settled


async def carry_out(ctx: Context, settled: Settled) -> None:
    """Give LiveKit the orders that settling came to."""
    if settled.orders:
        await in_time(ctx, orders.carry_out(ctx.hub, settled.call, settled.orders))


async def put_out(ctx: Context, settled: Settled, identities: Iterable[str]) -> None:
    """The same, and these people are taken out of LiveKit's room, also where its word that they are in has not come."""
    gone = list(settled.orders)
    if settled.call.status == "active":
        ordered = {order.identity for order in gone if isinstance(order, Remove)}
        gone += [Remove(identity) for identity in identities if identity not in ordered]
    await carry_out(ctx, msgspec.structs.replace(settled, orders=tuple(gone)))


async def in_time(ctx: Context, *work: Coroutine[Any, Any, object]) -> None:
    """Run side by side what LiveKit is to be told, and give up on it early enough to answer the command."""
    try:
        async with asyncio.timeout(LIVEKIT_S), asyncio.TaskGroup() as tasks:
            for each in work:
                tasks.create_task(each)
    except TimeoutError:
        log.warning("livekit_too_slow", request_id=ctx.request_id)


async def evict(ctx: Context, call_id: UUID, participant_id: UUID, why: RoomLeft) -> None:
    """Put every session of that participant out of the room, but for the one that asks, on whatever node it is."""
    try:
        entries = await ctx.hub.roster.sessions(call_id)
    except HubError as error:
        log.warning("sessions_not_evicted", code=error.code, call_id=str(call_id), request_id=ctx.request_id)
        return
    for entry in entries:
        if entry.participant_id != participant_id or (ctx.session and entry.session_id == ctx.session.id):
            continue
        message = {
            "kind": "evict",
            "session_id": entry.session_id,
            "call_id": str(call_id),
            "event": why.name,
            "data": msgspec.to_builtins(why),
        }
        try:
            await ctx.hub.bus.control(entry.node_id, message)
        except HubError as error:
            log.warning("session_not_evicted", code=error.code, session_id=entry.session_id)


async def regrant(ctx: Context, call: Call, person: Participant, allowed: Permissions) -> None:
    """Bring somebody's rights in LiveKit in line with theirs here; what they publish without a right is taken down."""
    lost = _publishing(person) - publish_sources(allowed)
    # Where nobody is connected yet, whoever connects is looked at then.
    if call.status == "active":
        await rights.give(ctx.hub.media, call, person, rights.wanted(call, person, allowed))
    if lost:
        await ctx.tell(call.id, MediaRevoked(person.id, sorted(lost)))


async def regrant_all(ctx: Context, call: Call, people: Iterable[tuple[Participant, Permissions]]) -> None:
    """The same for several, as they were before: after a feature was switched."""
    await in_time(ctx, side_by_side(regrant(ctx, call, person, allowed) for person, allowed in people))


def _publishing(person: Participant) -> frozenset[str]:
    switches = {
        "microphone": person.is_audio_enabled,
        "camera": person.is_video_enabled,
        "screen_share": person.is_screen_sharing,
    }
    return frozenset(source for source, on in switches.items() if on)


async def tell_media(ctx: Context, call: Call, before: Participant, after: Participant) -> None:
    """LiveKit's copy of a name, metadata and role, for its own clients."""
    renamed, changed = after.display_name != before.display_name, after.metadata != before.metadata
    promoted = after.role != before.role
    if call.status != "active" or not (renamed or changed or promoted):
        return
    try:
        await ctx.hub.media.update_participant(
            call.livekit_room_name,
            after.identity,
            region=call.region,
            name=after.display_name if renamed else None,
            metadata=after.metadata if changed else None,
            attributes={"role": members.standing(call, after)} if promoted else None,
        )
    except NotFound:
        return
    except HubError as error:
        log.warning("participant_not_told", code=error.code, call_id=str(call.id), request_id=ctx.request_id)


async def side_by_side(work: Iterable[Awaitable[None]]) -> None:
    """Run all of them, some at a time."""
    gate = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def one(each: Awaitable[None]) -> None:
        async with gate:
            await each

    async with asyncio.TaskGroup() as tasks:
        for each in work:
            tasks.create_task(one(each))
