"""What is said about calling people: it rings, and what comes of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId, Cursor, Limit, UserId
from hub.protocol.views import CallView

InviteId = Annotated[UUID, Meta(description="As `invite:send` answered and `invite:received` says.")]
InviteStatus = Literal["ringing", "accepted", "declined", "busy", "canceled", "missed"]
Direction = Literal["incoming", "outgoing"]


class SendInvite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    call_id: CallId
    user_ids: Annotated[list[UserId], Meta(min_length=1, max_length=20, description="Whom to call.")]
    timeout_s: Annotated[int, Meta(ge=5, le=120, description="How long it rings.")] = 45


class InviteSent(msgspec.Struct, frozen=True):
    invite_id: UUID
    expires_at: datetime


class NameInvite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    invite_id: InviteId


class DeclineInvite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    invite_id: InviteId
    reason: Annotated[
        Literal["declined", "busy"], Meta(description="`busy`: you are in another call; the caller is told so.")
    ] = "declined"


class InviteAccess(msgspec.Struct, frozen=True):
    """The call to join now, by `room:join`. Where whoever called may let people in, its lock and lobby are open."""

    call: CallView


class ListInvites(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Your call log, newest first: whom you called, and who called you."""

    direction: Annotated[Direction | None, Meta(description="Only these.")] = None
    status: Annotated[InviteStatus | None, Meta(description="Only these; `ringing` is what can be answered now.")] = (
        None
    )
    call_id: Annotated[UUID | None, Meta(description="Only about this call.")] = None
    limit: Limit = 50
    cursor: Cursor | None = None


class InviteView(msgspec.Struct, frozen=True, kw_only=True):
    """One person called to one call. `user_id` is who was called, `ended_at` when it stopped ringing."""

    id: UUID
    invite_id: UUID
    direction: Direction
    call_id: UUID
    caller_id: str
    user_id: str
    status: InviteStatus
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None


class InvitePage(msgspec.Struct, frozen=True):
    items: list[InviteView]
    next_cursor: str | None


class InvitedTo(msgspec.Struct, frozen=True):
    """The call, as whoever is not in it yet may know it."""

    call_id: UUID
    name: str
    call_type: str


class CallNamed(msgspec.Struct, frozen=True):
    """Which call. Not beside the event's position, which is one of your own log and not of the room's."""

    call_id: UUID


class Caller(msgspec.Struct, frozen=True):
    user_id: str
    display_name: str
    avatar_url: str


class AnsweredBy(msgspec.Struct, frozen=True):
    """Which of your devices answered; both null where it was done by REST."""

    session_id: str | None
    device_id: str | None


class InviteReceived(Event, frozen=True):
    """Somebody calls you: all your devices ring until one answers. A device that connects meanwhile hears it, too.

    It may come twice, after a reconnect say; `invite_id` tells.
    """

    name: ClassVar[str] = "invite:received"

    invite_id: UUID
    call: InvitedTo
    caller: Caller
    created_at: datetime
    expires_at: datetime


class InviteAccepted(Event, frozen=True):
    """Whom you called comes."""

    name: ClassVar[str] = "invite:accepted"

    invite_id: UUID
    call: CallNamed
    user_id: str


class InviteDeclined(Event, frozen=True):
    """Whom you called does not come; `busy`: because of another call."""

    name: ClassVar[str] = "invite:declined"

    invite_id: UUID
    call: CallNamed
    user_id: str
    reason: Literal["declined", "busy"]


class InviteCanceled(Event, frozen=True):
    """It rings no longer, neither for you nor for whom you called.

    `answered_elsewhere`, `declined_elsewhere`: one of your devices answered (`answered_by`; that one has its ack and
    hears this, too). `canceled`: whoever called gave up. `call_ended`: there is nothing left to come to.
    """

    name: ClassVar[str] = "invite:canceled"

    invite_id: UUID
    call: CallNamed
    user_id: str
    reason: Literal["answered_elsewhere", "declined_elsewhere", "canceled", "call_ended"]
    answered_by: AnsweredBy | None = None


class InviteMissed(Event, frozen=True):
    """Nobody answered in time: to whom it rang, and to whoever called."""

    name: ClassVar[str] = "invite:missed"

    invite_id: UUID
    call: CallNamed
    caller_id: str
    user_id: str
