"""Coming by a link: what it is, whether somebody may come in by it, and the guest's token for who may.

A code that is unknown, revoked, not open yet or any more, or of a call that has ended, gets one answer after the same
work. A password is checked exactly once for whoever sends one, be there a link or not.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID, uuid4, uuid5

import msgspec
import structlog

from db import audit, bans, calls, links, participants
from db.calls import Call
from db.errors import DatabaseUnavailable
from db.links import Found, Link
from db.pool import Transaction
from hub.actions import entering, links_guessing, links_rules, links_visits, members
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Actor, Context, GuestPass, IssuedToken
from hub.policy import Role, permissions, rank
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.links import (
    LinkCall,
    LinkFeatures,
    LinkPass,
    RenewedPass,
    ResolvedLink,
    ResolveLink,
    ValidateLink,
)
from hub.protocol.rooms import AskToken, RoomToken
from hub.state.visits import host_of

log = structlog.get_logger("hub.links")
commands = Commands()

_DEAD: Final = "no such link, or it is not open"
_NOWHERE: Final = UUID(int=0)
# An answer to a password takes this long or longer, so that its time tells nothing of what was found.
_EVEN_S: Final = 0.25
_TRIES: Final = 3
# Users who come by a link are the same guest each time. Changing this makes them strangers to their bans.
_GUESTS: Final = UUID("0f3d7b7e-58d1-5c3b-9a54-6f0f7f6f1c11")


class Entry(msgspec.Struct, frozen=True):
    """A use that was taken: of which link, to which call, as what."""

    found: Found
    link: Link
    call: Call
    role: Role
    # Of the guest.
    user_id: str

    @property
    def lobby(self) -> bool:
        return self.link.require_approval or (self.call.lobby_enabled and rank(self.role) < rank("moderator"))

    @property
    def features_off(self) -> frozenset[str]:
        return frozenset((*self.link.features_off, *members.features_off(self.call)))


@commands.add(
    "link:resolve",
    needs="public",
    rate=Rate(300, per_s=60),
    http=Http("GET", "/links/resolve/{short_code}"),
    socket=False,
    mutates=False,
)
async def resolve(ctx: Context, message: ResolveLink) -> ResolvedLink:
    """What a link is and what it asks for; counts as a click."""
    async with links_guessing.turn(ctx, message.short_code, password=False):
        found, link, _ = await _find(ctx, message.short_code)
        if found is None or link is None:
            await links_guessing.missed(ctx)
            raise errors.LinkExpired(_DEAD)
        referrer = host_of(message.referrer or "") or ctx.visitor.referrer
        async with links_guessing.at_link(ctx, link.id), ctx.hub.db.tenant(found.tenant_id, found.creator_id) as tx:
            await links_visits.opened(ctx, tx, link.id, referrer)
    return ResolvedLink(
        short_code=link.short_code,
        url=links_rules.url_of(ctx, link),
        link_type=link.link_type,
        title=link.title,
        access_type=link.access_type,
        next_step="password"
        if link.access_type == "password"
        else "sign_in"
        if link.access_type == "restricted"
        else "validate",
        require_approval=link.require_approval,
        auto_join=link.auto_join,
    )


@commands.add(
    "link:validate",
    needs="public",
    rate=Rate(300, per_s=60),
    http=Http("POST", "/links/validate/{short_code}"),
    socket=False,
    # The answer is a secret that must not be kept.
    mutates=False,
    deadline_s=8.0,
)
async def validate(ctx: Context, message: ValidateLink) -> LinkPass:
    """Take one use of a link: a guest's token for its call, and with `auto_join` a seat as well."""
    started = asyncio.get_running_loop().time()
    try:
        entry = await _enter(ctx, message)
    except errors.RateLimited:
        raise
    except HubError:
        await _even(started, message)
        raise
    issued, guest = _issue(ctx, entry, message.display_name)
    media = None
    if entry.link.auto_join and not entry.lobby:
        media = await _seat(ctx, guest, entry.call.id)
    await _even(started, message)
    return _answer(entry, issued, media)


async def _even(started: float, message: ValidateLink) -> None:
    if message.password is not None:
        await asyncio.sleep(started + _EVEN_S - asyncio.get_running_loop().time())


async def _enter(ctx: Context, message: ValidateLink) -> Entry:
    code, password = message.short_code, message.password
    async with links_guessing.turn(ctx, code, password=password is not None):
        for attempt in range(_TRIES):
            found, link, hashed = await _find(ctx, code)
            right = password is not None and await ctx.hub.passwords.check(password, hashed)
            if found is None or link is None:
                await links_guessing.missed(ctx)
                raise errors.LinkExpired(_DEAD)
            if link.access_type == "password" and not right:
                if password is None:
                    raise errors.LinkPasswordRequired()
                await links_guessing.missed(ctx)
                raise errors.LinkPasswordInvalid()
            if password is not None and attempt == 0:
                await links_guessing.right(ctx, code)
            if link.access_type == "restricted":
                _demand_listed(ctx.actor, found, link)
            entry = await _use(ctx, found, link)
            if entry is not None:
                return entry
    raise errors.Conflict("the link is being changed: try again")


async def _find(ctx: Context, code: str) -> tuple[Found | None, Link | None, str | None]:
    """Where the code leads: the link and its hash. The same statements where it leads nowhere."""
    async with links_guessing.few(ctx):
        async with ctx.hub.db.system() as tx:
            found = await links.live(tx, code if links_guessing.CODE.fullmatch(code) else "")
        tenant_id, creator_id = (found.tenant_id, found.creator_id) if found else (_NOWHERE, "")
        link_id = found.link_id if found else _NOWHERE
        async with ctx.hub.db.tenant(tenant_id, creator_id) as tx:
            link = await links.get(tx, link_id)
            hashed = await links.password_hash(tx, link_id)
    return found, link, hashed


def _demand_listed(actor: Actor, found: Found, link: Link) -> None:
    """Raises Unauthenticated, or LinkRestricted for whom the link does not name."""
    if actor.nobody or actor.role == "guest":
        raise errors.Unauthenticated("the link is for certain people: sign in")
    if actor.tenant_id == found.tenant_id and actor.user_id in (*link.allowed_user_ids, link.creator_id):
        return
    if actor.email and (actor.email in link.allowed_emails or actor.email.partition("@")[2] in link.allowed_domains):
        return
    raise errors.LinkRestricted()


async def _use(ctx: Context, found: Found, link: Link) -> Entry | None:
    """Take a use. None: the link was changed since it was looked at. Raises LinkExpired, LinkExhausted or Banned."""
    async with links_guessing.at_link(ctx, link.id), ctx.hub.db.tenant(found.tenant_id, found.creator_id) as tx:
        call, at = await calls.get(tx, link.call_id), ctx.now()
        role = await members.given_role(tx, call, link, at) if call is not None and call.status != "ended" else None
        if call is None or role is None:
            raise errors.LinkExpired(_DEAD)
        await _demand_not_banned(ctx, tx, found, call)
        used = await links.use(tx, link.id, link.version)
        if used is not None:
            await links_visits.validated(ctx, tx, link.id)
            entry = Entry(found, used, call, role, _guest_id(ctx.actor, found, call))
            await _note(ctx, tx, entry)
            # Whoever hangs up now has had their use all the same.
            ctx.decided = True
            return entry
        now = await links.get(tx, link.id)
    if now is None:
        raise errors.LinkExpired(_DEAD)
    if now.version != link.version:
        return None
    if now.max_uses is not None and now.use_count >= now.max_uses:
        raise errors.LinkExhausted()
    raise errors.LinkExpired(_DEAD)


async def _demand_not_banned(ctx: Context, tx: Transaction, found: Found, call: Call) -> None:
    """A ban is a person's: also of who comes as a guest this time, and is known by their sign-in."""
    if ctx.actor.nobody:
        return
    own = [ctx.actor.user_id] if ctx.actor.tenant_id == found.tenant_id else []
    for user_id in (_guest_id(ctx.actor, found, call), *own):
        if await bans.active(tx, call.id, user_id, ctx.now()):
            raise errors.Banned()


def _issue(ctx: Context, entry: Entry, display_name: str | None) -> tuple[IssuedToken, Actor]:
    given = GuestPass(
        call_id=entry.call.id,
        role=entry.role,
        link_id=entry.link.id,
        approval=entry.link.require_approval,
        link_version=entry.link.version,
    )
    name = display_name or ctx.actor.display_name or "Guest"
    issued = ctx.hub.tokens.issue_guest(
        tenant=entry.found.tenant_id, guest=given, display_name=name, user_id=entry.user_id
    )
    return issued, Actor(
        tenant_id=entry.found.tenant_id,
        user_id=issued.user_id,
        role="guest",
        expires_at=issued.expires_at,
        display_name=name,
        guest=given,
    )


def _guest_id(actor: Actor, found: Found, call: Call) -> str:
    """Whom we know stays who they are; everybody else is somebody new."""
    if actor.guest is not None and (actor.tenant_id, actor.guest.call_id) == (found.tenant_id, call.id):
        return actor.user_id
    if actor.guest is not None or actor.nobody:
        return f"guest:{uuid4()}"
    return f"guest:{uuid5(_GUESTS, f'{actor.tenant_id}:{actor.user_id}')}"


async def _note(ctx: Context, tx: Transaction, entry: Entry) -> None:
    signed_in = {} if ctx.actor.nobody else {"user_id": ctx.actor.user_id}
    await audit.add(
        tx,
        actor=entry.user_id,
        action="link:validate",
        target_type="link",
        target_id=str(entry.link.id),
        details={"call_id": str(entry.call.id), "role": entry.role, **signed_in},
    )


async def _seat(ctx: Context, guest: Actor, call_id: UUID) -> RoomToken | None:
    """The seat of `auto_join`. None: there is none now; who asks for one (`room:token`) is told why."""
    asking = Context(hub=ctx.hub, actor=guest, request_id=ctx.request_id, client=ctx.client)
    try:
        media: RoomToken = await entering.token(asking, AskToken(call_id))
    except (HubError, DatabaseUnavailable) as error:
        # Whatever it was, the use is taken: without the token it would be lost.
        code = error.code if isinstance(error, HubError) else "database_unavailable"
        log.info("no_seat_by_link", code=code, call_id=str(call_id), request_id=ctx.request_id)
        return None
    return media


def _answer(entry: Entry, issued: IssuedToken, media: RoomToken | None) -> LinkPass:
    call, off = entry.call, entry.features_off
    return LinkPass(
        call=LinkCall(
            call_id=call.id,
            name=call.name,
            call_type=call.call_type,
            status=call.status,
            participant_count=call.participant_count,
            max_participants=call.max_participants,
            started_at=call.started_at,
        ),
        title=entry.link.title,
        role=entry.role,
        permissions=sorted(permissions(entry.role, features_off=off)),
        features=LinkFeatures(
            recording="recording" not in off,
            screen_share="screen_share" not in off,
            chat="chat" not in off,
            files="files" not in off,
        ),
        guest_token=issued.token,
        user_id=issued.user_id,
        expires_at=issued.expires_at,
        lobby=entry.lobby,
        next_step="lobby" if entry.lobby else "joined" if media else "join",
        media=media,
    )


@commands.add("link:renew", needs="anyone", rate=Rate(10, per_s=60), http=Http("POST", "/guests/renew"), mutates=False)
async def renew(ctx: Context, message: Empty) -> RenewedPass:
    """A fresh token for a guest, before the old one ends; takes no use. On a socket it goes into `session:refresh`."""
    given = ctx.actor.guest
    if given is None:
        raise errors.Forbidden("only guests renew their token here")
    async with ctx.transaction() as tx:
        call = await calls.get(tx, given.call_id)
        if call is None:
            raise errors.NotFound()
        members.demand_open(call)
        if await bans.active(tx, call.id, ctx.actor.user_id, ctx.now()):
            raise errors.Banned()
        mine = await participants.of_user(tx, call.id, ctx.actor.user_id)
        inside = any(each.status in members.IN_CALL for each in mine)
        # Who is in stays in when the link is revoked; putting them out is another order.
        actor = ctx.actor if inside else await members.as_linked(tx, ctx.actor, call, ctx.now())
    assert actor.guest is not None
    issued = ctx.hub.tokens.issue_guest(
        tenant=actor.tenant_id, guest=actor.guest, display_name=actor.display_name, user_id=actor.user_id
    )
    return RenewedPass(issued.token, issued.expires_at)
