"""The lobby: knocking at the door of a call, and letting in or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from db import audit, bans, calls, lobby, participants
from db.calls import Call
from db.lobby import Entry
from db.pool import Transaction
from hub.actions import members, waiting
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.lobby import (
    CancelKnock,
    DecideLobby,
    DecideTicket,
    Knock,
    ListLobby,
    Lobby,
    LobbyAdmitted,
    LobbyCount,
    LobbyDenied,
    LobbyKnocked,
    LobbyTicket,
    LobbyUpdated,
)

commands = Commands()


@commands.add("lobby:knock", needs="anyone", rate=Rate(20, per_s=60), emits=(LobbyKnocked,))
async def knock(ctx: Context, message: Knock) -> LobbyTicket:
    """Ask to be let into a call. Asking again, as after a reconnect, keeps your place and tells the hosts again."""
    now = ctx.now()
    async with ctx.deciding(message.call_id) as tx:
        call = await _door(ctx, tx, message.call_id)
        actor = ctx.actor
        # Whose time is over must not stand in the way until the clock comes round.
        waiting.tell(ctx, call.id, await waiting.expire(tx, call, now), now)
        entry = await lobby.of_user(tx, call.id, actor.user_id)
        if await _may_come_in(ctx, tx, call, entry):
            answer = LobbyTicket("admitted", entry.ticket if entry else None, 0, 0)
            await ctx.keep(tx, answer)
            return answer
        waiting.demand_not_denied(ctx, entry)
        if call.locked:
            raise errors.RoomLocked()
        if entry is None or entry.status != "waiting":
            entry = await _queue_up(ctx, tx, call, message, now)
        # Known knocks, too: the node that took it may have died before it could tell anybody.
        position, news = await waiting.knocked(tx, call, entry)
        ctx.due_to_users(news)
        left_s = math.ceil((entry.expires_at - now).total_seconds())
        answer = LobbyTicket("waiting", entry.ticket, position, left_s)
        await ctx.keep(tx, answer)
    return answer


async def _door(ctx: Context, tx: Transaction, call_id: UUID) -> Call:
    """The call under its lock, open to be knocked at by the actor."""
    call = None if members.elsewhere(ctx.actor, call_id) else await calls.lock(tx, call_id)
    if call is None:
        raise errors.NotFound()
    members.demand_open(call)
    if not members.heads(ctx.actor, call) and await bans.active(tx, call_id, ctx.actor.user_id, ctx.now()):
        raise errors.Banned()
    ctx.actor = await members.as_linked(tx, ctx.actor, call, ctx.now())
    return call


async def _may_come_in(ctx: Context, tx: Transaction, call: Call, entry: Entry | None) -> bool:
    known = await participants.of_user(tx, call.id, ctx.actor.user_id)
    role = members.role_of(ctx.actor, call, known[-1] if known else None)
    if not waiting.has_lobby(ctx.actor, call, role) or await members.was_in(tx, ctx.actor, call):
        return True
    return (entry is not None and entry.status == "admitted") or await waiting.called_in(tx, call.id, known)


async def _queue_up(ctx: Context, tx: Transaction, call: Call, message: Knock, now: datetime) -> Entry:
    actor, rules = ctx.actor, ctx.hub.rules
    if len(await lobby.queue(tx, call.id)) >= rules.lobby_seats:
        raise errors.RoomFull(f"{rules.lobby_seats} wait already")
    return await lobby.knock(
        tx,
        call.id,
        actor.user_id,
        display_name=message.display_name or actor.display_name,
        by_link=waiting.by_link(actor),
        via_link_id=actor.guest.link_id if actor.guest else None,
        expires_at=now + timedelta(seconds=rules.lobby_timeout_s),
    )


@commands.add("lobby:cancel", needs="anyone", rate=Rate(20, per_s=60), emits=(LobbyUpdated,))
async def cancel(ctx: Context, message: CancelKnock) -> Empty:
    """Wait no longer. Who does not wait has nothing to cancel, and is answered the same."""
    async with ctx.deciding(message.call_id) as tx:
        call = None if members.elsewhere(ctx.actor, message.call_id) else await calls.lock(tx, message.call_id)
        if call is None:
            raise errors.NotFound()
        ctx.due_to_users(await waiting.cancel(tx, call, ctx.actor.user_id, ctx.now()))
        await ctx.keep(tx, Empty())
    return Empty()


@commands.add("lobby:list", needs="lobby_admit", http=Http("GET", "/rooms/{call_id}/lobby"), mutates=False)
async def list_(ctx: Context, message: ListLobby) -> Lobby:
    """Everybody who waits, the longest first.

    Whoever becomes a moderator asks once, and hears of changes from then on.
    """
    async with ctx.transaction() as tx:
        return Lobby(await waiting.queue(tx, ctx.member.call))


@commands.add("lobby:admit", needs="lobby_admit", rate=Rate(50, per_s=10), emits=(LobbyAdmitted, LobbyUpdated))
async def admit(ctx: Context, message: DecideLobby) -> LobbyCount:
    """Let people in. They hear it and come by themselves; a seat they take only then."""
    return await _decide(ctx, "lobby:admit", message.call_id, _wanted(message), message.reason)


@commands.add("lobby:deny", needs="lobby_admit", rate=Rate(50, per_s=10), emits=(LobbyDenied, LobbyUpdated))
async def deny(ctx: Context, message: DecideLobby) -> LobbyCount:
    """Send people away. They may knock again after a while."""
    return await _decide(ctx, "lobby:deny", message.call_id, _wanted(message), message.reason)


@commands.add(
    "lobby:admit_one",
    needs="lobby_admit",
    rate=Rate(50, per_s=10),
    emits=(LobbyAdmitted, LobbyUpdated),
    http=Http("POST", "/rooms/{call_id}/lobby/{ticket}/admit"),
    socket=False,
)
async def admit_one(ctx: Context, message: DecideTicket) -> LobbyCount:
    """Let somebody in. `count` is 0 where that was decided before."""
    await _demand_ticket(ctx, message)
    return await _decide(ctx, "lobby:admit", message.call_id, [message.ticket], message.reason)


@commands.add(
    "lobby:deny_one",
    needs="lobby_admit",
    rate=Rate(50, per_s=10),
    emits=(LobbyDenied, LobbyUpdated),
    http=Http("POST", "/rooms/{call_id}/lobby/{ticket}/deny"),
    socket=False,
)
async def deny_one(ctx: Context, message: DecideTicket) -> LobbyCount:
    """Send somebody away. `count` is 0 where that was decided before."""
    await _demand_ticket(ctx, message)
    return await _decide(ctx, "lobby:deny", message.call_id, [message.ticket], message.reason)


async def _demand_ticket(ctx: Context, message: DecideTicket) -> None:
    async with ctx.transaction() as tx:
        if await lobby.by_ticket(tx, message.call_id, message.ticket) is None:
            raise errors.NotFound()


def _wanted(message: DecideLobby) -> Sequence[UUID] | None:
    """The tickets; None: all."""
    if message.all == (message.tickets is not None):
        text = "either tickets or all"
        raise errors.ValidationFailed(text, errors=[FieldError("tickets", text)])
    return message.tickets


async def _decide(
    ctx: Context, action: str, call_id: UUID, tickets: Sequence[UUID] | None, reason: str | None
) -> LobbyCount:
    now, user_id = ctx.now(), ctx.actor.user_id
    async with ctx.deciding(call_id) as tx:
        call = await calls.lock(tx, call_id)
        if call is None:
            raise errors.NotFound()
        members.demand_open(call)
        wanted = [each for each in await lobby.queue(tx, call_id) if tickets is None or each.ticket in tickets]
        if action == "lobby:admit":
            if call.locked:
                raise errors.RoomLocked("whoever is let in could not come in: unlock the room first")
            decided, news = await waiting.admit(tx, call, wanted, now, by=user_id)
        else:
            cooldown_s = ctx.hub.rules.lobby_cooldown_s
            decided, news = await waiting.deny(tx, call, wanted, now, by=user_id, reason=reason, cooldown_s=cooldown_s)
        if decided:
            await _note(ctx, tx, action, call_id, decided, reason)
        waiting.tell(ctx, call_id, (decided, news), now)
        answer = LobbyCount(len(decided))
        await ctx.keep(tx, answer)
    return answer


async def _note(
    ctx: Context, tx: Transaction, action: str, call_id: UUID, decided: Sequence[Entry], reason: str | None
) -> None:
    await audit.add(
        tx,
        actor=ctx.actor.user_id,
        action=action,
        target_type="call",
        target_id=str(call_id),
        reason=reason,
        details={"user_ids": [entry.user_id for entry in decided]},
    )
