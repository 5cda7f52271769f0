"""A LiveKit, its clients and a hub, as a model in memory: time passes in steps; webhooks are lost, late, doubled.

The hub's half is the real fold, the real derivation and the real reading of snapshots; what LiveKit and its clients do
is modelled on what the real server did (reasons, graces, who hears what when it crashes).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID, uuid4

import msgspec

from hub.background.sweep import observed
from hub.media.values import ParticipantInfo, RoomInfo, TrackInfo
from hub.state.call import CallState, DeleteRoom, Grace, MakeRoom, Media, Remove, changes, derive, fold, orders
from hub.state.facts import (
    CallFacts,
    EndRequested,
    FactEvent,
    MediaSilent,
    ParticipantFacts,
    ParticipantJoined,
    ParticipantLeft,
    RoomAbsent,
    RoomFinished,
    RoomStarted,
    Source,
    SweepSeen,
    TrackPublished,
    TrackUnpublished,
)
from hub.state.fold import close_attachments

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SWEEP_S, PROBE_S, TIMEOUT_S, DEPARTURE_S = 10.0, 2.0, 18.0, 20.0
# How long a client whose server is gone tries to come back.
CLIENT_TRIES_S = 45.0
STEP_S = 0.5


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@dataclass
class Faults:
    loss: float = 0.0
    duplicates: float = 0.0
    delay_s: float = 0.0
    sweep_fails: float = 0.0


@dataclass
class Session:
    sid: str
    identity: str
    joined_at: float
    tracks: dict[str, tuple[Source, bool]] = field(default_factory=dict)
    # The client is dead; LiveKit finds out at this time.
    dies_at: float | None = None


@dataclass
class Room:
    sid: str
    created_at: float
    sessions: dict[str, Session] = field(default_factory=dict)
    ever_joined: bool = False
    empty_since: float | None = None


class World:
    def __init__(self, identities: list[str], faults: Faults, seed: int) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.faults = faults
        self.quiet = False
        self.up = True
        self.room: Room | None = None
        # Clients that lost their server and try to get back: identity → until when, with which devices on.
        self.lost: dict[str, float] = {}
        self._serial = itertools.count(1)
        self._mail: list[tuple[float, int, FactEvent]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self.people: dict[str, UUID] = {identity: uuid4() for identity in identities}
        self.facts = CallFacts(
            call_id=uuid4(),
            room_name="room_a_1",
            created_at=T0,
            participants={
                key: ParticipantFacts(participant_id=key, identity=identity) for identity, key in self.people.items()
            },
        )
        self.state = derive(self.facts, at(0), Grace())
        self.told: list[str] = []
        self._disturbed_at = 0.0
        # Sweeps that did not fail since the last thing that happened.
        self.sweeps_since = 0
        self._silent_since: float | None = None
        self._next_sweep, self._next_probe, self._urgent = SWEEP_S, PROBE_S, False
        self._make_room()
        for identity in identities:
            self.invite(identity)

    # --------------------------------------------------------------------------------------------------- the hub's half

    def hear(self, *news: FactEvent, obey: bool = True) -> None:
        """What `settle` does, without a database; the answer to an order orders nothing itself."""
        for event in news:
            self.facts = fold(self.facts, event)
        before, self.state = self.state, derive(self.facts, at(self.now), Grace())
        if self.state.status == "ended" and self.facts.ended_at is None:
            self.facts = msgspec.structs.replace(
                self.facts, ended_at=self.state.ended_at, end_reason=self.state.end_reason
            )
        self.facts = close_attachments(self.facts, self.state.ended_at)
        self.told += [change.kind for change in changes(before, self.state)]
        seen = {person.part_sid for event in news if isinstance(event, SweepSeen) for person in event.people or ()}
        for order in orders(self.facts, self.state, seen) if obey else ():
            self._obey(order)

    def _obey(self, order: object) -> None:
        if not self.up:
            return
        match order:
            case Remove(identity):
                if self.room and identity in self.room.sessions:
                    self._close(identity, "PARTICIPANT_REMOVED")
            case DeleteRoom(room_sids):
                self._finish("ROOM_DELETED")
                for sid in room_sids:
                    self.hear(RoomFinished(at=at(self.now), known_at=at(self.now), room_sid=sid, by="api"), obey=False)
            case MakeRoom():
                self._make_room()

    def _make_room(self) -> None:
        if self.room is None:
            self.room = Room(f"RM_{next(self._serial):06}", self.now, empty_since=self.now)
            self._send(
                RoomStarted(at=self._second(), known_at=T0, room_sid=self.room.sid, room_created_at=at(self.now))
            )
        room = self.room
        now = at(self.now)
        answer = RoomStarted(at=now, known_at=now, room_sid=room.sid, room_created_at=at(room.created_at))
        self.hear(answer, obey=False)

    def invite(self, identity: str) -> None:
        self._person(identity, token_issued_at=at(self.now), token_expires_at=at(self.now + 600))
        self.hear()

    def readmit(self, identity: str) -> None:
        """Let in again by the token route, kicked or not."""
        if self.facts.participants[self.people[identity]].kicked:
            self._person(identity, readmitted_at=at(self.now))
        self.disturbed()
        self.invite(identity)

    def attach(self, identity: str) -> None:
        """`room:join`, which lets nobody in who was kicked or came too late."""
        person = self.facts.participants[self.people[identity]]
        if not person.attached and not person.kicked and self.state.status != "ended":
            self._person(identity, hub_joined_at=at(self.now), hub_left_at=None)
            self.hear()

    def detach(self, identity: str) -> None:
        if self.facts.participants[self.people[identity]].attached:
            self._person(identity, hub_left_at=at(self.now), hub_left_reason="connection_lost")
            self.hear()

    def kick(self, identity: str) -> None:
        self._person(identity, kick_requested_at=at(self.now), kick_reason="noise", readmitted_at=None)
        self.disturbed()
        self.hear()

    def say_goodbye(self, identity: str) -> None:
        """`room:leave`; the client closes its media connection too, or the hub does it for it."""
        left = {"hub_left_at": at(self.now)} if self.facts.participants[self.people[identity]].attached else {}
        self._person(identity, leave_requested_at=at(self.now), **left)
        self.disturbed()
        self.hear()
        self._obey(Remove(identity))

    def end(self) -> None:
        self.disturbed()
        self.hear(EndRequested(at=at(self.now), known_at=at(self.now), reason="ended_by_host"))

    def _person(self, identity: str, **facts: object) -> None:
        key = self.people[identity]
        new = msgspec.structs.replace(self.facts.participants[key], **facts)
        self.facts = msgspec.structs.replace(self.facts, participants={**self.facts.participants, key: new})

    def _sweep(self) -> None:
        if self._sweep_fails():
            return
        # What came within this before a snapshot, the snapshot does not speak of.
        self.sweeps_since += self.now - self._disturbed_at > 2
        if not self.up:
            if self._silent_since is None:
                self._silent_since = self.now
            if self.now - self._silent_since >= PROBE_S and self.state.status == "active":
                self.hear(MediaSilent(at=at(self._silent_since), known_at=at(self.now)))
            self._urgent = True
            return
        self._silent_since = None
        if self.state.status == "ended":
            self._delete_orphan()
            return
        if self.room is None:
            self.hear(RoomAbsent(at=at(self.now), known_at=at(self.now)))
        else:
            # Taken now, and folded when the answer is there.
            snapshot = observed(self._info(self.room), self._listed(self.room), at(self.now))
            self._later(self.random.uniform(0, 0 if self.quiet else 3), lambda: self.hear(snapshot))
        self._urgent = any(isinstance(order, MakeRoom) for order in orders(self.facts, self.state))

    def _delete_orphan(self) -> None:
        if self.room is not None:
            self._finish("ROOM_DELETED")

    def _sweep_fails(self) -> bool:
        return not self.quiet and self.random.random() < self.faults.sweep_fails

    # ------------------------------------------------------------------------------------------------ LiveKit's half

    def join(self, identity: str) -> None:
        """A client connects; another session of the same identity has to go."""
        if not self.up or self.room is None:
            return
        self.disturbed()
        self.lost.pop(identity, None)
        if identity in self.room.sessions:
            self._close(identity, "DUPLICATE_IDENTITY")
        session = Session(f"PA_{next(self._serial):06}", identity, self.now)
        self.room.sessions[identity] = session
        self.room.ever_joined, self.room.empty_since = True, None
        self._send(
            ParticipantJoined(
                at=self._second(),
                known_at=T0,
                room_sid=self.room.sid,
                room_created_at=at(self.room.created_at),
                part_sid=session.sid,
                identity=identity,
                joined_at=at(self.now),
                countable=True,
            )
        )

    def leave(self, identity: str) -> None:
        if self.up and self.room and identity in self.room.sessions:
            self.disturbed()
            self._close(identity, "CLIENT_INITIATED")

    def reconnect(self, identity: str) -> None:
        """A full reconnect: the old session says goodbye, and a moment later there is a new one."""
        if self.up and self.room and identity in self.room.sessions:
            self.leave(identity)
            self._later(0.1, lambda: self.join(identity))

    def vanish(self, identity: str) -> None:
        """The client is killed; LiveKit waits for it."""
        if self.up and self.room and identity in self.room.sessions:
            self.room.sessions[identity].dies_at = self.now + TIMEOUT_S

    def publish(self, identity: str, source: Source) -> None:
        session = self._session(identity)
        if session is None:
            return
        self.disturbed()
        track = f"TR_{next(self._serial):06}"
        session.tracks[track] = (source, False)
        self._send_track(session, track, source, published=True)

    def mute(self, identity: str, muted: bool) -> None:
        """Nobody is told: LiveKit has no webhook for it."""
        session = self._session(identity)
        if session is not None and session.tracks:
            self.disturbed()
            track = sorted(session.tracks)[-1]
            session.tracks[track] = (session.tracks[track][0], muted)

    def unpublish(self, identity: str) -> None:
        session = self._session(identity)
        if session is not None and session.tracks:
            self.disturbed()
            track = sorted(session.tracks)[-1]
            source, _ = session.tracks.pop(track)
            self._send_track(session, track, source, published=False)

    def crash(self) -> None:
        """SIGKILL: nobody is told, and nothing that was on its way is sent."""
        if not self.up:
            return
        self.disturbed()
        self._lose_clients()
        self.up, self.room = False, None
        self._mail = [entry for entry in self._mail if self.random.random() < 0.5]
        heapq.heapify(self._mail)

    def shut_down(self) -> None:
        """SIGTERM: everybody is told."""
        if not self.up:
            return
        self.disturbed()
        self._lose_clients()
        self._finish("SERVER_SHUTDOWN")
        self.up = False

    def restart(self) -> None:
        if not self.up:
            self.disturbed()
            self.up = True

    def _lose_clients(self) -> None:
        for identity, session in self.room.sessions.items() if self.room else ():
            if session.dies_at is None:
                self.lost[identity] = self.now + CLIENT_TRIES_S

    def _session(self, identity: str) -> Session | None:
        session = self.room.sessions.get(identity) if self.up and self.room else None
        return session if session and session.dies_at is None else None

    def _close(self, identity: str, reason: str) -> None:
        assert self.room is not None
        session = self.room.sessions.pop(identity)
        if not self.room.sessions:
            self.room.empty_since = self.now
        self._send(
            ParticipantLeft(
                at=self._second(),
                known_at=T0,
                room_sid=self.room.sid,
                room_created_at=at(self.room.created_at),
                part_sid=session.sid,
                identity=identity,
                joined_at=at(session.joined_at),
                countable=True,
                reason=reason,
            )
        )

    def _finish(self, reason: str) -> None:
        if self.room is None:
            return
        for identity in list(self.room.sessions):
            self._close(identity, reason)
        room, self.room = self.room, None
        self._send(
            RoomFinished(
                at=self._second(), known_at=T0, room_sid=room.sid, room_created_at=at(room.created_at), reason=None
            )
        )

    def _send_track(self, session: Session, track: str, source: Source, *, published: bool) -> None:
        assert self.room is not None
        kind = TrackPublished if published else TrackUnpublished
        self._send(
            kind(
                at=self._second(),
                known_at=T0,
                room_sid=self.room.sid,
                part_sid=session.sid,
                identity=session.identity,
                track_sid=track,
                source=source,
            )
        )

    def _info(self, room: Room) -> RoomInfo:
        return RoomInfo(sid=room.sid, name="room_a_1", created_at=at(room.created_at))

    def _listed(self, room: Room) -> list[ParticipantInfo]:
        return [
            ParticipantInfo(
                sid=session.sid,
                identity=session.identity,
                state="active",
                joined_at=at(session.joined_at),
                tracks=tuple(
                    TrackInfo(sid=sid, source=source, muted=muted) for sid, (source, muted) in session.tracks.items()
                ),
            )
            for session in room.sessions.values()
        ]

    def _second(self) -> datetime:
        return at(float(int(self.now)))

    # ------------------------------------------------------------------------------------------------------- the mail

    def _send(self, event: FactEvent) -> None:
        """`known_at` is filled in when it arrives."""
        faults = self.faults
        if not self.quiet and self.random.random() < faults.loss:
            return
        copies = 1 + (not self.quiet and self.random.random() < faults.duplicates)
        for _ in range(copies):
            delay_s = 0.02 if self.quiet else self.random.uniform(0.0, faults.delay_s)
            heapq.heappush(self._mail, (self.now + delay_s, next(self._serial), event))

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay_s, next(self._serial), act))

    def disturbed(self) -> None:
        self.sweeps_since, self._disturbed_at = 0, self.now

    # ------------------------------------------------------------------------------------------------------ the clock

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + STEP_S)
            self._tick()

    def _tick(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
        self._livekit_ticks()
        while self._mail and self._mail[0][0] <= self.now:
            event = heapq.heappop(self._mail)[2]
            self.disturbed()
            self.hear(msgspec.structs.replace(event, known_at=at(self.now)))
        if self.state.due_at is not None and self.state.due_at <= at(self.now):
            self.hear()
        if self.now >= self._next_sweep or (self._urgent and self.now >= self._next_probe):
            self._next_sweep, self._next_probe = self.now + SWEEP_S, self.now + PROBE_S
            self._sweep()

    def _livekit_ticks(self) -> None:
        self.lost = {identity: until for identity, until in self.lost.items() if until > self.now}
        if not self.up or self.room is None:
            return
        for identity, session in list(self.room.sessions.items()):
            if session.dies_at is not None and session.dies_at <= self.now:
                self.disturbed()
                self._close(identity, "CONNECTION_TIMEOUT")
        for identity in list(self.lost):
            self.join(identity)
        room = self.room
        if room.ever_joined and room.empty_since is not None and self.now - room.empty_since >= DEPARTURE_S:
            self.disturbed()
            self._finish("ROOM_CLOSED")

    # -------------------------------------------------------------------------------------------------------- the truth

    @property
    def busy(self) -> bool:
        """Something is on its way: mail, an answer, a client that LiveKit will find dead."""
        dying = any(session.dies_at is not None for session in self.room.sessions.values()) if self.room else False
        return bool(self._mail or self._timers or dying)

    def connected(self) -> set[str]:
        """Who is in the room, for all that LiveKit knows."""
        return set(self.room.sessions) if self.up and self.room else set()

    def believed(self) -> set[str]:
        state: CallState = self.state
        return {identity for identity, key in self.people.items() if state.participants[key].connected}

    def media(self, identity: str) -> Media:
        session = self.room.sessions[identity] if self.room else None
        live = {source for source, muted in session.tracks.values() if not muted} if session else set()
        return Media("microphone" in live, "camera" in live, "screen_share" in live)
