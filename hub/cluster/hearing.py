"""What a node hears: verified, in order, once; and mended from the log where something is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog

from hub import metrics
from hub.cluster.envelope import Envelope, Head, Signer
from hub.cluster.keys import Keys, LogKeys
from hub.cluster.nodes import Clock, monotonic_s
from hub.cluster.order import CLOCKS_MS, Freshness, RoomOrder
from hub.cluster.roomlog import READ_S, Counters, RoomLog
from hub.cluster.streams import Listener, Room, Stream, User
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

# By Redis' clock, which both nodes know to within a round trip.
FANOUT_LAG = metrics.Timing("fanout_lag", "From telling an event on another node to hearing it on this one")

# Logs whose events were told on this node only, to be announced when Redis is back.
_UNLOGGED = 10_000
_TOLD_HERE = 10_000
_REPAIRS_AT_ONCE = 200
_RETRY_S = 0.25


class Hearing:
    """The ear of the line."""

    def __init__(
        self, room_log: RoomLog, keys: Keys, clock: Clock, signer: Signer, counters: Counters, control_channel: str
    ) -> None:
        self._log, self._keys, self._clock, self._signer = room_log, keys, clock, signer
        self._counters = counters
        self.listener: Listener | None = None
        self._streams: dict[bytes, Stream] = {}
        self._control: Freshness | None = None
        self._control_channel = control_channel.encode()
        # Events that this node told its own members without Redis: if they come by the bus after all, they are old.
        self._told_here: dict[tuple[str, int], None] = {}
        # log → when the last event happened that it lacks.
        self._unlogged: dict[LogKeys, float] = {}
        self._to_repair: dict[bytes, None] = {}
        # Channels that say that something may have changed, and not what: unsigned, since believing them costs a look.
        self._bells: dict[bytes, Callable[[bytes], None]] = {}
        self._deaf_bells: list[Callable[[], None]] = []
        self._orders: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._wake = asyncio.Event()
        self._line_up = asyncio.Event()

    # Rooms and users to hear

    def stream(self, keys: LogKeys) -> Stream | None:
        return self._streams.get(keys.channel_bytes)

    def expect_room(self, call_id: UUID) -> Stream:
        opening = asyncio.get_running_loop().create_future()
        return self._expect(Room(call_id, self._keys.room(call_id), opening))

    def expect_user(self, tenant_id: UUID, user_id: str) -> Stream:
        opening = asyncio.get_running_loop().create_future()
        return self._expect(User(tenant_id, user_id, self._keys.user(tenant_id, user_id), opening))

    def _expect(self, stream: Stream) -> Stream:
        self._streams[stream.keys.channel_bytes] = stream
        return stream

    async def open(self, streams: Sequence[Stream]) -> None:
        """After their subscription is confirmed, so that nothing falls between the position and what is heard."""
        arrivals = [stream.arrivals for stream in streams]
        found = await self._log.heads_on_arrival([stream.keys for stream in streams])
        now_ms = self._clock.now_ms()
        for stream, (head, entries, hearers), before in zip(streams, found, arrivals, strict=True):
            stream.counted(hearers, before)
            last = entries[-1][1] if entries and entries[-1][0] == head else None
            stream.opened(RoomOrder(head, last, now_ms), now_ms)

    def forget(self, keys: LogKeys) -> bool:
        self._to_repair.pop(keys.channel_bytes, None)
        return self._streams.pop(keys.channel_bytes, None) is not None

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

    def tell_directly(self, stream: Stream, name: str, body: bytes, skip_session: str | None) -> None:
        """What is not recorded, where `stream.direct`."""
        assert stream.order is not None
        self._hand_over(stream, None, stream.order.epoch, self._clock.now_ms(), name, body, skip_session)

    def without_redis(self, keys: LogKeys, envelope: Envelope) -> Head | None:
        """Tell those on this node; everybody gets a new epoch when Redis is back.

        The position, if the event itself has come by the bus and only the answer to its sender was lost.
        """
        stream = self.stream(keys)
        order = stream.order if stream is not None else None
        if order is not None and order.heard(envelope):
            return Head(order.epoch, order.last)
        if len(self._unlogged) >= _UNLOGGED:
            del self._unlogged[next(iter(self._unlogged))]
        self._unlogged[keys] = monotonic_s()
        self._wake.set()
        if stream is not None and order is not None:
            if len(self._told_here) >= _TOLD_HERE:
                del self._told_here[next(iter(self._told_here))]
            self._told_here[(envelope.incarnation, envelope.number)] = None
            self._counters.told_here_only += 1
            self._deliver(stream, None, order.epoch, envelope)
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
        if (stream := self._streams.get(channel)) is not None:
            if head is not None:
                self._hear_recorded(stream, head, envelope)
            elif envelope.kind in ("ephemeral", "user"):
                self._hear_fleeting(stream, envelope)
            elif envelope.kind == "arrived" and envelope.incarnation != self._log.incarnation:
                stream.company()
        elif channel == self._control_channel and envelope.kind == "control":
            if self._control is None and self._clock.known:
                self._control = Freshness(self._clock.since_ms - CLOCKS_MS)
            if self._control is not None and self._control.new(envelope, self._clock.now_ms()):
                self._control.note(envelope)
                self.hear_control(envelope.body)
            else:
                self._counters.replayed += 1

    def line_up(self) -> None:
        for stream in self._streams.values():
            self._mark_for_repair(stream)
        for look in self._deaf_bells:
            look()
        self._line_up.set()

    def line_down(self) -> None:
        # Who begins to listen now is not heard.
        for stream in self._streams.values():
            stream.company()
        self._line_up.clear()

    def _hear_recorded(self, stream: Stream, head: Head, envelope: Envelope) -> None:
        if stream.order is None:
            # The stream is being opened: what arrives now is part of the position that is being read.
            self._mark_for_repair(stream)
            return
        verdict = stream.order.arrive(head, envelope, self._clock.now_ms())
        if verdict == "deliver":
            self._deliver(stream, head.offset, head.epoch, envelope)
        elif verdict == "duplicate":
            self._counters.duplicates += 1
        else:
            self._mark_for_repair(stream)

    def _hear_fleeting(self, stream: Stream, envelope: Envelope) -> None:
        if stream.order is None:
            return
        if not stream.fleeting.new(envelope, self._clock.now_ms()):
            self._counters.replayed += 1
            return
        stream.fleeting.note(envelope)
        self._deliver(stream, None, stream.order.epoch, envelope)

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

    def _deliver(self, stream: Stream, offset: int | None, epoch: str, envelope: Envelope) -> None:
        if offset is not None and self._told_here.pop((envelope.incarnation, envelope.number), 0) is None:
            self._counters.duplicates += 1
            return
        if envelope.incarnation != self._log.incarnation:
            FANOUT_LAG.observe(max(0, self._clock.now_ms() - envelope.at_ms) / 1000)
        elif envelope.number == stream.waits:
            stream.waits = 0
        self._hand_over(stream, offset, epoch, envelope.at_ms, envelope.name, envelope.body, envelope.skip_session)

    def _hand_over(
        self,
        stream: Stream,
        offset: int | None,
        epoch: str,
        at_ms: int,
        name: str,
        body: bytes,
        skip_session: str | None,
    ) -> None:
        if self.listener is None:
            return
        self._counters.delivered += 1
        try:
            stream.deliver(self.listener, offset, epoch, at_ms, name, body, skip_session)
        except Exception:
            # A fault of one listener is not the bus's end: the others' events come by the same line.
            log.exception("delivery failed", name=name)

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
        # All of them to their end, so that no stream is ever repaired twice at a time.
        outcomes = await asyncio.gather(*(self._repair(channel) for channel in channels), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, ClusterUnavailable):
                log.error("repair failed", exc_info=outcome)
        for outcome in outcomes:
            if isinstance(outcome, ClusterUnavailable):
                raise outcome

    async def _announce_unlogged(self) -> None:
        """Rooms that heard something on this node only get a new epoch, so that everybody takes a snapshot."""
        while self._unlogged:
            if not self._log.writable:
                raise ClusterUnavailable()
            keys, told_at_s = next(iter(self._unlogged.items()))
            await self._log.begin_anew(keys, monotonic_s() - told_at_s)
            # What was told meanwhile is in no log either.
            if self._unlogged.get(keys) == told_at_s:
                del self._unlogged[keys]

    async def _repair(self, channel: bytes) -> None:
        stream = self._streams.get(channel)
        if stream is None:
            return
        # What arrived while the room was being opened may have been recorded just after its position was read.
        await asyncio.wait((stream.opening,), timeout=READ_S)
        order = stream.order
        if order is None:
            return
        try:
            unsettled = True
            while unsettled and self._streams.get(channel) is stream:
                self._counters.repairs += 1
                order.ask()
                await self._read_again(stream, order)
                unsettled = self._replay_held(stream, order)
        except ClusterUnavailable:
            self._to_repair[channel] = None
            raise

    async def _read_again(self, stream: Stream, order: RoomOrder) -> None:
        # After a break of the line this node is as new to the others as one that has just begun to listen.
        arrivals = stream.arrivals
        head, entries, hearers = await self._log.read_on_arrival(stream.keys, order.last)
        stream.counted(hearers, arrivals)
        if self._streams.get(stream.keys.channel_bytes) is not stream:
            return
        outcome = order.repaired(head, entries)
        if outcome.rolled_back:
            log.warning("redis lost events that were delivered", channel=stream.keys.channel)
            await self._log.leave_epoch(stream.keys, head.epoch)
            head, entries = await self._log.read(stream.keys)
            outcome = order.repaired(head, entries)
        for at, envelope in outcome.deliver:
            self._counters.repaired += 1
            self._deliver(stream, at.offset, at.epoch, envelope)
        if outcome.resynced:
            self._counters.resyncs += 1
            if self.listener is not None:
                try:
                    stream.resynced(self.listener)
                except Exception:
                    log.exception("resync failed", channel=stream.keys.channel)

    def _replay_held(self, stream: Stream, order: RoomOrder) -> bool:
        """Let what came during the read arrive again; True if the log has to be read once more for it.

        No await here: nothing arrives in between.
        """
        forged, later, overflowed = order.release()
        self._counters.replayed += forged
        for position, (head, envelope) in enumerate(later):
            verdict = order.arrive(head, envelope, self._clock.now_ms())
            if verdict == "deliver":
                self._deliver(stream, head.offset, head.epoch, envelope)
            elif verdict == "held":
                order.hold_again(later[position + 1 :])
                return True
        if overflowed:
            order.repairing = True
        return overflowed

    def _mark_for_repair(self, stream: Stream) -> None:
        self._to_repair[stream.keys.channel_bytes] = None
        if stream.order is not None:
            stream.order.repairing = True
        self._wake.set()
