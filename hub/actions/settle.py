"""Settling a call: news becomes facts, facts become states, and what changed becomes events and orders to LiveKit.

This is the only writer of derived columns. An action writes what somebody wants (a kick, a leave, a token) and settles
in the same transaction; the inbox, the sweep and the clock settle with what they learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from db import calls, facts, participants
from db.calls import Call
from db.participants import Participant
from hub.actions.views import call_view, media_view, participant_view
from hub.commands import Event
from hub.protocol.errors import NotFound
from hub.protocol.media import MediaChanged
from hub.protocol.participants import ParticipantJoined, ParticipantLeft, ParticipantUpdated
from hub.protocol.rooms import RoomEnded, RoomStarted
from hub.state import call as states
from hub.state.call import CallState, Change, Grace, Media, Order, ParticipantState
from hub.state.facts import (
    CallFacts,
    FactEvent,
    Incarnation,
    ParticipantFacts,
    Reported,
    Session,
    SweepSeen,
    Track,
)
from hub.state.fold import close_attachments

if TYPE_CHECKING:
    from db.pool import Transaction
    from hub.context import Rules


class Settled(msgspec.Struct, frozen=True):
    """What settling did. Publish `events` after the commit, then give LiveKit the `orders` (hub/actions/orders.py)."""

    call: Call
    # Those whose row changed.
    participants: tuple[Participant, ...] = ()
    events: tuple[Event, ...] = ()
    orders: tuple[Order, ...] = ()
    # How many facts the news changed: 0 says that everything was known.
    news: int = 0


def grace_of(rules: Rules) -> Grace:
    return Grace(
        leave_s=rules.leave_grace_s, reconnect_s=rules.reconnect_grace_s, absent_room_s=rules.absent_room_grace_s
    )


async def settle(
    tx: Transaction, call_id: UUID, now: datetime, *, fold: Iterable[FactEvent] = (), grace: Grace
) -> Settled:
    """Bring the call's states up to `now`, with this news. Raises NotFound.

    Holds the call's row until the transaction ends: settle late in it, and ask nobody else while it is open.
    """
    fold = tuple(fold)
    loaded = await facts.load(tx, call_id)
    if loaded is None:
        raise NotFound("no such call")
    known, before = _facts(loaded), _states(loaded)
    learned = states.fold_all(known, fold)
    after = states.derive(learned, now, grace)
    learned = close_attachments(learned, after.ended_at)
    news = await _save(tx, known, learned)
    changed = await _write(tx, known, learned, before, after)
    call = await calls.get(tx, call_id)
    assert call is not None, "its row is locked by us"
    people = {person.id: person for person in await participants.by_ids(tx, changed)} if changed else {}
    return Settled(
        call=call,
        participants=tuple(people.values()),
        events=tuple(_events(call, people, states.changes(before, after))),
        orders=tuple(states.orders(learned, after, _listed(fold))),
        news=news,
    )


def _listed(news: Iterable[FactEvent]) -> set[str]:
    return {person.part_sid for event in news if isinstance(event, SweepSeen) for person in event.people or ()}


def _facts(loaded: facts.Loaded) -> CallFacts:
    call = loaded.call
    return CallFacts(
        call_id=call["id"],
        room_name=call["livekit_room_name"],
        created_at=call["created_at"],
        waiting_expires_at=call["waiting_expires_at"],
        ended_at=call["ended_at"],
        end_reason=call["end_reason"],
        room_absent_since=call["room_absent_since"],
        media_silent_since=call["media_silent_since"],
        missed_at=call["missed_at"],
        incarnations={row["room_sid"]: Incarnation(*row) for row in loaded.incarnations},
        sessions={row["part_sid"]: Session(*row) for row in loaded.sessions},
        tracks={row["track_sid"]: Track(*row) for row in loaded.tracks},
        participants={row["id"]: _person(row) for row in loaded.participants},
    )


def _person(row: Any) -> ParticipantFacts:
    reported = None
    if row["reported_at"] is not None:
        reported = Reported(
            row["reported_at"], row["reported_microphone"], row["reported_camera"], row["reported_screen_share"]
        )
    return ParticipantFacts(
        participant_id=row["id"],
        identity=row["identity"],
        token_issued_at=row["token_issued_at"],
        token_expires_at=row["token_expires_at"],
        hub_joined_at=row["hub_joined_at"],
        hub_left_at=row["hub_left_at"],
        hub_left_reason=row["hub_left_reason"],
        attachments=tuple((_moment(begin), _moment(end)) for begin, end in row["attachments"]),
        leave_requested_at=row["leave_requested_at"],
        kick_requested_at=row["kick_requested_at"],
        kick_reason=row["kick_reason"],
        readmitted_at=row["readmitted_at"],
        reported=reported,
    )


def _states(loaded: facts.Loaded) -> CallState:
    """The states as they were written last."""
    call = loaded.call
    return CallState(
        call_id=call["id"],
        status=call["status"],
        room_sid=call["livekit_room_sid"],
        started_at=call["started_at"],
        ended_at=call["ended_at"],
        end_reason=call["end_reason"],
        empty_since=call["empty_since"],
        due_at=call["due_at"],
        participants={
            row["id"]: ParticipantState(
                participant_id=row["id"],
                status=row["status"],
                joined_at=row["joined_at"],
                left_at=row["left_at"],
                left_reason=row["left_reason"],
                duration_s=row["duration_seconds"] or 0,
                media=Media(row["is_audio_enabled"], row["is_video_enabled"], row["is_screen_sharing"]),
            )
            for row in loaded.participants
        },
    )


async def _save(tx: Transaction, known: CallFacts, learned: CallFacts) -> int:
    """Write the facts that changed, and say how many did."""
    call_id = learned.call_id
    rooms = [
        msgspec.structs.astuple(new) for sid, new in learned.incarnations.items() if known.incarnations.get(sid) != new
    ]
    sessions = [msgspec.structs.astuple(new) for sid, new in learned.sessions.items() if known.sessions.get(sid) != new]
    tracks = [msgspec.structs.astuple(new) for sid, new in learned.tracks.items() if known.tracks.get(sid) != new]
    people = [_person_row(new) for key, new in learned.participants.items() if known.participants[key] != new]
    await facts.save_incarnations(tx, call_id, rooms)
    await facts.save_sessions(tx, call_id, sessions)
    await facts.save_tracks(tx, call_id, tracks)
    await facts.save_participants(tx, call_id, people)
    return len(rooms) + len(sessions) + len(tracks) + len(people)


def _person_row(person: ParticipantFacts) -> facts.Row:
    stays = [[begin.timestamp(), end.timestamp()] for begin, end in person.attachments]
    said = person.reported
    return (
        person.participant_id,
        person.hub_left_at,
        person.hub_left_reason,
        msgspec.json.encode(stays).decode(),
        said and said.at,
        said is not None and said.microphone,
        said is not None and said.camera,
        said is not None and said.screen_share,
    )


async def _write(
    tx: Transaction, known: CallFacts, learned: CallFacts, before: CallState, after: CallState
) -> list[UUID]:
    """Write the states that changed; the ids of the participants among them."""
    rows = []
    for key, new in after.participants.items():
        if _differs(before.participants[key], new):
            rows.append(
                (
                    *(key, new.status, new.joined_at, new.left_at, new.left_reason, new.duration_s),
                    *(new.media.microphone, new.media.camera, new.media.screen_share),
                )
            )
    await facts.write_participants(tx, learned.call_id, rows)
    if _call_columns(before) != _call_columns(after) or _silence(known) != _silence(learned):
        await facts.write_call(
            tx,
            learned.call_id,
            status=after.status,
            room_sid=after.room_sid,
            started_at=after.started_at,
            ended_at=after.ended_at,
            end_reason=after.end_reason,
            empty_since=after.empty_since,
            due_at=after.due_at,
            room_absent_since=learned.room_absent_since,
            media_silent_since=learned.media_silent_since,
            missed_at=learned.missed_at,
        )
    return [row[0] for row in rows]


def _silence(known: CallFacts) -> tuple[Any, ...]:
    return (known.room_absent_since, known.media_silent_since, known.missed_at)


def _differs(old: ParticipantState, new: ParticipantState) -> bool:
    """Of somebody in the call the time runs on; it is written when something else is, and for good when they go."""
    if new.status not in states.IN_CALL and abs(old.duration_s - new.duration_s) > 0.001:
        return True
    wanted = (new.status, new.joined_at, new.left_at, new.left_reason, new.media)
    return (old.status, old.joined_at, old.left_at, old.left_reason, old.media) != wanted


def _call_columns(state: CallState) -> tuple[Any, ...]:
    return (
        *(state.status, state.room_sid, state.started_at, state.ended_at),
        *(state.end_reason, state.empty_since, state.due_at),
    )


def _events(call: Call, people: dict[UUID, Participant], changed: Sequence[Change]) -> Iterable[Event]:
    """People who come or go together are told together."""
    view = call_view(call)
    of_kind: dict[str, list[Participant]] = {"joined": [], "left": [], "updated": [], "media": []}
    for change in changed:
        if change.participant_id is not None:
            of_kind[change.kind].append(people[change.participant_id])
    if any(change.kind == "started" for change in changed):
        yield RoomStarted(call=view)
    if of_kind["joined"]:
        yield ParticipantJoined(participants=[participant_view(person) for person in of_kind["joined"]])
    for person in of_kind["updated"]:
        yield ParticipantUpdated(participant=participant_view(person))
    for person in of_kind["media"]:
        yield MediaChanged(participant_id=person.id, media=media_view(person))
    if of_kind["left"]:
        yield ParticipantLeft(participants=[participant_view(person) for person in of_kind["left"]])
    if any(change.kind == "ended" for change in changed):
        yield RoomEnded(call=view, reason=call.end_reason or "ended")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
