"""Which master of a Redis Cluster has which hash slot, as its nodes say; looked up anew when it may have changed.

Raises ClusterUnavailable where no node says. Nothing is routed by a redirection: a MOVED means that the map is stale,
and whoever meets one says so.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import structlog

from hub.cluster.link import Endpoint, LinkLost, ServerRefused, connect
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

SLOTS = 16384
# A failover that no command of ours has met yet is seen after this long.
LOOK_S = 5.0
_CONNECT_S = 0.5
_RETRY_S = 0.25

Address = tuple[str, int]


class SlotMap(msgspec.Struct, frozen=True):
    """Every slot has a master; `starts[i]` is the first slot of `masters[i]`."""

    starts: tuple[int, ...]
    masters: tuple[Address, ...]

    def owner(self, slot: int) -> Address:
        return self.masters[bisect.bisect_right(self.starts, slot) - 1]

    @property
    def addresses(self) -> frozenset[Address]:
        return frozenset(self.masters)


# Asked for with every event.
@lru_cache(maxsize=50_000)
def slot_of(key: str) -> int:
    """The hash slot of a key or a sharded channel: CRC-16/XMODEM of what stands in its first braces, or of all of it
    (Redis Cluster Specification, "Key distribution model").
    """
    name = key.encode()
    start = name.find(b"{")
    end = name.find(b"}", start + 1) if start >= 0 else -1
    if end > start + 1:
        name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


class Topology:
    """`run` keeps the map fresh; `stale` has it looked up at once."""

    def __init__(self, seeds: Sequence[Address], base: Endpoint) -> None:
        """`base`: user, password and TLS, the same for every node."""
        self._seeds, self._base = tuple(seeds), base
        self._map: SlotMap | None = None
        self._stale = asyncio.Event()
        # When the last look ended, and with what.
        self._answered_at_s = 0.0
        self._asking = asyncio.Lock()
        self._hear: list[Callable[[SlotMap], None]] = []

    @property
    def known(self) -> SlotMap | None:
        return self._map

    def when_changed(self, hear: Callable[[SlotMap], None]) -> None:
        """`hear` gets every new map."""
        self._hear.append(hear)

    def stale(self) -> None:
        """A node does not serve what the map says it does, or does not answer."""
        self._stale.set()

    def endpoint(self, address: Address) -> Endpoint:
        return msgspec.structs.replace(self._base, host=address[0], port=address[1])

    async def owner(self, key: str) -> Address:
        """Raises ClusterUnavailable, within a second; at once where nobody knew a moment ago."""
        if self._map is None and time.monotonic() - self._answered_at_s < _RETRY_S:
            raise ClusterUnavailable("no node of the Redis Cluster says who has what")
        slots = self._map if self._map is not None else await self.look()
        return slots.owner(slot_of(key))

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()
            try:
                await self.look()
            except ClusterUnavailable:
                self._stale.set()
            await asyncio.sleep(_RETRY_S)

    async def look(self) -> SlotMap:
        """The map, asked for now; whoever comes meanwhile gets the same answer. Raises ClusterUnavailable."""
        came_s = time.monotonic()
        async with self._asking:
            if self._map is not None and self._answered_at_s >= came_s:
                return self._map
            known = self._map.addresses if self._map is not None else frozenset[Address]()
            try:
                found = await self._ask([*sorted(known), *(seed for seed in self._seeds if seed not in known)])
            finally:
                self._answered_at_s = time.monotonic()
            if found != self._map:
                log.info("redis cluster", masters=len(found.addresses))
                self._map = found
                for hear in self._hear:
                    hear(found)
            return found

    async def _ask(self, addresses: Sequence[Address]) -> SlotMap:
        """The first whole map that any of them gives: all are asked at once, since some may hang."""
        asking = {asyncio.ensure_future(self._ask_one(address)) for address in addresses}
        try:
            while asking:
                done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    if each.exception() is None:
                        return each.result()
        finally:
            for each in asking:
                each.cancel()
        raise ClusterUnavailable("no node of the Redis Cluster says who has what")

    async def _ask_one(self, address: Address) -> SlotMap:
        link = await connect(self.endpoint(address), timeout_s=_CONNECT_S)
        try:
            return slot_map(await link.call("CLUSTER", "SLOTS", budget_s=_CONNECT_S), address[0])
        except ServerRefused as error:
            raise LinkLost(str(error)) from error
        finally:
            link.close()


def slot_map(answer: Sequence[Any], asked: str) -> SlotMap:
    """Of the answer to CLUSTER SLOTS. Raises LinkLost where a slot is nobody's.

    `asked`: the host that was asked, which is what a node means that does not know its own name.
    """
    ranges = sorted(
        (int(first), int(last), (master[0].decode() if master[0] else asked, int(master[1])))
        for first, last, master, *_ in answer
    )
    expected = 0
    for first, last, _ in ranges:
        if first != expected:
            break
        expected = last + 1
    if expected != SLOTS:
        raise LinkLost(f"slot {expected} has no master")
    return SlotMap(tuple(first for first, _, _ in ranges), tuple(master for _, _, master in ranges))
