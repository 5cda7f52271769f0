"""Who of this node is in which room: entering, leaving, being put out, being lost.

Three parties have to agree, each in its own time: the fan-out of this node, the bus that brings the room's events here
only while somebody is in it, and the roster that all nodes see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

from hub.context import Hub, Position, RosterEntry
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.rooms import RoomEnded
from hub.transport.socketio.chores import Chores
from hub.transport.socketio.fanout import Rooms
from hub.transport.socketio.session import Session


class RoomSubscriptions(Protocol):
    """Subscribing raises ClusterUnavailable."""

    async def subscribe_room(self, call_id: UUID) -> None: ...
    def unsubscribe_room(self, call_id: UUID) -> None: ...


class Attendance:
    """The rooms of this node's sessions."""

    def __init__(self, hub: Hub, rooms: Rooms, subscriptions: RoomSubscriptions, chores: Chores) -> None:
        self._hub = hub
        self._roster = hub.roster
        self._most = hub.rules.rooms_per_session
        self._rooms = rooms
        self._subscriptions = subscriptions
        self._chores = chores
        # Sessions in a room, or entering it: the bus is asked for the room while there are any.
        self._interest: dict[UUID, int] = {}

    def __len__(self) -> int:
        return len(self._interest)

    def lost(self, sessions: Sequence[Session], *, interrupt: bool) -> None:
        """Their sockets are gone. Without `interrupt` the roster is left as it is."""
        lost = [(call_id, session.id) for session in sessions for call_id in session.joined]
        for session in sessions:
            for call_id in list(session.joined):
                self.depart(session, call_id, None)
        if interrupt and lost:
            self._chores.add(lambda: self._roster.interrupt(lost))

    def put_out(self, session: Session, call_id: UUID) -> None:
        self.depart(session, call_id, self._roster.leave)

    async def enter(self, session: Session, call_id: UUID, participant_id: UUID) -> None:
        fresh = call_id not in session.joined
        if fresh and len(session.joined) >= self._most:
            raise errors.Conflict(f"a session can be in {self._most} rooms")
        if fresh:
            self._interest[call_id] = self._interest.get(call_id, 0) + 1
        session.joined[call_id] = participant_id
        session.entered[call_id] = fresh or session.entered.get(call_id, False)
        try:
            await self._subscriptions.subscribe_room(call_id)
            if session.socket.open:
                self._demand_joined(session, call_id)
                # Before the roster: whoever sees the entry may already send something.
                self._rooms.enter(call_id, session)
            await self._roster.enter(call_id, self._entry(session, participant_id))
            if session.socket.open:
                self._demand_joined(session, call_id)
            else:
                # Gone meanwhile: its going knew nothing of this entry. The grace begins all the same.
                self.depart(session, call_id, None)
                self._chores.add(lambda: self._roster.interrupt([(call_id, session.id)]))
        except BaseException:
            if fresh:
                self.depart(session, call_id, self._roster.leave)
            raise

    @staticmethod
    def _demand_joined(session: Session, call_id: UUID) -> None:
        if call_id not in session.joined:
            raise errors.NotInRoom("put out of the room while entering it")

    async def exit(self, session: Session, call_id: UUID) -> None:
        if call_id in session.joined:
            self.depart(session, call_id, None)
            try:
                await self._roster.leave(call_id, session.id)
            except HubError:
                self._chores.add(lambda: self._take_leave(session, call_id, self._roster.leave))

    def seen(self, session: Session, call_id: UUID, position: Position) -> None:
        self._rooms.seen(call_id, session, position)

    def _entry(self, session: Session, participant_id: UUID) -> RosterEntry:
        actor, hub = session.actor, self._hub
        return RosterEntry(session.id, participant_id, actor.user_id, actor.tenant_id, hub.node_id, hub.incarnation)

    def depart(self, session: Session, call_id: UUID, farewell: Callable[[UUID, str], Any] | None) -> None:
        """Out of the room at once; the roster hears `farewell` in the background."""
        if session.joined.pop(call_id, None) is not None:
            self._interest[call_id] -= 1
            if not self._interest[call_id]:
                del self._interest[call_id]
                self._subscriptions.unsubscribe_room(call_id)
        self._rooms.exit(call_id, session)
        if farewell is not None:
            self._chores.add(lambda: self._take_leave(session, call_id, farewell))

    @staticmethod
    async def _take_leave(session: Session, call_id: UUID, farewell: Callable[[UUID, str], Any]) -> None:
        # It may be in again: what was owed for the time before, and had to wait for Redis, is void.
        if call_id not in session.joined:
            await farewell(call_id, session.id)

    def answered(self, session: Session, ok: bool) -> None:
        """The ack of a command has left: what was held back for it follows."""
        entered, session.entered = session.entered, {}
        for call_id, fresh in entered.items():
            if ok or not fresh:
                if RoomEnded.name in self._rooms.release(call_id, session):
                    # Of the others who heard it the edge has seen to; this one was still on the way in.
                    self.put_out(session, call_id)
            elif call_id in session.joined:
                # The client was told that it is not in: so it must not hear the room.
                self.depart(session, call_id, self._roster.leave)
