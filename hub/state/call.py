"""The state of a call and of everybody in it, derived from the facts. Pure.

`fold` adds news to the facts, `derive` says what they mean now, `changes` what others have to be told, and `orders`
what LiveKit has to be told. `CallState.due_at` is when time alone will change the state next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Literal
from uuid import UUID

import msgspec

from hub.state import participant
from hub.state.facts import SERVER_SHUTDOWN, SWEPT, CallFacts, Incarnation, ParticipantFacts, Track
from hub.state.fold import fold, fold_all
from hub.state.participant import (
    IN_CALL,
    LOST,
    ROOM_FINISHED,
    ROOM_LOST,
    SEATED,
    Closing,
    Grace,
    Life,
    Media,
    ParticipantState,
)

__all__ = [
    "IN_CALL",
    "SEATED",
    "CallState",
    "Change",
    "DeleteRoom",
    "Grace",
    "MakeRoom",
    "Media",
    "Order",
    "ParticipantState",
    "Remove",
    "changes",
    "derive",
    "fold",
    "fold_all",
    "orders",
]

CallStatus = Literal["waiting", "active", "ended"]

# The people of one room leave within this of each other when its server goes down; webhooks count whole seconds.
TOGETHER = timedelta(seconds=5)


class CallState(msgspec.Struct, frozen=True, kw_only=True):
    call_id: UUID
    status: CallStatus
    # LiveKit's sid of the room that is there now; None: there is none.
    room_sid: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: str | None = None
    # Since when nobody's media is in an active call.
    empty_since: datetime | None = None
    due_at: datetime | None = None
    participants: Mapping[UUID, ParticipantState] = {}


class Change(msgspec.Struct, frozen=True):
    """What others hear of: `participant_id` is None where it is about the call."""

    kind: Literal["started", "ended", "joined", "left", "updated", "media"]
    participant_id: UUID | None = None


class Remove(msgspec.Struct, frozen=True):
    """Take this identity out of the LiveKit room: it should not be there."""

    identity: str


class DeleteRoom(msgspec.Struct, frozen=True):
    """The call is over and its LiveKit room is not: to our knowledge these incarnations of it live on."""

    room_sids: tuple[str, ...]


class MakeRoom(msgspec.Struct, frozen=True):
    """People are waiting for a LiveKit room that is gone."""


Order = Remove | DeleteRoom | MakeRoom


class _End(msgspec.Struct, frozen=True):
    at: datetime
    reason: str | None


class _Outlook(msgspec.Struct, frozen=True):
    """Whether the call is over, or when it will be if nothing happens."""

    end: _End | None = None
    due_at: datetime | None = None


def derive(facts: CallFacts, now: datetime, grace: Grace) -> CallState:
    """What the facts mean at `now`."""
    rooms = _in_order(facts)
    lives = _by_person(facts, _lives(facts, rooms))
    counted = [life for several in lives.values() for life in several]
    started_at = min((life.session.since for life in counted), default=None)
    empty_since = _empty_since(counted)
    outlook = _outlook(facts, rooms, counted, started_at, empty_since, now, grace)
    end = outlook.end

    tracks: dict[str, list[Track]] = defaultdict(list)
    for track in facts.tracks.values():
        tracks[track.part_sid].append(track)
    states: dict[UUID, ParticipantState] = {}
    due = [outlook.due_at]
    for person in facts.participants.values():
        theirs = lives[person.identity]
        states[person.participant_id], person_due = participant.derive(
            person,
            theirs,
            [track for life in theirs for track in tracks[life.session.part_sid]],
            ended_at=end.at if end else None,
            room_absent=facts.room_absent_since is not None,
            now=now,
            grace=grace,
        )
        due.append(person_due)
    status: CallStatus = "waiting" if started_at is None else "active"
    if status == "active" and end is None and _abandoned(facts, rooms, states):
        # Nobody would come back to a room that was made again: no need to wait for the end of the grace.
        ended_at = empty_since or rooms[-1].finished_at
        return derive(msgspec.structs.replace(facts, ended_at=ended_at, end_reason="room_finished"), now, grace)
    return CallState(
        call_id=facts.call_id,
        status="ended" if end else status,
        room_sid=rooms[-1].room_sid if rooms and rooms[-1].finished_by is None else None,
        started_at=started_at,
        ended_at=max(end.at, started_at or end.at) if end else None,
        end_reason=end.reason if end else None,
        empty_since=None if end else empty_since,
        due_at=None if end else min((moment for moment in due if moment is not None), default=None),
        participants=states,
    )


def changes(before: CallState, after: CallState) -> list[Change]:
    """What others have to hear, in the order in which it makes sense."""
    told: list[Change] = []
    if before.started_at is None and after.started_at is not None:
        told.append(Change("started"))
    gone: list[Change] = []
    for participant_id, new in after.participants.items():
        old = before.participants.get(participant_id)
        was, there = old is not None and old.status in IN_CALL, new.status in IN_CALL
        if there and not was:
            told.append(Change("joined", participant_id))
        elif was and not there:
            gone.append(Change("left", participant_id))
        elif old is not None and there:
            if old.status != new.status:
                told.append(Change("updated", participant_id))
            if old.media != new.media:
                told.append(Change("media", participant_id))
    told += gone
    if before.status != "ended" and after.status == "ended":
        told.append(Change("ended"))
    return told


def orders(facts: CallFacts, state: CallState, seen: Collection[str] = ()) -> list[Order]:
    """What LiveKit must be told so that it agrees. Each is given again until it does.

    `seen`: the sids of sessions that LiveKit has just listed.
    """
    rooms = _in_order(facts)
    if state.status == "ended":
        alive = tuple(room.room_sid for room in rooms if room.finished_by is None)
        return [DeleteRoom(alive)] if alive else []
    wanted: list[Order] = [Remove(identity) for identity in _intruders(facts, rooms, seen)]
    if _room_is_gone(facts, rooms) and _awaited(state):
        wanted.append(MakeRoom())
    return wanted


def _room_is_gone(facts: CallFacts, rooms: Sequence[Incarnation]) -> bool:
    if facts.media_silent_since is not None:
        # Nobody would hear the order; the sweep knows more as soon as LiveKit answers.
        return False
    return facts.room_absent_since is not None or not rooms or rooms[-1].finished_by is not None


def _awaited(state: CallState) -> bool:
    """Somebody wants in, or back in. A socket alone needs no LiveKit room."""
    wanting = SEATED if state.status == "active" else frozenset({"joining"})
    return any(person.status in wanting for person in state.participants.values())


def _in_order(facts: CallFacts) -> list[Incarnation]:
    return sorted(facts.incarnations.values(), key=lambda room: (room.first_seen, room.room_sid))


def _lives(facts: CallFacts, rooms: Sequence[Incarnation]) -> list[Life]:
    """Every session whose media was up, with its end: its own, or its room's."""
    ends: dict[str, Closing] = {}
    for room, newer in zip_longest(rooms, rooms[1:]):
        if room.final and room.finished_at is not None:
            ends[room.room_sid] = Closing(
                room.finished_at, SERVER_SHUTDOWN if _shut_down(facts, room) else ROOM_FINISHED
            )
        elif newer is not None:
            # One name is one room: a newer incarnation says that this one is gone.
            ends[room.room_sid] = Closing(newer.first_seen, ROOM_LOST)
    lives = []
    for session in facts.sessions.values():
        if not session.joined:
            continue
        closing = ends.get(session.room_sid)
        if session.left_at is not None:
            closing = Closing(session.left_at, session.reason or "")
        if closing is not None and closing.at < session.since:
            closing = Closing(session.since, closing.reason)
        lives.append(Life(session, closing))
    return lives


def _by_person(facts: CallFacts, lives: Sequence[Life]) -> defaultdict[str, list[Life]]:
    """The lives that count, by identity: of people whom the hub let in."""
    people = {person.identity: person for person in facts.participants.values()}
    found: defaultdict[str, list[Life]] = defaultdict(list)
    for life in lives:
        person = people.get(life.session.identity)
        if person is not None and life.session.countable is not False and not _after_kick(life, person):
            found[person.identity].append(participant.spoken_for(life, person))
    return found


def _after_kick(life: Life, person: ParticipantFacts) -> bool:
    """Came back with an old token after being kicked: on its way out again, and never in the call."""
    kicked_at, readmitted_at, known_at = person.kick_requested_at, person.readmitted_at, life.session.known_at
    if kicked_at is None or known_at <= kicked_at:
        return False
    return person.kicked or (readmitted_at is not None and known_at < readmitted_at)


def _intruders(facts: CallFacts, rooms: Sequence[Incarnation], seen: Collection[str]) -> list[str]:
    """Identities with an open session that may not have one: kicked, never let in, or gone by their own word.

    LiveKit removes by identity. Whoever said goodbye may be back by now in a session of which nothing was heard yet, so
    their old one must have been seen alive just now.
    """
    people = {person.identity: person for person in facts.participants.values()}
    found: dict[str, None] = {}
    for life in _lives(facts, rooms):
        person = people.get(life.session.identity)
        if life.closing is not None or life.session.countable is False:
            continue
        # Of an identity that only a track event told of it is not known whether it is a person at all.
        unknown = person is None and life.session.countable is True
        gone = life.session.part_sid in seen and person and participant.spoken_for(life, person).closing is not None
        if unknown or gone or (person and person.kicked):
            found[life.session.identity] = None
    return list(found)


def _empty_since(counted: Sequence[Life]) -> datetime | None:
    closings = [life.closing.at for life in counted if life.closing is not None]
    return max(closings) if counted and len(closings) == len(counted) else None


def _shut_down(facts: CallFacts, room: Incarnation) -> bool:
    """Did the room end because its LiveKit went down? Its last people say so where the server does not."""
    if room.finish_reason == SERVER_SHUTDOWN:
        return True
    lefts = [
        (session.left_at, session.reason)
        for session in facts.sessions.values()
        if session.room_sid == room.room_sid and session.left_at is not None and session.left_by == "webhook"
    ]
    last = max((at for at, _ in lefts), default=None)
    return last is not None and any(reason == SERVER_SHUTDOWN for at, reason in lefts if last - at <= TOGETHER)


def _outlook(
    facts: CallFacts,
    rooms: Sequence[Incarnation],
    counted: Sequence[Life],
    started_at: datetime | None,
    empty_since: datetime | None,
    now: datetime,
    grace: Grace,
) -> _Outlook:
    if facts.ended_at is not None:
        return _Outlook(_End(facts.ended_at, facts.end_reason))
    if started_at is None:
        # A room that closed before anybody came is made again with the next token.
        expires_at = facts.waiting_expires_at
        return _Outlook(_End(expires_at, "expired")) if expires_at and expires_at <= now else _Outlook(None, expires_at)
    if facts.media_silent_since is None and _room_ended(facts, rooms, counted):
        closed_at = rooms[-1].finished_at or rooms[-1].first_seen
        return _Outlook(_End(empty_since or closed_at, "room_finished"))
    lost_at = _lost_at(facts, rooms, counted, empty_since)
    if lost_at is None:
        return _Outlook()
    due_at = lost_at + timedelta(seconds=grace.absent_room_s)
    return (
        _Outlook(_End(min(lost_at, empty_since or lost_at), "media_lost")) if due_at <= now else _Outlook(None, due_at)
    )


def _abandoned(facts: CallFacts, rooms: Sequence[Incarnation], states: Mapping[UUID, ParticipantState]) -> bool:
    if facts.media_silent_since is not None or rooms[-1].finished_by is None:
        return False
    return not any(state.status in SEATED for state in states.values())


def _room_ended(facts: CallFacts, rooms: Sequence[Incarnation], counted: Sequence[Life]) -> bool:
    """The newest room is over in the ordinary way: closed by LiveKit after its people, or by somebody's order."""
    newest = rooms[-1]
    if newest.final:
        return not _shut_down(facts, newest)
    if newest.finished_by is None:
        return False
    # A sweep found it gone. Ordinary if everybody had left it before.
    inside = [life for life in counted if life.session.room_sid == newest.room_sid]
    return bool(inside) and all(life.closing and life.closing.reason not in LOST | {SWEPT} for life in inside)


def _lost_at(
    facts: CallFacts, rooms: Sequence[Incarnation], counted: Sequence[Life], empty_since: datetime | None
) -> datetime | None:
    """Since when an active call waits for its people to find a room again; None: its room is there and was found."""
    if facts.media_silent_since is not None:
        return facts.media_silent_since
    newest = rooms[-1]
    found = any(life.session.room_sid == newest.room_sid for life in counted)
    if newest.finished_by is not None:
        finished_at = newest.finished_at or newest.first_seen
        return min(empty_since or finished_at, finished_at)
    if facts.room_absent_since is not None and (empty_since is None or not found):
        return min(empty_since or facts.room_absent_since, facts.room_absent_since)
    # LiveKit itself closes a room that people left; one made again and never entered it keeps for minutes.
    return None if found else empty_since
