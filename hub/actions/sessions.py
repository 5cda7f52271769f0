"""A session and whoever holds it: renewing the token, asking the time, who am I, what are the limits."""

from __future__ import annotations

from hub.commands import NAMESPACES, Commands, Empty, Http, Rate
from hub.context import Context
from hub.protocol import errors
from hub.protocol.sessions import LimitsAnswer, Me, Ping, Pong, RefreshSession, SessionRefreshed

commands = Commands()


# A kept answer would leave the new session with the old token: so no op_id.
@commands.add("session:refresh", needs="anyone", rate=Rate(6, per_s=60), namespaces=NAMESPACES, mutates=False)
async def refresh(ctx: Context, message: RefreshSession) -> SessionRefreshed:
    """Go on under a fresh token of the same person."""
    if ctx.session is None:
        raise errors.BadRequest("this needs a socket")
    actor = await ctx.hub.tokens.verify(message.token)
    if (actor.tenant_id, actor.user_id, actor.role) != (ctx.actor.tenant_id, ctx.actor.user_id, ctx.actor.role):
        raise errors.TokenInvalid("the token is somebody else's")
    if actor.guest is not None and ctx.actor.guest is not None and actor.guest.call_id != ctx.actor.guest.call_id:
        raise errors.TokenInvalid("the token is for another call")
    ctx.session.refresh(actor)
    return SessionRefreshed(actor.expires_at)


@commands.add("session:ping", needs="anyone", namespaces=NAMESPACES, mutates=False)
async def ping(ctx: Context, message: Ping) -> Pong:
    """The server's time, and which node answers."""
    return Pong(ctx.now(), ctx.hub.node_id)


@commands.add("session:me", needs="anyone", http=Http("GET", "/me"), socket=False, mutates=False)
async def me(ctx: Context, message: Empty) -> Me:
    """You, as your token says."""
    actor = ctx.actor
    return Me(
        user_id=actor.user_id,
        tenant_id=actor.tenant_id,
        role=actor.role,
        hub_role=actor.hub_role,
        display_name=actor.display_name,
        avatar_url=actor.avatar_url,
        token_expires_at=actor.expires_at,
        call_id=actor.guest.call_id if actor.guest else None,
    )


@commands.add("session:limits", needs="anyone", http=Http("GET", "/limits"), socket=False, mutates=False)
async def limits(ctx: Context, message: Empty) -> LimitsAnswer:
    """Every limit that this server holds you to."""
    # Here and not above: the table of all commands is made of this module too.
    from hub.actions import all_commands

    return LimitsAnswer(
        limits=ctx.hub.rules.published(),
        rates={each.name: {"times": each.rate.times, "per_s": each.rate.per_s} for each in all_commands()},
    )
