"""The lobby: people at the door of a call, and those who let them in.

Its events go to people, not to the room: who waits hears of their own place and of what was decided, the owner and the
moderators who are in hear of everybody. They have a place in each person's own log (`recovery.user`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId, DisplayName, Reason

Ticket = Annotated[UUID, Meta(description="A knock, as in `entry.ticket` of `lobby:knocked`.")]


class Knock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    display_name: DisplayName | None = None


class CancelKnock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId


class ListLobby(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId


class DecideLobby(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either some, or everybody who waits."""

    call_id: CallId
    tickets: Annotated[list[Ticket], Meta(min_length=1, max_length=200, description="Whom; or `all`.")] | None = None
    all: Annotated[bool, Meta(description="Everybody who waits now.")] = False
    reason: Reason | None = None


class DecideTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    ticket: Ticket
    reason: Reason | None = None


class LobbyTicket(msgspec.Struct, frozen=True):
    """Your place. With `admitted` there is nothing to wait for (any more): `room:join`."""

    status: Literal["waiting", "admitted"]
    # Null for who need not knock.
    ticket: UUID | None
    # 1 is the next; 0 for who does not wait.
    position: int
    # Until the knock is over, if nobody decides.
    timeout_s: int


class LobbyEntry(msgspec.Struct, frozen=True):
    """Somebody who waits, or did."""

    call_id: UUID
    ticket: UUID
    user_id: str
    display_name: str
    # waiting | admitted | denied | canceled | timed_out
    status: str
    # 1 is the next; 0 for who does not wait any more.
    position: int
    knocked_at: datetime
    expires_at: datetime


class Lobby(msgspec.Struct, frozen=True):
    """Everybody who waits, the longest first."""

    items: list[LobbyEntry]


class LobbyCount(msgspec.Struct, frozen=True):
    """How many it was true of: who was let in or went meanwhile is none of them."""

    count: int


class LobbyKnocked(Event, frozen=True):
    """To whoever may let people in: somebody waits. Comes again, with the same ticket, when they ask again."""

    name: ClassVar[str] = "lobby:knocked"

    entry: LobbyEntry
    # With this one.
    waiting: int


class LobbyUpdated(Event, frozen=True):
    """To whoever waits: the own entry, further ahead. To whoever may let people in: entries that wait no more."""

    name: ClassVar[str] = "lobby:updated"

    entries: list[LobbyEntry]
    # How many wait now.
    waiting: int


class LobbyAdmitted(Event, frozen=True):
    """To whoever waited: come in, by `room:join`."""

    name: ClassVar[str] = "lobby:admitted"

    entry: LobbyEntry


class LobbyDenied(Event, frozen=True):
    """To whoever waited: it came to nothing. After `retry_after_ms` they may knock again; null: not any more."""

    name: ClassVar[str] = "lobby:denied"

    entry: LobbyEntry
    why: Literal["denied", "timed_out", "call_ended"]
    reason: str
    retry_after_ms: int | None
