"""Rates that hold over all nodes together; while Redis is away, each node counts for itself."""

from __future__ import annotations

import asyncio

import msgspec

from hub.cluster.keys import Keys
from hub.cluster.redis import Door, Script
from hub.protocol.errors import ClusterUnavailable
from hub.state.bucket import Bucket

# What a node remembers of keys it counts alone; the oldest are forgotten, which is generous to them.
_BUCKETS = 50_000

_GCRA = Script("gcra")


class Verdict(msgspec.Struct, frozen=True):
    allowed: bool
    retry_after_ms: int = 0


_ALLOWED = Verdict(True)


class Limits:
    def __init__(self, door: Door, keys: Keys) -> None:
        self._door, self._keys = door, keys
        self._buckets: dict[str, Bucket] = {}

    async def allow(self, key: str, times: int, per_s: float) -> Verdict:
        """Count one use of `key`, of which `times` per `per_s` seconds are allowed, all of them at once if need be."""
        return await self._ask(key, times, per_s, 1)

    async def look(self, key: str, times: int, per_s: float) -> Verdict:
        """Whether `allow` would allow one use of `key` now. Counts nothing."""
        return await self._ask(key, times, per_s, 0)

    async def give_back(self, key: str, times: int, per_s: float) -> None:
        """A use that was counted was none."""
        await self._ask(key, times, per_s, -1)

    async def _ask(self, key: str, times: int, per_s: float, count: int) -> Verdict:
        interval_ms = per_s * 1000 / times
        try:
            wait_ms = int(await self._door.run(_GCRA, [self._keys.limit(key)], interval_ms, per_s * 1000, count))
        except ClusterUnavailable:
            wait_ms = self._alone(key, times, per_s, count)
        return Verdict(False, wait_ms) if wait_ms else _ALLOWED

    def _alone(self, key: str, times: int, per_s: float, count: int) -> int:
        bucket = self._buckets.pop(key, None)
        if bucket is None or bucket.times != times:
            bucket = Bucket(times, per_s)
            if len(self._buckets) >= _BUCKETS:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = bucket
        now = asyncio.get_running_loop().time()
        if count < 0:
            bucket.give_back()
            return 0
        return bucket.take(now) if count else bucket.wait(now)
