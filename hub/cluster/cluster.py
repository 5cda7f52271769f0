"""What this node shares with the others, as one thing that starts and stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog

from hub.cluster.bus import Bus
from hub.cluster.envelope import Signer
from hub.cluster.keys import Keys
from hub.cluster.limits import Limits
from hub.cluster.lock import Lock
from hub.cluster.nodes import Nodes, default_node_id
from hub.cluster.presence import Presences
from hub.cluster.redis import Door
from hub.cluster.roster import Roster
from hub.cluster.sessions import Sessions
from hub.cluster.watching import Watching
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

RECOVERY_WINDOW_S = 120.0
# A node whose Redis is away at its start comes up degraded rather than not at all.
START_S = 2.0
_STOP_S = 2.0


class Cluster:
    """`start` and `stop`, or `async with Cluster.open(…)`. Raises ValueError for a URL or secret that cannot serve."""

    def __init__(
        self,
        url: str,
        *,
        env: str,
        secret: bytes,
        node_id: str | None = None,
        region: str = "default",
        version: str = "",
        recovery_window_s: float = RECOVERY_WINDOW_S,
    ) -> None:
        self._door = Door(url)
        keys = Keys(env)
        self.nodes = Nodes(
            self._door,
            keys,
            node_id=node_id or default_node_id(),
            region=region,
            version=version,
            now=datetime.now(UTC),
        )
        self.bus = Bus(self._door, keys, self.nodes, Signer(secret, env), window_s=recovery_window_s)
        self.bus.when_back(self._door.look_again)
        self.roster = Roster(self._door, keys, self.nodes)
        self.sessions = Sessions(self._door, keys, self.nodes)
        self.presence = Presences(self._door, keys, self.nodes)
        self.roster.when_moved(self.presence.moved)
        self.watching = Watching(self.bus, keys, self.presence)
        self.limits = Limits(self._door, keys)
        self.lock = Lock(self._door, keys, self.nodes)
        self._running: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        env: str,
        secret: bytes,
        node_id: str | None = None,
        region: str = "default",
        version: str = "",
        recovery_window_s: float = RECOVERY_WINDOW_S,
    ) -> AsyncIterator[Cluster]:
        cluster = cls(
            url,
            env=env,
            secret=secret,
            node_id=node_id,
            region=region,
            version=version,
            recovery_window_s=recovery_window_s,
        )
        await cluster.start()
        try:
            yield cluster
        finally:
            await cluster.stop()

    @property
    def node_id(self) -> str:
        return self.nodes.node_id

    @property
    def incarnation(self) -> str:
        return self.nodes.incarnation

    @property
    def degraded(self) -> bool:
        """The other nodes cannot be reached now."""
        return self.bus.degraded or self._broken

    @property
    def _broken(self) -> bool:
        """A loop ended by a fault of ours: nothing is kept alive any more, and only a restart helps."""
        return self._running is not None and self._running.done()

    async def ping(self) -> None:
        """Raises ClusterUnavailable."""
        if self._broken:
            raise ClusterUnavailable("the loops of the cluster have ended")
        await self._door.command("PING")

    async def hears(self) -> None:
        """Raises ClusterUnavailable while the bus is deaf or may not speak, also where Redis itself answers."""
        if self.degraded:
            raise ClusterUnavailable("the bus does not hear the other nodes")

    async def start(self) -> None:
        """Connected when this returns, or degraded after two seconds of trying."""
        self._running = asyncio.create_task(self.run(), name="cluster")
        self._running.add_done_callback(_report)
        if not await self.bus.wait_up(START_S):
            log.warning("started without redis")
            return
        try:
            await self.nodes.beat()
        except ClusterUnavailable:
            log.warning("started without a lease")

    async def ended(self) -> None:
        """Until the loops end, which they do not by themselves; raises what ended them."""
        if self._running is not None:
            await asyncio.shield(self._running)

    async def run(self) -> None:
        """Every loop of the cluster; for whoever has a TaskGroup of their own, instead of `start`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.bus.run(), name="bus")
            tasks.create_task(self.nodes.run(), name="nodes")
            tasks.create_task(self.roster.run(), name="roster")
            tasks.create_task(self.sessions.run(), name="sessions")
            tasks.create_task(self.presence.run(), name="presence")
            tasks.create_task(self.watching.run(), name="watching")
            tasks.create_task(self.lock.run(), name="locks")

    async def stop(self) -> None:
        """Leave: the lease ends at once, so that nobody waits for it to lapse."""
        await self.nodes.leave()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait((running,), timeout=_STOP_S)
        self.bus.close()
        await self._door.close()


def _report(running: asyncio.Task[None]) -> None:
    if not running.cancelled() and (error := running.exception()) is not None:
        log.critical("the loops of the cluster have ended", exc_info=error)
