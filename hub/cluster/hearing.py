"""What a node hears: verified, in order, once; and mended from the log where something is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from hub.cluster.envelope import Envelope, Head, Signer
from hub.cluster.keys import Keys
from hub.cluster.nodes import Clock
from hub.cluster.order import CLOCKS_MS, Freshness, RoomOrder
from hub.cluster.roomlog import READ_S, Counters, RoomLog
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

# Rooms whose events were told on this node only, to be announced when Redis is back.
_UNLOGGED_ROOMS = 10_000
_TOLD_HERE = 10_000
_REPAIRS_AT_ONCE = 200
_RETRY_S = 0.25


class Listener(Protocol):
    """What a node does with what it hears. Called in the loop: none of these may block or raise."""

    def deliver_room(
        self, call_id: UUID, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        """`body` is the whole JSON object of the event, position included. No offset: ephemeral, or told while
        degraded.
        """
        ...

    def deliver_user(self, tenant_id: UUID, user_id: str, name: str, body: bytes) -> None: ...

    def control(self, message: dict[str, Any]) -> None: ...

    def resynced(self, call_id: UUID) -> None:
        """Events of the room are missing for good, or its epoch changed: its members need a snapshot."""
        ...

    def degraded(self, on: bool) -> None: ...


class _Room:
    __slots__ = ("call_id", "channel", "fleeting", "opening", "order")

    def __init__(self, call_id: UUID, channel: bytes, opening: asyncio.Future[None]) -> None:
        self.call_id = call_id
        self.channel = channel
        self.opening = opening
        self.order: RoomOrder | None = None
        self.fleeting: Freshness | None = None


class _User:
    __slots__ = ("fresh", "tenant_id", "user_id")

    def __init__(self, tenant_id: UUID, user_id: str, now_ms: int) -> None:
        self.tenant_id, self.user_id = tenant_id, user_id
        self.fresh = Freshness(now_ms - CLOCKS_MS)


class Hearing:
    """The ear of the line."""

    def __init__(
        self, room_log: RoomLog, keys: Keys, clock: Clock, signer: Signer, counters: Counters, control_channel: str
    ) -> None:
        self._log, self._keys, self._clock, self._signer = room_log, keys, clock, signer
        self._counters = counters
        self.listener: Listener | None = None
        self._rooms: dict[bytes, _Room] = {}
        self._users: dict[bytes, _User] = {}
        self._control: Freshness | None = None
        self._control_channel = control_channel.encode()
        # Events that this node told its own members without Redis: if they come by the bus after all, they are old.
        self._told_here: dict[tuple[str, int], None] = {}
        # call_id → the epoch whose log lacks something ('' if not known).
        self._unlogged: dict[UUID, str] = {}
        self._to_repair: dict[bytes, None] = {}
        # Channels that say that something may have changed, and not what: unsigned, since believing them costs a look.
        self._bells: dict[bytes, Callable[[bytes], None]] = {}
        self._deaf_bells: list[Callable[[], None]] = []
        self._orders: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._wake = asyncio.Event()
        self._line_up = asyncio.Event()

    # Rooms and users to hear

    def room(self, call_id: UUID) -> _Room | None:
        return self._rooms.get(self._keys.room(call_id).channel_bytes)

    def expect_room(self, call_id: UUID) -> _Room:
        channel = self._keys.room(call_id).channel_bytes
        room = self._rooms[channel] = _Room(call_id, channel, asyncio.get_running_loop().create_future())
        return room

    async def open_room(self, room: _Room) -> None:
        """After its subscription is confirmed, so that nothing falls between the position and what is heard."""
        head, entries = await self._log.read(room.call_id)
        now_ms = self._clock.now_ms()
        room.order = RoomOrder(head, entries[-1][1] if entries and entries[-1][0] == head else None, now_ms)
        room.fleeting = Freshness(now_ms - CLOCKS_MS)
        room.opening.set_result(None)

    def forget_room(self, call_id: UUID) -> bool:
        channel = self._keys.room(call_id).channel_bytes
        self._to_repair.pop(channel, None)
        return self._rooms.pop(channel, None) is not None

    def expect_user(self, tenant_id: UUID, user_id: str) -> None:
        channel = self._keys.user_channel(tenant_id, user_id).encode()
        if channel not in self._users:
            self._users[channel] = _User(tenant_id, user_id, self._clock.now_ms())

    def forget_user(self, tenant_id: UUID, user_id: str) -> bool:
        return self._users.pop(self._keys.user_channel(tenant_id, user_id).encode(), None) is not None

    def expect_bell(self, channel: str, ring: Callable[[bytes], None]) -> None:
        self._bells[channel.encode()] = ring

    def forget_bell(self, channel: str) -> None:
        self._bells.pop(channel.encode(), None)

    def when_back(self, look: Callable[[], None]) -> None:
        """`look` runs when the line is up again: bells may have rung unheard."""
        self._deaf_bells.append(look)

    def obey(self, kind: str, do: Callable[[dict[str, Any]], None]) -> None:
        """Control messages of that kind are not the listener's, but `do`'s."""
        self._orders[kind] = do

    # What this node tells its own without Redis

    def without_redis(self, call_id: UUID, envelope: Envelope) -> Head | None:
        """Tell the members on this node; everybody gets a new epoch when Redis is back.

        The position, if the event itself has come by the bus and only the answer to its sender was lost.
        """
        room = self.room(call_id)
        order = room.order if room is not None else None
        if order is not None and order.heard(envelope):
            return Head(order.epoch, order.last)
        if len(self._unlogged) >= _UNLOGGED_ROOMS:
            del self._unlogged[next(iter(self._unlogged))]
        self._unlogged.setdefault(call_id, order.epoch if order is not None else "")
        self._wake.set()
        if room is not None and order is not None:
            if len(self._told_here) >= _TOLD_HERE:
                del self._told_here[next(iter(self._told_here))]
            self._told_here[(envelope.incarnation, envelope.number)] = None
            self._counters.told_here_only += 1
            self._deliver(room, None, order.epoch, envelope)
        return None

    # The ear

    def message(self, channel: bytes, wire: bytes) -> None:
        if (ring := self._bells.get(channel)) is not None:
            ring(wire)
            return
        opened = self._signer.open(channel, wire)
        if opened is None:
            self._counters.unverified += 1
            return
        self.hear(channel, *opened)

    def hear(self, channel: bytes, head: Head | None, envelope: Envelope) -> None:
        """What is known to be a node's."""
        if (room := self._rooms.get(channel)) is not None:
            if head is not None:
                self._hear_recorded(room, head, envelope)
            elif envelope.kind == "ephemeral":
                self._hear_fleeting(room, envelope)
        elif (user := self._users.get(channel)) is not None:
            if envelope.kind == "user":
                self._hear_user(user, envelope)
        elif channel == self._control_channel and envelope.kind == "control":
            if self._control is None and self._clock.known:
                self._control = Freshness(self._clock.since_ms - CLOCKS_MS)
            if self._control is not None and self._control.new(envelope, self._clock.now_ms()):
                self._control.note(envelope)
                self.hear_control(envelope.body)
            else:
                self._counters.replayed += 1

    def line_up(self) -> None:
        for room in self._rooms.values():
            self._mark_for_repair(room)
        for look in self._deaf_bells:
            look()
        self._line_up.set()

    def line_down(self) -> None:
        self._line_up.clear()

    def _hear_recorded(self, room: _Room, head: Head, envelope: Envelope) -> None:
        if room.order is None:
            # The room is being opened: what arrives now is part of the position that is being read.
            self._mark_for_repair(room)
            return
        verdict = room.order.arrive(head, envelope, self._clock.now_ms())
        if verdict == "deliver":
            self._deliver(room, head.offset, head.epoch, envelope)
        elif verdict == "duplicate":
            self._counters.duplicates += 1
        else:
            self._mark_for_repair(room)

    def _hear_fleeting(self, room: _Room, envelope: Envelope) -> None:
        if room.fleeting is None or room.order is None:
            return
        if not room.fleeting.new(envelope, self._clock.now_ms()):
            self._counters.replayed += 1
            return
        room.fleeting.note(envelope)
        self._deliver(room, None, room.order.epoch, envelope)

    def _hear_user(self, user: _User, envelope: Envelope) -> None:
        if not user.fresh.new(envelope, self._clock.now_ms()):
            self._counters.replayed += 1
            return
        user.fresh.note(envelope)
        if self.listener is not None:
            try:
                self.listener.deliver_user(user.tenant_id, user.user_id, envelope.name, envelope.body)
            except Exception:
                log.exception("delivery to a user failed", name=envelope.name)

    def hear_control(self, body: bytes) -> None:
        try:
            message = msgspec.json.decode(body, type=dict[str, Any])
            obey = self._orders.get(str(message.get("kind")))
            if obey is not None:
                obey(message)
            elif self.listener is not None:
                self.listener.control(message)
        except Exception:
            log.exception("control message failed")

    def _deliver(self, room: _Room, offset: int | None, epoch: str, envelope: Envelope) -> None:
        if offset is not None and self._told_here.pop((envelope.incarnation, envelope.number), 0) is None:
            self._counters.duplicates += 1
            return
        if self.listener is None:
            return
        self._counters.delivered += 1
        body = place(room.call_id, epoch, offset, envelope)
        try:
            self.listener.deliver_room(room.call_id, offset, epoch, envelope.name, body, envelope.skip_session)
        except Exception:
            # A fault of one listener is not the bus's end: the others' events come by the same line.
            log.exception("delivery to a room failed", name=envelope.name)

    # Repairing

    async def run(self) -> None:
        """The one place that reads logs to mend what was heard."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._line_up.wait()
            try:
                await self._announce_unlogged()
                while self._to_repair:
                    some = [self._to_repair.popitem()[0] for _ in range(min(len(self._to_repair), _REPAIRS_AT_ONCE))]
                    await self._repair_some(some)
            except ClusterUnavailable:
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def _repair_some(self, channels: Sequence[bytes]) -> None:
        # All of them to their end, so that no room is ever repaired twice at a time.
        outcomes = await asyncio.gather(*(self._repair(channel) for channel in channels), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, ClusterUnavailable):
                log.error("repair of a room failed", exc_info=outcome)
        for outcome in outcomes:
            if isinstance(outcome, ClusterUnavailable):
                raise outcome

    async def _announce_unlogged(self) -> None:
        """Rooms that heard something on this node only get a new epoch, so that everybody takes a snapshot."""
        while self._unlogged:
            if not self._log.writable:
                raise ClusterUnavailable()
            call_id, epoch = next(iter(self._unlogged.items()))
            await self._log.begin_anew(call_id, epoch)
            self._unlogged.pop(call_id, None)

    async def _repair(self, channel: bytes) -> None:
        room = self._rooms.get(channel)
        if room is None:
            return
        # What arrived while the room was being opened may have been recorded just after its position was read.
        await asyncio.wait((room.opening,), timeout=READ_S)
        order = room.order
        if order is None:
            return
        try:
            unsettled = True
            while unsettled and self._rooms.get(channel) is room:
                self._counters.repairs += 1
                order.ask()
                await self._read_again(room, order)
                unsettled = self._replay_held(room, order)
        except ClusterUnavailable:
            self._to_repair[channel] = None
            raise

    async def _read_again(self, room: _Room, order: RoomOrder) -> None:
        head, entries = await self._log.read(room.call_id, order.last)
        if self._rooms.get(room.channel) is not room:
            return
        outcome = order.repaired(head, entries)
        if outcome.rolled_back:
            log.warning("redis lost events that were delivered", call_id=str(room.call_id))
            await self._log.begin_anew(room.call_id, head.epoch)
            head, entries = await self._log.read(room.call_id)
            outcome = order.repaired(head, entries)
        for at, envelope in outcome.deliver:
            self._counters.repaired += 1
            self._deliver(room, at.offset, at.epoch, envelope)
        if outcome.resynced:
            self._counters.resyncs += 1
            if self.listener is not None:
                try:
                    self.listener.resynced(room.call_id)
                except Exception:
                    log.exception("resync failed", call_id=str(room.call_id))

    def _replay_held(self, room: _Room, order: RoomOrder) -> bool:
        """Let what came during the read arrive again; True if the log has to be read once more for it.

        No await here: nothing arrives in between.
        """
        forged, later, overflowed = order.release()
        self._counters.replayed += forged
        for position, (head, envelope) in enumerate(later):
            verdict = order.arrive(head, envelope, self._clock.now_ms())
            if verdict == "deliver":
                self._deliver(room, head.offset, head.epoch, envelope)
            elif verdict == "held":
                order.hold_again(later[position + 1 :])
                return True
        if overflowed:
            order.repairing = True
        return overflowed

    def _mark_for_repair(self, room: _Room) -> None:
        self._to_repair[room.channel] = None
        if room.order is not None:
            room.order.repairing = True
        self._wake.set()


def place(call_id: UUID, epoch: str, offset: int | None, envelope: Envelope) -> bytes:
    """The event as clients get it: the position spliced in front of what the sender encoded."""
    moment = datetime.fromtimestamp(envelope.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    where = f'{{"call_id":"{call_id}","epoch":"{epoch}",'
    if offset is not None:
        where += f'"offset":{offset},'
    where += f'"ts":"{moment[:-6]}Z"'
    rest = envelope.body[1:]
    return where.encode() + (b"," + rest if rest != b"}" else rest)
