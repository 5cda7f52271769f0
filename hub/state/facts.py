"""What is known about a call, keyed by LiveKit's own sids, and the news that adds to it (`hub/state/fold.py`).

News arrives twice, late, out of order or never, so nothing here is "the current state": a fact once known stays, and
folding the same news again, or in another order, gives the same facts. What they mean is derived (`hub/state/call.py`).

Two clocks meet here. `at` is LiveKit's time of the event; `known_at` is the hub's time when it heard of it. What is
compared with the hub's own acts (a kick, a leave, a sweep) is compared by `known_at`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

Source = Literal["microphone", "camera", "screen_share", "screen_share_audio", "unknown"]
FinishedBy = Literal["webhook", "api", "sweep"]
LeftBy = Literal["webhook", "sweep"]

# People by LiveKit's kinds; egress and agents are machines and neither start a call nor fill a seat.
COUNTABLE_KINDS = frozenset({"standard", "sip", "ingress", "connector"})

# A snapshot says nothing about what was heard of so shortly before it was asked for.
SNAPSHOT_MARGIN = timedelta(seconds=2)
# LiveKit's lists are eventually consistent when they come from its Redis: one absence may be a stale answer.
MISSES = 2
# Two looks closer than this see the same stale answer, as when an operator asks while the sweep looks.
MISS_APART = timedelta(seconds=2)
EVENT_RESOLUTION = timedelta(seconds=1)
# Rejoining without end must not grow a row without end: beyond this the oldest intervals are joined into one.
MAX_INTERVALS = 64

# What a sweep concludes: gone together with everybody else, which may be the server's doing; or gone alone.
SWEPT = "sweep"
MISSED = "missed"
SERVER_SHUTDOWN = "SERVER_SHUTDOWN"


class Incarnation(msgspec.Struct, frozen=True):
    """One life of the LiveKit room of a call: a new one each time LiveKit or the hub makes the room again."""

    room_sid: str
    first_seen: datetime
    known_at: datetime
    finished_at: datetime | None = None
    finished_by: FinishedBy | None = None
    # LiveKit's own word for why, from servers that send one.
    finish_reason: str | None = None
    miss: int = 0

    @property
    def final(self) -> bool:
        """LiveKit itself said that it is over; what a sweep concluded may be revoked by a later sweep."""
        return self.finished_by in ("webhook", "api")


class Session(msgspec.Struct, frozen=True):
    """One LiveKit session (PA_…) of an identity. A full reconnect is a new session."""

    part_sid: str
    room_sid: str
    identity: str
    known_at: datetime
    # Media came up. Without it the session never counted.
    joined: bool = False
    joined_at: datetime | None = None
    # None: only a track event told of it, and those do not say what kind of participant it is.
    countable: bool | None = None
    left_at: datetime | None = None
    left_by: LeftBy | None = None
    reason: str | None = None
    miss: int = 0

    @property
    def since(self) -> datetime:
        return self.joined_at or self.known_at


class Track(msgspec.Struct, frozen=True):
    """One track (TR_…). Unpublished by webhook is final, by sweep it is revocable."""

    track_sid: str
    part_sid: str
    source: Source
    known_at: datetime
    unpublished_by: LeftBy | None = None
    muted: bool = False
    muted_at: datetime | None = None
    miss: int = 0


class Reported(msgspec.Struct, frozen=True):
    """What a client said about its own devices. LiveKit sends no webhook for a mute, so this is the first to know."""

    at: datetime
    microphone: bool = False
    camera: bool = False
    screen_share: bool = False


class ParticipantFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub itself did about one identity of the call."""

    participant_id: UUID
    identity: str
    token_issued_at: datetime | None = None
    token_expires_at: datetime | None = None
    # The latest attachment by a socket; attached while `hub_left_at` is None.
    hub_joined_at: datetime | None = None
    hub_left_at: datetime | None = None
    hub_left_reason: str | None = None
    # Earlier attachments, oldest first.
    attachments: tuple[tuple[datetime, datetime], ...] = ()
    leave_requested_at: datetime | None = None
    kick_requested_at: datetime | None = None
    kick_reason: str | None = None
    readmitted_at: datetime | None = None
    reported: Reported | None = None

    @property
    def attached(self) -> bool:
        return self.hub_joined_at is not None and self.hub_left_at is None

    @property
    def kicked(self) -> bool:
        """Kicked and not let in again since."""
        if self.kick_requested_at is None:
            return False
        return self.readmitted_at is None or self.readmitted_at < self.kick_requested_at


class CallFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides the state of one call and of the people in it."""

    call_id: UUID
    room_name: str
    created_at: datetime
    waiting_expires_at: datetime | None = None
    # Ended is for ever: once here, no news changes it.
    ended_at: datetime | None = None
    end_reason: str | None = None
    # LiveKit answered, and did not list the room.
    room_absent_since: datetime | None = None
    # LiveKit did not answer at all.
    media_silent_since: datetime | None = None
    # When LiveKit was asked, the last time that an absence counted.
    missed_at: datetime | None = None
    incarnations: Mapping[str, Incarnation] = {}
    sessions: Mapping[str, Session] = {}
    tracks: Mapping[str, Track] = {}
    participants: Mapping[UUID, ParticipantFacts] = {}


class News(msgspec.Struct, frozen=True, kw_only=True):
    """One thing heard about a call's room."""

    at: datetime
    known_at: datetime


class RoomNews(News, frozen=True, kw_only=True):
    room_sid: str
    # When LiveKit says it made the room; track events do not carry it.
    room_created_at: datetime | None = None


class RoomStarted(RoomNews, frozen=True, kw_only=True):
    """The room exists: LiveKit's webhook, or the answer to our own CreateRoom. It says nothing about people."""


class RoomFinished(RoomNews, frozen=True, kw_only=True):
    """The room is over; `by` is `api` where our own DeleteRoom was answered."""

    by: Literal["webhook", "api"] = "webhook"
    reason: str | None = None


class PersonNews(RoomNews, frozen=True, kw_only=True):
    part_sid: str
    identity: str
    joined_at: datetime | None = None
    countable: bool | None = None


class ParticipantJoined(PersonNews, frozen=True, kw_only=True):
    """Media is up."""


class ParticipantLeft(PersonNews, frozen=True, kw_only=True):
    """The session is over after media was up."""

    reason: str = "UNKNOWN_REASON"


class ConnectionAborted(PersonNews, frozen=True, kw_only=True):
    """The session is over, and media never came up."""

    reason: str = "UNKNOWN_REASON"


class TrackPublished(PersonNews, frozen=True, kw_only=True):
    track_sid: str
    source: Source = "unknown"
    muted: bool = False


class TrackUnpublished(PersonNews, frozen=True, kw_only=True):
    track_sid: str
    source: Source = "unknown"


class SeenTrack(msgspec.Struct, frozen=True):
    track_sid: str
    source: Source
    muted: bool


class SeenPerson(msgspec.Struct, frozen=True):
    """An active participant in a snapshot. People whose media never came up are not in it."""

    part_sid: str
    identity: str
    joined_at: datetime | None
    countable: bool
    tracks: tuple[SeenTrack, ...] = ()


class SweepSeen(RoomNews, frozen=True, kw_only=True):
    """LiveKit lists the room with these people; `at` is when it was asked. `people` None: it did not say who."""

    people: tuple[SeenPerson, ...] | None


class RoomAbsent(News, frozen=True, kw_only=True):
    """LiveKit answered and does not have the room; `at` is when it was asked."""


class MediaSilent(News, frozen=True, kw_only=True):
    """LiveKit has not answered since `at`."""


class EndRequested(News, frozen=True, kw_only=True):
    """Somebody who may ended the call."""

    reason: str


class MediaReported(News, frozen=True, kw_only=True):
    """A client told what it does with its devices."""

    participant_id: UUID
    microphone: bool
    camera: bool
    screen_share: bool


FactEvent = (
    RoomStarted
    | RoomFinished
    | ParticipantJoined
    | ParticipantLeft
    | ConnectionAborted
    | TrackPublished
    | TrackUnpublished
    | SweepSeen
    | RoomAbsent
    | MediaSilent
    | EndRequested
    | MediaReported
)
