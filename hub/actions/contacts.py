"""Contacts: asking, agreeing, parting, blocking. Two people each have a list of their own.

Who is blocked must not learn it, by no answer, no event and no delay: whatever they do is answered as it is to a
stranger who does not react.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import UUID

import structlog
from msgspec import UNSET

from db import contacts, users
from db.contacts import Contact
from db.pool import Transaction
from db.users import User
from hub.actions import pages
from hub.commands import Commands, Empty, Event, Http, Rate
from hub.context import Context
from hub.protocol import errors
from hub.protocol.contacts import (
    AddContact,
    ContactAnswer,
    ContactChanged,
    ContactLeft,
    ContactPage,
    ContactRemoved,
    ContactStatus,
    ContactView,
    ListContacts,
    NameContact,
    UpdateContact,
)
from hub.protocol.errors import FieldError, HubError

log = structlog.get_logger("hub.contacts")
commands = Commands()

News = list[tuple[str, Event]]
# No user has that id.
NOBODY = ""


@commands.add("contact:list", needs="user", http=Http("GET", "/contacts"), mutates=False)
async def list_(ctx: Context, message: ListContacts) -> ContactPage:
    """Your contacts, newest first: those you have, asked, are asked by, and block."""
    wanted = message.status
    async with ctx.transaction() as tx:
        found = await contacts.page(
            tx,
            status="pending" if wanted == "requested" else wanted,
            incoming={"requested": True, "pending": False}.get(wanted or ""),
            favorite=message.favorite,
            after=pages.row(message.cursor),
            limit=message.limit + 1,
        )
        items = found[: message.limit]
        known = await users.by_ids(tx, [each.user_id for each in items])
    more = len(found) > message.limit
    return ContactPage(
        items=[view(each, known.get(each.user_id)) for each in items],
        next_cursor=pages.cursor(items[-1].created_at, items[-1].id) if more else None,
    )


@commands.add("contact:get", needs="user", http=Http("GET", "/contacts/{contact_id}"), socket=False, mutates=False)
async def get(ctx: Context, message: NameContact) -> ContactAnswer:
    """One contact of yours."""
    async with ctx.transaction() as tx:
        return ContactAnswer(await _shown(tx, await _mine(tx, message.contact_id)))


@commands.add(
    "contact:add",
    needs="user",
    # Over all nodes: each may reach somebody who does not know the sender.
    rate=Rate(30, per_s=60, shared=True),
    emits=(ContactChanged,),
    http=Http("POST", "/contacts", 201, location="/contacts/{contact.contact_id}"),
)
async def add(ctx: Context, message: AddContact) -> ContactAnswer:
    """Ask somebody to be a contact, agree where they asked already, or block them. They need not have come here yet."""
    other = message.user_id
    _demand_somebody_else(ctx, other)
    news: News = []
    async with ctx.transaction() as tx:
        # Before anything that another transaction could wait for: two who ask each other make each other's rows.
        await contacts.hold(tx, other)
        await users.seen(tx, ctx.actor.user_id, display_name=ctx.actor.display_name, avatar_url=ctx.actor.avatar_url)
        mine = await contacts.with_(tx, other)
        if mine is None:
            mine = await _add(ctx, tx, message, news)
        elif mine.status == "pending" and mine.incoming and not message.blocked:
            mine = await _agree(ctx, tx, mine, news)
        else:
            raise errors.Conflict("that person is in your list", details={"contact_id": str(mine.id)})
        answer = ContactAnswer(await _shown(tx, mine))
        await ctx.keep(tx, answer)
    await _tell(ctx, [(ctx.actor.user_id, ContactChanged(answer.contact)), *news], other)
    return answer


async def _add(ctx: Context, tx: Transaction, message: AddContact, news: News) -> Contact:
    rules = ctx.hub.rules
    if await contacts.count(tx) >= rules.contacts_per_user:
        raise errors.Conflict(f"at most {rules.contacts_per_user} contacts")
    await users.mentioned(tx, message.user_id)
    mine = await contacts.add(
        tx,
        message.user_id,
        display_name=message.display_name,
        favorite=message.favorite,
        notes=message.notes,
        status="blocked" if message.blocked else "pending",
    )
    if message.blocked:
        return mine
    theirs = await contacts.ask(tx, message.user_id, at_most=rules.contact_requests_per_user)
    # Where they are told nothing, that takes as long as telling them.
    told = ContactChanged(await _shown(tx, theirs or mine))
    news.append((theirs.owner_id if theirs else NOBODY, told))
    return await contacts.set_status(tx, mine.id, "accepted") if theirs and theirs.status == "accepted" else mine


@commands.add(
    "contact:update",
    needs="user",
    rate=Rate(30, per_s=10),
    emits=(ContactChanged, ContactRemoved),
    http=Http("PATCH", "/contacts/{contact_id}"),
)
async def update(ctx: Context, message: UpdateContact) -> ContactLeft:
    """Change what you keep of a contact, agree to their request, block or unblock them."""
    news: News = []
    async with ctx.transaction() as tx:
        mine = await _held(tx, message.contact_id)
        if ctx.if_match is not None and view(mine, None).etag not in map(str.strip, ctx.if_match.split(",")):
            raise errors.PreconditionFailed()
        kept: Contact | None = await contacts.change(
            tx,
            mine.id,
            display_name=mine.display_name if message.display_name is UNSET else message.display_name,
            favorite=mine.favorite if message.favorite is UNSET else message.favorite,
            notes=mine.notes if message.notes is UNSET else message.notes,
        )
        if message.accepted is not UNSET:
            if message.blocked is not UNSET:
                text = "either accepted or blocked"
                raise errors.ValidationFailed(f"accepted: {text}", errors=[FieldError("accepted", text)])
            kept = await _agree(ctx, tx, mine, news)
        elif message.blocked is True and mine.status != "blocked":
            kept = await contacts.set_status(tx, mine.id, "blocked", incoming=mine.incoming, kept_status=mine.status)
        elif message.blocked is False and mine.status == "blocked":
            kept = await _unblock(tx, mine)
        answer = ContactLeft(await _shown(tx, kept) if kept else None)
        await ctx.keep(tx, answer)
    told = ContactChanged(answer.contact) if answer.contact else ContactRemoved(mine.id, mine.user_id)
    seen_anew = kept is None or kept.status != mine.status
    await _tell(ctx, [(mine.owner_id, told), *news], mine.user_id if seen_anew else None)
    return answer


async def _agree(ctx: Context, tx: Transaction, mine: Contact, news: News) -> Contact:
    if mine.status == "accepted":
        return mine
    if mine.status != "pending" or not mine.incoming:
        raise errors.Conflict("they have not asked")
    theirs = await contacts.agree(tx, mine.user_id)
    if theirs is not None:
        news.append((theirs.owner_id, ContactChanged(await _shown(tx, theirs))))
    return await contacts.set_status(tx, mine.id, "accepted")


async def _unblock(tx: Transaction, mine: Contact) -> Contact | None:
    """As it was before, as far as the other's list agrees; what they decided about us meanwhile does not show.

    None: they were a stranger, or went, and are none of our contacts any more.
    """
    theirs = await contacts.of_other(tx, mine.user_id)
    asked = theirs is not None and theirs.status == "pending" and not theirs.incoming
    if asked and mine.kept_status != "accepted":
        return await contacts.set_status(tx, mine.id, "pending", incoming=True)
    if theirs is None or mine.kept_status is None or (mine.kept_status == "pending" and mine.incoming):
        # A request that was taken back, or nothing at all.
        await contacts.remove(tx, mine.id)
        return None
    return await contacts.set_status(tx, mine.id, mine.kept_status)


@commands.add(
    "contact:remove",
    needs="user",
    rate=Rate(30, per_s=10),
    emits=(ContactRemoved,),
    http=Http("DELETE", "/contacts/{contact_id}", 204),
)
async def remove(ctx: Context, message: NameContact) -> Empty:
    """Take somebody out of your list, and yourself out of theirs; takes back a request, or turns theirs down."""
    async with ctx.transaction() as tx:
        mine = await _held(tx, message.contact_id)
        await contacts.remove(tx, mine.id)
        theirs = await contacts.part(tx, mine.user_id)
        await ctx.keep(tx, Empty())
    gone = [mine, theirs] if theirs else [mine]
    await _tell(ctx, [(each.owner_id, ContactRemoved(each.id, each.user_id)) for each in gone], mine.user_id)
    return Empty()


def view(contact: Contact, them: User | None) -> ContactView:
    """`them`: what is known of the other, shown only where they agreed or asked."""
    status: ContactStatus = "accepted"
    if contact.status == "blocked":
        status = "blocked"
    elif contact.status == "pending":
        status = "requested" if contact.incoming else "pending"
    profile = them if status in ("accepted", "requested") else None
    return ContactView(
        contact_id=contact.id,
        user_id=contact.user_id,
        status=status,
        display_name=contact.display_name,
        profile_name=profile.display_name if profile else None,
        avatar_url=profile.avatar_url if profile else None,
        favorite=contact.favorite,
        notes=contact.notes,
        created_at=contact.created_at,
        updated_at=contact.updated_at,
    )


async def _shown(tx: Transaction, contact: Contact) -> ContactView:
    """As its owner sees it."""
    return view(contact, (await users.by_ids(tx, [contact.user_id])).get(contact.user_id))


async def _mine(tx: Transaction, contact_id: UUID) -> Contact:
    found = await contacts.get(tx, contact_id)
    if found is None:
        raise errors.NotFound()
    return found


async def _held(tx: Transaction, contact_id: UUID) -> Contact:
    """The row as it is once nobody else changes anything between the two."""
    await contacts.hold(tx, (await _mine(tx, contact_id)).user_id)
    return await _mine(tx, contact_id)


def _demand_somebody_else(ctx: Context, other: str) -> None:
    text = None
    if other == ctx.actor.user_id:
        text = "that is you"
    elif other.startswith("guest:"):
        text = "guests come and go"
    elif "\0" in other:
        text = "holds U+0000"
    if text is not None:
        raise errors.ValidationFailed(f"user_id: {text}", errors=[FieldError("user_id", text)])


async def _tell(ctx: Context, news: Iterable[tuple[str, Event]], other: str | None) -> None:
    """All devices of those whom it concerns. `other`: with whom the actor now sees more or less than before."""
    tenant_id, to_user = ctx.actor.tenant_id, ctx.hub.bus.to_user
    await asyncio.gather(
        *(to_user(tenant_id, user_id, event.name, event, recorded=event.recorded) for user_id, event in news)
    )
    if other is None:
        return
    try:
        await ctx.hub.presence.ring(tenant_id, [ctx.actor.user_id, other])
    except HubError as error:
        # Watchers ask anew when they connect, which they do when Redis is back.
        log.warning("watchers_not_told", code=error.code, request_id=ctx.request_id)
