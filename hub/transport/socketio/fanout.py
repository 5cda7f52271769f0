"""Rooms of this node: one frame per event and serializer, the same bytes written to every member's transport.

No task, queue or coroutine per recipient. Frames that fall due to a room in one turn of the loop leave as one write
per member, still separate WebSocket frames. A huge room is written in slices, rooms take turns, so that nobody's loop
stalls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from uuid import UUID

import msgspec
import structlog

from hub import metrics
from hub.context import Position
from hub.transport.socketio.codec import Codec
from hub.transport.socketio.session import Session
from hub.transport.socketio.socket import BYTES, Socket

log = structlog.get_logger("hub.fanout")

EVENTS = metrics.Tally("events_sent", "Events written to sockets, by name", "name")
ROOMS = metrics.gauge("rooms", "Rooms with sockets on this node")

# Writes in one turn of the loop, and of one room before others have theirs. A write costs 2 to 8 µs.
_TURN = 512
# Events that a room is told in one turn. What is written in a turn leaves at its end: more, and members would look slow
# who are not.
_BURST = 256
_SLICE = 256
# Events kept for somebody on its way in, by reference: what all others are told anyway.
_HELD = 4096


class Frame:
    """One event of a room, encoded at most once per serializer."""

    __slots__ = ("_encoded", "body", "call_id", "name", "position", "skip_session")

    def __init__(
        self, call_id: UUID, name: str, body: bytes, position: Position | None, skip_session: str | None
    ) -> None:
        self.call_id = call_id
        self.name = name
        self.body = body
        self.position = position
        self.skip_session = skip_session
        self._encoded: dict[Codec, bytes] | None = None

    def encoded(self, codec: Codec) -> bytes:
        known = self._encoded
        if known is None:
            known = self._encoded = {}
        data = known.get(codec)
        if data is None:
            data = known[codec] = self.once(codec)
        return data

    def once(self, codec: Codec) -> bytes:
        """The same, for who knows that it is asked once."""
        try:
            return codec.event_json(self.name, self.body)
        except Exception:
            # JSON has more in it than msgpack. One such event must not keep a room, or the node, from hearing the rest;
            # those who cannot be told it are told to look for themselves.
            log.exception("event_not_encoded", event_name=self.name, codec=codec.name, call_id=str(self.call_id))
            return codec.event("room:resynced", {"call_id": str(self.call_id)})


class _Guard:
    """A session on its way in: events are held until the ack of its join has left, then filtered until past `floor`."""

    __slots__ = ("floor", "held")

    def __init__(self) -> None:
        self.floor: Position | None = None
        self.held: list[Frame] | None = []

    def passes(self, frame: Frame) -> bool:
        at, floor = frame.position, self.floor
        return at is None or floor is None or at.epoch != floor.epoch or at.offset > floor.offset

    def passed(self, last: Position | None) -> bool:
        """Nothing at or below the floor can come any more."""
        floor = self.floor
        return (
            floor is None
            or not floor.offset
            or (last is not None and (last.epoch != floor.epoch or last.offset >= floor.offset))
        )

    def reached(self, heard: Position | None) -> bool:
        """The same of a room where nothing recorded has been said since."""
        floor = self.floor
        return heard is not None and floor is not None and heard.epoch == floor.epoch and heard.offset >= floor.offset


class _Work(msgspec.Struct):
    """One joined buffer on its way to the members that share a serializer."""

    members: dict[Socket, None]
    sockets: list[Socket]
    data: bytes
    count: int
    at: int = 0


class _Room:
    __slots__ = ("call_id", "due", "guards", "last", "members", "pending", "then", "work")

    def __init__(self, call_id: UUID) -> None:
        self.call_id = call_id
        self.members: dict[Codec, dict[Socket, None]] = {}
        self.guards: dict[Session, _Guard] = {}
        self.pending: list[Frame] = []
        self.work: deque[_Work] = deque()
        self.last: Position | None = None
        self.due = False
        # What follows when everything due has been written.
        self.then: Callable[[], None] | None = None


class Rooms:
    """Who hears what on this node. Nothing here awaits."""

    def __init__(self, heard: Callable[[UUID], Position | None] = lambda call_id: None) -> None:
        """`heard`: up to where everything recorded in a room has been delivered, as far as that is known."""
        self._heard = heard
        self._rooms: dict[UUID, _Room] = {}
        self._due: deque[_Room] = deque()
        # Those that have had their turn and still have events.
        self._later: list[_Room] = []
        self._scheduled = False

    def __contains__(self, call_id: UUID) -> bool:
        return call_id in self._rooms

    def sessions(self, call_id: UUID) -> list[Session]:
        room = self._rooms.get(call_id)
        if room is None:
            return []
        live = [socket.session for sockets in room.members.values() for socket in sockets if socket.session]
        return [*live, *room.guards]

    def hearing(self, call_id: UUID) -> list[Session]:
        """Those whom events reach at once: everybody but who is still on the way in."""
        room = self._rooms.get(call_id)
        entering = {session for session, guard in room.guards.items() if guard.held is not None} if room else ()
        return [session for session in self.sessions(call_id) if session not in entering]

    def then(self, call_id: UUID, follow: Callable[[], None]) -> None:
        """Call `follow` once everything delivered so far has been written."""
        room = self._rooms.get(call_id)
        if room is not None and room.due:
            room.then = follow

    def enter(self, call_id: UUID, session: Session) -> None:
        """From now on events of the room are held for `session`, until `release`."""
        room = self._rooms.get(call_id)
        if room is None:
            room = self._rooms[call_id] = _Room(call_id)
            ROOMS.inc()
        self._demote(room, session)
        room.guards[session] = _Guard()

    def seen(self, call_id: UUID, session: Session, position: Position) -> None:
        room = self._rooms.get(call_id)
        if room is None:
            return
        guard = room.guards.get(session)
        if guard is None and self._demote(room, session):
            guard = room.guards[session] = _Guard()
            guard.held = None
        if guard is not None:
            guard.floor = position
            if guard.held is None:
                self._promote(room, session, guard)

    def release(self, call_id: UUID, session: Session) -> list[str]:
        """The ack has left: what was held follows it. The names of it."""
        room = self._rooms.get(call_id)
        guard = room.guards.get(session) if room else None
        if room is None or guard is None or guard.held is None:
            return []
        codec = session.socket.codec
        due = [frame for frame in guard.held if guard.passes(frame)]
        guard.held = None
        if due:
            session.socket.write(b"".join(frame.encoded(codec) for frame in due), len(due))
        self._promote(room, session, guard)
        return [frame.name for frame in due]

    def exit(self, call_id: UUID, session: Session) -> None:
        room = self._rooms.get(call_id)
        if room is None:
            return
        room.guards.pop(session, None)
        self._demote(room, session)
        if not room.members and not room.guards:
            del self._rooms[call_id]
            ROOMS.dec()

    def deliver(
        self, call_id: UUID, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None = None
    ) -> None:
        """`body` is the JSON of the whole event. Without an offset it is one that is not recorded."""
        room = self._rooms.get(call_id)
        if room is None:
            return
        position = None if offset is None else Position(epoch, offset)
        room.pending.append(Frame(call_id, name, body, position, skip_session))
        if not room.due:
            room.due = True
            self._due.append(room)
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        budget, due = _TURN, self._due
        while due and budget > 0:
            room = due.popleft()
            try:
                budget -= self._advance(room)
                self._after(room)
            except Exception:
                # A bug with one room: this turn serves all of them, and must come again.
                log.exception("room_not_written")
                room.work.clear()
                room.pending.clear()
                room.due = False
                budget -= 1
        due.extend(self._later)
        self._later.clear()
        if due:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._scheduled = False

    def _after(self, room: _Room) -> None:
        if room.work:
            self._due.append(room)
            return
        if room.pending:
            self._later.append(room)
            return
        room.due = False
        follow, room.then = room.then, None
        if follow is not None:
            follow()

    def _advance(self, room: _Room) -> int:
        """Write a slice of what the room has due. How many writes it took."""
        fresh = not room.work
        if fresh:
            if len(room.pending) == len(room.members) == 1 and not room.guards:
                members = next(iter(room.members.values()))
                frame = room.pending[0]
                if len(members) <= _SLICE and frame.skip_session is None:
                    room.pending.clear()
                    return self._write_all(room, frame, members)
            self._prepare(room)
        written = 1
        while room.work and written <= _SLICE:
            work = room.work[0]
            until = min(work.at + _SLICE - written + 1, len(work.sockets))
            data, count, members = work.data, work.count, work.members
            for socket in work.sockets[work.at : until]:
                # Some turns later somebody may have left.
                if fresh or socket in members:
                    socket.write(data, count)
            BYTES.add(len(data) * (until - work.at))
            written += until - work.at
            work.at = until
            if until == len(work.sockets):
                room.work.popleft()
        return written

    @staticmethod
    def _write_all(room: _Room, frame: Frame, members: dict[Socket, None]) -> int:
        """What nearly all work is, at once: one event for a few who share a serializer."""
        data = frame.once(next(iter(room.members)))
        count = len(members)
        EVENTS.add(count, frame.name)
        BYTES.add(len(data) * count)
        if frame.position is not None:
            room.last = frame.position
        # Whoever is cut off leaves the room later, not in this loop.
        for socket in members:
            socket.write(data)
        return count + 1

    def _prepare(self, room: _Room) -> None:
        """Turn the pending frames into work: one buffer for all members with the same serializer."""
        batch, room.pending = room.pending[:_BURST], room.pending[_BURST:]
        heard = 0
        skips = {frame.skip_session for frame in batch} - {None}
        for codec, members in room.members.items():
            heard += len(members)
            if skips:
                skipping = [socket for socket in members if socket.session and socket.session.id in skips]
                for socket in skipping:
                    self._write_some(socket, batch)
                sockets = [socket for socket in members if socket not in skipping]
            else:
                sockets = list(members)
            encoded = [frame.encoded(codec) for frame in batch]
            data = encoded[0] if len(encoded) == 1 else b"".join(encoded)
            if sockets:
                room.work.append(_Work(members, sockets, data, len(batch)))
        for frame in batch:
            EVENTS.add(heard, frame.name)
            if frame.position is not None:
                room.last = frame.position
        if room.guards:
            self._guarded(room, batch)

    @staticmethod
    def _write_some(socket: Socket, batch: list[Frame]) -> None:
        assert socket.session is not None
        own = socket.session.id
        due = [frame.encoded(socket.codec) for frame in batch if frame.skip_session != own]
        if due:
            socket.write(b"".join(due), len(due))

    def _guarded(self, room: _Room, batch: list[Frame]) -> None:
        for session, guard in list(room.guards.items()):
            frames = [frame for frame in batch if frame.skip_session != session.id]
            if guard.held is not None:
                guard.held += frames
                if len(guard.held) > _HELD:
                    session.socket.cut_off()
                continue
            due = [frame.encoded(session.socket.codec) for frame in frames if guard.passes(frame)]
            if due:
                session.socket.write(b"".join(due), len(due))
            self._promote(room, session, guard)

    @staticmethod
    def _demote(room: _Room, session: Session) -> bool:
        sockets = room.members.get(session.socket.codec)
        if sockets is None or session.socket not in sockets:
            return False
        del sockets[session.socket]
        if not sockets:
            del room.members[session.socket.codec]
        return True

    def _promote(self, room: _Room, session: Session, guard: _Guard) -> None:
        """A session that needs no filter any more is a member like all others."""
        passed = guard.passed(room.last) or (not room.pending and guard.reached(self._heard(room.call_id)))
        if passed and session in room.guards and session.socket.open:
            del room.guards[session]
            room.members.setdefault(session.socket.codec, {})[session.socket] = None
