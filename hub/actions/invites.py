"""Ringing: somebody in a call calls others to it, on all their devices, and one of those answers.

A callee who blocks the caller is never told. For the caller it rings all the same, and is missed: as with somebody who
is not there, or whom nobody has ever seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, NoReturn
from uuid import UUID, uuid4

from db import audit, bans, calls, contacts, invites, participants, users
from db.invites import Invite
from db.pool import Transaction
from hub.actions import members, pages
from hub.actions.contacts import NOBODY
from hub.actions.views import call_view
from hub.commands import Commands, Empty, Event, Http, Rate
from hub.context import Context
from hub.policy import rank
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.invites import (
    AnsweredBy,
    Caller,
    CallNamed,
    DeclineInvite,
    InviteAccepted,
    InviteAccess,
    InviteCanceled,
    InviteDeclined,
    InvitedTo,
    InviteMissed,
    InvitePage,
    InviteReceived,
    InviteSent,
    InviteStatus,
    InviteView,
    ListInvites,
    NameInvite,
    SendInvite,
)

commands = Commands()

# How often one person may ring another, and how often somebody's devices ring for all of them together.
_BY_ONE = (6, 60.0)
_BY_ALL = (30, 60.0)

# Where an action names the invite and not the call, its transactions wait for each other by the invite's id.


@commands.add(
    "invite:send",
    needs="invite_send",
    # Over all nodes: it rings in somebody's pocket.
    rate=Rate(20, per_s=60, shared=True),
    emits=(InviteReceived, InviteMissed),
    http=Http("POST", "/rooms/{call_id}/invites"),
)
async def send(ctx: Context, message: SendInvite) -> InviteSent:
    """Call people to the call you are in: it rings on all their devices until they answer or it is over."""
    _demand_known(ctx)
    callees = list(dict.fromkeys(message.user_ids))
    _demand_others(ctx, callees)
    await _demand_patience(ctx, callees)
    invite_id, now = uuid4(), ctx.now()
    answer = InviteSent(invite_id, now + timedelta(seconds=message.timeout_s))
    async with ctx.deciding(message.call_id) as tx:
        call = await calls.lock(tx, message.call_id)
        if call is None:
            raise errors.NotFound()
        members.demand_open(call)
        await _demand_absent(ctx, tx, call.id, callees)
        await users.seen(tx, ctx.actor.user_id, display_name=ctx.actor.display_name, avatar_url=ctx.actor.avatar_url)
        silent = await contacts.blocking(tx, callees)
        admits = "lobby_admit" in ctx.member.permissions
        called = await invites.add(
            tx,
            invite_id,
            call.id,
            callees,
            silent=list(silent),
            admits=admits,
            now=now,
            expires_at=answer.expires_at,
        )
        if len(called) < len(callees):
            already = [one for one in callees if one not in called]
            raise errors.Conflict("it rings for them already", details={"user_ids": already})
        if admits:
            await audit.add(
                tx,
                actor=ctx.actor.user_id,
                action="invite:send",
                target_type="call",
                target_id=str(call.id),
                details={"user_ids": callees, "invite_id": str(invite_id)},
            )
        event = InviteReceived(
            invite_id=invite_id,
            call=InvitedTo(call.id, call.name, call.call_type),
            caller=Caller(ctx.actor.user_id, ctx.actor.display_name, ctx.actor.avatar_url),
            created_at=now,
            expires_at=answer.expires_at,
        )
        # Who blocks the caller is not told; that nobody is takes as long as telling them.
        ctx.due_to_users((NOBODY if one in silent else one, event) for one in callees)
        await ctx.keep(tx, answer)
    return answer


@commands.add(
    "invite:accept",
    needs="user",
    rate=Rate(20, per_s=10),
    emits=(InviteAccepted, InviteCanceled),
    http=Http("POST", "/invites/{invite_id}/accept"),
)
async def accept(ctx: Context, message: NameInvite) -> InviteAccess:
    """Answer a call: your first device wins, the others hear `answered_elsewhere`. Then `room:join` the call."""
    async with ctx.deciding(message.invite_id) as tx:
        won = await _answer(ctx, tx, message.invite_id, "accepted")
        mine = won or await invites.to_me(tx, message.invite_id)
        if mine is None:
            raise errors.NotFound()
        if won is None and not (mine.status == "accepted" and _here(ctx, mine)):
            _too_late(mine)
        call = await calls.get(tx, mine.call_id)
        if call is None:
            raise errors.NotFound()
        members.demand_open(call)
        if not members.heads(ctx.actor, call) and await bans.active(tx, call.id, ctx.actor.user_id, ctx.now()):
            raise errors.Banned()
        answer = InviteAccess(call_view(call))
        if won is not None:
            event = InviteAccepted(won.invite_id, CallNamed(won.call_id), won.callee_id)
            ctx.due_to_users([(won.caller_id, event), _elsewhere(won, "answered_elsewhere")])
        await ctx.keep(tx, answer)
    return answer


@commands.add(
    "invite:decline",
    needs="user",
    rate=Rate(20, per_s=10),
    emits=(InviteDeclined, InviteCanceled),
    http=Http("POST", "/invites/{invite_id}/decline"),
)
async def decline(ctx: Context, message: DeclineInvite) -> Empty:
    """Do not come, on any of your devices. To decline what rings no longer is no mistake."""
    async with ctx.deciding(message.invite_id) as tx:
        won = await _answer(ctx, tx, message.invite_id, message.reason)
        if won is None:
            mine = await invites.to_me(tx, message.invite_id)
            if mine is None:
                raise errors.NotFound()
            if mine.status == "accepted":
                _too_late(mine)
        else:
            event = InviteDeclined(won.invite_id, CallNamed(won.call_id), won.callee_id, message.reason)
            ctx.due_to_users([(won.caller_id, event), _elsewhere(won, "declined_elsewhere")])
        await ctx.keep(tx, Empty())
    return Empty()


@commands.add(
    "invite:cancel",
    needs="anyone",
    rate=Rate(20, per_s=10),
    emits=(InviteCanceled,),
    http=Http("POST", "/invites/{invite_id}/cancel"),
)
async def cancel(ctx: Context, message: NameInvite) -> Empty:
    """Call no longer: it stops ringing for whoever has not answered."""
    async with ctx.deciding(message.invite_id) as tx:
        rang = await invites.cancel(tx, message.invite_id, ctx.now())
        if not rang and not await invites.by_me(tx, message.invite_id):
            raise errors.NotFound()
        ctx.due_to_users(
            (user_id, InviteCanceled(each.invite_id, CallNamed(each.call_id), each.callee_id, "canceled"))
            for each in rang
            for user_id in concerned(each)
        )
        await ctx.keep(tx, Empty())
    return Empty()


@commands.add("invite:list", needs="user", http=Http("GET", "/invites"), mutates=False)
async def list_(ctx: Context, message: ListInvites) -> InvitePage:
    """Your call log, newest first: whom you called, who called you, what came of it, and what rings now."""
    async with ctx.transaction() as tx:
        found = await invites.page(
            tx,
            direction=message.direction,
            status=message.status,
            call_id=message.call_id,
            after=pages.row(message.cursor),
            limit=message.limit + 1,
        )
    items, more = found[: message.limit], len(found) > message.limit
    return InvitePage(
        items=[_view(ctx, each) for each in items],
        next_cursor=pages.cursor(items[-1].created_at, items[-1].id) if more else None,
    )


def concerned(invite: Invite) -> list[str]:
    """Who hears that it rings no longer."""
    return [invite.caller_id] if invite.silent else [invite.caller_id, invite.callee_id]


def ended(invite: Invite) -> Event:
    """What the passing of time says of an invite: missed, or its call is over."""
    if invite.status == "missed":
        return InviteMissed(invite.invite_id, CallNamed(invite.call_id), invite.caller_id, invite.callee_id)
    return InviteCanceled(invite.invite_id, CallNamed(invite.call_id), invite.callee_id, "call_ended")


async def _answer(ctx: Context, tx: Transaction, invite_id: UUID, status: str) -> Invite | None:
    session_id = ctx.session.id if ctx.session else None
    return await invites.answer(tx, invite_id, status, ctx.now(), session_id=session_id, device_id=ctx.device_id)


def _here(ctx: Context, invite: Invite) -> bool:
    """Whether it was this device that answered: it asks again, after a reconnect say."""
    if ctx.session is not None and ctx.session.id == invite.answered_session:
        return True
    return ctx.device_id is not None and ctx.device_id == invite.answered_device


def _too_late(invite: Invite) -> NoReturn:
    if invite.status == "accepted":
        raise errors.AnsweredElsewhere()
    # What has rung long enough may not be marked yet.
    status = "missed" if invite.status == "ringing" else invite.status
    raise errors.InviteEnded(details={"status": status})


def _elsewhere(invite: Invite, why: Literal["answered_elsewhere", "declined_elsewhere"]) -> tuple[str, Event]:
    by = AnsweredBy(invite.answered_session, invite.answered_device)
    return invite.callee_id, InviteCanceled(invite.invite_id, CallNamed(invite.call_id), invite.callee_id, why, by)


def _demand_known(ctx: Context) -> None:
    """It rings in the pocket of anybody who is named: nobody whom we do not know makes it do so."""
    if ctx.actor.role == "guest" and rank(ctx.member.role) < rank("moderator"):
        raise errors.Forbidden("guests call nobody: sign in")


def _demand_others(ctx: Context, callees: Sequence[str]) -> None:
    for number, one in enumerate(callees):
        text = "that is you" if one == ctx.actor.user_id else "guests come by their link" if _guest(one) else None
        if text is None and "\0" in one:
            text = "holds U+0000"
        if text is not None:
            path = f"user_ids[{number}]"
            raise errors.ValidationFailed(f"{path}: {text}", errors=[FieldError(path, text)])


def _guest(user_id: str) -> bool:
    return user_id.startswith("guest:")


async def _demand_patience(ctx: Context, callees: Sequence[str]) -> None:
    """Nobody is rung up all the time, by one person or by all of them."""
    tenant, me = ctx.actor.tenant_id, ctx.actor.user_id
    asked = [(f"ring:{tenant}:{me}>{one}", _BY_ONE) for one in callees]
    asked += [(f"ring:{tenant}:{one}", _BY_ALL) for one in callees]
    verdicts = await asyncio.gather(*(ctx.hub.limits.allow(key, *rate) for key, rate in asked))
    wait_ms = max(0 if verdict.allowed else verdict.retry_after_ms for verdict in verdicts)
    if wait_ms:
        raise errors.RateLimited("they were called a moment ago", retry_after_ms=wait_ms)


async def _demand_absent(ctx: Context, tx: Transaction, call_id: UUID, callees: Sequence[str]) -> None:
    """None of them is in the call, or kept out of it."""
    present = {each.user_id for each in await participants.in_call(tx, call_id)}
    if inside := [one for one in callees if one in present]:
        raise errors.AlreadyInRoom("they are in the call", details={"user_ids": inside})
    banned = {each.user_id for each in await bans.of_call(tx, call_id, ctx.now())}
    if kept_out := [one for one in callees if one in banned]:
        raise errors.Conflict("they are banned from the call", details={"user_ids": kept_out})


def _view(ctx: Context, invite: Invite) -> InviteView:
    return InviteView(
        id=invite.id,
        invite_id=invite.invite_id,
        direction="outgoing" if invite.caller_id == ctx.actor.user_id else "incoming",
        call_id=invite.call_id,
        caller_id=invite.caller_id,
        user_id=invite.callee_id,
        status=_status(invite.status),
        created_at=invite.created_at,
        expires_at=invite.expires_at,
        ended_at=invite.ended_at,
    )


def _status(text: str) -> InviteStatus:
    """As the table holds it."""
    known: tuple[InviteStatus, ...] = ("ringing", "accepted", "declined", "busy", "canceled", "missed")
    return next(status for status in known if status == text)
