"""LiveKit's protobuf messages into our own values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast, get_args

from livekit.protocol import models

from hub.media.values import SOURCES, Grant, Kind, ParticipantInfo, RoomInfo, Source, State, TrackInfo


def room(message: models.Room) -> RoomInfo:
    return RoomInfo(
        sid=message.sid,
        name=message.name,
        created_at=_moment(message.creation_time_ms, message.creation_time) or datetime.fromtimestamp(0, UTC),
        max_participants=message.max_participants,
        empty_timeout_s=message.empty_timeout,
        departure_timeout_s=message.departure_timeout,
        metadata=message.metadata,
    )


def participant(message: models.ParticipantInfo) -> ParticipantInfo:
    permission = message.permission
    # UNKNOWN_REASON is also what an absent field reads as: only the server's real words are worth telling.
    reason = _enum(models.DisconnectReason, message.disconnect_reason) if message.disconnect_reason else ""
    return ParticipantInfo(
        sid=message.sid,
        identity=message.identity,
        name=message.name,
        state=cast(State, _known(_enum(models.ParticipantInfo.State, message.state), State)),
        kind=cast(Kind, _known(_enum(models.ParticipantInfo.Kind, message.kind), Kind)),
        joined_at=_moment(message.joined_at_ms, message.joined_at),
        hidden=permission.hidden or permission.recorder or permission.agent,
        tracks=tuple(track(item) for item in message.tracks),
        metadata=message.metadata,
        attributes=dict(message.attributes),
        grant=grant(permission) if message.HasField("permission") else None,
        disconnect_reason=reason,
    )


def track(message: models.TrackInfo) -> TrackInfo:
    source = cast(Source, _known(_enum(models.TrackSource, message.source), Source))
    return TrackInfo(sid=message.sid, source=source, muted=message.muted)


def grant(permission: models.ParticipantPermission) -> Grant:
    named = frozenset(_enum(models.TrackSource, source).lower() for source in permission.can_publish_sources)
    # An empty list is LiveKit's "all of them".
    sources = named & SOURCES if named else SOURCES
    return Grant(
        can_publish_sources=sources if permission.can_publish else frozenset(),
        can_subscribe=permission.can_subscribe,
        can_publish_data=permission.can_publish_data,
        hidden=permission.hidden,
    )


def permission(wanted: Grant, now: models.ParticipantPermission) -> models.ParticipantPermission:
    """`now` with what a grant is about replaced: LiveKit takes the whole set, and reads an unset field as "no"."""
    changed = models.ParticipantPermission()
    changed.CopyFrom(now)
    changed.can_publish = wanted.can_publish
    changed.can_subscribe = wanted.can_subscribe
    changed.can_publish_data = wanted.can_publish_data
    changed.hidden = wanted.hidden
    del changed.can_publish_sources[:]
    sources = models.ParticipantPermission(can_publish_sources=[s.upper() for s in sorted(wanted.can_publish_sources)])
    changed.can_publish_sources.extend(sources.can_publish_sources)
    return changed


def enum_name(enum: Any, value: int) -> str:
    """LiveKit's word for `value`; "UNKNOWN" for one that a newer server made up."""
    return _enum(enum, value)


def _enum(enum: Any, value: int) -> str:
    try:
        return str(enum.Name(value))
    except ValueError:
        return "UNKNOWN"


def _known(name: str, words: Any) -> str:
    return name.lower() if name.lower() in get_args(words) else "unknown"


def _moment(milliseconds: int, seconds: int) -> datetime | None:
    """None for 0, which is how protobuf says "not set". Raises OverflowError or ValueError beyond the calendar."""
    stamp = milliseconds / 1000 if milliseconds else seconds
    return datetime.fromtimestamp(stamp, UTC) if stamp else None
