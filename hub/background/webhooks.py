"""A kept webhook as news about its room. Pure: the same event is always the same news."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from hub.media.values import WebhookEvent
from hub.state.facts import (
    ConnectionAborted,
    FactEvent,
    ParticipantJoined,
    ParticipantLeft,
    RoomFinished,
    RoomStarted,
    TrackPublished,
    TrackUnpublished,
)

_SECOND = timedelta(seconds=1)


class _Room(msgspec.Struct):
    # int64 travels as text in protojson.
    creationTimeMs: str = "0"
    creationTime: str = "0"


class _Body(msgspec.Struct):
    room: _Room = msgspec.field(default_factory=_Room)


def news_of(event: WebhookEvent, received_at: datetime) -> FactEvent | None:
    """None: nothing that the state of a call depends on (egress, ingress, what a newer LiveKit sends)."""
    if not event.room_sid:
        return None
    at, known_at, room_sid = _when(event, received_at), received_at, event.room_sid
    created_at = _room_created_at(event)
    if event.event == "room_started":
        return RoomStarted(at=at, known_at=known_at, room_sid=room_sid, room_created_at=created_at)
    if event.event == "room_finished":
        reason = event.room_end_reason or None
        return RoomFinished(at=at, known_at=known_at, room_sid=room_sid, room_created_at=created_at, reason=reason)
    person, track = event.participant, event.track
    if person is None or not person.sid:
        return None
    if event.event in ("track_published", "track_unpublished"):
        if track is None or not track.sid:
            return None
        # These say nothing about the person but the name: kind and joined_at read as defaults and are not known.
        if event.event == "track_unpublished":
            return TrackUnpublished(
                at=at,
                known_at=known_at,
                room_sid=room_sid,
                room_created_at=created_at,
                part_sid=person.sid,
                identity=person.identity,
                track_sid=track.sid,
                source=track.source,
            )
        return TrackPublished(
            at=at,
            known_at=known_at,
            room_sid=room_sid,
            room_created_at=created_at,
            part_sid=person.sid,
            identity=person.identity,
            track_sid=track.sid,
            source=track.source,
            muted=track.muted,
        )
    if event.event == "participant_joined":
        return ParticipantJoined(
            at=at,
            known_at=known_at,
            room_sid=room_sid,
            room_created_at=created_at,
            part_sid=person.sid,
            identity=person.identity,
            joined_at=person.joined_at or at,
            countable=person.countable,
        )
    if event.event in ("participant_left", "participant_connection_aborted"):
        kind = ParticipantLeft if event.event == "participant_left" else ConnectionAborted
        return kind(
            at=at,
            known_at=known_at,
            room_sid=room_sid,
            room_created_at=created_at,
            part_sid=person.sid,
            identity=person.identity,
            joined_at=person.joined_at,
            countable=person.countable,
            reason=person.disconnect_reason or "UNKNOWN_REASON",
        )
    return None


def _when(event: WebhookEvent, received_at: datetime) -> datetime:
    """LiveKit's time has whole seconds. Where the event came within that second, our clock is the finer one."""
    prompt = event.created_at <= received_at < event.created_at + _SECOND
    return received_at if prompt else event.created_at


def _room_created_at(event: WebhookEvent) -> datetime | None:
    try:
        room = msgspec.json.decode(event.raw, type=_Body).room
        stamp = int(room.creationTimeMs) / 1000 or int(room.creationTime)
        return datetime.fromtimestamp(stamp, UTC) if stamp else None
    except (msgspec.DecodeError, ValueError, OverflowError, OSError):
        return None
