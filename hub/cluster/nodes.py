"""Which nodes there are. Each holds a lease in Redis under an incarnation: a random name that lives as long as the
lease.

Whoever is marked with an incarnation whose lease has lapsed is not there any more. A node that was frozen or cut off
for longer than its lease comes back as a new incarnation and registers its sessions again: nothing it still says
under the old one counts.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import structlog

from hub.cluster.keys import Keys
from hub.cluster.redis import Door, Script
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

BEAT_S = 2.0
LEASE_MS = 6000
_RETRY_S = 0.5
_LOST_SHOWN_MS = 600_000

_HEARTBEAT = Script("heartbeat")
_NODES = Script("nodes")


class NodeInfo(msgspec.Struct, frozen=True):
    node_id: str
    incarnation: str
    region: str
    version: str
    started_at: datetime
    draining: bool = False
    # Its lease has lapsed, and it did not say goodbye.
    lost: bool = False
    # Whatever the node wants to show: sockets, rooms, load.
    load: dict[str, int] = {}


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """Redis' clock, as far as this node knows it. One clock for all nodes: their own may differ by minutes."""

    def __init__(self) -> None:
        self._redis_ms: int | None = None
        self._at_s = 0.0
        # When this node first knew the time: nothing that is meant for it is older.
        self.since_ms = 0

    @property
    def known(self) -> bool:
        return self._redis_ms is not None

    def sync(self, redis_ms: int, sent_at_s: float) -> None:
        """`sent_at_s` is when the question left: the estimate is then late by a round trip at most, never early.

        What was known before is nearer where it lies within that round trip: a slow answer makes nothing worse.
        """
        trip_ms = int((monotonic_s() - sent_at_s) * 1000)
        if self._redis_ms is not None:
            known_ms = self._redis_ms + int((sent_at_s - self._at_s) * 1000)
            if redis_ms - trip_ms <= known_ms < redis_ms:
                redis_ms = known_ms
        self._redis_ms, self._at_s = redis_ms, sent_at_s
        self.since_ms = self.since_ms or redis_ms

    def now_ms(self) -> int:
        if self._redis_ms is None:
            return time.time_ns() // 1_000_000
        return self._redis_ms + int((monotonic_s() - self._at_s) * 1000)


def monotonic_s() -> float:
    """Goes on while the machine sleeps, where the system has such a clock: a lease does not wait for us."""
    return time.clock_gettime(_CLOCK)


def new_incarnation() -> str:
    return secrets.token_hex(8)


class Nodes:
    def __init__(self, door: Door, keys: Keys, *, node_id: str, region: str, version: str, now: datetime) -> None:
        self._door, self._keys = door, keys
        self.node_id = node_id
        self.incarnation = new_incarnation()
        self.clock = Clock()
        # Redis' time at which the lease ends; 0: there is none.
        self.lease_until_ms = 0
        self.load: Callable[[], dict[str, int]] = dict
        self._info = NodeInfo(node_id, self.incarnation, region, version, now)
        self._first = True
        self._held_at_s = 0.0
        self._beating = asyncio.Lock()
        self._reborn: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        """The lease holds, as far as this node can tell."""
        return self.clock.known and self.clock.now_ms() < self.lease_until_ms

    def held_s(self) -> float:
        """For how long the lease of this incarnation has held; 0 where it does not."""
        return monotonic_s() - self._held_at_s if self.alive else 0.0

    def when_reborn(self, register: Callable[[], None]) -> None:
        """`register` runs after every change of incarnation, to bring this node's entries back."""
        self._reborn.append(register)

    async def drain(self, on: bool = True) -> None:
        """Show this node as sending its people away, or no longer. If this raises, the next beat shows it."""
        self._info = msgspec.structs.replace(self._info, draining=on)
        await self.beat()

    async def run(self) -> None:
        while True:
            try:
                await self.beat()
                await asyncio.sleep(BEAT_S)
            except ClusterUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def beat(self) -> None:
        """Renew the lease now. Raises ClusterUnavailable."""
        async with self._beating:
            if await self._beat():
                return
            log.warning("lease lapsed, new incarnation", node_id=self.node_id, lapsed=self.incarnation)
            self.incarnation = new_incarnation()
            self._first = True
            # Now, not after the next beat: that one may fail, and they would not be told again.
            for register in self._reborn:
                register()
            await self._beat()

    async def leave(self) -> None:
        """End the lease: whoever is still registered under it is seen as gone at once. Best effort."""
        self.lease_until_ms = 0
        try:
            await self._door.command("DEL", self._keys.lease(self.incarnation))
            await self._door.command("HDEL", self._keys.lately, self.node_id)
        except ClusterUnavailable:
            log.info("lease left to lapse", node_id=self.node_id)

    async def list(self) -> list[NodeInfo]:
        """Every node whose lease holds, by id. Raises ClusterUnavailable."""
        return [node for node in await self.all() if not node.lost]

    async def all(self) -> Sequence[NodeInfo]:
        """Those as well that were lost in the last ten minutes. Raises ClusterUnavailable."""
        keys = [self._keys.nodes, self._keys.lately]
        living, lost = await self._door.run(_NODES, keys, self._keys.leases, _LOST_SHOWN_MS)
        nodes = [msgspec.json.decode(info, type=NodeInfo) for info in living]
        nodes += [msgspec.structs.replace(msgspec.json.decode(info, type=NodeInfo), lost=True) for info in lost]
        return sorted(nodes, key=lambda node: node.node_id)

    async def _beat(self) -> bool:
        sent_at_s = monotonic_s()
        keys = [self._keys.lease(self.incarnation), self._keys.nodes, self._keys.incarnations, self._keys.lately]
        info = msgspec.structs.replace(self._info, incarnation=self.incarnation, load=self.load())
        answer: list[Any] = await self._door.run(
            _HEARTBEAT,
            keys,
            self.incarnation,
            self.node_id,
            msgspec.json.encode(info),
            LEASE_MS,
            "1" if self._first else "0",
        )
        held, redis_ms = int(answer[0]), int(answer[1])
        self.clock.sync(redis_ms, sent_at_s)
        if not held:
            self.lease_until_ms = 0
            return False
        if self._first:
            self._first, self._held_at_s = False, monotonic_s()
        self.lease_until_ms = redis_ms + LEASE_MS
        return True


def default_node_id() -> str:
    """For nodes that nobody named: the host and a random part, since two may run on one host."""
    return f"{os.uname().nodename[:32]}-{secrets.token_hex(3)}"
