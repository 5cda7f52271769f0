"""Raised hands."""

from __future__ import annotations

from uuid import UUID

from db import audit, calls, participants
from db.pool import Transaction
from hub.actions import members
from hub.commands import Commands, Rate
from hub.context import Context
from hub.policy import rank
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.hands import Hand, HandLowered, HandQueue, HandRaised, LowerHand, RaiseHand

commands = Commands()


async def queue(tx: Transaction, call_id: UUID) -> list[Hand]:
    """The raised hands of those in the call, the longest raised first."""
    return [
        Hand(each.id, each.user_id, each.display_name or "", each.hand_raised_at)
        for each in await participants.hands(tx, call_id)
        if each.hand_raised_at is not None and each.status in members.IN_CALL
    ]


@commands.add("hand:raise", needs="hand_raise", rate=Rate(10, per_s=10), emits=(HandRaised,))
async def raise_(ctx: Context, message: RaiseHand) -> HandQueue:
    """Raise your hand. One that is up already keeps its place."""
    mine = members.demand_in_call(ctx.member)
    async with ctx.deciding(message.call_id) as tx:
        if await calls.lock(tx, message.call_id) is None:
            raise errors.NotFound()
        raised = await participants.raise_hand(tx, message.call_id, mine.id, ctx.now())
        answer = HandQueue(await queue(tx, message.call_id))
        hand = next((each for each in answer.queue if each.participant_id == mine.id), None)
        if raised and hand is not None:
            ctx.due(message.call_id, [HandRaised(hand, answer.queue)])
        await ctx.keep(tx, answer)
    return answer


@commands.add("hand:lower", needs="member", rate=Rate(20, per_s=10), emits=(HandLowered,))
async def lower(ctx: Context, message: LowerHand) -> HandQueue:
    """Lower your own hand; as a moderator anybody's, or all."""
    own = _own(ctx, message)
    if message.all and message.participant_id is not None:
        text = "either participant_id or all"
        raise errors.ValidationFailed(text, errors=[FieldError("participant_id", text)])
    wanted = None if message.all else (message.participant_id or own)
    async with ctx.deciding(message.call_id) as tx:
        if await calls.lock(tx, message.call_id) is None:
            raise errors.NotFound()
        if wanted is not None and await participants.get(tx, message.call_id, wanted) is None:
            raise errors.NotFound()
        lowered = await participants.lower_hands(tx, message.call_id, None if wanted is None else [wanted])
        answer = HandQueue(await queue(tx, message.call_id))
        if lowered:
            ctx.due(message.call_id, [HandLowered(lowered, answer.queue)])
        for each in lowered:
            if each != own:
                await audit.add(
                    tx,
                    actor=ctx.actor.user_id,
                    action="hand:lower",
                    target_type="participant",
                    target_id=str(each),
                    details={"call_id": str(message.call_id)},
                )
        await ctx.keep(tx, answer)
    return answer


def _own(ctx: Context, message: LowerHand) -> UUID | None:
    """The actor's own participant; None where somebody acts on others' hands from outside the call."""
    head = members.heads(ctx.actor, ctx.member.call)
    members.demand_open(ctx.member.call)
    mine = ctx.member.participant
    others = message.all or (message.participant_id is not None and (mine is None or message.participant_id != mine.id))
    if not (others and head):
        mine = members.demand_in_call(ctx.member)
    if others and rank(ctx.member.role) < rank("moderator"):
        raise errors.Forbidden("lowering others' hands takes a moderator")
    return mine.id if mine else None
