"""Shareable links as their creators have them: made, found, changed, revoked, and looked at from above.

A link is its creator's: others do not see it, but for the heads of its call, who list and revoke it. Changing or
revoking it holds at once, on every node, for those who came by it as well (`members.taken_away`, `members.as_linked`).
"""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import Callable
from functools import partial
from uuid import UUID

import msgspec
import segno
from msgspec import UNSET

from db import audit, calls, links, lobby, participants, tenant, users
from db.calls import Call
from db.links import Link
from db.participants import Participant
from db.pool import Transaction
from hub.actions import joining, links_rules, links_visits, members, pages, rights, waiting
from hub.actions.aftermath import carry_out, evict, put_out, regrant_all, settle
from hub.actions.settle import Settled, grace_of
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context
from hub.policy import Permissions, rank
from hub.protocol import errors
from hub.protocol.links import (
    AskAnalytics,
    CreatedLink,
    CreateLink,
    LinkAnalytics,
    LinkPage,
    LinkView,
    ListLinks,
    NameLink,
    Picture,
    RevokeLink,
    UpdateLink,
)
from hub.protocol.lobby import LobbyDenied
from hub.protocol.media import MediaRevoked
from hub.protocol.participants import ParticipantLeft
from hub.protocol.rooms import RoomLeft

commands = Commands()

_TRIES = 5


@commands.add(
    "link:create",
    needs="invite_send",
    rate=Rate(100, per_s=10, shared=True),
    http=Http("POST", "/links", 201, location="/api/v1/links/{link_id}"),
    socket=False,
)
async def create(ctx: Context, message: CreateLink) -> CreatedLink:
    """Make a link to a call, which gives others a way in without an account."""
    links_rules.demand_user(ctx)
    members.demand_open(ctx.member.call)
    links_rules.demand_role(ctx.member, message.default_role)
    expires_at = links_rules.expiry(ctx, message.expires_in_hours, message.expires_at)
    links_rules.demand_window(message.active_from, expires_at, ctx.now())
    links_rules.demand_access(message, has_password=message.password is not None)
    metadata = joining.fits(ctx, message.metadata)
    password_hash = await links_rules.hashed(ctx, message.password)
    most = ctx.hub.rules.links_per_call
    async with ctx.transaction() as tx:
        await users.seen(tx, ctx.actor.user_id, display_name=ctx.actor.display_name, avatar_url=ctx.actor.avatar_url)
        if await links.count_of_call(tx, message.call_id, ctx.actor.user_id) >= most:
            raise errors.Conflict(f"you have {most} links to this call already", details={"links_per_call": most})
        link = await add(
            tx,
            short_code,
            call_id=message.call_id,
            creator_id=ctx.actor.user_id,
            link_type=message.link_type,
            title=message.title,
            access_type=message.access_type,
            password_hash=password_hash,
            allowed_user_ids=message.allowed_user_ids,
            allowed_emails=links_rules.lowered(message.allowed_emails),
            allowed_domains=links_rules.lowered(message.allowed_domains),
            default_role=message.default_role,
            granted_as=links_rules.granted_as(ctx),
            max_uses=message.max_uses,
            enable_recording=message.enable_recording,
            enable_screen_share=message.enable_screen_share,
            enable_chat=message.enable_chat,
            enable_files=message.enable_files,
            auto_join=message.auto_join,
            require_approval=message.require_approval,
            metadata=metadata,
            active_from=message.active_from,
            expires_at=expires_at,
        )
        await _note(ctx, tx, "link:create", link)
        answer = CreatedLink(link.id, link.short_code, links_rules.url_of(ctx, link), link.created_at)
        await ctx.keep(tx, answer)
    return answer


def short_code() -> str:
    """Eight characters of A–Z, a–z, 0–9, - and _: 48 bits that nobody can foresee."""
    return secrets.token_urlsafe(6)


async def add(tx: Transaction, codes: Callable[[], str], **settings: object) -> Link:
    """The link, under the first of `codes` that no other link has."""
    for _ in range(_TRIES):
        link = await links.add(tx, short_code=codes(), **settings)  # type: ignore[arg-type]
        if link is not None:
            return link
    raise errors.Internal("no free code was found")


@commands.add("link:list", needs="user", http=Http("GET", "/links"), socket=False, mutates=False)
async def list_(ctx: Context, message: ListLinks) -> LinkPage:
    """Your links, newest first; those that are revoked are gone. With a `call_id` that you head: everybody's."""
    after, limit = pages.row(message.cursor), message.limit + 1
    async with ctx.transaction() as tx:
        if message.call_id is not None and await _heads(ctx, tx, message.call_id):
            found = await links.page_of_call(
                tx, message.call_id, access_type=message.access_type, text=message.q, after=after, limit=limit
            )
        else:
            found = await links.page(
                tx,
                ctx.actor.user_id,
                call_id=message.call_id,
                access_type=message.access_type,
                text=message.q,
                after=after,
                limit=limit,
            )
    items, more = found[: message.limit], len(found) > message.limit
    return LinkPage(
        items=[links_rules.view(ctx, each) for each in items],
        next_cursor=pages.cursor(items[-1].created_at, items[-1].id) if more else None,
    )


@commands.add("link:get", needs="user", http=Http("GET", "/links/{link_id}"), socket=False, mutates=False)
async def get(ctx: Context, message: NameLink) -> LinkView:
    """One of your links: its settings, its clicks, visitors and uses."""
    async with ctx.transaction() as tx:
        return links_rules.view(ctx, await _mine(tx, message.link_id))


@commands.add(
    "link:update",
    needs="user",
    rate=Rate(30, per_s=10),
    emits=(LobbyDenied, MediaRevoked, ParticipantLeft, RoomLeft),
    http=Http("PATCH", "/links/{link_id}"),
    socket=False,
)
async def update(ctx: Context, message: UpdateLink) -> LinkView:
    """Change a link. It holds at once; with `evict` those who came in by it so far are put out.

    Another password, access or list of people, or `evict`: the tokens it gave before let nobody in any more.
    """
    async with ctx.transaction() as tx:
        call_id = (await _mine(tx, message.link_id)).call_id
    if message.evict or message.default_role is not UNSET:
        ctx._member = await members.authorize(ctx, call_id, "participant_kick" if message.evict else None)
    password_hash = await links_rules.hashed(ctx, None if message.password is UNSET else message.password)
    now, regranted = ctx.now(), list[tuple[Participant, Permissions]]()
    async with ctx.deciding(call_id) as tx:
        call, before = await _locked(tx, call_id, message.link_id)
        tags = None if ctx.if_match is None else [tag.strip() for tag in ctx.if_match.split(",")]
        if tags is not None and links_rules.view(ctx, before).etag not in tags:
            raise errors.PreconditionFailed()
        wanted = links_rules.changed(ctx, before, message)
        rebinds = message.evict or links_rules.rebinds(before, wanted, password_hash)
        after = await links.change(tx, wanted, password_hash=password_hash, rebinds=rebinds)
        done = await _bind_anew(ctx, tx, call, after, "the link was changed", message.evict) if rebinds else _Done()
        out = [each.identity for each in done.out]
        if after.features_off != before.features_off:
            regranted = [
                (each, await members.allowed(tx, call, each))
                for each in await participants.by_link(tx, after.id)
                if each.status in members.IN_CALL and each.identity not in out
            ]
        settled = await rights.withdraw(tx, call_id, regranted, now, grace_of(ctx.hub.rules))
        if settled is not None:
            ctx.due(call_id, settled.events)
        if out:
            settled = await settle(ctx, tx, call_id, now)
        if after.version != before.version:
            details = links_rules.was_and_now(before, after) | {"password": password_hash is not None}
            await _note(ctx, tx, "link:update", after, details | done.noted())
        answer = links_rules.view(ctx, after)
        await ctx.keep(tx, answer)
    await _follow(ctx, settled, out)
    await regrant_all(ctx, call, regranted)
    return answer


@commands.add(
    "link:revoke",
    needs="user",
    rate=Rate(30, per_s=10),
    emits=(LobbyDenied, ParticipantLeft, RoomLeft),
    http=Http("DELETE", "/links/{link_id}", 204),
    socket=False,
)
async def revoke(ctx: Context, message: RevokeLink) -> Empty:
    """Let nobody in by a link any more, also not with a token it gave; with `evict` those who came by it go.

    A link is revoked by its creator, or by the owner of its call and the tenant's admins.
    """
    async with ctx.transaction() as tx:
        call_id = (await _mine_or_headed(ctx, tx, message.link_id)).call_id
    if message.evict:
        ctx._member = await members.authorize(ctx, call_id, "participant_kick")
    now, settled = ctx.now(), None
    async with ctx.deciding(call_id) as tx:
        await _heads(ctx, tx, call_id)
        call, link = await _locked(tx, call_id, message.link_id)
        await links.revoke(tx, link.id)
        done = await _bind_anew(ctx, tx, call, link, "the link was revoked", message.evict)
        out = [each.identity for each in done.out]
        if out:
            settled = await settle(ctx, tx, call_id, now)
        await _note(ctx, tx, "link:revoke", link, {"creator_id": link.creator_id, **done.noted()})
        await ctx.keep(tx, Empty())
    await _follow(ctx, settled, out)
    return Empty()


class _Done(msgspec.Struct, frozen=True):
    """What became of those who came by a link, as it let nobody in any more who had come by it."""

    # Devices.
    out: list[Participant] = []
    # Users.
    denied: list[str] = []

    def noted(self) -> dict[str, object]:
        return {"evicted": list(dict.fromkeys(each.user_id for each in self.out)), "denied": self.denied}


async def _bind_anew(ctx: Context, tx: Transaction, call: Call, link: Link, reason: str, putting_out: bool) -> _Done:
    """What the link gave holds no longer: a place in the queue, a seat that was not taken, a yes of the lobby; with
    `putting_out` also the seats of those who are in, but for those above the actor's rank."""
    knocking = await lobby.queue_of_link(tx, call.id, link.id)
    now, by = ctx.now(), ctx.actor.user_id
    denied, news = await waiting.deny(tx, call, knocking, now, by=by, reason=reason, cooldown_s=0)
    waiting.tell(ctx, call.id, (denied, news), now)
    await lobby.forget_link(tx, call.id, link.id)
    here = {each.user_id for each in await participants.in_call(tx, call.id)}
    devices: list[Participant] = []
    for user_id, standing in [
        (each.user_id, members.standing(call, each)) for each in await participants.by_link(tx, link.id)
    ]:
        if any(each.user_id == user_id for each in devices):
            continue
        if user_id in here and not (putting_out and rank(standing) <= rank(ctx.member.role)):
            continue
        devices += await participants.request_kick(tx, call.id, user_id, now, by=by, reason=reason)
        await lobby.forget(tx, call.id, user_id)
    for device in devices:
        ctx.first(partial(evict, ctx, call.id, device.id, RoomLeft("kicked", reason)))
    return _Done(devices, [entry.user_id for entry in denied])


async def _follow(ctx: Context, settled: Settled | None, out: list[str]) -> None:
    if settled is None:
        return
    if out:
        await put_out(ctx, settled, out)
    else:
        await carry_out(ctx, settled)


@commands.add(
    "link:analytics", needs="user", http=Http("GET", "/links/{link_id}/analytics"), socket=False, mutates=False
)
async def analytics(ctx: Context, message: AskAnalytics) -> LinkAnalytics:
    """Who came by one of your links: clicks, visitors, from where, with what, when, and how far."""
    async with ctx.transaction() as tx:
        return await links_visits.analytics(ctx, tx, await _mine(tx, message.link_id), message)


@commands.add(
    "link:picture",
    needs="user",
    http=Http("GET", "/links/{link_id}/qr.svg", content="image/svg+xml"),
    socket=False,
    mutates=False,
)
async def picture(ctx: Context, message: NameLink) -> Picture:
    """The URL of one of your links as a QR code."""
    async with ctx.transaction() as tx:
        url = links_rules.url_of(ctx, await _mine(tx, message.link_id))
    return Picture(await asyncio.to_thread(_drawn, url))


def _drawn(url: str) -> bytes:
    drawn = io.BytesIO()
    segno.make_qr(url, error="m").save(drawn, kind="svg", scale=8, border=4, xmldecl=False, light="#fff", title=url)
    return drawn.getvalue()


async def _mine(tx: Transaction, link_id: UUID) -> Link:
    """Policies show only one's own, and after `tenant.head` those of a call."""
    link = await links.get(tx, link_id)
    if link is None:
        raise errors.NotFound()
    return link


async def _mine_or_headed(ctx: Context, tx: Transaction, link_id: UUID) -> Link:
    terms = await links.terms(tx, link_id)
    if terms is not None:
        await _heads(ctx, tx, terms.call_id)
    return await _mine(tx, link_id)


async def _heads(ctx: Context, tx: Transaction, call_id: UUID) -> bool:
    """Whether the actor heads the call; from here on the transaction sees all of its links then."""
    call = await calls.get(tx, call_id)
    if call is None or not members.heads(ctx.actor, call):
        return False
    await tenant.head(tx, call_id)
    return True


async def _locked(tx: Transaction, call_id: UUID, link_id: UUID) -> tuple[Call, Link]:
    call = await calls.lock(tx, call_id)
    link = await links.hold(tx, link_id)
    if call is None or link is None:
        raise errors.NotFound()
    return call, link


async def _note(
    ctx: Context, tx: Transaction, action: str, link: Link, details: dict[str, object] | None = None
) -> None:
    await audit.add(
        tx,
        actor=ctx.actor.user_id,
        action=action,
        target_type="link",
        target_id=str(link.id),
        details={"call_id": str(link.call_id), "access_type": link.access_type, **(details or {})},
    )
