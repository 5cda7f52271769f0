"""The state of one participant, derived from what LiveKit and the hub know about their identity. Pure.

They are in the call while a LiveKit session of theirs is open or a socket of theirs is attached. Their time in it is
the union of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from hub.state.facts import MISSED, SERVER_SHUTDOWN, SWEPT, ParticipantFacts, Session, Source, Track

Status = Literal["invited", "joining", "joined", "reconnecting", "left", "kicked"]
IN_CALL: frozenset[Status] = frozenset({"joined", "reconnecting"})
SEATED: frozenset[Status] = frozenset({"joining", "joined", "reconnecting"})

# A token lets somebody in until it expires, plus LiveKit's leeway for clocks and its time for media to come up.
JOIN_MARGIN = timedelta(seconds=120)

CLIENT_INITIATED = "CLIENT_INITIATED"
CONNECTION_TIMEOUT = "CONNECTION_TIMEOUT"
ROOM_FINISHED = "ROOM_FINISHED"
ROOM_LOST = "ROOM_LOST"
REMOVED = "PARTICIPANT_REMOVED"
# The media server took the room from them, so they wait for it as long as the call does.
LOST = frozenset({SERVER_SHUTDOWN, ROOM_LOST})
# What may still turn out to be a reconnect; CLIENT_INITIATED has a shorter grace of its own, the others are goodbyes.
_BROKEN = frozenset(
    {
        "DUPLICATE_IDENTITY",
        "MIGRATION",
        "STATE_MISMATCH",
        CONNECTION_TIMEOUT,
        "SIGNAL_CLOSE",
        "UNKNOWN_REASON",
        "UNKNOWN",
        "",
        SWEPT,
    }
)
_WORDS = {
    CLIENT_INITIATED: "left",
    REMOVED: "removed",
    "DUPLICATE_IDENTITY": "replaced",
    "ROOM_DELETED": "call_ended",
    "ROOM_CLOSED": "call_ended",
    ROOM_FINISHED: "call_ended",
    SERVER_SHUTDOWN: "media_lost",
    ROOM_LOST: "media_lost",
}
_EPOCH = datetime.fromtimestamp(0, UTC)

Interval = tuple[datetime, datetime]


class Grace(msgspec.Struct, frozen=True):
    """How long something that looks like a goodbye may still turn out to be a reconnect, in seconds."""

    leave_s: float = 2.0
    reconnect_s: float = 20.0
    # LiveKit has waited 20 s when it says so, and who is dead has to be gone after 30.
    timeout_s: float = 5.0
    absent_room_s: float = 60.0

    def of(self, reason: str) -> timedelta:
        if reason in (CLIENT_INITIATED, MISSED):
            # Two looks, a whole interval apart, have waited already for whom they missed.
            return timedelta(seconds=self.leave_s)
        if reason == CONNECTION_TIMEOUT:
            return timedelta(seconds=min(self.timeout_s, self.reconnect_s))
        if reason in LOST:
            return timedelta(seconds=self.absent_room_s)
        return timedelta(seconds=self.reconnect_s if reason in _BROKEN else 0.0)


class Media(msgspec.Struct, frozen=True):
    microphone: bool = False
    camera: bool = False
    screen_share: bool = False


class ParticipantState(msgspec.Struct, frozen=True, kw_only=True):
    participant_id: UUID
    status: Status
    joined_at: datetime | None = None
    left_at: datetime | None = None
    left_reason: str | None = None
    duration_s: float = 0.0
    media: Media = Media()
    # In the call by LiveKit: what makes a call active. A socket alone does not.
    connected: bool = False


class Closing(msgspec.Struct, frozen=True):
    """When a session or an attachment was over, and LiveKit's word for why."""

    at: datetime
    reason: str


class Life(msgspec.Struct, frozen=True):
    """One session, with what its room and its person's own goodbye say about its end."""

    session: Session
    closing: Closing | None


def spoken_for(life: Life, person: ParticipantFacts) -> Life:
    """A session that was there when its person said goodbye, or was kicked, ended then, even if LiveKit is slower."""
    for at, reason in ((person.leave_requested_at, CLIENT_INITIATED), (person.kick_requested_at, REMOVED)):
        if at is None or life.session.known_at > at or (life.closing is not None and life.closing.at <= at):
            continue
        life = Life(life.session, Closing(max(at, life.session.since), reason))
    return life


def derive(
    person: ParticipantFacts,
    lives: Sequence[Life],
    tracks: Sequence[Track],
    *,
    ended_at: datetime | None,
    room_absent: bool,
    now: datetime,
    grace: Grace,
) -> tuple[ParticipantState, datetime | None]:
    """The state, and when time alone will change it. `lives` (`spoken_for`) and `tracks` are this person's only."""
    out = person.kicked or ended_at is not None
    open_now = [] if out else [life.session for life in lives if life.closing is None]
    intervals = _intervals(person, lives, ended_at, now)
    status, due, reason = _status(person, lives, open_now, ended_at, room_absent, now, grace)
    left_at = intervals[-1][1] if intervals and status in ("left", "kicked") else None
    state = ParticipantState(
        participant_id=person.participant_id,
        status=status,
        joined_at=intervals[0][0] if intervals else None,
        left_at=person.kick_requested_at if status == "kicked" and left_at is None else left_at,
        left_reason=reason,
        duration_s=sum((until - begin).total_seconds() for begin, until in intervals),
        media=_media(person, open_now, _last(lives), tracks) if status in IN_CALL else Media(),
        connected=bool(open_now),
    )
    return state, due


def _intervals(
    person: ParticipantFacts, lives: Sequence[Life], ended_at: datetime | None, now: datetime
) -> list[Interval]:
    """All their time in the call, merged, up to now or to the end of it for them."""
    stop = ended_at or now
    if person.kicked and person.kick_requested_at is not None:
        stop = min(stop, person.kick_requested_at)
    intervals = [(life.session.since, life.closing.at if life.closing else stop) for life in lives]
    intervals += person.attachments
    if person.hub_joined_at is not None:
        intervals.append((person.hub_joined_at, person.hub_left_at or stop))
    return merged((begin, min(until, stop)) for begin, until in intervals)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Overlapping times count once; a time that ends before it begins counts as nothing."""
    result: list[Interval] = []
    for begin, until in sorted((begin, max(begin, until)) for begin, until in intervals):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], until))
        else:
            result.append((begin, until))
    return result


def _status(
    person: ParticipantFacts,
    lives: Sequence[Life],
    open_now: Sequence[Session],
    ended_at: datetime | None,
    room_absent: bool,
    now: datetime,
    grace: Grace,
) -> tuple[Status, datetime | None, str | None]:
    if person.kicked:
        return "kicked", None, (person.kick_reason or "kicked")[:64]
    ever_in = bool(lives) or person.hub_joined_at is not None
    if ended_at is not None:
        if not ever_in:
            return "invited", None, None
        was_open = person.attached or any(life.closing is None or life.closing.at > ended_at for life in lives)
        return "left", None, "call_ended" if was_open else _last_word(person, lives)
    if person.attached:
        return "joined", None, None
    if open_now:
        return ("reconnecting" if room_absent else "joined"), None, None
    if (until := _reconnects_until(person, lives, grace)) is not None and until > now:
        return "reconnecting", until, None
    if (until := _token_until(person, lives)) is not None and until > now:
        return "joining", until, None
    return ("left", None, _last_word(person, lives)) if ever_in else ("invited", None, None)


def _last(lives: Sequence[Life]) -> Closing | None:
    return max((life.closing for life in lives if life.closing), key=lambda closing: closing.at, default=None)


def _said_goodbye(person: ParticipantFacts, lives: Sequence[Life]) -> bool:
    """`room:leave`, and nothing of theirs began after it."""
    leave = person.leave_requested_at
    if leave is None or (person.hub_joined_at is not None and person.hub_joined_at > leave):
        return False
    return all(life.session.known_at <= leave for life in lives)


def _reconnects_until(person: ParticipantFacts, lives: Sequence[Life], grace: Grace) -> datetime | None:
    last = _last(lives)
    if last is None or _said_goodbye(person, lives):
        return None
    return last.at + grace.of(last.reason)


def _token_until(person: ParticipantFacts, lives: Sequence[Life]) -> datetime | None:
    """Until when a token that was given out after they were last seen lets them come."""
    if person.token_issued_at is None or person.token_expires_at is None:
        return None
    last = _last(lives)
    gone = [moment for moment in (last and last.at, person.hub_left_at, person.leave_requested_at) if moment]
    if gone and person.token_issued_at <= max(gone):
        return None
    return person.token_expires_at + JOIN_MARGIN


def _last_word(person: ParticipantFacts, lives: Sequence[Life]) -> str:
    """Why they are gone, in the hub's words."""
    if _said_goodbye(person, lives):
        return "left"
    last = _last(lives)
    if last is not None and (person.hub_left_at is None or last.at >= person.hub_left_at):
        return _WORDS.get(last.reason, "connection_lost")
    return person.hub_left_reason or "left"


def _media(
    person: ParticipantFacts, open_now: Sequence[Session], last: Closing | None, tracks: Sequence[Track]
) -> Media:
    """What is published and not muted. Without LiveKit (another provider, or none) it is what the client says."""
    said = person.reported
    if not open_now:
        if said is not None and last is not None and said.at <= last.at:
            # It was about tracks that ended with their connection.
            return Media()
        return Media(said.microphone, said.camera, said.screen_share) if said else Media()
    sids = {session.part_sid for session in open_now}
    published = [track for track in tracks if track.part_sid in sids and track.unpublished_by is None]

    def live(source: Source, word: bool) -> bool:
        of_source = [track for track in published if track.source == source]
        if of_source and said is not None and all(said.at > (track.muted_at or _EPOCH) for track in of_source):
            return word
        return any(not track.muted for track in of_source)

    return Media(
        microphone=live("microphone", said is not None and said.microphone),
        camera=live("camera", said is not None and said.camera),
        screen_share=live("screen_share", said is not None and said.screen_share),
    )
