"""The bus: what happens in a room reaches every node that has somebody in it, in one order, and nothing goes missing
unsaid.

A recorded event takes the room's next offset from Redis, is kept there for the recovery window, and is heard by every
node, the sender's included, by the same road: so everybody sees the same order. A node that finds a hole reads the
room's log; where the log no longer has it, the room is told to start from a fresh snapshot.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from hub.cluster.envelope import VERSION, Envelope, Head, Kind, Signer
from hub.cluster.keys import Keys
from hub.cluster.line import Line
from hub.cluster.link import LinkLost, ServerRefused
from hub.cluster.nodes import Nodes
from hub.cluster.order import CLOCKS_MS, Arrival, Freshness, RoomOrder
from hub.cluster.redis import Door, Script
from hub.context import Position
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

WINDOW_MS = 120_000
LOG_EVENTS = 1000
PUBLISH_S = 0.25
READ_S = 1.0
# A script that reaches Redis later than this after the call does nothing: the caller has been told that it failed.
LATE_MS = 500
# Rooms whose events were told on this node only, to be announced when Redis is back.
_UNLOGGED_ROOMS = 10_000
_TOLD_HERE = 10_000
_REPAIRS_AT_ONCE = 200
_RETRY_S = 0.25
# The bus is called degraded after this long: a hiccup of Redis is no news for clients.
_DEGRADED_AFTER_S = 1.0
# The position of an event belongs to the envelope; a payload that repeats it would make a second key in the same
# object.
_ENVELOPE_FIELDS = frozenset(("call_id", "epoch", "offset", "ts", "by"))

_PUBLISH, _READ, _RESET = Script("publish"), Script("read"), Script("reset")


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


class Missed(msgspec.Struct, frozen=True):
    """An event that a client did not hear, as it would have."""

    event: str
    data: dict[str, Any]


class Counters(msgspec.Struct):
    """Since the start of the node; for the metrics."""

    published: int = 0
    failed: int = 0
    delivered: int = 0
    unverified: int = 0
    replayed: int = 0
    duplicates: int = 0
    repairs: int = 0
    repaired: int = 0
    resyncs: int = 0
    told_here_only: int = 0


class _Room:
    __slots__ = ("call_id", "channel", "fleeting", "opening", "order")

    def __init__(self, call_id: UUID, channel: str, opening: asyncio.Future[None]) -> None:
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


class Bus:
    def __init__(self, door: Door, keys: Keys, nodes: Nodes, signer: Signer) -> None:
        self._keys, self._nodes, self._signer = keys, nodes, signer
        self._clock = nodes.clock
        self._line = Line(
            door.endpoint,
            self,
            tick_channel=keys.tick_channel(f"{nodes.node_id}:{secrets.token_hex(4)}"),
            scripts=(_PUBLISH, _READ, _RESET),
        )
        self._listener: Listener | None = None
        self._rooms: dict[bytes, _Room] = {}
        self._users: dict[bytes, _User] = {}
        self._control = Freshness(0)
        self._control_channel = keys.node_channel(nodes.node_id)
        self._line.want(self._control_channel, sharded=False)
        self._number = 0
        # Numbers of events that this node told its own members without Redis: if they come by the bus after all, they
        # are old.
        self._told_here: dict[tuple[str, int], None] = {}
        # call_id → the epoch whose log lacks something ('' if not known).
        self._unlogged: dict[UUID, str] = {}
        self._to_repair: dict[bytes, None] = {}
        self._wake = asyncio.Event()
        self.counters = Counters()

    def listen(self, listener: Listener) -> None:
        """Who hears what arrives. Before the first subscription."""
        self._listener = listener

    @property
    def degraded(self) -> bool:
        return not self._line.up or not self._publishes

    @property
    def _publishes(self) -> bool:
        return self._line.publishes and self._nodes.alive

    @property
    def reconnects(self) -> int:
        return self._line.reconnects

    async def wait_up(self, timeout_s: float) -> bool:
        return await self._line.wait_up(timeout_s)

    def close(self) -> None:
        self._line.drop()

    # Sending

    async def to_room(
        self,
        call_id: UUID,
        name: str,
        payload: Any,
        *,
        recorded: bool = True,
        by: Mapping[str, Any] | None = None,
        skip_session: str | None = None,
    ) -> Position | None:
        """Tell a room. The position of a recorded event, or None.

        Does not raise for Redis: what it announces has already happened. While Redis is away the members on this node
        hear it without an offset, and everybody gets a new epoch, and with it a snapshot, when Redis is back.
        """
        body = encode_body(payload, by)
        if recorded:
            number = self._next_number()
            try:
                return await self._publish(call_id, number, name, body, skip_session)
            except ClusterUnavailable:
                return self._without_redis(call_id, number, name, body, skip_session)
        self._fleeting(call_id, name, body, skip_session)
        return None

    async def publish(self, call_id: UUID, name: str, payload: Any, *, by: Mapping[str, Any] | None = None) -> Position:
        """Tell a room, or raise ClusterUnavailable within half a second, and then tell nobody."""
        return await self._publish(call_id, self._next_number(), name, encode_body(payload, by), None)

    async def to_user(self, tenant_id: UUID, user_id: str, name: str, payload: Any) -> None:
        """Tell every session of a user. While Redis is away only those on this node hear it."""
        channel = self._keys.user_channel(tenant_id, user_id)
        envelope = self._envelope("user", self._next_number(), name, encode_body(payload, None), None)

        def tell_here() -> None:
            user = self._users.get(channel.encode())
            if user is not None:
                self._hear_user(user, envelope)

        self._send("SPUBLISH", channel, envelope, tell_here)

    async def control(self, node_id: str, message: Mapping[str, Any]) -> None:
        """Tell one node something that no client hears. Raises ClusterUnavailable, also when no such node listens."""
        if node_id == self._nodes.node_id:
            self._hear_control(msgspec.json.encode(message))
            return
        channel = self._keys.node_channel(node_id)
        wire = self._seal(
            channel, self._envelope("control", self._next_number(), "", msgspec.json.encode(message), None)
        )
        try:
            heard_by = await self._line.call("PUBLISH", channel, wire, budget_s=PUBLISH_S)
        except (LinkLost, ServerRefused) as error:
            raise ClusterUnavailable() from error
        if not heard_by:
            raise ClusterUnavailable("that node does not listen")

    # Reading

    async def position(self, call_id: UUID) -> Position:
        """Where the room's log stands. Raises ClusterUnavailable."""
        head, _ = await self._read(call_id, "-")
        return Position(head.epoch, head.offset)

    async def since(self, call_id: UUID, position: Position) -> list[Missed] | None:
        """What came after `position`, all of it and in order, or None. Raises ClusterUnavailable."""
        if position.offset < 0:
            return None
        head, entries = await self._read(call_id, position.offset + 1)
        # Ahead of the log: Redis lost what this client has seen.
        if head.epoch != position.epoch or head.offset < position.offset:
            return None
        if [at.offset for at, _ in entries] != list(range(position.offset + 1, head.offset + 1)):
            return None
        return [
            Missed(envelope.name, msgspec.json.decode(place(call_id, at.epoch, at.offset, envelope)))
            for at, envelope in entries
        ]

    # Subscribing

    async def subscribe_room(self, call_id: UUID) -> None:
        """From the return on, everything recorded in the room is delivered, in order. Raises ClusterUnavailable."""
        channel = self._keys.room_channel(call_id)
        room = self._rooms.get(channel.encode())
        if room is not None:
            await asyncio.shield(room.opening)
            return
        room = _Room(call_id, channel, asyncio.get_running_loop().create_future())
        self._rooms[channel.encode()] = room
        try:
            await self._line.subscribe(channel)
            # After the confirmation: nothing falls between this position and what is heard.
            head, entries = await self._read(call_id, "-")
        except BaseException as error:
            if self._rooms.get(channel.encode()) is room:
                self.unsubscribe_room(call_id)
            room.opening.set_exception(error if isinstance(error, ClusterUnavailable) else ClusterUnavailable())
            room.opening.exception()
            raise
        now_ms = self._clock.now_ms()
        room.order = RoomOrder(head, entries[-1][1] if entries and entries[-1][0] == head else None, now_ms)
        room.fleeting = Freshness(now_ms - CLOCKS_MS)
        room.opening.set_result(None)

    def unsubscribe_room(self, call_id: UUID) -> None:
        channel = self._keys.room_channel(call_id)
        if self._rooms.pop(channel.encode(), None) is not None:
            self._to_repair.pop(channel.encode(), None)
            self._line.unsubscribe(channel)

    async def subscribe_user(self, tenant_id: UUID, user_id: str) -> None:
        """Raises ClusterUnavailable."""
        channel = self._keys.user_channel(tenant_id, user_id)
        if channel.encode() not in self._users:
            self._users[channel.encode()] = _User(tenant_id, user_id, self._clock.now_ms())
        try:
            await self._line.subscribe(channel)
        except ClusterUnavailable:
            self._users.pop(channel.encode(), None)
            raise

    def unsubscribe_user(self, tenant_id: UUID, user_id: str) -> None:
        channel = self._keys.user_channel(tenant_id, user_id)
        if self._users.pop(channel.encode(), None) is not None:
            self._line.unsubscribe(channel)

    # Life

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._line.run(), name="bus line")
            tasks.create_task(self._repair_rooms(), name="bus repairs")
            tasks.create_task(self._watch_degraded(), name="bus degraded")

    def line_up(self) -> None:
        self._to_repair.update(dict.fromkeys(self._rooms))
        for room in self._rooms.values():
            if room.order is not None:
                room.order.repairing = True
        self._wake.set()

    async def _watch_degraded(self) -> None:
        loop = asyncio.get_running_loop()
        since: float | None = None
        told = False
        while True:
            if not self.degraded:
                since = None
            elif since is None:
                since = loop.time()
            on = since is not None and (told or loop.time() - since >= _DEGRADED_AFTER_S)
            if on != told:
                told = on
                log.warning("cluster degraded" if on else "cluster whole again")
                if self._listener is not None:
                    self._listener.degraded(on)
            await asyncio.sleep(_RETRY_S)

    # Sending, below

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _envelope(self, kind: Kind, number: int, name: str, body: bytes, skip_session: str | None) -> Envelope:
        return Envelope(VERSION, kind, self._nodes.incarnation, number, self._clock.now_ms(), name, body, skip_session)

    def _seal(self, channel: str, envelope: Envelope) -> bytes:
        return b"\n" + self._signer.seal(channel.encode(), envelope)

    async def _publish(self, call_id: UUID, number: int, name: str, body: bytes, skip_session: str | None) -> Position:
        for attempt in (1, 2):
            if not self._publishes:
                raise ClusterUnavailable()
            envelope = self._envelope("recorded", number, name, body, skip_session)
            try:
                answer = await self._script(
                    _PUBLISH,
                    call_id,
                    self._signer.seal(self._keys.room_channel(call_id).encode(), envelope),
                    _new_epoch(),
                    self._deadline_ms(),
                    WINDOW_MS,
                    LOG_EVENTS,
                )
            except LinkLost as error:
                self.counters.failed += 1
                raise ClusterUnavailable() from error
            except ServerRefused as error:
                self.counters.failed += 1
                if error.code != "FENCED" or attempt == 2:
                    raise ClusterUnavailable(str(error)) from error
                # Our lease ended, or our idea of Redis' clock is off: a heartbeat mends both.
                await self._renew()
                continue
            self.counters.published += 1
            epoch, _, offset = answer.decode().partition(":")
            return Position(epoch, int(offset))
        raise ClusterUnavailable()

    async def _script(self, script: Script, call_id: UUID, *args: bytes | str | int) -> Any:
        keys = self._keys
        return await self._line.run_script(
            script,
            (keys.room_head(call_id), keys.room_log(call_id), keys.room_channel(call_id)),
            *args,
            budget_s=PUBLISH_S,
        )

    def _deadline_ms(self) -> int:
        return min(self._nodes.lease_until_ms, self._clock.now_ms() + LATE_MS)

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(PUBLISH_S):
                await self._nodes.beat()
        except TimeoutError as error:
            raise ClusterUnavailable() from error

    def _without_redis(
        self, call_id: UUID, number: int, name: str, body: bytes, skip_session: str | None
    ) -> Position | None:
        channel = self._keys.room_channel(call_id).encode()
        room = self._rooms.get(channel)
        order = room.order if room is not None else None
        envelope = self._envelope("recorded", number, name, body, skip_session)
        if order is not None and order.heard(envelope):
            # Only the answer was lost: the event itself has come back by the bus.
            return Position(order.epoch, order.last)
        if len(self._unlogged) >= _UNLOGGED_ROOMS:
            del self._unlogged[next(iter(self._unlogged))]
        self._unlogged.setdefault(call_id, order.epoch if order is not None else "")
        self._wake.set()
        if room is not None and order is not None:
            if len(self._told_here) >= _TOLD_HERE:
                del self._told_here[next(iter(self._told_here))]
            self._told_here[(envelope.incarnation, number)] = None
            self.counters.told_here_only += 1
            self._deliver(room, None, order.epoch, envelope)
        return None

    def _fleeting(self, call_id: UUID, name: str, body: bytes, skip_session: str | None) -> None:
        channel = self._keys.room_channel(call_id)
        envelope = self._envelope("ephemeral", self._next_number(), name, body, skip_session)

        def tell_here() -> None:
            room = self._rooms.get(channel.encode())
            if room is not None:
                self._hear_fleeting(room, envelope)

        self._send("SPUBLISH", channel, envelope, tell_here)

    def _send(self, verb: str, channel: str, envelope: Envelope, tell_here: Any) -> None:
        """At most once and without waiting; `tell_here` where Redis cannot be had."""
        if not self._publishes:
            tell_here()
            return

        def done(future: asyncio.Future[Any]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self.counters.failed += 1
                tell_here()

        self._line.call(verb, channel, self._seal(channel, envelope), budget_s=PUBLISH_S).add_done_callback(done)

    # Hearing

    def message(self, channel: bytes, wire: bytes) -> None:
        opened = self._signer.open(channel, wire)
        if opened is None:
            self.counters.unverified += 1
            return
        head, envelope = opened
        if (room := self._rooms.get(channel)) is not None:
            if head is not None:
                self._hear_recorded(room, head, envelope)
            elif envelope.kind == "ephemeral":
                self._hear_fleeting(room, envelope)
        elif (user := self._users.get(channel)) is not None:
            if envelope.kind == "user":
                self._hear_user(user, envelope)
        elif channel == self._control_channel.encode() and envelope.kind == "control":
            if self._control.new(envelope, self._clock.now_ms()):
                self._control.note(envelope)
                self._hear_control(envelope.body)
            else:
                self.counters.replayed += 1

    def _hear_recorded(self, room: _Room, head: Head, envelope: Envelope) -> None:
        if room.order is None:
            # The room is being opened: what arrives now is part of the position that is being read.
            self._mark_for_repair(room)
            return
        verdict = room.order.arrive(head, envelope, self._clock.now_ms())
        if verdict == "deliver":
            self._deliver(room, head.offset, head.epoch, envelope)
        elif verdict == "duplicate":
            self.counters.duplicates += 1
        else:
            self._mark_for_repair(room)

    def _hear_fleeting(self, room: _Room, envelope: Envelope) -> None:
        if room.fleeting is None or room.order is None:
            return
        if not room.fleeting.new(envelope, self._clock.now_ms()):
            self.counters.replayed += 1
            return
        room.fleeting.note(envelope)
        self._deliver(room, None, room.order.epoch, envelope)

    def _hear_user(self, user: _User, envelope: Envelope) -> None:
        if not user.fresh.new(envelope, self._clock.now_ms()):
            self.counters.replayed += 1
            return
        user.fresh.note(envelope)
        if self._listener is not None:
            try:
                self._listener.deliver_user(user.tenant_id, user.user_id, envelope.name, envelope.body)
            except Exception:
                log.exception("delivery to a user failed", name=envelope.name)

    def _hear_control(self, body: bytes) -> None:
        if self._listener is not None:
            try:
                self._listener.control(msgspec.json.decode(body, type=dict[str, Any]))
            except Exception:
                log.exception("control message failed")

    def _deliver(self, room: _Room, offset: int | None, epoch: str, envelope: Envelope) -> None:
        if offset is not None and self._told_here.pop((envelope.incarnation, envelope.number), 0) is None:
            self.counters.duplicates += 1
            return
        if self._listener is None:
            return
        self.counters.delivered += 1
        body = place(room.call_id, epoch, offset, envelope)
        try:
            self._listener.deliver_room(room.call_id, offset, epoch, envelope.name, body, envelope.skip_session)
        except Exception:
            # A fault of one listener is not the bus's end: the others' events come by the same line.
            log.exception("delivery to a room failed", name=envelope.name)

    # Repairing

    def _mark_for_repair(self, room: _Room) -> None:
        self._to_repair[room.channel.encode()] = None
        if room.order is not None:
            room.order.repairing = True
        self._wake.set()

    async def _repair_rooms(self) -> None:
        """The one place that reads logs to mend what was heard."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._line.wait_up(3600)
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
            if not self._publishes:
                raise ClusterUnavailable()
            call_id, epoch = next(iter(self._unlogged.items()))
            await self._new_epoch(call_id, epoch)
            self._unlogged.pop(call_id, None)

    async def _new_epoch(self, call_id: UUID, incomplete: str) -> None:
        channel = self._keys.room_channel(call_id).encode()
        marker = self._signer.seal(channel, self._envelope("reset", self._next_number(), "", b"", None))
        try:
            await self._script(_RESET, call_id, incomplete, _new_epoch(), marker, self._deadline_ms())
        except ServerRefused as error:
            if error.code == "FENCED":
                await self._renew()
            raise ClusterUnavailable() from error
        except LinkLost as error:
            raise ClusterUnavailable() from error

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
                self.counters.repairs += 1
                order.ask()
                await self._read_again(room, order)
                unsettled = self._replay_held(room, order)
        except ClusterUnavailable:
            self._to_repair[channel] = None
            raise

    async def _read_again(self, room: _Room, order: RoomOrder) -> None:
        head, entries = await self._read(room.call_id, order.last)
        if self._rooms.get(room.channel.encode()) is not room:
            return
        outcome = order.repaired(head, entries)
        if outcome.rolled_back:
            log.warning("redis lost events that were delivered", call_id=str(room.call_id))
            await self._new_epoch(room.call_id, head.epoch)
            head, entries = await self._read(room.call_id, "-")
            outcome = order.repaired(head, entries)
        for at, envelope in outcome.deliver:
            self.counters.repaired += 1
            self._deliver(room, at.offset, at.epoch, envelope)
        if outcome.resynced:
            self.counters.resyncs += 1
            if self._listener is not None:
                try:
                    self._listener.resynced(room.call_id)
                except Exception:
                    log.exception("resync failed", call_id=str(room.call_id))

    def _replay_held(self, room: _Room, order: RoomOrder) -> bool:
        """Let what came during the read arrive again; True if the log has to be read once more for it.

        No await here: nothing arrives in between.
        """
        forged, later, overflowed = order.release()
        self.counters.replayed += forged
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

    async def _read(self, call_id: UUID, start: int | str) -> tuple[Head, list[Arrival]]:
        channel = self._keys.room_channel(call_id).encode()
        keys = (self._keys.room_head(call_id), self._keys.room_log(call_id))
        try:
            epoch, offset, found = await self._line.run_script(
                _READ, keys, _new_epoch(), start, LOG_EVENTS + 1, budget_s=READ_S
            )
        except (LinkLost, ServerRefused) as error:
            raise ClusterUnavailable() from error
        return Head(epoch.decode(), int(offset)), self._verified(channel, found)

    def _verified(self, channel: bytes, found: Sequence[bytes]) -> list[Arrival]:
        arrivals: list[Arrival] = []
        for wire in found:
            opened = self._signer.open(channel, wire)
            if opened is None or opened[0] is None or opened[1].kind != "recorded":
                self.counters.unverified += 1
                continue
            arrivals.append((opened[0], opened[1]))
        return arrivals


def encode_body(payload: Any, by: Mapping[str, Any] | None) -> bytes:
    """The JSON object of an event without its position."""
    if (
        isinstance(payload, msgspec.Struct)
        and by is None
        and not _ENVELOPE_FIELDS.intersection(payload.__struct_fields__)
    ):
        return msgspec.json.encode(payload)
    fields: dict[str, Any] = msgspec.to_builtins(payload)
    body = {name: value for name, value in fields.items() if name not in _ENVELOPE_FIELDS}
    return msgspec.json.encode({"by": dict(by), **body} if by is not None else body)


def place(call_id: UUID, epoch: str, offset: int | None, envelope: Envelope) -> bytes:
    """The event as clients get it: the position spliced in front of what the sender encoded."""
    moment = datetime.fromtimestamp(envelope.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    where = f'{{"call_id":"{call_id}","epoch":"{epoch}",'
    if offset is not None:
        where += f'"offset":{offset},'
    where += f'"ts":"{moment[:-6]}Z"'
    rest = envelope.body[1:]
    return where.encode() + (b"," + rest if rest != b"}" else rest)


def _new_epoch() -> str:
    return secrets.token_hex(6)
