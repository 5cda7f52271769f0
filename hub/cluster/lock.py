"""One node at a time: a lock with a lease, for work that only one node should do, like the sweep.

A lease cannot keep a node that was frozen from acting when it wakes up: what must never be done by two carries the
fencing token along, and whoever receives it refuses a token smaller than one it has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from hub.cluster.keys import Keys
from hub.cluster.nodes import Nodes, monotonic_s
from hub.cluster.redis import Door, Script
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

TTL_S = 6.0

_LOCK, _UNLOCK = Script("lock"), Script("unlock")


class Leadership:
    """`held` is this node's own view: it turns false before anybody else can take over."""

    def __init__(self, name: str, token: int, holder: str, until_s: float, on_lost: Callable[[], None] | None) -> None:
        self.name = name
        self.token = token
        self.holder = holder
        self.until_s = until_s
        self.lost = asyncio.Event()
        self._on_lost = on_lost

    @property
    def held(self) -> bool:
        return not self.lost.is_set() and monotonic_s() < self.until_s

    def lose(self) -> None:
        if not self.lost.is_set():
            self.lost.set()
            log.info("leadership ended", name=self.name, token=self.token)
            if self._on_lost is not None:
                self._on_lost()


class Lock:
    def __init__(self, door: Door, keys: Keys, nodes: Nodes) -> None:
        self._door, self._keys, self._nodes = door, keys, nodes
        self._led: dict[str, tuple[Leadership, float]] = {}
        self._taken = asyncio.Event()

    async def acquire(
        self, name: str, *, ttl_s: float = TTL_S, on_lost: Callable[[], None] | None = None
    ) -> Leadership | None:
        """None: somebody holds it. Raises ClusterUnavailable.

        Renewed until `release`, or until that fails for longer than the lease; `on_lost` tells of both.
        """
        if name in self._led and self._led[name][0].held:
            return None
        asked_at_s = monotonic_s()
        holder = self._nodes.incarnation
        token = int(await self._door.run(_LOCK, self._names(name), holder, int(ttl_s * 1000), ""))
        if not token:
            return None
        leadership = Leadership(name, token, holder, asked_at_s + ttl_s, on_lost)
        self._led[name] = (leadership, ttl_s)
        self._taken.set()
        return leadership

    async def release(self, leadership: Leadership) -> None:
        """Best effort: a lease that cannot be given back lapses."""
        known = self._led.get(leadership.name)
        if known is not None and known[0] is leadership:
            del self._led[leadership.name]
        leadership.lose()
        try:
            await self._door.run(_UNLOCK, [self._keys.lock(leadership.name)], f"{leadership.holder}:{leadership.token}")
        except ClusterUnavailable:
            log.info("lock left to lapse", name=leadership.name)

    async def run(self) -> None:
        """Renews what this node holds, three times within a lease."""
        while True:
            shortest_s = min((ttl_s for _, ttl_s in self._led.values()), default=TTL_S)
            with contextlib.suppress(TimeoutError):
                # A lock taken just now may have a shorter lease than this sleep.
                async with asyncio.timeout(shortest_s / 3):
                    await self._taken.wait()
                    self._taken.clear()
                    continue
            for name, (leadership, ttl_s) in list(self._led.items()):
                await self._renew(leadership, ttl_s)
                if leadership.lost.is_set() and self._led.get(name, (None, 0))[0] is leadership:
                    del self._led[name]

    async def _renew(self, leadership: Leadership, ttl_s: float) -> None:
        asked_at_s = monotonic_s()
        if asked_at_s < leadership.until_s:
            try:
                kept = await self._door.run(
                    _LOCK, self._names(leadership.name), leadership.holder, int(ttl_s * 1000), leadership.token
                )
            except ClusterUnavailable:
                if leadership.held:
                    return
            else:
                if kept and not leadership.lost.is_set():
                    leadership.until_s = asked_at_s + ttl_s
                    return
        leadership.lose()

    def _names(self, name: str) -> list[str]:
        return [self._keys.lock(name), self._keys.fence(name)]
