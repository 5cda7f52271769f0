"""What is said about a call and its room: making, finding, entering, changing and ending it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hub.commands import Event
from hub.protocol.chat import MessageView
from hub.protocol.fields import (
    CallId,
    CallName,
    CallStatus,
    CallType,
    Cursor,
    DeviceId,
    DisplayName,
    Limit,
    Metadata,
    MetadataText,
    Reason,
)
from hub.protocol.files import FileView
from hub.protocol.hands import Hand
from hub.protocol.lobby import LobbyEntry
from hub.protocol.media import MediaAccess
from hub.protocol.views import CallView, ParticipantView


class CreateRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: CallName
    call_type: Annotated[CallType, Meta(description="What kind of call: informational.")] = "group"
    max_participants: Annotated[int, Meta(ge=1, le=10_000, description="How many seats there are.")] | None = None
    recording_enabled: Annotated[bool, Meta(description="Whether it may be recorded.")] = False
    screen_sharing_enabled: Annotated[bool, Meta(description="Whether screens may be shared.")] = True
    file_sharing_enabled: Annotated[bool, Meta(description="Whether files may be shared.")] = True
    chat_enabled: Annotated[bool, Meta(description="Whether people may chat.")] = True
    lobby_enabled: Annotated[bool, Meta(description="Whether people knock before they come in.")] = False
    metadata: Metadata = {}
    region: Annotated[str, Meta(min_length=1, max_length=64, description="Where its media runs.")] | None = None


class CreatedRoom(msgspec.Struct, frozen=True):
    call_id: UUID
    room_id: str | None
    room_name: str
    status: str
    created_at: datetime


class ListRooms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Your own calls and those you took part in, newest first."""

    status: Annotated[CallStatus | None, Meta(description="Only these.")] = None
    call_type: Annotated[CallType | None, Meta(description="Only these.")] = None
    from_: Annotated[datetime, Meta(tz=True, description="Created at or after this time.")] | None = msgspec.field(
        default=None, name="from"
    )
    to: Annotated[datetime, Meta(tz=True, description="Created before this time.")] | None = None
    q: Annotated[str, Meta(min_length=1, max_length=200, description="Part of the name.")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class RoomPage(msgspec.Struct, frozen=True):
    items: list[CallView]
    next_cursor: str | None


class NameRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call."""

    call_id: CallId


class Features(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the room allows at all; what is absent stays as it is."""

    chat: bool | UnsetType = UNSET
    files: bool | UnsetType = UNSET
    screen_share: bool | UnsetType = UNSET
    recording: bool | UnsetType = UNSET


class UpdateRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is absent stays; keys of `metadata` are merged, a null takes the key away."""

    call_id: CallId
    name: CallName | UnsetType = UNSET
    locked: Annotated[bool | UnsetType, Meta(description="Nobody new comes in.")] = UNSET
    lobby_enabled: Annotated[bool | UnsetType, Meta(description="People knock before they come in.")] = UNSET
    features: Features | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class RoomAnswer(msgspec.Struct, frozen=True):
    call: CallView

    @property
    def etag(self) -> str:
        return self.call.etag


class EndRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    reason: Reason | None = None


class AskToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    display_name: DisplayName | None = None
    metadata: Metadata | MetadataText | None = None
    device_id: DeviceId | None = None


class RoomToken(msgspec.Struct, frozen=True):
    token: str
    call_id: UUID
    room_name: str
    identity: str
    participant_id: UUID
    url: str
    expires_at: datetime


class RoomPosition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in the room's log of events."""

    epoch: Annotated[str, Meta(min_length=1, max_length=64, description="The log this is a place in.")]
    offset: Annotated[int, Meta(ge=0, le=2**53, description="The last event seen.")]


class JoinRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    call_id: CallId
    display_name: DisplayName | None = None
    metadata: Metadata | None = None
    device_id: DeviceId | None = None
    since: RoomPosition | None = None
    media: Annotated[bool, Meta(description="Hand out the way into the SFU with the answer.")] = True


class SyncRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    since: RoomPosition


class MissedEvent(msgspec.Struct, frozen=True):
    """An event as it would have come: its name, and its payload with the position in it."""

    event: str
    data: dict[str, Any]


class RoomSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The room as of `position`.

    With `recovered` the events since the place that was asked for are in `missed`, and whoever applies them has the
    same picture as the snapshot beside them.
    """

    call: CallView
    self: ParticipantView
    participants: list[ParticipantView]
    hands: list[Hand]
    files: list[FileView]
    # The newest messages that are yours to see, the oldest of them first; `chat:list` reads on from `chat_cursor`.
    chat: list[MessageView]
    chat_cursor: str | None
    # Who waits, for whoever may let them in; null for the others.
    lobby: list[LobbyEntry] | None
    position: RoomPosition
    recovered: bool
    missed: list[MissedEvent]
    media: MediaAccess | None = None


class ListEvents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The recorded events after a place, for clients without a socket."""

    call_id: CallId
    since: Annotated[
        str,
        Meta(
            max_length=90, pattern=r"^[^:]{1,64}:\d{1,16}$(?!\n)", description="`epoch:offset` of the last event seen."
        ),
    ]


class RoomEvents(msgspec.Struct, frozen=True):
    """`recovered` false: the place is too long ago, or of another log. Ask for the room anew, and go on there."""

    items: list[MissedEvent]
    recovered: bool
    position: RoomPosition


class RoomStarted(Event, frozen=True):
    """The first person came in: the call is active."""

    name: ClassVar[str] = "room:started"

    call: CallView


class RoomUpdated(Event, frozen=True):
    """The call's name, lock, lobby, features or metadata changed."""

    name: ClassVar[str] = "room:updated"

    call: CallView


class RoomEnded(Event, frozen=True):
    """The call is over."""

    name: ClassVar[str] = "room:ended"

    call: CallView
    reason: str


class RoomLeft(Event, frozen=True):
    """To one session: it is not in the room any more, and why."""

    name: ClassVar[str] = "room:left"
    recorded: ClassVar[bool] = False

    reason: Literal["taken_over", "kicked", "banned", "ended", "left", "closed"]
    message: str = ""
