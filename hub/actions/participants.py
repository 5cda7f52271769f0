"""The people in a call: renamed, given a role, muted, put out, let in again."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from uuid import UUID

from msgspec import UNSET, UnsetType

from db import audit, bans, calls, lobby, participants
from db.calls import Call
from db.participants import Participant
from db.pool import Transaction
from hub.actions import joining, members, pages, rights
from hub.actions.aftermath import carry_out, evict, in_time, put_out, regrant, settle, tell_media
from hub.actions.settle import grace_of
from hub.actions.views import participant_view
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context
from hub.policy import Role, rank
from hub.protocol import errors
from hub.protocol.media import MediaRevoked
from hub.protocol.participants import (
    EditParticipant,
    KickParticipant,
    ListParticipants,
    ParticipantAnswer,
    ParticipantLeft,
    ParticipantPage,
    ParticipantUpdated,
    SetRole,
    UnbanUser,
    UpdateParticipant,
)
from hub.protocol.rooms import RoomLeft

commands = Commands()


@commands.add(
    "participant:list",
    needs="member",
    http=Http("GET", "/rooms/{call_id}/participants"),
    socket=False,
    mutates=False,
)
async def list_(ctx: Context, message: ListParticipants) -> ParticipantPage:
    """Everybody who is or was in the call, newest first."""
    async with ctx.transaction() as tx:
        found = await participants.page(tx, message.call_id, after=pages.row(message.cursor), limit=message.limit + 1)
    items, more = found[: message.limit], len(found) > message.limit
    return ParticipantPage(
        items=[participant_view(each) for each in items],
        next_cursor=pages.cursor(items[-1].created_at, items[-1].id) if more else None,
    )


@commands.add("participant:update", needs="member", rate=Rate(20, per_s=10), emits=(ParticipantUpdated,))
async def update(ctx: Context, message: UpdateParticipant) -> ParticipantAnswer:
    """Change your own name or metadata in the call."""
    mine = members.demand_in_call(ctx.member)
    return await _edit(ctx, message.call_id, mine.id, message.display_name, message.metadata, UNSET)


@commands.add(
    "participant:set_role",
    needs="participant_set_role",
    rate=Rate(20, per_s=10),
    emits=(ParticipantUpdated, MediaRevoked),
)
async def set_role(ctx: Context, message: SetRole) -> ParticipantAnswer:
    """Give somebody another role, and with it other rights, here and in the SFU."""
    return await _edit(ctx, message.call_id, message.participant_id, UNSET, UNSET, message.role)


@commands.add(
    "participant:edit",
    needs="member",
    rate=Rate(20, per_s=10),
    emits=(ParticipantUpdated, MediaRevoked),
    http=Http("PATCH", "/rooms/{call_id}/participants/{participant_id}"),
    socket=False,
)
async def edit(ctx: Context, message: EditParticipant) -> ParticipantAnswer:
    """Change your own name or metadata, or somebody's role."""
    mine = ctx.member.participant
    if message.role is not UNSET:
        if not members.heads(ctx.actor, ctx.member.call):
            members.demand_in_call(ctx.member)
        members.demand(ctx.member, "participant_set_role")
    if message.display_name is not UNSET or message.metadata is not UNSET:
        if mine is None or mine.id != message.participant_id:
            raise errors.Forbidden("name and metadata are each person's own")
        members.demand_in_call(ctx.member)
    return await _edit(
        ctx, message.call_id, message.participant_id, message.display_name, message.metadata, message.role
    )


async def _edit(
    ctx: Context,
    call_id: UUID,
    participant_id: UUID,
    display_name: str | UnsetType,
    metadata: dict[str, object] | UnsetType,
    role: Role | UnsetType,
) -> ParticipantAnswer:
    async with ctx.deciding(call_id) as tx:
        call, before = await _locked(tx, call_id, participant_id)
        members.demand_open(call)
        old = [before] if role is UNSET else await participants.of_user(tx, call_id, before.user_id)
        if role is not UNSET and any(each.role != role for each in old):
            await _demand_may_set(tx, ctx, before, role)
        await participants.change(
            tx,
            call_id,
            participant_id,
            display_name=None if display_name is UNSET else display_name,
            metadata=None if metadata is UNSET else joining.merged(ctx, before.metadata, metadata),
        )
        # With all the devices of that person.
        ranked = [] if role is UNSET else await participants.set_role(tx, call_id, before.user_id, role)
        if ranked:
            await _note(ctx, tx, "participant:set_role", before, None, {"role": role, "was": before.role})
        allowed = [(each, await members.allowed(tx, call, each)) for each in ranked]
        settled = await rights.withdraw(tx, call_id, allowed, ctx.now(), grace_of(ctx.hub.rules))
        new = {each.id: each for each in await participants.by_ids(tx, [each.id for each in old])}
        changed = [(each, new[each.id]) for each in old if participant_view(each) != participant_view(new[each.id])]
        ctx.due(call_id, [ParticipantUpdated(participant_view(after)) for _, after in changed])
        if settled is not None:
            ctx.due(call_id, settled.events)
        answer = ParticipantAnswer(participant_view(new[participant_id]))
        await ctx.keep(tx, answer)
    if settled is not None:
        await carry_out(ctx, settled)
    await in_time(
        ctx,
        *(tell_media(ctx, call, each, after) for each, after in changed),
        *(regrant(ctx, call, each, may) for each, may in allowed),
    )
    return answer


async def _demand_may_set(tx: Transaction, ctx: Context, target: Participant, role: Role) -> None:
    actor = ctx.member
    mine = rank(actor.role)
    if target.user_id == actor.call.owner_id:
        raise errors.Conflict("the owner stays host")
    if rank(members.as_role(target.role)) > mine or rank(role) > mine:
        raise errors.Forbidden("nobody changes a role above their own")
    if ctx.actor.user_id == target.user_id and target.role == "host" and not await _another_host(tx, target):
        raise errors.Conflict("the last host hands the role on first")


async def _another_host(tx: Transaction, mine: Participant) -> bool:
    present = await participants.in_call(tx, mine.call_id)
    return any(each.role == "host" and each.user_id != mine.user_id for each in present)


@commands.add(
    "participant:kick",
    needs="participant_kick",
    rate=Rate(20, per_s=10),
    emits=(ParticipantLeft, RoomLeft),
    http=Http("DELETE", "/rooms/{call_id}/participants/{participant_id}", 204),
)
async def kick(ctx: Context, message: KickParticipant) -> Empty:
    """Put somebody out, with all their devices; with `ban_s` they stay out that long."""
    now, call_id = ctx.now(), message.call_id
    async with ctx.deciding(call_id) as tx:
        call, target = await _locked(tx, call_id, message.participant_id)
        members.demand_open(call)
        _demand_may_remove(ctx, call, target)
        devices = await participants.request_kick(
            tx, call_id, target.user_id, now, by=ctx.actor.user_id, reason=message.reason
        )
        # Whoever was let in once has to be let in again.
        await lobby.forget(tx, call_id, target.user_id)
        if message.ban_s is not None:
            await bans.add(
                tx,
                call_id,
                target.user_id,
                banned_by=ctx.actor.user_id,
                reason=message.reason,
                expires_at=now + timedelta(seconds=message.ban_s),
            )
        await _note(ctx, tx, "participant:kick", target, message.reason, {"ban_s": message.ban_s})
        why = RoomLeft("kicked" if message.ban_s is None else "banned", message.reason or "")
        for device in devices:
            ctx.first(partial(evict, ctx, call_id, device.id, why))
        # The intent stands before LiveKit hears of it: whoever comes back with an old token is removed again.
        settled = await settle(ctx, tx, call_id, now)
        await ctx.keep(tx, Empty())
    await put_out(ctx, settled, [device.identity for device in devices])
    return Empty()


def _demand_may_remove(ctx: Context, call: Call, target: Participant) -> None:
    if target.user_id == ctx.actor.user_id:
        raise errors.Conflict("leave instead")
    if target.user_id == call.owner_id or rank(members.standing(call, target)) > rank(ctx.member.role):
        raise errors.Forbidden("nobody removes above their own rank")


@commands.add(
    "participant:unban",
    needs="participant_kick",
    rate=Rate(20, per_s=10),
    http=Http("DELETE", "/rooms/{call_id}/bans/{user_id}", 204),
)
async def unban(ctx: Context, message: UnbanUser) -> Empty:
    """Let somebody in again who was kicked or banned."""
    now = ctx.now()
    async with ctx.deciding(message.call_id) as tx:
        if await calls.lock(tx, message.call_id) is None:
            raise errors.NotFound()
        lifted = await bans.remove(tx, message.call_id, message.user_id)
        kicked = await participants.readmit(tx, message.call_id, message.user_id, now)
        if not lifted and not kicked:
            raise errors.NotFound("nobody of that id is kept out")
        await audit.add(
            tx,
            actor=ctx.actor.user_id,
            action="participant:unban",
            target_type="user",
            target_id=message.user_id,
            reason=None,
            details={"call_id": str(message.call_id)},
        )
        settled = await settle(ctx, tx, message.call_id, now)
        await ctx.keep(tx, Empty())
    await carry_out(ctx, settled)
    return Empty()


async def _locked(tx: Transaction, call_id: UUID, participant_id: UUID) -> tuple[Call, Participant]:
    """Both under the call's row lock. A participant of another call is as good as none."""
    call = await calls.lock(tx, call_id)
    found = await participants.get(tx, call_id, participant_id)
    if call is None or found is None:
        raise errors.NotFound()
    return call, found


async def _note(
    ctx: Context, tx: Transaction, action: str, target: Participant, reason: str | None, details: dict[str, object]
) -> None:
    await audit.add(
        tx,
        actor=ctx.actor.user_id,
        action=action,
        target_type="participant",
        target_id=str(target.id),
        reason=reason,
        details={"call_id": str(target.call_id), "user_id": target.user_id, **details},
    )
