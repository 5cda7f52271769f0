"""Muting others. What there is to mute is asked of LiveKit, and what it then did is what everybody is told."""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

import msgspec

from db import audit, calls, participants
from db.calls import Call
from db.participants import Participant
from hub.actions import members
from hub.actions.aftermath import carry_out, settle, side_by_side
from hub.commands import Commands, Http, Rate
from hub.context import Context
from hub.media.values import TrackInfo
from hub.policy import rank
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.fields import MediaSource
from hub.protocol.media import MediaChanged
from hub.protocol.participants import MuteAnswer, Muted, MuteParticipant, ParticipantMuted
from hub.state.facts import TrackPublished

commands = Commands()

# A shared screen's sound goes with its picture.
_SOURCE_OF: dict[str, MediaSource] = {
    "microphone": "microphone",
    "camera": "camera",
    "screen_share": "screen_share",
    "screen_share_audio": "screen_share",
}


class _Found(msgspec.Struct, frozen=True):
    """A track that is not yet as it is wanted."""

    person: Participant
    part_sid: str
    track: TrackInfo


@commands.add(
    "participant:mute",
    needs="participant_mute",
    rate=Rate(20, per_s=10),
    emits=(ParticipantMuted, MediaChanged),
    http=Http("POST", "/rooms/{call_id}/participants/{participant_id}/mute"),
)
async def mute(ctx: Context, message: MuteParticipant) -> MuteAnswer:
    """Mute somebody, or everybody below you. Unmuting others takes a media server that allows it."""
    if message.all == (message.participant_id is not None):
        text = "either participant_id or all"
        raise errors.ValidationFailed(text, errors=[FieldError("participant_id", text)])
    call = ctx.member.call
    members.demand_open(call)
    targets = await _targets(ctx, message)
    found = await _tracks(ctx, call, targets, message) if call.status == "active" else []
    await _tell_livekit(ctx, call, found, message.muted)
    answer = MuteAnswer(_summed(found))
    if found:
        await _keep_facts(ctx, call, found, ParticipantMuted(answer.muted, message.muted))
    return answer


async def _targets(ctx: Context, message: MuteParticipant) -> dict[str, Participant]:
    """By identity. Nobody mutes above their own rank."""
    actor = ctx.member
    async with ctx.transaction() as tx:
        present = await participants.in_call(tx, message.call_id)
    own = ctx.actor.user_id

    def reachable(person: Participant) -> bool:
        return person.user_id == own or rank(members.standing(actor.call, person)) <= rank(actor.role)

    if message.all:
        return {each.identity: each for each in present if each.user_id != own and reachable(each)}
    target = next((each for each in present if each.id == message.participant_id), None)
    if target is None:
        raise errors.NotFound()
    if not reachable(target):
        raise errors.Forbidden("nobody mutes above their own rank")
    return {target.identity: target}


async def _tracks(ctx: Context, call: Call, targets: dict[str, Participant], message: MuteParticipant) -> list[_Found]:
    people = await ctx.hub.media.list_participants(call.livekit_room_name, region=call.region)
    return [
        _Found(targets[each.identity], each.sid, track)
        for each in people
        if each.identity in targets
        for track in each.tracks
        if _SOURCE_OF.get(track.source) in message.sources and track.muted != message.muted
    ]


async def _tell_livekit(ctx: Context, call: Call, found: list[_Found], muted: bool) -> None:
    async def one(each: _Found) -> None:
        try:
            await ctx.hub.media.mute(
                call.livekit_room_name, each.person.identity, each.track.sid, muted, region=call.region
            )
        except errors.NotFound:
            # They left, or took the track down, just now: it is silent.
            return

    try:
        await side_by_side(one(each) for each in found)
    except* (errors.MediaError, errors.MediaUnavailable) as group:
        # In one clause: what two of them raise would come out as a group again, which is nobody's refusal.
        refusal = next((error for error in group.exceptions if isinstance(error, errors.MediaError)), None)
        if refusal is None:
            raise errors.MediaUnavailable(retry_after_ms=1000) from group
        if not muted and (refusal.details or {}).get("code") == "failed_precondition":
            raise errors.Forbidden(
                "the media server does not let anybody be unmuted by others", details={"policy": "remote_unmute"}
            ) from group
        raise errors.MediaError("the media server refused to mute") from group


async def _keep_facts(ctx: Context, call: Call, found: list[_Found], told: ParticipantMuted) -> None:
    """LiveKit tells nobody about a mute, but we have just seen it."""
    now = ctx.now()
    async with ctx.deciding(call.id) as tx:
        locked = await calls.lock(tx, call.id)
        # Deleted, or its room gone, in this very moment: there is nothing left to know.
        if locked is None or locked.livekit_room_sid is None:
            ctx.due(call.id, [told])
            return
        news = [
            TrackPublished(
                at=now,
                known_at=now,
                room_sid=locked.livekit_room_sid,
                part_sid=each.part_sid,
                identity=each.person.identity,
                track_sid=each.track.sid,
                source=each.track.source,
                muted=told.muted,
            )
            for each in found
        ]
        settled = await settle(ctx, tx, call.id, now, news)
        ctx.due(call.id, [told])
        for muted_one in told.participants:
            await audit.add(
                tx,
                actor=ctx.actor.user_id,
                action="participant:mute",
                target_type="participant",
                target_id=str(muted_one.participant_id),
                details={"call_id": str(call.id), "sources": muted_one.sources, "muted": told.muted},
            )
    await carry_out(ctx, settled)


def _summed(found: list[_Found]) -> list[Muted]:
    sources: dict[UUID, set[MediaSource]] = defaultdict(set)
    for each in found:
        sources[each.person.id].add(_SOURCE_OF[each.track.source])
    return [Muted(participant_id, sorted(those)) for participant_id, those in sources.items()]
