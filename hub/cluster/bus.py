"""The bus: what happens in a room reaches every node that has somebody in it, in one order, and nothing goes missing
unsaid.

A recorded event takes the room's next offset from Redis, is kept there for the recovery window, and is heard by every
node, the sender's included, by the same road: so everybody sees the same order. A node that finds a hole reads the
room's log; where the log no longer has it, the room is told to start from a fresh snapshot.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import msgspec
import structlog

from hub import metrics
from hub.cluster.envelope import Envelope, Kind, Signer
from hub.cluster.hearing import Hearing
from hub.cluster.keys import Keys, LogKeys
from hub.cluster.line import Line
from hub.cluster.link import LinkLost, ServerRefused
from hub.cluster.nodes import Nodes
from hub.cluster.order import Arrival
from hub.cluster.redis import Door
from hub.cluster.roomlog import PUBLISH_S, SCRIPTS, TELL_S, Counters, RoomLog
from hub.cluster.shards import Shards
from hub.cluster.streams import Listener, Stream, place
from hub.context import Position
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

RECOVERIES = metrics.counter(
    "recoveries",
    "Returns to a room's or a user's log by result: recovered, or lost, and a snapshot instead",
    "log",
    "result",
)

_WATCH_S = 0.25
# The bus is called degraded after this long: a hiccup of Redis is no news for clients.
_DEGRADED_AFTER_S = 1.0
# The position of an event belongs to the envelope; a payload that repeats it would make a second key in the same
# object.
_ENVELOPE_FIELDS = frozenset(("call_id", "epoch", "offset", "ts", "by"))
# What is meant for a user is in no room: a call it names is the payload's own.
_USER_FIELDS = _ENVELOPE_FIELDS - {"call_id"}
_encode = msgspec.json.Encoder().encode
# How often, and how far apart, the log is read until it and what was heard are at one.
_CATCH_UP = 5
_CATCH_UP_S = 0.02


class Missed(msgspec.Struct, frozen=True):
    """An event that a client did not hear, as it would have."""

    event: str
    data: dict[str, Any]


class Direct(msgspec.Struct, frozen=True):
    """The same of what was meant for a user, as JSON."""

    event: str
    data: bytes


class Bus:
    def __init__(self, door: Door, keys: Keys, nodes: Nodes, signer: Signer, *, window_s: float) -> None:
        self._keys, self._nodes, self._signer = keys, nodes, signer
        self.counters = Counters()
        ticks = keys.tick_channel(f"{nodes.node_id}:{secrets.token_hex(4)}")
        self._line: Line | Shards = (
            Line(door.endpoint, tick_channel=ticks, scripts=SCRIPTS)
            if door.topology is None
            else Shards(door.topology, tick_channel=ticks, scripts=SCRIPTS)
        )
        self._log = RoomLog(self._line, nodes, signer, self.counters, window_s=window_s)
        own_channel = keys.node_channel(nodes.node_id)
        self._hearing = Hearing(self._log, keys, nodes.clock, signer, self.counters, own_channel)
        self._line.ear = self._hearing
        self._line.want(own_channel, sharded=False)

    def listen(self, listener: Listener) -> None:
        """Who hears what arrives. Before the first subscription."""
        self._hearing.listener = listener

    @property
    def degraded(self) -> bool:
        return not self._line.up or not self._log.writable

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
        body, keys = encode_body(payload, by), self._keys.room(call_id)
        if recorded:
            return await self._tell(keys, name, body, skip_session)
        self._tell_once(keys, "ephemeral", name, body, skip_session)
        return None

    async def to_user(
        self,
        tenant_id: UUID,
        user_id: str,
        name: str,
        payload: Any,
        *,
        recorded: bool = True,
        by: Mapping[str, Any] | None = None,
    ) -> Position | None:
        """Tell every session of a user, by the same rule as a room: its position, and it does not raise for Redis."""
        body, keys = encode_body(payload, by, _USER_FIELDS), self._keys.user(tenant_id, user_id)
        if recorded:
            return await self._tell(keys, name, body, None)
        self._tell_once(keys, "user", name, body, None)
        return None

    async def _tell(self, keys: LogKeys, name: str, body: bytes, skip_session: str | None) -> Position | None:
        number = self._log.next_number()
        stream = self._hearing.stream(keys)
        if stream is not None:
            stream.waits = number
        try:
            return await self._log.append(keys, number, name, body, skip_session, budget_s=TELL_S)
        except ClusterUnavailable:
            envelope = self._log.envelope("recorded", number, name, body, skip_session)
            came = self._hearing.without_redis(keys, envelope)
            return Position(came.epoch, came.offset) if came is not None else None

    async def control(self, node_id: str, message: Mapping[str, Any]) -> None:
        """Tell one node something that no client hears. Raises ClusterUnavailable, also when no such node listens."""
        body = msgspec.json.encode(message)
        if node_id == self._nodes.node_id:
            self._hearing.hear_control(body)
            return
        self._require()
        channel = self._keys.node_channel(node_id)
        wire = self._seal(channel, self._log.envelope("control", self._log.next_number(), "", body))
        try:
            heard_by = await self._line.call("PUBLISH", channel, wire, budget_s=PUBLISH_S)
        except (LinkLost, ServerRefused) as error:
            raise ClusterUnavailable() from error
        if not heard_by:
            raise ClusterUnavailable("that node does not listen")

    # Reading

    async def position(self, call_id: UUID) -> Position:
        """Where the room's log stands. Raises ClusterUnavailable."""
        head, _ = await self._log.read(self._keys.room(call_id))
        return Position(head.epoch, head.offset)

    async def since(self, call_id: UUID, position: Position) -> list[Missed] | None:
        """What came after `position`, all of it and in order, or None. Raises ClusterUnavailable."""
        log = await self._after(self._keys.room(call_id), position)
        RECOVERIES.labels("room", "recovered" if log is not None else "lost").inc()
        if log is None:
            return None
        return [
            Missed(envelope.name, msgspec.json.decode(place(call_id, at.epoch, at.offset, envelope)))
            for at, envelope in log
        ]

    def position_of_room(self, call_id: UUID) -> Position | None:
        """Up to where this node has heard, and delivered, the room; None before it hears it."""
        stream = self._hearing.stream(self._keys.room(call_id))
        order = stream.order if stream is not None else None
        return Position(order.epoch, order.last) if order is not None else None

    def position_of_user(self, tenant_id: UUID, user_id: str) -> Position | None:
        """Up to where this node has heard what is meant for a user; None before it hears them."""
        stream = self._hearing.stream(self._keys.user(tenant_id, user_id))
        order = stream.order if stream is not None else None
        return Position(order.epoch, order.last) if order is not None else None

    async def missed_by_user(self, tenant_id: UUID, user_id: str, since: Position) -> list[Direct] | None:
        """What a subscribed user was told after `since`, up to where this node has heard it at the return, so that
        whoever begins to listen without another await has all of it, once. None: not all of it is there any more.

        Raises ClusterUnavailable.
        """
        missed = await self._missed(tenant_id, user_id, since)
        RECOVERIES.labels("user", "recovered" if missed is not None else "lost").inc()
        return missed

    async def _missed(self, tenant_id: UUID, user_id: str, since: Position) -> list[Direct] | None:
        keys = self._keys.user(tenant_id, user_id)
        for _ in range(_CATCH_UP):
            log = await self._after(keys, since)
            here = self.position_of_user(tenant_id, user_id)
            if log is None or here is None or here.epoch != since.epoch:
                return None
            if since.offset <= here.offset <= since.offset + len(log):
                return [
                    Direct(envelope.name, place(None, at.epoch, at.offset, envelope))
                    for at, envelope in log
                    if at.offset <= here.offset
                ]
            # This node is about to hear what they heard elsewhere, or has heard more since the log was read.
            await asyncio.sleep(_CATCH_UP_S)
        return None

    async def _after(self, keys: LogKeys, position: Position) -> list[Arrival] | None:
        """Everything after `position`, in order, or None where something is missing."""
        if position.offset < 0:
            return None
        head, entries = await self._log.read(keys, position.offset + 1)
        # Ahead of the log: Redis lost what this client has seen.
        if head.epoch != position.epoch or head.offset < position.offset:
            return None
        if [at.offset for at, _ in entries] != list(range(position.offset + 1, head.offset + 1)):
            return None
        return entries

    # Subscribing

    async def subscribe_room(self, call_id: UUID) -> None:
        """From the return on, everything recorded in the room is delivered, in order. Raises ClusterUnavailable."""
        keys = self._keys.room(call_id)
        await self._subscribe(keys, lambda: self._hearing.expect_room(call_id))

    def unsubscribe_room(self, call_id: UUID) -> None:
        self._unsubscribe(self._keys.room(call_id))

    async def subscribe_users(self, users: Sequence[tuple[UUID, str]]) -> None:
        """The same for what is meant for these users: for all of them, or for none who was not subscribed before."""
        streams: list[Stream] = []
        others: list[asyncio.Future[None]] = []
        for tenant_id, user_id in users:
            stream = self._hearing.stream(self._keys.user(tenant_id, user_id))
            if stream is None:
                self._require()
                streams.append(self._hearing.expect_user(tenant_id, user_id))
            else:
                others.append(stream.opening)
        if streams:
            await self._open(streams)
        for opening in others:
            await asyncio.shield(opening)

    def unsubscribe_user(self, tenant_id: UUID, user_id: str) -> None:
        self._unsubscribe(self._keys.user(tenant_id, user_id))

    async def _subscribe(self, keys: LogKeys, expect: Callable[[], Stream]) -> None:
        stream = self._hearing.stream(keys)
        if stream is not None:
            await asyncio.shield(stream.opening)
            return
        self._require()
        await self._open([expect()])

    async def _open(self, streams: Sequence[Stream]) -> None:
        try:
            await self._line.subscribe([stream.keys.channel_bytes for stream in streams])
            await self._hearing.open(streams)
        except BaseException:
            for stream in streams:
                if self._hearing.stream(stream.keys) is stream:
                    self._unsubscribe(stream.keys)
                if not stream.opening.done():
                    stream.opening.set_exception(ClusterUnavailable())
                    # Nobody else may be waiting for it.
                    stream.opening.exception()
            raise

    def _unsubscribe(self, keys: LogKeys) -> None:
        if self._hearing.forget(keys):
            self._line.unsubscribe(keys.channel)

    async def subscribe_bell(self, channel: str, ring: Callable[[bytes], None]) -> None:
        """`ring` hears whatever is published there, by whomever. Raises ClusterUnavailable."""
        self._require()
        self._hearing.expect_bell(channel, ring)
        try:
            await self._line.subscribe([channel.encode()])
        except BaseException:
            self._hearing.forget_bell(channel)
            raise

    def unsubscribe_bell(self, channel: str) -> None:
        self._hearing.forget_bell(channel)
        self._line.unsubscribe(channel)

    def when_back(self, look: Callable[[], None]) -> None:
        """`look` runs whenever everything subscribed is heard again after a break."""
        self._hearing.when_back(look)

    def obey(self, kind: str, do: Callable[[dict[str, Any]], None]) -> None:
        """`do` hears the control messages of that kind, instead of the listener. It must not block."""
        self._hearing.obey(kind, do)

    # Life

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._line.run(), name="bus line")
            tasks.create_task(self._hearing.run(), name="bus repairs")
            tasks.create_task(self._watch_degraded(), name="bus degraded")

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
                if self._hearing.listener is not None:
                    self._hearing.listener.degraded(on)
            await asyncio.sleep(_WATCH_S)

    def _require(self) -> None:
        # Without a lease the time of Redis is not known either, and with it not what is fresh.
        if not self._log.writable:
            raise ClusterUnavailable()

    def _seal(self, channel: str, envelope: Envelope) -> bytes:
        return b"\n" + self._signer.seal(channel.encode(), envelope)

    def _tell_once(self, keys: LogKeys, kind: Kind, name: str, body: bytes, skip_session: str | None) -> None:
        """At most once and without waiting; on this node only, where nobody else listens or Redis cannot be had."""
        stream = self._hearing.stream(keys)
        if stream is not None and stream.direct and self._line.hears:
            self._hearing.tell_directly(stream, name, body, skip_session)
            return
        envelope = self._log.envelope(kind, self._log.next_number(), name, body, skip_session)
        if not self._log.writable:
            self._hearing.hear(keys.channel_bytes, None, envelope)
            return
        arrivals = 0
        if stream is not None:
            stream.waits, arrivals = envelope.number, stream.arrivals

        def then(outcome: Any) -> None:
            if isinstance(outcome, Exception):
                self.counters.failed += 1
                self._hearing.hear(keys.channel_bytes, None, envelope)
            elif stream is not None:
                stream.counted(outcome, arrivals)

        sealed = self._signer.seal(keys.channel_bytes, envelope)
        self._line.tell("SPUBLISH", keys.channel, b"\n" + sealed, budget_s=PUBLISH_S, then=then)


def encode_body(
    payload: Any, by: Mapping[str, Any] | None, envelope_fields: frozenset[str] = _ENVELOPE_FIELDS
) -> bytes:
    """The JSON object of an event without its position."""
    if isinstance(payload, msgspec.Struct) and not _repeats(type(payload), envelope_fields):
        body = _encode(payload)
        if by is None:
            return body
        return b'{"by":%b%b%b' % (
            _encode(by if type(by) is dict else dict(by)),
            b"," if len(body) > 2 else b"",
            body[1:],
        )
    fields: dict[str, Any] = msgspec.to_builtins(payload)
    rest = {name: value for name, value in fields.items() if name not in envelope_fields}
    return _encode({"by": dict(by), **rest} if by is not None else rest)


@cache
def _repeats(event: type[msgspec.Struct], envelope_fields: frozenset[str]) -> bool:
    """The event has fields of the envelope's, which are the envelope's."""
    return not envelope_fields.isdisjoint(event.__struct_encode_fields__)
