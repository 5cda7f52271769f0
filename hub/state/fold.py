"""How each piece of news is added to the facts of a call (`hub/state/facts.py`). Pure.

Folding the same news again, or in another order, gives the same facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from hub.state.facts import (
    EVENT_RESOLUTION,
    MAX_INTERVALS,
    MISS_APART,
    MISSED,
    MISSES,
    SNAPSHOT_MARGIN,
    SWEPT,
    CallFacts,
    ConnectionAborted,
    EndRequested,
    FactEvent,
    Incarnation,
    LeftBy,
    MediaReported,
    MediaSilent,
    ParticipantFacts,
    ParticipantJoined,
    ParticipantLeft,
    PersonNews,
    Reported,
    RoomAbsent,
    RoomFinished,
    RoomNews,
    RoomStarted,
    SeenPerson,
    SeenTrack,
    Session,
    SweepSeen,
    Track,
    TrackPublished,
    TrackUnpublished,
)


def fold(facts: CallFacts, event: FactEvent) -> CallFacts:
    """The facts with this news in them. Folding it again changes nothing."""
    match event:
        case SweepSeen():
            return _seen(facts, event)
        case RoomAbsent():
            return _absent(facts, event)
        case MediaSilent():
            silent_since = facts.media_silent_since or event.at
            return msgspec.structs.replace(facts, media_silent_since=silent_since)
        case EndRequested():
            if facts.ended_at is not None:
                return facts
            return msgspec.structs.replace(facts, ended_at=event.at, end_reason=event.reason)
        case MediaReported():
            return _reported(facts, event)
        case _:
            return _webhook(_alive(facts, event.known_at), event)


def fold_all(facts: CallFacts, events: Iterable[FactEvent]) -> CallFacts:
    for event in events:
        facts = fold(facts, event)
    return facts


def _webhook(
    facts: CallFacts,
    event: RoomStarted
    | RoomFinished
    | ParticipantJoined
    | ParticipantLeft
    | ConnectionAborted
    | TrackPublished
    | TrackUnpublished,
) -> CallFacts:
    facts = _with_incarnation(facts, event)
    match event:
        case RoomStarted():
            return _reopened(facts, event)
        case RoomFinished():
            return _finished(facts, event)
        case ParticipantJoined():
            return _with_session(facts, event, joined=True)
        case ParticipantLeft():
            return _closed(_with_session(facts, event, joined=True), event.part_sid, event)
        case ConnectionAborted():
            return _closed(_with_session(facts, event, joined=False), event.part_sid, event)
        case TrackPublished():
            facts = _with_session(facts, event, joined=True)
            return _with_track(facts, event, muted=event.muted, unpublished_by=None)
        case TrackUnpublished():
            facts = _with_session(facts, event, joined=True)
            return _with_track(facts, event, muted=None, unpublished_by="webhook")


def _alive(facts: CallFacts, known_at: datetime) -> CallFacts:
    """News from LiveKit that is newer than its silence ends the silence."""
    absent, silent = facts.room_absent_since, facts.media_silent_since
    if absent is not None and known_at >= absent:
        facts = msgspec.structs.replace(facts, room_absent_since=None)
    if silent is not None and known_at >= silent:
        facts = msgspec.structs.replace(facts, media_silent_since=None)
    return facts


def _with_incarnation(facts: CallFacts, event: RoomNews) -> CallFacts:
    # Events count whole seconds: one without the room's own birthday must not make it look older than its forerunner.
    first_seen = event.room_created_at or event.at + EVENT_RESOLUTION
    old = facts.incarnations.get(event.room_sid)
    new = old or Incarnation(event.room_sid, first_seen, event.known_at)
    new = msgspec.structs.replace(
        new, first_seen=min(new.first_seen, first_seen), known_at=min(new.known_at, event.known_at)
    )
    return _put_incarnation(facts, new)


def _reopened(facts: CallFacts, event: RoomStarted) -> CallFacts:
    """A room that a sweep had given up is back under its old sid: LiveKit hosts it again on another node."""
    room = facts.incarnations[event.room_sid]
    if room.finished_by != "sweep" or room.finished_at is None or event.known_at <= room.finished_at:
        return facts
    room = msgspec.structs.replace(room, finished_at=None, finished_by=None, finish_reason=None, miss=0)
    return _put_incarnation(facts, room)


def _finished(facts: CallFacts, event: RoomFinished) -> CallFacts:
    room = facts.incarnations[event.room_sid]
    at = min(event.at, event.known_at)
    # The webhook knows why; the answer to our own DeleteRoom only knows that.
    if room.final and (
        event.by == "api" or (room.finished_by == "webhook" and room.finished_at and room.finished_at <= at)
    ):
        return facts
    room = msgspec.structs.replace(room, finished_at=at, finished_by=event.by, finish_reason=event.reason)
    return _put_incarnation(facts, room)


def _with_session(facts: CallFacts, event: PersonNews, *, joined: bool) -> CallFacts:
    joined_at = event.joined_at and min(event.joined_at, event.known_at)
    old = facts.sessions.get(event.part_sid)
    if old is None:
        new = Session(
            event.part_sid,
            event.room_sid,
            event.identity,
            event.known_at,
            joined=joined,
            joined_at=joined_at,
            countable=event.countable,
        )
        return _put_session(facts, new)
    new = msgspec.structs.replace(
        old,
        known_at=min(old.known_at, event.known_at),
        joined=old.joined or joined,
        joined_at=_earliest(old.joined_at, joined_at),
        countable=_both(old.countable, event.countable),
    )
    return _put_session(facts, new)


def _closed(facts: CallFacts, part_sid: str, event: ParticipantLeft | ConnectionAborted) -> CallFacts:
    session = facts.sessions[part_sid]
    left_at = min(event.at, event.known_at)
    if session.left_by == "webhook" and session.left_at is not None and session.left_at <= left_at:
        return facts
    return _put_session(
        facts, msgspec.structs.replace(session, left_at=left_at, left_by="webhook", reason=event.reason)
    )


def _with_track(
    facts: CallFacts,
    event: TrackPublished | TrackUnpublished,
    *,
    muted: bool | None,
    unpublished_by: LeftBy | None,
) -> CallFacts:
    old = facts.tracks.get(event.track_sid)
    track = old or Track(event.track_sid, event.part_sid, event.source, event.known_at)
    track = msgspec.structs.replace(
        track,
        known_at=min(track.known_at, event.known_at),
        source=event.source if track.source == "unknown" else track.source,
    )
    if muted is not None:
        track = _muted(track, muted, event.known_at)
    if unpublished_by is not None:
        track = msgspec.structs.replace(track, unpublished_by=unpublished_by)
    return _put_track(facts, track)


def _muted(track: Track, muted: bool, at: datetime, *, confirm: bool = False) -> Track:
    """The newest word wins; of two at the same moment the muted one, whichever comes first."""
    if track.muted_at is not None and (at, muted) <= (track.muted_at, track.muted):
        return track
    if track.muted_at is not None and track.muted == muted and not confirm:
        # The same word again is no news, and no row to write.
        return track
    return msgspec.structs.replace(track, muted=muted, muted_at=at)


def _seen(facts: CallFacts, event: SweepSeen) -> CallFacts:
    known = facts.incarnations.get(event.room_sid)
    if known is not None and known.final:
        # The snapshot is older than the end that LiveKit told us of.
        return facts
    facts = _with_incarnation(_alive(facts, event.at), event)
    room = facts.incarnations[event.room_sid]
    if room.finished_by == "sweep" or room.miss:
        room = msgspec.structs.replace(room, finished_at=None, finished_by=None, finish_reason=None, miss=0)
        facts = _put_incarnation(facts, room)
    if event.people is None:
        return _counted(facts, _miss_other_rooms(facts, event), event.at)
    said_at = {person.identity: person.reported.at for person in facts.participants.values() if person.reported}
    for person in event.people:
        facts = _seen_person(facts, event, person, said_at.get(person.identity))
    present = {person.part_sid for person in event.people}
    missed = _miss_other_rooms(facts, event)
    missed = _miss_tracks(missed, event.at, present, {track.track_sid for p in event.people for track in p.tracks})
    return _counted(facts, _miss_sessions(missed, event.at, present), event.at)


def _seen_person(facts: CallFacts, event: SweepSeen, person: SeenPerson, said_at: datetime | None) -> CallFacts:
    news = ParticipantJoined(
        at=event.at,
        known_at=event.at,
        room_sid=event.room_sid,
        part_sid=person.part_sid,
        identity=person.identity,
        joined_at=person.joined_at,
        countable=person.countable,
    )
    facts = _with_session(facts, news, joined=True)
    session = facts.sessions[person.part_sid]
    if session.left_by == "webhook" or (session.left_at is not None and session.left_at >= event.at):
        return facts
    # Alive, so it lives in the room that LiveKit lists now, whichever sid it was first heard of under.
    session = msgspec.structs.replace(session, room_sid=event.room_sid, left_at=None, left_by=None, reason=None, miss=0)
    facts = _put_session(facts, session)
    for seen in person.tracks:
        facts = _seen_track(facts, event, person, seen, said_at)
    return facts


def _seen_track(
    facts: CallFacts, event: SweepSeen, person: SeenPerson, seen: SeenTrack, said_at: datetime | None
) -> CallFacts:
    old = facts.tracks.get(seen.track_sid)
    if old is not None and old.unpublished_by == "webhook":
        return facts
    track = old or Track(seen.track_sid, person.part_sid, seen.source, event.at)
    track = msgspec.structs.replace(track, unpublished_by=None, miss=0)
    if track.source == "unknown":
        track = msgspec.structs.replace(track, source=seen.source)
    # What a client said after our last look holds only until this one.
    confirm = said_at is not None and track.muted_at is not None and said_at > track.muted_at
    return _put_track(facts, _muted(track, seen.muted, event.at, confirm=confirm))


def _absent(facts: CallFacts, event: RoomAbsent) -> CallFacts:
    if facts.media_silent_since is not None:
        # It answered.
        facts = msgspec.structs.replace(facts, media_silent_since=None)
    old_enough = [room for room in _open_incarnations(facts) if room.known_at <= event.at - SNAPSHOT_MARGIN]
    if len(old_enough) == len(_open_incarnations(facts)) and facts.room_absent_since is None:
        facts = msgspec.structs.replace(facts, room_absent_since=event.at)
    missed = facts
    for room in old_enough:
        missed = _put_incarnation(missed, _missed_room(room, event.at))
    return _counted(facts, _miss_sessions(missed, event.at, present=set()), event.at)


def _counted(facts: CallFacts, missed: CallFacts, at: datetime) -> CallFacts:
    """`missed`, the facts with what was absent at `at`; or without, where absences were counted just before."""
    if missed is facts or (facts.missed_at is not None and at < facts.missed_at + MISS_APART):
        return facts
    return msgspec.structs.replace(missed, missed_at=at)


def _miss_other_rooms(facts: CallFacts, event: SweepSeen) -> CallFacts:
    """One name is one room: a listed sid says that the other sids are gone."""
    for other in _open_incarnations(facts):
        if other.room_sid != event.room_sid and other.known_at <= event.at - SNAPSHOT_MARGIN:
            facts = _put_incarnation(facts, _missed_room(other, event.at))
    return facts


def _missed_room(room: Incarnation, at: datetime) -> Incarnation:
    room = msgspec.structs.replace(room, miss=room.miss + 1)
    if room.miss < MISSES:
        return room
    return msgspec.structs.replace(room, finished_at=at, finished_by="sweep", finish_reason=SWEPT)


def _miss_sessions(facts: CallFacts, at: datetime, present: set[str]) -> CallFacts:
    for session in list(facts.sessions.values()):
        if session.left_at is not None or session.part_sid in present or session.known_at > at - SNAPSHOT_MARGIN:
            continue
        session = msgspec.structs.replace(session, miss=session.miss + 1)
        if session.miss >= MISSES:
            reason = MISSED if present else SWEPT
            session = msgspec.structs.replace(session, left_at=at, left_by="sweep", reason=reason)
        facts = _put_session(facts, session)
    return facts


def _miss_tracks(facts: CallFacts, at: datetime, people: set[str], present: set[str]) -> CallFacts:
    """Of people who are there, the tracks that are not."""
    for track in list(facts.tracks.values()):
        if track.part_sid not in people or track.unpublished_by is not None or track.track_sid in present:
            continue
        if track.known_at > at - SNAPSHOT_MARGIN:
            continue
        track = msgspec.structs.replace(track, miss=track.miss + 1)
        if track.miss >= MISSES:
            track = msgspec.structs.replace(track, unpublished_by="sweep")
        facts = _put_track(facts, track)
    return facts


def _reported(facts: CallFacts, event: MediaReported) -> CallFacts:
    person = facts.participants.get(event.participant_id)
    if person is None or (person.reported is not None and person.reported.at >= event.at):
        return facts
    reported = Reported(event.at, event.microphone, event.camera, event.screen_share)
    return put_participant(facts, msgspec.structs.replace(person, reported=reported))


def close_attachments(facts: CallFacts, ended_at: datetime | None) -> CallFacts:
    """Remember stays by socket that are over; a kick and the end of the call end them."""
    for person in facts.participants.values():
        if person.attached and person.kicked:
            person = msgspec.structs.replace(person, hub_left_at=person.kick_requested_at, hub_left_reason="kicked")
        elif person.attached and ended_at is not None:
            person = msgspec.structs.replace(person, hub_left_at=ended_at, hub_left_reason="call_ended")
        if person.hub_joined_at is None or person.hub_left_at is None:
            continue
        stay = (person.hub_joined_at, person.hub_left_at)
        if stay not in person.attachments:
            stays = (*person.attachments, stay)
            if len(stays) > MAX_INTERVALS:
                stays = ((stays[0][0], stays[1][1]), *stays[2:])
            person = msgspec.structs.replace(person, attachments=stays)
        facts = put_participant(facts, person)
    return facts


def _open_incarnations(facts: CallFacts) -> list[Incarnation]:
    return [room for room in facts.incarnations.values() if room.finished_by is None]


def put_participant(facts: CallFacts, new: ParticipantFacts) -> CallFacts:
    changed = _put(facts.participants, new.participant_id, new)
    return facts if changed is None else msgspec.structs.replace(facts, participants=changed)


def _put_incarnation(facts: CallFacts, new: Incarnation) -> CallFacts:
    changed = _put(facts.incarnations, new.room_sid, new)
    return facts if changed is None else msgspec.structs.replace(facts, incarnations=changed)


def _put_session(facts: CallFacts, new: Session) -> CallFacts:
    changed = _put(facts.sessions, new.part_sid, new)
    return facts if changed is None else msgspec.structs.replace(facts, sessions=changed)


def _put_track(facts: CallFacts, new: Track) -> CallFacts:
    changed = _put(facts.tracks, new.track_sid, new)
    return facts if changed is None else msgspec.structs.replace(facts, tracks=changed)


K = TypeVar("K")
V = TypeVar("V")


def _put(items: Mapping[K, V], key: K, new: V) -> dict[K, V] | None:
    """The items with the new one, or None where nothing changes, so that an unchanged row stays the same object."""
    return None if items.get(key) == new else {**items, key: new}


def _earliest(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return min(one, other)


def _both(one: bool | None, other: bool | None) -> bool | None:
    """Whoever says it does not count wins: an agent stays an agent in whatever order the news comes."""
    if one is None or other is None:
        return one if other is None else other
    return one and other
