"""Raised hands: one queue a call, first come first."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId, ParticipantId


class RaiseHand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId


class LowerHand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Your own hand; with `participant_id` or `all` those of others, which takes a moderator."""

    call_id: CallId
    participant_id: ParticipantId | None = None
    all: Annotated[bool, Meta(description="Every raised hand.")] = False


class Hand(msgspec.Struct, frozen=True):
    participant_id: UUID
    user_id: str
    display_name: str
    raised_at: datetime


class HandQueue(msgspec.Struct, frozen=True):
    """All raised hands, the longest raised first."""

    queue: list[Hand]


class HandRaised(Event, frozen=True):
    """A hand went up; `queue` is the whole queue after it."""

    name: ClassVar[str] = "hand:raised"

    hand: Hand
    queue: list[Hand]


class HandLowered(Event, frozen=True):
    """Hands went down; `queue` is what is left."""

    name: ClassVar[str] = "hand:lowered"

    participant_ids: list[UUID]
    queue: list[Hand]
