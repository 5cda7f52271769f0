"""Who has to wait at the door of a call, and what everybody concerned hears of it.

The queue changes under the call's row lock only, by whoever it is: an action, the clock, the end of the call. Each
change here answers with its news, as pairs of a person and what they hear after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from db import invites, lobby, participants
from db.calls import Call
from db.errors import DatabaseUnavailable
from db.lobby import Entry
from db.participants import Participant
from db.pool import Transaction
from hub.actions import members
from hub.commands import Event
from hub.context import Actor, Context
from hub.policy import Role, rank
from hub.protocol import errors
from hub.protocol.lobby import LobbyAdmitted, LobbyDenied, LobbyEntry, LobbyKnocked, LobbyUpdated

News = list[tuple[str, Event]]
# Who of the queue was decided about, and the news.
Outcome = tuple[list[Entry], News]

log = structlog.get_logger("hub.lobby")

# As in `system_lobbies_due`: what was decided is told within this, or not at all by whoever decided it.
UNTOLD = timedelta(seconds=5)


async def demand_let_in(ctx: Context, tx: Transaction, call: Call, role: Role) -> None:
    """Raises LobbyRequired, or LobbyDenied while a denial is fresh, for who has to knock and was not let in."""
    if not has_lobby(ctx.actor, call, role) or await members.was_in(tx, ctx.actor, call):
        return
    entry = await lobby.of_user(tx, call.id, ctx.actor.user_id)
    if entry is not None and entry.status == "admitted":
        return
    demand_not_denied(ctx, entry)
    raise errors.LobbyRequired()


def has_lobby(actor: Actor, call: Call, role: Role) -> bool:
    """Whether the door is closed to somebody with that role: by their link whatever they are, else by the call."""
    if members.heads(actor, call):
        return False
    return by_link(actor) or (call.lobby_enabled and rank(role) < rank("moderator"))


def by_link(actor: Actor) -> bool:
    return actor.guest is not None and actor.guest.approval


async def called_in(tx: Transaction, call_id: UUID, known: Sequence[Participant]) -> bool:
    """Whether they come because somebody who may let people in called them, and nobody put them out since.

    `known`: the devices that the transaction's user has had in the call.
    """
    put_out = [each.kick_requested_at for each in known if each.kick_requested_at is not None]
    return await invites.lets_in(tx, call_id, max(put_out, default=None))


def demand_not_denied(ctx: Context, entry: Entry | None) -> None:
    if entry is None or entry.status != "denied" or entry.decided_at is None:
        return
    again_at = entry.again_at or entry.decided_at + timedelta(seconds=ctx.hub.rules.lobby_cooldown_s)
    left_ms = int((again_at - ctx.now()).total_seconds() * 1000)
    if left_ms > 0:
        raise errors.LobbyDenied(entry.reason or "", retry_after_ms=left_ms)


def view(entry: Entry, position: int = 0) -> LobbyEntry:
    return LobbyEntry(
        call_id=entry.call_id,
        ticket=entry.ticket,
        user_id=entry.user_id,
        display_name=entry.display_name,
        status=entry.status,
        position=position,
        knocked_at=entry.knocked_at,
        expires_at=entry.expires_at,
    )


async def queue(tx: Transaction, call: Call) -> list[LobbyEntry]:
    return [view(entry, position) for position, entry in enumerate(await lobby.queue(tx, call.id), 1)]


async def knocked(tx: Transaction, call: Call, entry: Entry) -> tuple[int, News]:
    """The place of somebody who is in the queue since now, and the news."""
    waiting = await lobby.queue(tx, call.id)
    position = next(place for place, each in enumerate(waiting, 1) if each.ticket == entry.ticket)
    event = LobbyKnocked(view(entry, position), len(waiting))
    return position, [(host, event) for host in await _hosts(tx, call)]


async def admit(
    tx: Transaction, call: Call, entries: Iterable[Entry], now: datetime, *, by: str | None = None
) -> Outcome:
    """Let these in; who of them was still waiting."""
    return await _decide(tx, call, entries, "admitted", now, LobbyAdmitted, by=by)


async def deny(
    tx: Transaction,
    call: Call,
    entries: Iterable[Entry],
    now: datetime,
    *,
    by: str,
    reason: str | None,
    cooldown_s: float,
) -> Outcome:
    """Send these away; who of them was still waiting. They may knock again after `cooldown_s`."""

    def told(entry: LobbyEntry) -> Event:
        return LobbyDenied(entry, "denied", reason or "", int(cooldown_s * 1000))

    again_at = now + timedelta(seconds=cooldown_s)
    return await _decide(tx, call, entries, "denied", now, told, by=by, reason=reason, again_at=again_at)


async def cancel(tx: Transaction, call: Call, user_id: str, now: datetime) -> News:
    """They wait no longer, of their own will: their other devices hear of it."""
    before = await lobby.queue(tx, call.id)
    mine = [entry for entry in before if entry.user_id == user_id]
    left = len(before) - len(mine)
    _, news = await _decide(tx, call, mine, "canceled", now, lambda entry: LobbyUpdated([entry], left))
    return news


async def expire(tx: Transaction, call: Call, now: datetime) -> Outcome:
    """Nobody decided in time: that is a no, and they may knock again at once."""
    late = [entry for entry in await lobby.queue(tx, call.id) if entry.expires_at <= now]
    return await _decide(tx, call, late, "timed_out", now, lambda entry: LobbyDenied(entry, "timed_out", "", 0))


async def turn_away(tx: Transaction, call: Call, now: datetime) -> Outcome:
    """The call is over."""
    waiting = await lobby.queue(tx, call.id)
    return await _decide(tx, call, waiting, "timed_out", now, lambda entry: LobbyDenied(entry, "call_ended", "", None))


async def open_door(tx: Transaction, call: Call, now: datetime, *, by: str) -> Outcome:
    """The call has no lobby any more: who waited for that alone comes in."""
    return await admit(tx, call, [e for e in await lobby.queue(tx, call.id) if not e.by_link], now, by=by)


def tell(ctx: Context, call_id: UUID, outcome: Outcome, now: datetime) -> None:
    """The news, after the commit. Whoever dies before they are out has them told by another node (`retell`)."""
    decided, news = outcome
    ctx.due_to_users(news)
    if decided:
        ctx.first(partial(_told, ctx, call_id, [entry.ticket for entry in decided], now))


async def _told(ctx: Context, call_id: UUID, tickets: Sequence[UUID], now: datetime) -> None:
    try:
        async with ctx.transaction() as tx:
            await lobby.told(tx, call_id, tickets, now)
    except DatabaseUnavailable as error:
        # Then it is told once more.
        log.warning("lobby_not_marked_as_told", error=str(error)[:200], call_id=str(call_id))


async def retell(tx: Transaction, call: Call, now: datetime, *, cooldown_s: float) -> Outcome:
    """What was decided a while ago and is not known to have been told. Where it was, it comes a second time."""
    late = await lobby.untold(tx, call.id, now - UNTOLD)
    if not late:
        return [], []
    waiting = await queue(tx, call)
    event = LobbyUpdated([view(entry) for entry in late], len(waiting))
    return late, [
        *((entry.user_id, _outcome(call, entry, now, cooldown_s)) for entry in late),
        *((entry.user_id, LobbyUpdated([entry], len(waiting))) for entry in waiting),
        *((host, event) for host in await _hosts(tx, call)),
    ]


def _outcome(call: Call, entry: Entry, now: datetime, cooldown_s: float) -> Event:
    if entry.status == "admitted":
        return LobbyAdmitted(view(entry))
    if entry.status == "timed_out":
        over = call.status == "ended"
        return LobbyDenied(view(entry), "call_ended" if over else "timed_out", "", None if over else 0)
    again_at = entry.again_at or (entry.decided_at or now) + timedelta(seconds=cooldown_s)
    left_s = (again_at - now).total_seconds()
    return LobbyDenied(view(entry), "denied", entry.reason or "", max(0, int(left_s * 1000)))


async def _decide(
    tx: Transaction,
    call: Call,
    entries: Iterable[Entry],
    status: str,
    now: datetime,
    told: Callable[[LobbyEntry], Event],
    *,
    by: str | None = None,
    reason: str | None = None,
    again_at: datetime | None = None,
) -> Outcome:
    tickets = [entry.ticket for entry in entries]
    if not tickets:
        return [], []
    before = await lobby.queue(tx, call.id)
    # Who waits no longer of their own will knows it.
    untold_since = None if status == "canceled" else now
    gone = await lobby.decide(
        tx, call.id, tickets, status, now, by=by, reason=reason, again_at=again_at, untold_since=untold_since
    )
    if not gone:
        return [], []
    news: News = [(entry.user_id, told(view(entry))) for entry in gone]
    return gone, news + await _left(tx, call, before, gone)


async def _left(tx: Transaction, call: Call, before: Sequence[Entry], gone: Sequence[Entry]) -> News:
    """What the others hear: whoever moved up, and the hosts."""
    tickets = {entry.ticket for entry in gone}
    waiting = [entry for entry in before if entry.ticket not in tickets]
    moved = [
        (entry.user_id, LobbyUpdated([view(entry, position)], len(waiting)))
        for position, entry in enumerate(waiting, 1)
        if before[position - 1].ticket != entry.ticket
    ]
    event = LobbyUpdated([view(entry) for entry in gone], len(waiting))
    return [*moved, *((host, event) for host in await _hosts(tx, call))]


async def _hosts(tx: Transaction, call: Call) -> list[str]:
    """Who may let people in: the owner wherever they are, and the moderators who are in the call."""
    present = await participants.in_call(tx, call.id)
    moderators = (each.user_id for each in present if rank(members.standing(call, each)) >= rank("moderator"))
    return list(dict.fromkeys((call.owner_id, *moderators)))
