"""What people choose to look like, and what they see of their contacts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hub.commands import Event
from hub.protocol.fields import UserId

UserIds = Annotated[list[UserId], Meta(min_length=1, max_length=200, description="Contacts of yours, or yourself.")]
PresenceText = Annotated[
    str,
    Meta(
        max_length=140,
        pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)",
        description="A line of your own beside the status; null or empty: none.",
    ),
]


class PresenceView(msgspec.Struct, frozen=True, kw_only=True):
    """How somebody looks. Whom you may not see looks like somebody who is not there.

    `invisible` is only ever shown to its owner. `last_seen` is there while offline, null where it is not known.
    """

    user_id: str
    status: Literal["online", "away", "busy", "in_call", "offline", "invisible"]
    text: str | None
    last_seen: datetime | None


class SetPresence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    status: Annotated[
        Literal["online", "away", "busy", "invisible"],
        Meta(description="For all your devices, until changed. `online`: as you are, in a call or not."),
    ]
    text: PresenceText | UnsetType | None = UNSET


class PresenceAnswer(msgspec.Struct, frozen=True):
    presence: PresenceView


class WatchPresence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_ids: UserIds


class UnwatchPresence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_ids: UserIds


class ListPresence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_ids: UserIds


class Presences(msgspec.Struct, frozen=True):
    presences: list[PresenceView]


class PresenceChanged(Event, frozen=True):
    """People you watch look different now; at most four of these a second, with the latest of each."""

    name: ClassVar[str] = "presence:changed"
    recorded: ClassVar[bool] = False

    presences: list[PresenceView]
