"""Letting somebody into a call: a seat under the call's row lock, and the way into the SFU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog

from db import bans, calls, participants, users
from db.calls import Call
from db.participants import Participant
from db.pool import Transaction
from hub.actions import members, waiting
from hub.actions.aftermath import LIVEKIT_S
from hub.context import Context
from hub.media.values import RoomInfo
from hub.policy import Permissions, Role, rank
from hub.protocol import errors
from hub.protocol.errors import FieldError, HubError
from hub.protocol.media import MediaAccess
from hub.protocol.plain import plain
from hub.state.facts import RoomStarted

log = structlog.get_logger("hub.joining")


class Seat(msgspec.Struct, frozen=True):
    """Somebody who may be in the call, and as what."""

    call: Call
    participant: Participant
    role: Role
    allowed: Permissions


async def admit(
    ctx: Context,
    tx: Transaction,
    call_id: UUID,
    *,
    display_name: str | None,
    metadata: Mapping[str, Any] | None,
    device_id: str | None,
) -> Seat:
    """A seat for the actor, in the caller's transaction, which holds the call's row until it ends.

    Raises NotFound, CallEnded, Banned, LinkExpired, RoomLocked, LobbyRequired, LobbyDenied, Conflict (too many devices)
    or RoomFull.
    Who is in already stays in. A seat is a device's: one that is in, or a token that may still let it in; a person has
    at most `devices_per_call`. Whoever came by a link has one, whatever device they name.
    """
    actor, now = ctx.actor, ctx.now()
    if actor.guest is not None and actor.guest.link_id is not None:
        # Or one use of a link would be as many seats.
        device_id = None
    call = None if members.elsewhere(actor, call_id) else await calls.lock(tx, call_id)
    if call is None:
        raise errors.NotFound()
    members.demand_open(call)
    identity = members.identity_of(actor.user_id, device_id)
    participant = await participants.by_identity(tx, call_id, identity)
    if participant is not None and participant.user_id != actor.user_id:
        # A user id may hold a colon: "ada" on the device "x" must not become the user "ada:x".
        raise errors.Conflict("somebody else in this call has that identity: choose another device_id")
    head = members.heads(actor, call)
    if not head and await bans.active(tx, call_id, actor.user_id, now):
        raise errors.Banned()
    # A role is a person's: another device has the one they were given, not the one that newcomers have.
    known = [participant] if participant else await participants.of_user(tx, call_id, actor.user_id)
    role = members.role_of(actor, call, known[-1] if known else None)
    if participant is None or participant.status not in members.IN_CALL:
        # Also who has a token for LiveKit already: what was decided since binds everybody who is not in yet.
        ctx.actor = actor = await members.as_linked(tx, actor, call, now)
        if not known:
            role = members.role_of(actor, call, None)
        closed = call.locked or waiting.has_lobby(actor, call, role)
        if closed and not await waiting.called_in(tx, call_id, known):
            if call.locked and rank(role) < rank("moderator"):
                raise errors.RoomLocked()
            await waiting.demand_let_in(ctx, tx, call, role)
    if participant is None or not await participants.seated(tx, participant.id, now):
        most = ctx.hub.rules.devices_per_call
        if known and await participants.seats_of(tx, call_id, actor.user_id, now) >= most:
            raise errors.Conflict(f"you are in this call on {most} devices already", details={"devices_per_call": most})
        if await participants.seats_taken(tx, call_id, now) >= call.max_participants:
            raise errors.RoomFull(f"{call.max_participants} of {call.max_participants} seats taken")
        if participant is not None:
            # Whoever comes back comes with the hand down, however they went.
            await participants.lower_hands(tx, call_id, [participant.id])
    await users.seen(tx, actor.user_id, display_name=actor.display_name, avatar_url=actor.avatar_url)
    participant = await participants.admit(
        tx,
        call_id,
        user_id=actor.user_id,
        identity=identity,
        device_id=device_id,
        role=role,
        display_name=display_name or (participant.display_name if participant else None) or actor.display_name or None,
        metadata=metadata,
        via_link_id=actor.guest.link_id if actor.guest else None,
        now=now,
    )
    without = await members.taken_away(tx, actor, participant)
    return Seat(call, participant, role, members.as_member(actor, call, participant, without).permissions)


async def access(ctx: Context, tx: Transaction, seat: Seat) -> MediaAccess:
    """A LiveKit token for the seat; that it was given out is kept, since it holds the seat until it is used."""
    person = seat.participant
    now = ctx.now()
    token, expires_at = ctx.hub.media.mint_token(
        room_name=seat.call.livekit_room_name,
        identity=person.identity,
        name=person.display_name or person.user_id,
        metadata=person.metadata,
        attributes={"role": seat.role},
        grant=members.grant_of(seat.role, seat.allowed),
        ttl_s=ctx.hub.rules.token_ttl_s,
        region=seat.call.region,
    )
    await participants.token_issued(tx, person.id, now, expires_at)
    return MediaAccess(
        provider="livekit",
        url=ctx.hub.media.public_url(seat.call.region),
        token=token,
        identity=person.identity,
        expires_at=expires_at,
        ice_servers=[],
    )


async def room_again(ctx: Context, call_id: UUID) -> list[RoomStarted]:
    """The LiveKit room of a call that still waits, made again where LiveKit gave it up; what that tells of it.

    LiveKit closes empty rooms, and a call may wait for days. Where LiveKit cannot be reached the token is given out
    all the same: it is minted here, and the room may well be there.
    """
    async with ctx.transaction() as tx:
        call = None if members.elsewhere(ctx.actor, call_id) else await calls.get(tx, call_id)
    if call is None or call.status != "waiting":
        return []
    try:
        async with asyncio.timeout(LIVEKIT_S):
            room = await make_room(ctx, call)
    except (HubError, TimeoutError) as error:
        log.warning("room_not_made", error=type(error).__name__, call_id=str(call_id), request_id=ctx.request_id)
        return []
    if room.sid == call.livekit_room_sid:
        return []
    return [started(room, ctx.now())]


async def make_room(ctx: Context, call: Call) -> RoomInfo:
    return await ctx.hub.media.create_room(
        call.livekit_room_name,
        region=call.region,
        max_participants=call.max_participants,
        empty_timeout_s=ctx.hub.rules.empty_timeout_s,
        departure_timeout_s=ctx.hub.rules.departure_timeout_s,
        metadata=call.metadata,
    )


def started(room: RoomInfo, now: datetime) -> RoomStarted:
    return RoomStarted(at=room.created_at, known_at=now, room_sid=room.sid, room_created_at=room.created_at)


def metadata_of(ctx: Context, given: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    """The metadata as an object, which may have come as its JSON text. Raises ValidationFailed."""
    if given is None:
        return None
    if isinstance(given, str):
        try:
            loaded = msgspec.json.decode(given, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            raise errors.ValidationFailed(
                "metadata: not a JSON object", errors=[FieldError("metadata", "not a JSON object")]
            ) from None
        return fits(ctx, plain({"metadata": loaded})["metadata"])
    return fits(ctx, given)


def fits(ctx: Context, metadata: Mapping[str, Any]) -> dict[str, Any]:
    limit = ctx.hub.rules.metadata_bytes
    encoded = msgspec.json.encode(metadata)
    if len(encoded) > limit:
        text = f"longer than {limit} bytes"
        raise errors.ValidationFailed(f"metadata: {text}", errors=[FieldError("metadata", text)])
    # PostgreSQL's jsonb cannot hold it. An escaped backslash before "u0000" is no such escape.
    if b"\\u0000" in encoded.replace(b"\\\\", b""):
        raise errors.ValidationFailed("metadata: holds U+0000", errors=[FieldError("metadata", "holds U+0000")])
    return dict(metadata)


def merged(ctx: Context, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old keys with the new ones over them; a null takes its key away."""
    both = {**old, **new}
    return fits(ctx, {key: value for key, value in both.items() if value is not None})
