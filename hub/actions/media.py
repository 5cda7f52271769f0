"""The way into the SFU, and what people say about their own devices."""

from __future__ import annotations

from db import calls, participants
from hub.actions import joining, members
from hub.actions.aftermath import announce
from hub.actions.joining import Seat
from hub.actions.settle import grace_of, settle
from hub.actions.views import media_view
from hub.commands import Commands, Rate
from hub.context import Context
from hub.policy import publish_sources
from hub.protocol import errors
from hub.protocol.media import AuthorizeMedia, MediaAccess, MediaAnswer, MediaChanged, SetMedia
from hub.state.facts import MediaReported

commands = Commands()


@commands.add("media:authorize", needs="member", rate=Rate(20, per_s=10), mutates=False)
async def authorize(ctx: Context, message: AuthorizeMedia) -> MediaAccess:
    """How to connect to the SFU as who you are in the call now."""
    members.demand_in_call(ctx.member)
    news = await joining.room_again(ctx, message.call_id)
    async with ctx.transaction(turn=message.call_id) as tx:
        call = await calls.lock(tx, message.call_id)
        mine = await participants.get(tx, message.call_id, members.demand_in_call(ctx.member).id)
        if call is None or mine is None:
            raise errors.NotFound()
        # Again, under the lock: somebody may have been put out a moment ago.
        members.demand_open(call)
        if mine.status not in members.IN_CALL:
            raise errors.NotInRoom()
        member = members.as_member(ctx.actor, call, mine)
        answer = await joining.access(ctx, tx, Seat(call, mine, member.role, member.permissions))
        settled = await settle(tx, call.id, ctx.now(), fold=news, grace=grace_of(ctx.hub.rules))
    await announce(ctx, settled)
    return answer


@commands.add("media:set", needs="member", rate=Rate(20, per_s=10), emits=(MediaChanged,))
async def set_(ctx: Context, message: SetMedia) -> MediaAnswer:
    """Say what you switched on or off: others hear of it at once, the media server's own word comes later and wins."""
    mine, now = members.demand_in_call(ctx.member), ctx.now()
    wanted = {
        "microphone": message.microphone,
        "camera": message.camera,
        "screen_share": message.screen_share,
    }
    forbidden = {source for source, on in wanted.items() if on} - publish_sources(ctx.member.permissions)
    if forbidden:
        raise errors.Forbidden(f"you may not publish {', '.join(sorted(forbidden))}")
    said = MediaReported(
        at=now,
        known_at=now,
        participant_id=mine.id,
        microphone=message.microphone,
        camera=message.camera,
        screen_share=message.screen_share,
    )
    async with ctx.transaction(turn=message.call_id) as tx:
        settled = await settle(tx, message.call_id, now, fold=[said], grace=grace_of(ctx.hub.rules))
        after = await participants.get(tx, message.call_id, mine.id)
        if after is None:
            raise errors.NotFound()
        answer = MediaAnswer(media_view(after))
        await ctx.keep(tx, answer)
    await announce(ctx, settled)
    return answer
