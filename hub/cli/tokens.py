"""token: make and read user tokens, to try things out and to operate."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import cyclopts
import msgspec

from hub.cli import environment
from hub.cli.output import FAILURE, OK, emit_json, fail, note, say
from hub.context import Actor
from hub.settings import Settings


def add_to(app: cyclopts.App) -> None:
    group = cyclopts.App(name="token", help="Make or read user tokens.")
    group.command(create)
    group.command(verify)
    app.command(group)


def create(
    user: str,
    *,
    name: str = "",
    tenant: str | None = None,
    role: Literal["authenticated", "service_role"] = "authenticated",
    admin: bool = False,
    ttl_s: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=31_536_000))] = 3600,
    json: bool = False,
) -> int:
    """Print a user token signed with AURALINK_JWT_SECRET.

    Parameters
    ----------
    user
        The `sub`: the user's id.
    name
        The display name.
    tenant
        The organisation (`app_metadata.org_id`).
    role
        The token's role.
    admin
        An admin of the tenant (`app_metadata.hub_role`).
    ttl_s
        Seconds until it expires.
    json
        Print a JSON object.
    """
    from hub.app import make_tokens

    loaded = environment.load()
    if not user.isprintable() or " " in user or not 0 < len(user) <= 128:
        fail("a user id is 1 to 128 printable characters without spaces")
    try:
        issued = make_tokens(loaded).issue(
            user,
            tenant=tenant,
            role=role,
            hub_role="admin" if admin else None,
            display_name=name or user,
            ttl_s=ttl_s,
        )
    except ValueError as error:
        fail(str(error))
    if json:
        emit_json({"token": issued.token, "user_id": issued.user_id, "expires_at": issued.expires_at})
    else:
        say(issued.token)
    return OK


def verify(token: str, *, json: bool = False) -> int:
    """Read a token as the hub would, and say who it is; exit 1 where it is refused."""
    from hub.protocol.errors import HubError

    loaded = environment.load()

    try:
        actor = msgspec.to_builtins(asyncio.run(_read(loaded, token)))
    except HubError as refusal:
        if json:
            emit_json({"ok": False, "code": refusal.code})
        else:
            note(f"refused: {refusal.code}: {refusal.message}")
        return FAILURE
    if json:
        emit_json({"ok": True, "actor": actor})
    else:
        for key, value in actor.items():
            say(f"{key.ljust(13)} {value}")
    return OK


async def _read(loaded: Settings, token: str) -> Actor:
    from hub.app import make_tokens

    try:
        tokens = make_tokens(loaded)
    except ValueError as error:
        fail(str(error))
    return await tokens.verify(token)
