"""The bus: what happens in a room reaches every node that has somebody in it, in one order, and nothing goes missing
unsaid.

A recorded event takes the room's next offset from Redis, is kept there for the recovery window, and is heard by every
node, the sender's included, by the same road: so everybody sees the same order. A node that finds a hole reads the
room's log; where the log no longer has it, the room is told to start from a fresh snapshot.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import msgspec
import structlog

from hub.cluster.envelope import Envelope, Signer
from hub.cluster.hearing import Hearing, Listener, place
from hub.cluster.keys import Keys
from hub.cluster.line import Line
from hub.cluster.link import LinkLost, ServerRefused
from hub.cluster.nodes import Nodes
from hub.cluster.redis import Door
from hub.cluster.roomlog import PUBLISH_S, SCRIPTS, TELL_S, Counters, RoomLog
from hub.context import Position
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

_WATCH_S = 0.25
# The bus is called degraded after this long: a hiccup of Redis is no news for clients.
_DEGRADED_AFTER_S = 1.0
# The position of an event belongs to the envelope; a payload that repeats it would make a second key in the same
# object.
_ENVELOPE_FIELDS = frozenset(("call_id", "epoch", "offset", "ts", "by"))


class Missed(msgspec.Struct, frozen=True):
    """An event that a client did not hear, as it would have."""

    event: str
    data: dict[str, Any]


class Bus:
    def __init__(self, door: Door, keys: Keys, nodes: Nodes, signer: Signer) -> None:
        self._keys, self._nodes, self._signer = keys, nodes, signer
        self.counters = Counters()
        self._line = Line(
            door.endpoint,
            tick_channel=keys.tick_channel(f"{nodes.node_id}:{secrets.token_hex(4)}"),
            scripts=SCRIPTS,
        )
        self._log = RoomLog(self._line, keys, nodes, signer, self.counters)
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
        body = encode_body(payload, by)
        number = self._log.next_number()
        if recorded:
            try:
                return await self._log.append(call_id, number, name, body, skip_session, budget_s=TELL_S)
            except ClusterUnavailable:
                envelope = self._log.envelope("recorded", number, name, body, skip_session)
                came = self._hearing.without_redis(call_id, envelope)
                return Position(came.epoch, came.offset) if came is not None else None
        self._send(self._keys.room(call_id).channel, self._log.envelope("ephemeral", number, name, body, skip_session))
        return None

    async def publish(self, call_id: UUID, name: str, payload: Any, *, by: Mapping[str, Any] | None = None) -> Position:
        """Tell a room, or raise ClusterUnavailable within half a second, and then tell nobody."""
        number, body = self._log.next_number(), encode_body(payload, by)
        return await self._log.append(call_id, number, name, body, None, budget_s=PUBLISH_S)

    async def to_user(self, tenant_id: UUID, user_id: str, name: str, payload: Any) -> None:
        """Tell every session of a user. While Redis is away only those on this node hear it."""
        envelope = self._log.envelope("user", self._log.next_number(), name, encode_body(payload, None))
        self._send(self._keys.user_channel(tenant_id, user_id), envelope)

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
        head, _ = await self._log.read(call_id)
        return Position(head.epoch, head.offset)

    async def since(self, call_id: UUID, position: Position) -> list[Missed] | None:
        """What came after `position`, all of it and in order, or None. Raises ClusterUnavailable."""
        if position.offset < 0:
            return None
        head, entries = await self._log.read(call_id, position.offset + 1)
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
        room = self._hearing.room(call_id)
        if room is not None:
            await asyncio.shield(room.opening)
            return
        self._require()
        room = self._hearing.expect_room(call_id)
        try:
            await self._line.subscribe(self._keys.room(call_id).channel)
            await self._hearing.open_room(room)
        except BaseException as error:
            if self._hearing.room(call_id) is room:
                self.unsubscribe_room(call_id)
            room.opening.set_exception(error if isinstance(error, ClusterUnavailable) else ClusterUnavailable())
            # Nobody else may be waiting for it.
            room.opening.exception()
            raise

    def unsubscribe_room(self, call_id: UUID) -> None:
        if self._hearing.forget_room(call_id):
            self._line.unsubscribe(self._keys.room(call_id).channel)

    async def subscribe_user(self, tenant_id: UUID, user_id: str) -> None:
        """Raises ClusterUnavailable."""
        self._require()
        self._hearing.expect_user(tenant_id, user_id)
        try:
            await self._line.subscribe(self._keys.user_channel(tenant_id, user_id))
        except BaseException:
            self._hearing.forget_user(tenant_id, user_id)
            raise

    def unsubscribe_user(self, tenant_id: UUID, user_id: str) -> None:
        if self._hearing.forget_user(tenant_id, user_id):
            self._line.unsubscribe(self._keys.user_channel(tenant_id, user_id))

    async def subscribe_bell(self, channel: str, ring: Callable[[bytes], None]) -> None:
        """`ring` hears whatever is published there, by whomever. Raises ClusterUnavailable."""
        self._require()
        self._hearing.expect_bell(channel, ring)
        try:
            await self._line.subscribe(channel)
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

    def _send(self, channel: str, envelope: Envelope) -> None:
        """At most once and without waiting; on this node only, where Redis cannot be had."""
        if not self._log.writable:
            self._hearing.hear(channel.encode(), None, envelope)
            return

        def done(future: asyncio.Future[Any]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self.counters.failed += 1
                self._hearing.hear(channel.encode(), None, envelope)

        self._line.call("SPUBLISH", channel, self._seal(channel, envelope), budget_s=PUBLISH_S).add_done_callback(done)


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
