"""Calls as things: made, found, changed, ended, deleted."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta
from typing import NoReturn, TypeVar
from uuid import UUID

import structlog
from msgspec import UNSET, UnsetType

from db import audit, calls, users
from db.calls import Call
from db.pool import Transaction
from hub.actions import joining, members, pages, rights, waiting
from hub.actions.aftermath import LIVEKIT_S, carry_out, in_time, regrant_all, settle
from hub.actions.settle import Settled, grace_of
from hub.actions.settle import settle as settle_quietly
from hub.actions.views import call_view
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context
from hub.media.values import RoomInfo
from hub.protocol import errors
from hub.protocol.errors import FieldError, HubError, MediaUnavailable
from hub.protocol.media import MediaRevoked
from hub.protocol.participants import ParticipantLeft
from hub.protocol.rooms import (
    CreatedRoom,
    CreateRoom,
    EndRoom,
    Features,
    ListRooms,
    NameRoom,
    RoomAnswer,
    RoomEnded,
    RoomPage,
    RoomUpdated,
    UpdateRoom,
)
from hub.protocol.views import CallView
from hub.state.facts import EndRequested

log = structlog.get_logger("hub.rooms")
commands = Commands()

Value = TypeVar("Value")

# Deletions that go on after the answer, each for LIVEKIT_S at most.
_undoing: set[asyncio.Task[None]] = set()
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@commands.add(
    "room:create",
    needs="user",
    # Over all nodes: a call costs LiveKit a room.
    rate=Rate(60, per_s=60, shared=True),
    http=Http("POST", "/rooms", 201, location="/api/v1/rooms/{call_id}"),
    socket=False,
)
async def create(ctx: Context, message: CreateRoom) -> CreatedRoom:
    """Make a call and its LiveKit room; it waits until the first person comes in."""
    rules = ctx.hub.rules
    region = message.region or rules.regions[0]
    if region not in rules.regions:
        _refuse("region", "no such region")
    if message.max_participants is not None and message.max_participants > rules.max_participants:
        _refuse("max_participants", f"at most {rules.max_participants}")
    metadata = joining.fits(ctx, message.metadata)
    room_name = new_room_name(rules.room_mark, int(ctx.now().timestamp()))
    try:
        room = await ctx.hub.media.create_room(
            room_name,
            region=region,
            max_participants=message.max_participants or rules.max_participants,
            empty_timeout_s=rules.empty_timeout_s,
            departure_timeout_s=rules.departure_timeout_s,
            metadata=metadata,
        )
        return await _create(ctx, message, room, region, metadata)
    except MediaUnavailable:
        # It would not hear of a deletion either. If it made the room after all, the sweep finds it.
        raise
    except BaseException as error:
        # No row, no room. What fails here the sweep finds.
        undoing = asyncio.create_task(_undo(ctx, room_name, region))
        _undoing.add(undoing)
        undoing.add_done_callback(_undoing.discard)
        # The deadline may be what ended it, and then nobody waits any longer.
        if not isinstance(error, asyncio.CancelledError):
            await asyncio.shield(undoing)
        raise


async def _create(
    ctx: Context, message: CreateRoom, room: RoomInfo, region: str, metadata: dict[str, object]
) -> CreatedRoom:
    now = ctx.now()
    async with ctx.transaction() as tx:
        await users.seen(tx, ctx.actor.user_id, display_name=ctx.actor.display_name, avatar_url=ctx.actor.avatar_url)
        call = await calls.add(
            tx,
            owner_id=ctx.actor.user_id,
            name=message.name,
            call_type=message.call_type,
            livekit_room_name=room.name,
            livekit_room_sid=room.sid,
            region=region,
            max_participants=message.max_participants or ctx.hub.rules.max_participants,
            recording_enabled=message.recording_enabled,
            screen_sharing_enabled=message.screen_sharing_enabled,
            file_sharing_enabled=message.file_sharing_enabled,
            chat_enabled=message.chat_enabled,
            lobby_enabled=message.lobby_enabled,
            metadata=metadata,
            waiting_expires_at=now + timedelta(seconds=ctx.hub.rules.waiting_expires_s),
        )
        news = [joining.started(room, now)]
        # Nobody is there yet to be told.
        settled = await settle_quietly(tx, call.id, now, fold=news, grace=grace_of(ctx.hub.rules))
        answer = CreatedRoom(call.id, room.sid, room.name, settled.call.status, call.created_at)
        await ctx.keep(tx, answer)
    return answer


async def _undo(ctx: Context, room_name: str, region: str | None) -> None:
    try:
        async with asyncio.timeout(LIVEKIT_S):
            await ctx.hub.media.delete_room(room_name, region=region)
    except (HubError, TimeoutError) as error:
        log.warning("room_left_behind", error=type(error).__name__, request_id=ctx.request_id)


def new_room_name(mark: str, at: int) -> str:
    """LiveKit's name of a call's room, which nobody can guess and no other call gets. `mark` says whose it is."""
    return f"room_{mark}{''.join(secrets.choice(_ALPHABET) for _ in range(12))}_{at}"


@commands.add("room:list", needs="user", http=Http("GET", "/rooms"), socket=False, mutates=False)
async def list_(ctx: Context, message: ListRooms) -> RoomPage:
    """Your calls and those you took part in, newest first."""
    async with ctx.transaction() as tx:
        found = await calls.page(
            tx,
            user_id=ctx.actor.user_id,
            status=message.status,
            call_type=message.call_type,
            created_from=message.from_,
            created_before=message.to,
            text=message.q,
            after=pages.row(message.cursor),
            # As `room:get` has it: to whom a call is closed it is not shown.
            not_banned_at=None if ctx.actor.admin else ctx.now(),
            limit=message.limit + 1,
        )
    return page(found, message.limit)


def page(found: list[Call], limit: int) -> RoomPage:
    """`found` holds one more than `limit` where there is another page."""
    items, more = found[:limit], len(found) > limit
    return RoomPage(
        items=[call_view(call) for call in items],
        next_cursor=pages.cursor(items[-1].created_at, items[-1].id) if more else None,
    )


@commands.add("room:get", needs="member", http=Http("GET", "/rooms/{call_id}"), socket=False, mutates=False)
async def get(ctx: Context, message: NameRoom) -> CallView:
    """One call, with how many are in it, how long it has gone on and how good it is."""
    return call_view(ctx.member.call)


@commands.add(
    "room:update",
    needs="room_update",
    rate=Rate(10, per_s=10),
    emits=(RoomUpdated, MediaRevoked),
    http=Http("PATCH", "/rooms/{call_id}"),
)
async def update(ctx: Context, message: UpdateRoom) -> RoomAnswer:
    """Change a call's name, lock, lobby, features or metadata; everybody in it hears `room:updated`."""
    async with ctx.deciding(message.call_id) as tx:
        before = await _locked(tx, message.call_id)
        members.demand_open(before)
        if ctx.if_match is not None and call_view(before).etag not in _tags(ctx.if_match):
            raise errors.PreconditionFailed()
        features = Features() if message.features is UNSET else message.features
        metadata = before.metadata
        if message.metadata is not UNSET:
            metadata = joining.merged(ctx, before.metadata, message.metadata)
        after = await calls.change(
            tx,
            message.call_id,
            name=_given(message.name),
            locked=_given(message.locked),
            lobby_enabled=_given(message.lobby_enabled),
            chat_enabled=_given(features.chat),
            file_sharing_enabled=_given(features.files),
            screen_sharing_enabled=_given(features.screen_share),
            recording_enabled=_given(features.recording),
            metadata=metadata,
        )
        # What the SFU enforces as well: shared screens, and data, by which its clients chat.
        switched = (after.screen_sharing_enabled, after.chat_enabled) != (
            before.screen_sharing_enabled,
            before.chat_enabled,
        )
        people = await rights.everybody(tx, after) if switched else []
        settled = await rights.withdraw(tx, after.id, people, ctx.now(), grace_of(ctx.hub.rules))
        answer = RoomAnswer(call_view(after))
        if after.version != before.version:
            await _note_change(ctx, tx, before, after)
            ctx.due(after.id, [RoomUpdated(answer.call)])
        if settled is not None:
            ctx.due(after.id, settled.events)
        if before.lobby_enabled and not after.lobby_enabled:
            opened = await waiting.open_door(tx, after, ctx.now(), by=ctx.actor.user_id)
            waiting.tell(ctx, after.id, opened, ctx.now())
        await ctx.keep(tx, answer)
    if settled is not None:
        await carry_out(ctx, settled)
    if after.metadata != before.metadata:
        await in_time(ctx, _tell_media(ctx, after))
    if switched:
        await regrant_all(ctx, after, people)
    return answer


# What lets people in or takes rights away. The metadata is the app's own.
_ACCESS = (
    *("name", "locked", "lobby_enabled", "chat_enabled", "file_sharing_enabled", "screen_sharing_enabled"),
    "recording_enabled",
)


async def _note_change(ctx: Context, tx: Transaction, before: Call, after: Call) -> None:
    was = {name: getattr(before, name) for name in _ACCESS if getattr(before, name) != getattr(after, name)}
    if was:
        await audit.add(
            tx,
            actor=ctx.actor.user_id,
            action="room:update",
            target_type="call",
            target_id=str(after.id),
            details={"was": was, "now": {name: getattr(after, name) for name in was}},
        )


async def _tell_media(ctx: Context, call: Call) -> None:
    """LiveKit's copy of the metadata, for its own clients. Ours is the truth, so a copy that is late fails nobody."""
    try:
        await ctx.hub.media.update_room_metadata(call.livekit_room_name, call.metadata, region=call.region)
    except HubError as error:
        log.warning("room_metadata_not_told", code=error.code, call_id=str(call.id), request_id=ctx.request_id)


@commands.add(
    "room:end",
    needs="room_end",
    rate=Rate(10, per_s=10),
    emits=(RoomEnded, ParticipantLeft),
    http=Http("POST", "/rooms/{call_id}/end"),
)
async def end(ctx: Context, message: EndRoom) -> RoomAnswer:
    """End the call for everybody."""
    return await end_call(ctx, message.call_id, "ended_by_host", message.reason)


async def end_call(ctx: Context, call_id: UUID, why: str, reason: str | None) -> RoomAnswer:
    """Ended is for ever: whoever ends it again gets the same answer."""
    async with ctx.deciding(call_id) as tx:
        settled = await _end(ctx, tx, call_id, "room:end", why, reason)
        answer = RoomAnswer(call_view(settled.call))
        await ctx.keep(tx, answer)
    await carry_out(ctx, settled)
    return answer


async def _end(ctx: Context, tx: Transaction, call_id: UUID, action: str, why: str, reason: str | None) -> Settled:
    now = ctx.now()
    call = await _locked(tx, call_id)
    news = [] if call.status == "ended" else [EndRequested(at=now, known_at=now, reason=why)]
    await audit.add(
        tx,
        actor=ctx.actor.user_id,
        action=action,
        target_type="call",
        target_id=str(call_id),
        reason=reason,
        details={"room_name": call.livekit_room_name, "was": call.status},
    )
    settled = await settle(ctx, tx, call_id, now, news)
    waiting.tell(ctx, call_id, await waiting.turn_away(tx, call, now), now)
    return settled


@commands.add(
    "room:delete",
    needs="owner",
    rate=Rate(60, per_s=60),
    emits=(RoomEnded, ParticipantLeft),
    http=Http("DELETE", "/rooms/{call_id}", 204),
    socket=False,
)
async def delete(ctx: Context, message: NameRoom) -> Empty:
    """Delete a call with everything that hangs on it; one that is still open ends first."""
    call = ctx.member.call
    async with ctx.deciding(call.id) as tx:
        await _end(ctx, tx, call.id, "room:delete", "deleted", None)
        if not await calls.delete(tx, call.id):
            raise errors.NotFound()
        await ctx.keep(tx, Empty())
    # Always, whatever the facts say: there is no row any more that a later sweep could do it for.
    await _undo(ctx, call.livekit_room_name, call.region)
    return Empty()


async def _locked(tx: Transaction, call_id: UUID) -> Call:
    call = await calls.lock(tx, call_id)
    if call is None:
        raise errors.NotFound()
    return call


def _tags(if_match: str) -> list[str]:
    return [tag.strip() for tag in if_match.split(",")]


def _given(value: Value | UnsetType) -> Value | None:
    """None leaves a column as it is."""
    return None if value is UNSET else value


def _refuse(path: str, text: str) -> NoReturn:
    raise errors.ValidationFailed(f"{path}: {text}", errors=[FieldError(path, text)])
