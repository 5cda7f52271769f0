"""The way into the SFU, and what people say about their own devices."""

from __future__ import annotations

from collections.abc import Mapping

from db import calls, participants
from db.participants import Participant
from db.pool import Transaction
from hub.actions import joining, members
from hub.actions.aftermath import carry_out, settle
from hub.actions.joining import Seat
from hub.actions.views import media_view
from hub.commands import Commands, Rate
from hub.context import Context, Member
from hub.policy import publish_sources
from hub.protocol import errors
from hub.protocol.media import AuthorizeMedia, MediaAccess, MediaAnswer, MediaChanged, SetMedia
from hub.state.facts import MediaReported

commands = Commands()


@commands.add("media:authorize", needs="member", rate=Rate(20, per_s=10), mutates=False)
async def authorize(ctx: Context, message: AuthorizeMedia) -> MediaAccess:
    """How to connect to the SFU as who you are in the call now."""
    mine = members.demand_in_call(ctx.member)
    news = await joining.room_again(ctx, message.call_id)
    async with ctx.deciding(message.call_id) as tx:
        member = await _again(ctx, tx, mine)
        person = members.demand_in_call(member)
        answer = await joining.access(ctx, tx, Seat(member.call, person, member.role, member.permissions))
        settled = await settle(ctx, tx, member.call.id, ctx.now(), news)
    await carry_out(ctx, settled)
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
    _demand_sources(ctx.member, wanted)
    said = MediaReported(
        at=now,
        known_at=now,
        participant_id=mine.id,
        microphone=message.microphone,
        camera=message.camera,
        screen_share=message.screen_share,
    )
    async with ctx.deciding(message.call_id) as tx:
        _demand_sources(await _again(ctx, tx, mine), wanted)
        settled = await settle(ctx, tx, message.call_id, now, [said])
        after = await participants.get(tx, message.call_id, mine.id)
        if after is None:
            raise errors.NotFound()
        answer = MediaAnswer(media_view(after))
        await ctx.keep(tx, answer)
    await carry_out(ctx, settled)
    return answer


async def _again(ctx: Context, tx: Transaction, mine: Participant) -> Member:
    """Who somebody is under the lock: they may have been put out, or given another role, a moment ago."""
    call = await calls.lock(tx, mine.call_id)
    person = await participants.get(tx, mine.call_id, mine.id)
    if call is None or person is None:
        raise errors.NotFound()
    member = members.as_member(ctx.actor, call, person)
    members.demand_in_call(member)
    return member


def _demand_sources(member: Member, wanted: Mapping[str, bool]) -> None:
    forbidden = {source for source, on in wanted.items() if on} - publish_sources(member.permissions)
    if forbidden:
        raise errors.Forbidden(f"you may not publish {', '.join(sorted(forbidden))}")
