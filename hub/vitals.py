"""The figures of a node that nobody counts as they happen: looked up now and then, or when they are scraped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

import msgspec

from hub import metrics
from hub.protocol.errors import ClusterUnavailable

BUS = metrics.Totals("bus_events", "What the bus did, by kind", "kind")
RECONNECTS = metrics.counter("bus_reconnects", "Connections of the bus to Redis that were lost and made again")
DATABASE = metrics.gauge("database_connections", "Connections to PostgreSQL in use")
LOOP_LAG = metrics.gauge("event_loop_lag_seconds", "How late the event loop ran its last timer")
LOOP_TASKS = metrics.gauge("event_loop_tasks", "Tasks of the event loop that have not ended")
NODES = metrics.gauge("nodes", "Nodes as this one sees them, by status", "status")
PARTICIPANTS = metrics.gauge("participants", "People in rooms by sockets of this node")
DRAINING = metrics.gauge("draining", "1 while the node sends its sockets away")

_OFTEN_S = 0.5
_SELDOM_S = 5.0
_STATUSES = ("ready", "draining", "lost")


class Bus(Protocol):
    @property
    def counters(self) -> msgspec.Struct: ...
    @property
    def reconnects(self) -> int: ...


class Pool(Protocol):
    @property
    def in_use(self) -> int: ...


class Entry(Protocol):
    @property
    def draining(self) -> bool: ...
    @property
    def lost(self) -> bool: ...


class Nodes(Protocol):
    async def all(self) -> Sequence[Entry]: ...


class Inside(Protocol):
    """A session."""

    @property
    def rooms(self) -> Mapping[UUID, UUID]: ...


async def watch(
    *,
    bus: Bus,
    pool: Pool,
    nodes: Nodes,
    sessions: Callable[[], Iterable[Inside]],
    draining: Callable[[], bool],
) -> None:
    """Until cancelled: how late the loop is and how many connections are in use, often; the rest seldom."""
    BUS.read = lambda: msgspec.structs.asdict(bus.counters)
    reconnects = 0
    loop = asyncio.get_running_loop()
    look_at = loop.time()
    while True:
        due = loop.time() + _OFTEN_S
        await asyncio.sleep(_OFTEN_S)
        LOOP_LAG.set(max(0.0, loop.time() - due))
        DATABASE.set(pool.in_use)
        DRAINING.set(draining())
        RECONNECTS.inc(bus.reconnects - reconnects)
        reconnects = bus.reconnects
        if loop.time() >= look_at:
            look_at = loop.time() + _SELDOM_S
            LOOP_TASKS.set(len(asyncio.all_tasks()))
            # One person's several sockets are one participant.
            PARTICIPANTS.set(len({inside for session in sessions() for inside in session.rooms.values()}))
            await _look_at(nodes)


async def _look_at(nodes: Nodes) -> None:
    try:
        found = await nodes.all()
    except ClusterUnavailable:
        # Nobody knows; the last figures would be taken for true.
        NODES.clear()
        return
    counts = Counter("lost" if node.lost else "draining" if node.draining else "ready" for node in found)
    for status in _STATUSES:
        NODES.labels(status).set(counts[status])
