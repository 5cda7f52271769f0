"""Presence: what somebody looks like to their contacts, and watching one's own contacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from db import contacts
from db.pool import Database
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context
from hub.protocol import errors
from hub.protocol.presence import (
    ListPresence,
    PresenceAnswer,
    PresenceChanged,
    Presences,
    PresenceView,
    SetPresence,
    UnwatchPresence,
    WatchPresence,
)
from hub.state.presence import UNKNOWN, Presence, seen_by

commands = Commands()


@commands.add("presence:set", needs="user", rate=Rate(20, per_s=10), emits=(PresenceChanged,))
async def choose(ctx: Context, message: SetPresence) -> PresenceAnswer:
    """Choose what you look like on all your devices, until you choose something else."""
    actor = ctx.actor
    # An empty line is none; no line at all leaves the one of before.
    text = None if message.text == "" else message.text
    known = await ctx.hub.presence.choose(actor.tenant_id, actor.user_id, message.status, text)
    return PresenceAnswer(view(actor.user_id, seen_by(known, themselves=True)))


@commands.add("presence:watch", needs="user", rate=Rate(20, per_s=10), emits=(PresenceChanged,), mutates=False)
async def watch(ctx: Context, message: WatchPresence) -> Presences:
    """How these contacts of yours are now, and `presence:changed` from now on; whom you may not see looks offline."""
    if ctx.session is None:
        raise errors.BadRequest("this needs a socket")
    shown = await may_see(ctx.hub.db, ctx.actor.tenant_id, ctx.actor.user_id, message.user_ids)
    seen = await ctx.hub.watching.watch(ctx.session.id, ctx.actor.tenant_id, ctx.actor.user_id, shown)
    return _all(message.user_ids, seen)


@commands.add("presence:unwatch", needs="user", rate=Rate(20, per_s=10), mutates=False)
async def unwatch(ctx: Context, message: UnwatchPresence) -> Empty:
    """Watch these people no longer."""
    if ctx.session is None:
        raise errors.BadRequest("this needs a socket")
    ctx.hub.watching.unwatch(ctx.session.id, message.user_ids)
    return Empty()


@commands.add(
    "presence:list",
    needs="user",
    rate=Rate(20, per_s=10),
    http=Http("GET", "/presence"),
    socket=False,
    mutates=False,
)
async def look(ctx: Context, message: ListPresence) -> Presences:
    """How these contacts of yours are now; whom you may not see looks offline."""
    shown = await may_see(ctx.hub.db, ctx.actor.tenant_id, ctx.actor.user_id, message.user_ids)
    known = await ctx.hub.presence.look(ctx.actor.tenant_id, list(shown))
    seen = {
        user_id: seen_by(one, themselves=user_id == ctx.actor.user_id, hidden_since=shown[user_id])
        for user_id, one in zip(shown, known, strict=True)
    }
    return _all(message.user_ids, seen)


async def may_see(db: Database, tenant_id: UUID, user_id: str, user_ids: Sequence[str]) -> dict[str, datetime | None]:
    """Of these people, whom that user may see: themselves and their accepted contacts.

    With since when a contact blocks them, who is then shown as gone at that time. Raises DatabaseUnavailable.
    """
    others = [one for one in user_ids if one != user_id]
    shown: dict[str, datetime | None] = {user_id: None} if len(others) < len(user_ids) else {}
    if others:
        async with db.tenant(tenant_id, user_id) as tx:
            shown.update(await contacts.shown(tx, others))
    return shown


def view(user_id: str, seen: Presence) -> PresenceView:
    return PresenceView(user_id=user_id, status=seen.status, text=seen.text, last_seen=seen.last_seen)


def _all(user_ids: Sequence[str], seen: Mapping[str, Presence]) -> Presences:
    """Everybody who was asked for: who is left out would learn that there is something to learn."""
    return Presences([view(one, seen.get(one, UNKNOWN)) for one in dict.fromkeys(user_ids)])
