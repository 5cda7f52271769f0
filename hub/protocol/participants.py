"""What is said about the people in a call."""

from __future__ import annotations

from typing import Annotated, ClassVar
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hub.commands import Event
from hub.protocol.fields import (
    CallId,
    Cursor,
    DisplayName,
    Limit,
    MediaSource,
    Metadata,
    ParticipantId,
    Reason,
    RoleName,
    Sources,
    UserId,
)
from hub.protocol.views import ParticipantView


class ListParticipants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    limit: Limit = 50
    cursor: Cursor | None = None


class ParticipantPage(msgspec.Struct, frozen=True):
    items: list[ParticipantView]
    next_cursor: str | None


class UpdateParticipant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Yourself. What is absent stays; keys of `metadata` are merged, a null takes the key away."""

    call_id: CallId
    display_name: DisplayName | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class EditParticipant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Yourself by name and metadata, others by role."""

    call_id: CallId
    participant_id: ParticipantId
    display_name: DisplayName | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET
    role: RoleName | UnsetType = UNSET


class SetRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    participant_id: ParticipantId
    role: Annotated[RoleName, Meta(description="Never above your own.")]


class ParticipantAnswer(msgspec.Struct, frozen=True):
    participant: ParticipantView


class MuteParticipant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One, or `all` below your own rank. Muting is immediate; unmuting others takes the media server's leave."""

    call_id: CallId
    sources: Sources
    participant_id: ParticipantId | None = None
    all: Annotated[bool, Meta(description="Everybody but yourself and those above your rank.")] = False
    muted: Annotated[bool, Meta(description="False: unmute, where the server lets a moderator do that.")] = True


class Muted(msgspec.Struct, frozen=True):
    """What was muted (or unmuted) of whom."""

    participant_id: UUID
    sources: list[MediaSource]


class MuteAnswer(msgspec.Struct, frozen=True):
    muted: list[Muted]


class KickParticipant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    participant_id: ParticipantId
    reason: Reason | None = None
    ban_s: (
        Annotated[
            int,
            Meta(ge=1, le=31_536_000, description="Keep them out this long; absent: they may ask to come in again."),
        ]
        | None
    ) = None


class UnbanUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let somebody in again who was kicked or banned."""

    call_id: CallId
    user_id: UserId


class ParticipantJoined(Event, frozen=True):
    """People came in."""

    name: ClassVar[str] = "participant:joined"

    participants: list[ParticipantView]


class ParticipantLeft(Event, frozen=True):
    """People left, and their raised hands with them; each says why in `left_reason`."""

    name: ClassVar[str] = "participant:left"

    participants: list[ParticipantView]


class ParticipantUpdated(Event, frozen=True):
    """Somebody's name, metadata, role or connection changed."""

    name: ClassVar[str] = "participant:updated"

    participant: ParticipantView


class ParticipantMuted(Event, frozen=True):
    """A moderator muted people (or unmuted them, where the media server lets one)."""

    name: ClassVar[str] = "participant:muted"

    participants: list[Muted]
    muted: bool
