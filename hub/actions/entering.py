"""Coming in and going out: tokens, `room:join`, `room:leave`, and catching up with what was missed."""

from __future__ import annotations

import asyncio
from datetime import datetime
from uuid import UUID

import structlog

from db import calls, participants
from db.calls import Call
from db.errors import DatabaseUnavailable
from db.participants import Participant
from hub.actions import files, joining, members, waiting
from hub.actions.aftermath import carry_out, evict, put_out, settle
from hub.actions.chat import recent
from hub.actions.hands import queue
from hub.actions.joining import Seat
from hub.actions.views import call_view, participant_view
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context, Position, Session
from hub.policy import Permissions
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.media import MediaAccess
from hub.protocol.participants import ParticipantJoined, ParticipantLeft
from hub.protocol.rooms import (
    AskToken,
    JoinRoom,
    ListEvents,
    MissedEvent,
    NameRoom,
    RoomEvents,
    RoomLeft,
    RoomPosition,
    RoomSnapshot,
    RoomToken,
    SyncRoom,
)

log = structlog.get_logger("hub.entering")
commands = Commands()


@commands.add(
    "room:token",
    needs="anyone",
    rate=Rate(30, per_s=10, shared=True),
    http=Http("POST", "/rooms/{call_id}/token"),
    socket=False,
    # Asking again gives the same seat and a token with its full life; a kept answer would keep a secret at rest.
    mutates=False,
)
async def token(ctx: Context, message: AskToken) -> RoomToken:
    """A LiveKit token for a call, and a seat in it that is held until the token can no longer be used."""
    metadata = joining.metadata_of(ctx, message.metadata)
    news = await joining.room_again(ctx, message.call_id)
    async with ctx.deciding(message.call_id) as tx:
        seat = await joining.admit(
            ctx,
            tx,
            message.call_id,
            display_name=message.display_name,
            metadata=metadata,
            device_id=message.device_id or ctx.device_id,
        )
        media = await joining.access(ctx, tx, seat)
        settled = await settle(ctx, tx, message.call_id, ctx.now(), news)
        answer = RoomToken(
            token=media.token,
            call_id=seat.call.id,
            room_name=seat.call.livekit_room_name,
            identity=media.identity,
            participant_id=seat.participant.id,
            url=media.url,
            expires_at=media.expires_at,
        )
    await carry_out(ctx, settled)
    return answer


@commands.add(
    "room:join",
    needs="anyone",
    rate=Rate(20, per_s=10),
    emits=(ParticipantJoined, RoomLeft),
    # Joining again is harmless, and a kept answer would leave a new session outside: so no op_id.
    mutates=False,
)
async def join(ctx: Context, message: JoinRoom) -> RoomSnapshot:
    """Come into a call: from now on this session hears it. The answer is the whole picture as of `position`."""
    session, call_id = _session(ctx), message.call_id
    metadata = joining.metadata_of(ctx, message.metadata)
    if call_id not in session.rooms and len(session.rooms) >= ctx.hub.rules.rooms_per_session:
        raise errors.Conflict(f"a session is in at most {ctx.hub.rules.rooms_per_session} rooms")
    news = await joining.room_again(ctx, call_id) if message.media else []
    media: MediaAccess | None = None
    now = ctx.now()
    async with ctx.deciding(call_id) as tx:
        seat = await joining.admit(
            ctx,
            tx,
            call_id,
            display_name=message.display_name,
            metadata=metadata,
            device_id=message.device_id or ctx.device_id,
        )
        if session.rooms.get(call_id, seat.participant.id) != seat.participant.id:
            raise errors.AlreadyInRoom("this session is in the room as another device")
        await participants.attach(tx, seat.participant.id, now)
        if message.media:
            media = await joining.access(ctx, tx, seat)
        settled = await settle(ctx, tx, call_id, now, news)
    was_here = call_id in session.rooms
    try:
        await session.enter(call_id, seat.participant.id)
        await carry_out(ctx, settled)
        snapshot = await _snapshot(ctx, session, call_id, seat.participant.id, message.since, media, entering=True)
        # Last, when nothing can go wrong any more: an older session of theirs is told that it is out.
        await evict(ctx, call_id, seat.participant.id, RoomLeft("taken_over"))
    except BaseException:
        if not was_here:
            await asyncio.shield(_withdraw(ctx, session, seat, now))
        raise
    return snapshot


@commands.add("room:sync", needs="member", rate=Rate(10, per_s=10), mutates=False)
async def sync(ctx: Context, message: SyncRoom) -> RoomSnapshot:
    """What happened since a place in the room's log; where that is too long ago, the whole picture."""
    session = _session(ctx)
    participant_id = session.rooms.get(message.call_id)
    if participant_id is None:
        raise errors.NotInRoom()
    return await _snapshot(ctx, session, message.call_id, participant_id, message.since, None)


@commands.add("room:leave", needs="member", emits=(ParticipantLeft, RoomLeft))
async def leave(ctx: Context, message: NameRoom) -> Empty:
    """Leave a call, on the socket and in the SFU. Leaving twice is leaving once."""
    session, call_id = _session(ctx), message.call_id
    participant_id = session.rooms.get(call_id)
    if participant_id is None:
        # Out already. Another device of theirs that is in stays there: nobody hangs up from afar by mistake.
        return Empty()
    async with ctx.deciding(call_id) as tx:
        if await calls.lock(tx, call_id) is None:
            raise errors.NotFound()
        gone = await participants.request_leave(tx, participant_id, ctx.now())
        ctx.first(lambda: session.exit(call_id))
        ctx.first(lambda: evict(ctx, call_id, participant_id, RoomLeft("left")))
        settled = await settle(ctx, tx, call_id, ctx.now())
        await ctx.keep(tx, Empty())
    await put_out(ctx, settled, [gone.identity] if gone else [])
    return Empty()


@commands.add("room:events", needs="member", http=Http("GET", "/rooms/{call_id}/events"), socket=False, mutates=False)
async def events(ctx: Context, message: ListEvents) -> RoomEvents:
    """The recorded events after a place in the room's log, for clients without a socket."""
    if not members.heads(ctx.actor, ctx.member.call):
        members.demand_in_call(ctx.member)
    epoch, _, offset = message.since.rpartition(":")
    missed, position = await _missed(ctx, message.call_id, Position(epoch, int(offset)))
    return RoomEvents(items=missed or [], recovered=missed is not None, position=position)


def _session(ctx: Context) -> Session:
    if ctx.session is None:
        raise errors.BadRequest("this needs a socket")
    return ctx.session


async def _stands(ctx: Context, call: Call, me: Participant) -> bool:
    """Whether somebody whom the roster knows is still in: while they came in the call may have ended, somebody may have
    put them out, or the grace of their last socket been over. False: they were detached, and are in again now.

    Raises CallEnded or NotInRoom.
    """
    members.demand_open(call)
    if me.attached:
        return True
    if me.hub_left_reason != "connection_lost":
        raise errors.NotInRoom("put out of the room while entering it")
    async with ctx.deciding(call.id) as tx:
        locked = await calls.lock(tx, call.id)
        if locked is None:
            raise errors.NotFound()
        members.demand_open(locked)
        await participants.attach(tx, me.id, ctx.now())
        settled = await settle(ctx, tx, call.id, ctx.now())
    await carry_out(ctx, settled)
    return False


async def _withdraw(ctx: Context, session: Session, seat: Seat, since: datetime) -> None:
    """The join came to nothing: nobody is left standing in the room who was never told that they are in it."""
    try:
        await session.exit(seat.call.id)
    except HubError as error:
        log.warning("session_left_in_room", code=error.code, request_id=ctx.request_id)
    try:
        # Another session of theirs may have been in all along; where nobody can say, only this join is taken back.
        others = await _others(ctx, session, seat)
        if others:
            return
        async with ctx.deciding(seat.call.id) as tx:
            if await calls.lock(tx, seat.call.id) is None:
                return
            person = await participants.get(tx, seat.call.id, seat.participant.id)
            if person is None or (others is None and person.hub_joined_at != since):
                return
            await participants.detach(tx, [person.id], ctx.now(), "connection_lost")
            settled = await settle(ctx, tx, seat.call.id, ctx.now())
        await carry_out(ctx, settled)
    except (DatabaseUnavailable, HubError) as error:
        log.warning("join_not_withdrawn", error=type(error).__name__, request_id=ctx.request_id)


async def _others(ctx: Context, session: Session, seat: Seat) -> bool | None:
    """Whether another session holds the same seat; None where the rosters cannot be read."""
    try:
        entries = await ctx.hub.roster.sessions(seat.call.id)
    except HubError:
        return None
    return any(each.participant_id == seat.participant.id and each.session_id != session.id for each in entries)


async def _missed(ctx: Context, call_id: UUID, since: Position | None) -> tuple[list[MissedEvent] | None, RoomPosition]:
    """The events after `since` (None: not all of them are to be had) and the position after the last of them."""
    found = await ctx.hub.bus.since(call_id, since) if since else None
    if since is None or found is None:
        position = await ctx.hub.bus.position(call_id)
        return None, RoomPosition(position.epoch, position.offset)
    missed = [MissedEvent(each.event, each.data) for each in found]
    return missed, RoomPosition(since.epoch, since.offset + len(missed))


async def _snapshot(
    ctx: Context,
    session: Session,
    call_id: UUID,
    participant_id: UUID,
    since: RoomPosition | None,
    media: MediaAccess | None,
    *,
    entering: bool = False,
) -> RoomSnapshot:
    # The position first: an event between the two is in the picture and comes again, which a client can bear; the
    # other way round it would be in neither.
    missed, position = await _missed(ctx, call_id, Position(since.epoch, since.offset) if since else None)
    async with ctx.transaction() as tx:
        call = await calls.get(tx, call_id)
        present = await participants.in_call(tx, call_id)
        # Held, as by whoever detaches them (hub/background/due.py): one of the two sees what the other did.
        look = participants.hold if entering else participants.get
        me = await look(tx, call_id, participant_id)
        hands = await queue(tx, call_id)
        may: Permissions = frozenset()
        if call is not None:
            without = await members.taken_away(tx, ctx.actor, me)
            may = members.as_member(ctx.actor, call, me, without).permissions
        shared = await files.of_snapshot(ctx, tx, call_id, may)
        lobby = await waiting.queue(tx, call) if call is not None and "lobby_admit" in may else None
        written = await recent(tx, call_id, may)
    if call is None or me is None:
        raise errors.NotFound()
    if entering and not await _stands(ctx, call, me):
        return await _snapshot(ctx, session, call_id, participant_id, since, media, entering=True)
    session.seen(call_id, Position(position.epoch, position.offset))
    return RoomSnapshot(
        call=call_view(call),
        self=participant_view(me),
        participants=[participant_view(each) for each in present],
        hands=hands,
        files=shared,
        chat=written.items,
        chat_cursor=written.next_cursor,
        lobby=lobby,
        position=position,
        recovered=missed is not None,
        missed=missed or [],
        media=media,
    )
