"""A call and a participant as the outside sees them: the JSON of every answer, snapshot and event that shows one."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec


class MediaView(msgspec.Struct, frozen=True):
    """What somebody publishes and has not muted."""

    microphone: bool = False
    camera: bool = False
    screen_share: bool = False


class ParticipantView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody in a call, or somebody who was or may be."""

    participant_id: UUID
    user_id: str
    # LiveKit's stable name of them: `user_id`, or `user_id:device_id`.
    identity: str
    device_id: str | None
    display_name: str
    role: str
    # invited | joining | joined | reconnecting | left | kicked
    status: str
    metadata: dict[str, Any]
    media: MediaView
    hand_raised_at: datetime | None
    joined_at: datetime | None
    left_at: datetime | None
    left_reason: str | None
    # All the time they were in, over every coming and going; while they are in, up to the last change.
    duration_s: float


class CallView(msgspec.Struct, frozen=True, kw_only=True):
    """A call. `room_id` is LiveKit's sid of the room: informational, null before there is one, new after each
    re-creation.
    """

    call_id: UUID
    room_id: str | None
    room_name: str
    name: str
    call_type: str
    # waiting | active | ended
    status: str
    owner_id: str
    max_participants: int
    participant_count: int
    recording_enabled: bool
    screen_sharing_enabled: bool
    file_sharing_enabled: bool
    chat_enabled: bool
    locked: bool
    lobby_enabled: bool
    metadata: dict[str, Any]
    region: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: float | None
    end_reason: str | None
    quality_score: float | None

    @property
    def etag(self) -> str:
        """The strong tag of what somebody can change; who comes and goes does not change it."""
        parts = (
            self.call_id,
            self.name,
            self.locked,
            self.lobby_enabled,
            self.chat_enabled,
            self.file_sharing_enabled,
            self.screen_sharing_enabled,
            self.recording_enabled,
            self.metadata,
        )
        return f'"{hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]}"'
