"""What a link may be: its role, window and access, as somebody wants them; and how its creator sees it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NoReturn

import msgspec
from msgspec import UNSET

from db.links import Link
from hub.actions import joining
from hub.context import Context, Member
from hub.policy import Role, rank
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.links import CreateLink, LinkStatus, LinkView, UpdateLink

# Settings that are written over by what an update says, under the same names.
_SETTINGS = (
    *("title", "access_type", "allowed_user_ids", "allowed_emails", "allowed_domains", "active_from", "expires_at"),
    *("max_uses", "default_role", "enable_recording", "enable_screen_share", "enable_chat", "enable_files"),
    *("auto_join", "require_approval"),
)


def demand_user(ctx: Context) -> None:
    if ctx.actor.role == "guest":
        raise errors.Forbidden("guests make no links")


def demand_role(member: Member, role: Role) -> None:
    if rank(role) > rank(member.role):
        text = f"at most {member.role}, as you are"
        raise errors.Forbidden(f"default_role: {text}", errors=[FieldError("default_role", text)])


def granted_as(ctx: Context) -> str:
    if ctx.actor.user_id == ctx.member.call.owner_id:
        return "host"
    return "admin" if ctx.actor.admin else ctx.member.role


def expiry(ctx: Context, hours: float | None, at: datetime | None) -> datetime | None:
    if hours is not None and at is not None:
        _refuse("expires_at", "either this or expires_in_hours")
    return ctx.now() + timedelta(hours=hours) if hours is not None else at


def demand_window(active_from: datetime | None, expires_at: datetime | None, now: datetime | None) -> None:
    """`now` None: a link that is over already may stay so."""
    if expires_at is not None and now is not None and expires_at <= now:
        _refuse("expires_at", "is over already")
    if active_from is not None and expires_at is not None and active_from >= expires_at:
        _refuse("active_from", "must be before expires_at")


def demand_access(wanted: CreateLink | Link, *, has_password: bool) -> None:
    if has_password != (wanted.access_type == "password"):
        _refuse("password", "required" if not has_password else "only with access_type password")
    listed = bool(wanted.allowed_user_ids or wanted.allowed_emails or wanted.allowed_domains)
    if wanted.access_type == "restricted" and not listed:
        _refuse("allowed_user_ids", "name somebody: here, in allowed_emails or in allowed_domains")


def changed(ctx: Context, before: Link, message: UpdateLink) -> Link:
    """The link as it is to be. Raises ValidationFailed or Forbidden."""
    given = {name: getattr(message, name) for name in _SETTINGS if getattr(message, name) is not UNSET}
    for name in ("allowed_emails", "allowed_domains"):
        if name in given:
            given[name] = lowered(given[name])
    if message.expires_in_hours is not UNSET:
        given["expires_at"] = expiry(ctx, message.expires_in_hours, given.get("expires_at"))
    if message.metadata is not UNSET:
        given["metadata"] = joining.merged(ctx, before.metadata, message.metadata)
    if message.default_role is not UNSET:
        demand_role(ctx.member, message.default_role)
        given["granted_as"] = granted_as(ctx)
    wanted = msgspec.structs.replace(before, **given)
    demand_window(wanted.active_from, wanted.expires_at, ctx.now() if "expires_at" in given else None)
    if message.password is not UNSET or "access_type" in given:
        kept = before.has_password and wanted.access_type == "password"
        demand_access(wanted, has_password=message.password is not UNSET or kept)
    elif wanted.access_type == "restricted":
        demand_access(wanted, has_password=False)
    if wanted.max_uses is not None and wanted.max_uses < before.use_count:
        _refuse("max_uses", f"{before.use_count} are taken already")
    return wanted


def rebinds(before: Link, wanted: Link, password_hash: str | None) -> bool:
    """Whether other people may come by the link than did so far: what it gave to those holds no longer."""
    asked = (before.access_type, before.allowed_user_ids, before.allowed_emails, before.allowed_domains)
    asks = (wanted.access_type, wanted.allowed_user_ids, wanted.allowed_emails, wanted.allowed_domains)
    return password_hash is not None or asked != asks


def was_and_now(before: Link, after: Link) -> dict[str, object]:
    """For the audit log: the settings that differ. Of metadata only that they do, and nothing of passwords."""
    names = [name for name in (*_SETTINGS, "metadata") if getattr(before, name) != getattr(after, name)]
    told = [name for name in names if name != "metadata"]
    return {
        "changed": names,
        "was": msgspec.to_builtins({name: getattr(before, name) for name in told}),
        "now": msgspec.to_builtins({name: getattr(after, name) for name in told}),
    }


async def hashed(ctx: Context, password: str | None) -> str | None:
    if password is None:
        return None
    try:
        return await ctx.hub.passwords.hash(password)
    except ValueError as error:
        _refuse("password", str(error))


def lowered(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(text.lower() for text in texts))


def _refuse(path: str, text: str) -> NoReturn:
    raise errors.ValidationFailed(f"{path}: {text}", errors=[FieldError(path, text)])


def url_of(ctx: Context, link: Link) -> str:
    return f"{ctx.hub.rules.public_url}/join/{link.short_code}"


def view(ctx: Context, link: Link) -> LinkView:
    return LinkView(
        link_id=link.id,
        short_code=link.short_code,
        url=url_of(ctx, link),
        call_id=link.call_id,
        creator_id=link.creator_id,
        link_type=link.link_type,
        title=link.title,
        status=_status(link, ctx.now()),
        access_type=link.access_type,
        has_password=link.has_password,
        allowed_user_ids=link.allowed_user_ids,
        allowed_emails=link.allowed_emails,
        allowed_domains=link.allowed_domains,
        active_from=link.active_from,
        expires_at=link.expires_at,
        max_uses=link.max_uses,
        use_count=link.use_count,
        click_count=link.click_count,
        unique_visitors=link.unique_visitors,
        default_role=link.default_role,
        enable_recording=link.enable_recording,
        enable_screen_share=link.enable_screen_share,
        enable_chat=link.enable_chat,
        enable_files=link.enable_files,
        auto_join=link.auto_join,
        require_approval=link.require_approval,
        metadata=link.metadata,
        last_used_at=link.last_used_at,
        created_at=link.created_at,
        updated_at=link.updated_at,
        version=link.version,
    )


def _status(link: Link, now: datetime) -> LinkStatus:
    if link.expires_at is not None and link.expires_at <= now:
        return "expired"
    if link.active_from is not None and link.active_from > now:
        return "scheduled"
    if link.max_uses is not None and link.use_count >= link.max_uses:
        return "exhausted"
    return "active"
