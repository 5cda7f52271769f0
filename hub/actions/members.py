"""Who somebody is in a call, and so what they may do there: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db import bans, calls, links, participants
from db.calls import Call
from db.links import Link, Terms
from db.participants import Participant
from db.pool import Transaction
from hub.context import Actor, Context, Member
from hub.media.values import Grant
from hub.policy import ROLES, Permission, Permissions, Role, permissions, publish_sources, rank
from hub.protocol import errors

IN_CALL = frozenset({"joined", "reconnecting"})


async def authorize(ctx: Context, call_id: UUID, permission: Permission | None) -> Member:
    """The actor in that call, allowed to do that. `permission` None: anybody who is, was, or owns.

    A socket acts for the participant it is in the room as and for nobody else: without one the member has no
    participant, also where another device of theirs is in. REST, and sockets on `/files`, which are in no room, act for
    whichever device is in.

    Raises NotFound (a foreign call, a missing one, and one that the actor has no part in are the same), Banned,
    CallEnded, NotInRoom or Forbidden.
    """
    actor = ctx.actor
    async with ctx.transaction() as tx:
        call = await calls.get(tx, call_id)
        if call is None or elsewhere(actor, call_id):
            raise errors.NotFound()
        mine = await participants.of_user(tx, call_id, actor.user_id)
        banned = await bans.active(tx, call_id, actor.user_id, ctx.now())
        person = _own(ctx, call_id, mine)
        without = await taken_away(tx, actor, person)
    if not heads(actor, call):
        if person is None:
            raise errors.NotFound()
        if banned:
            raise errors.Banned()
        if person.status == "kicked":
            # They may come again (`room:join`), and have no part in it until then.
            raise errors.NotInRoom()
    member = as_member(actor, call, person, without)
    if ctx.attending is not None and (person is None or person.id != ctx.attending.rooms.get(call_id)):
        member = msgspec.structs.replace(member, participant=None)
    if permission is not None:
        if not heads(actor, call):
            demand_in_call(member)
        demand(member, permission)
    return member


def elsewhere(actor: Actor, call_id: UUID) -> bool:
    """A guest's token leads to one call only."""
    return actor.guest is not None and actor.guest.call_id != call_id


def heads(actor: Actor, call: Call) -> bool:
    """The owner and the tenant's admins act as host, in the call or not."""
    return actor.admin or actor.user_id == call.owner_id


def as_member(
    actor: Actor, call: Call, participant: Participant | None, without: frozenset[str] = frozenset()
) -> Member:
    """`without`: the features that the link they came by takes away (`taken_away`)."""
    role = role_of(actor, call, participant)
    denied = actor.guest.denied if actor.guest else ()
    off = without.union(features_off(call))
    return Member(call, participant, role, permissions(role, features_off=off, denied=denied))


async def taken_away(tx: Transaction, actor: Actor, participant: Participant | None) -> frozenset[str]:
    """The features that the link takes away by which somebody came, as it is now."""
    link_id = actor.guest.link_id if actor.guest else None
    if participant is not None:
        link_id = participant.via_link_id or link_id
    return await links.features_off(tx, link_id) if link_id else frozenset()


def role_of(actor: Actor, call: Call, participant: Participant | None) -> Role:
    if heads(actor, call):
        return "host"
    if participant is not None:
        return as_role(participant.role)
    return actor.guest.role if actor.guest else "participant"


def as_role(text: str) -> Role:
    """A role as the table holds it."""
    return next(role for role in ROLES if role == text)


def features_off(call: Call) -> tuple[str, ...]:
    switches = {
        "chat": call.chat_enabled,
        "files": call.file_sharing_enabled,
        "screen_share": call.screen_sharing_enabled,
        "recording": call.recording_enabled,
    }
    return tuple(feature for feature, on in switches.items() if not on)


async def as_linked(tx: Transaction, actor: Actor, call: Call, now: datetime) -> Actor:
    """A guest as the link that they came by is now, whatever their token says; others as they are.

    Raises LinkExpired where it was revoked, or bound anew since it gave the token, or its creator was put out of the
    call; where it is over, for those who were never in.
    """
    given = actor.guest
    if given is None or given.link_id is None:
        return actor
    link = await links.terms(tx, given.link_id)
    if link is None or link.revoked:
        raise errors.LinkExpired("the link was revoked")
    if given.link_version < link.valid_from:
        raise errors.LinkExpired("the link was changed: open it again")
    if link.expired and not await was_in(tx, actor, call):
        raise errors.LinkExpired("the link is over")
    role = await given_role(tx, call, link, now)
    if role is None:
        raise errors.LinkExpired("whoever made the link was put out of the call")
    guest = msgspec.structs.replace(given, role=lower(given.role, role), approval=link.require_approval)
    return msgspec.structs.replace(actor, guest=guest)


async def given_role(tx: Transaction, call: Call, link: Link | Terms, now: datetime) -> Role | None:
    """The link's role, but never more than its creator is by now. None: they were put out of the call."""
    role = as_role(link.default_role)
    if link.creator_id == call.owner_id:
        return role
    known = await participants.of_user(tx, call.id, link.creator_id)
    if any(map(put_out, known)) or await bans.active(tx, call.id, link.creator_id, now):
        return None
    if link.granted_as == "admin":
        return role
    return lower(role, as_role(known[-1].role if known else link.granted_as))


async def was_in(tx: Transaction, actor: Actor, call: Call) -> bool:
    """Whether they were in the call before, and nobody put them out since."""
    known = await participants.of_user(tx, call.id, actor.user_id)
    return any(each.joined_at is not None for each in known) and not any(map(put_out, known))


def put_out(person: Participant) -> bool:
    return person.kicked or person.status == "kicked"


def lower(one: Role, other: Role) -> Role:
    return one if rank(one) <= rank(other) else other


async def allowed(tx: Transaction, call: Call, participant: Participant) -> Permissions:
    """What somebody may do, with what the link they came by takes away."""
    off = set(features_off(call))
    if participant.via_link_id is not None:
        off |= await links.features_off(tx, participant.via_link_id)
    return permissions(standing(call, participant), features_off=off)


def standing(call: Call, participant: Participant) -> Role:
    """The role that others see and that nobody may reach above."""
    return "host" if participant.user_id == call.owner_id else as_role(participant.role)


def grant_of(role: Role, may: Permissions) -> Grant:
    """The same rights, as LiveKit enforces them."""
    return Grant(can_publish_sources=publish_sources(may), can_publish_data="chat_post" in may)


def demand_open(call: Call) -> None:
    if call.status == "ended":
        raise errors.CallEnded()


def demand_in_call(member: Member) -> Participant:
    """The member's own participant, who is in the call right now."""
    demand_open(member.call)
    if member.participant is None or member.participant.status not in IN_CALL:
        raise errors.NotInRoom()
    return member.participant


def demand(member: Member, permission: Permission) -> None:
    if permission not in member.permissions:
        raise errors.Forbidden(f"this needs {permission}", details={"permission": permission})


def _own(ctx: Context, call_id: UUID, mine: Sequence[Participant]) -> Participant | None:
    """Which of somebody's devices asks: the session's own, the one that is named, the one that is in."""
    here = ctx.attending.rooms.get(call_id) if ctx.attending else None
    identity = identity_of(ctx.actor.user_id, ctx.device_id)
    ranked = sorted(mine, key=lambda each: (each.id == here, each.identity == identity, each.status in IN_CALL))
    return ranked[-1] if ranked else None


def identity_of(user_id: str, device_id: str | None) -> str:
    """LiveKit's name of somebody; with a device, one person can be in a call twice."""
    return f"{user_id}:{device_id}" if device_id else user_id
