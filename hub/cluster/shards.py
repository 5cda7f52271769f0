"""The bus's lines to a Redis Cluster: one to each master, together one line.

A channel is subscribed where its slot is served, and a script runs where its keys are. When the slots move, so do the
subscriptions; and whatever was not heard in between is read from the logs, as after any break of a line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from hub.cluster.line import Ear, Line
from hub.cluster.link import Endpoint, LinkLost, ServerRefused
from hub.cluster.redis import WRONG_SERVER, Script
from hub.cluster.topology import Address, SlotMap, Topology, slot_of
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)


class Shards:
    """What `Line` is to one server. It serves when every master does: a cluster with a hole in it takes no writes."""

    spans = False

    def __init__(self, topology: Topology, *, tick_channel: str, scripts: tuple[Script, ...]) -> None:
        self._topology = topology
        self.ear: Ear | None = None
        self._tick_channel = tick_channel
        self._scripts = scripts
        self._slots: SlotMap | None = None
        self._lines: dict[Address, Line] = {}
        self._running: dict[Address, asyncio.Task[None]] = {}
        # channel → sharded, as for `Line`.
        self._wanted: dict[str, bool] = {}
        self._serving = asyncio.Event()
        self._reconnects = 0
        topology.when_changed(lambda slots: self._moved.set())
        self._moved = asyncio.Event()

    @property
    def up(self) -> bool:
        return self._serving.is_set()

    @property
    def publishes(self) -> bool:
        return bool(self._lines) and all(line.publishes for line in self._lines.values())

    @property
    def hears(self) -> bool:
        """See `Line.hears`, for all of them."""
        return self._serving.is_set() and all(line.hears for line in self._lines.values())

    @property
    def reconnects(self) -> int:
        return self._reconnects + sum(line.reconnects for line in self._lines.values())

    async def wait_up(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._serving.wait()
        except TimeoutError:
            return False
        return True

    # Commands

    def call(self, *words: bytes | str | int, budget_s: float) -> asyncio.Future[Any]:
        """See `Link.call`; the second word is the key or the channel."""
        line = self._line_of(_text(words[1]))
        if line is None:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(LinkLost("not connected"))
            return future
        answer = line.call(*words, budget_s=budget_s)
        answer.add_done_callback(self._look_at)
        return answer

    def tell(self, *words: bytes | str | int, budget_s: float, then: Callable[[Any], None]) -> None:
        """See `Link.tell`."""
        line = self._line_of(_text(words[1]))
        if line is None:
            then(LinkLost("not connected"))
            return

        def look(outcome: Any) -> None:
            if isinstance(outcome, ServerRefused) and outcome.code in WRONG_SERVER:
                self._topology.stale()
            then(outcome)

        line.tell(*words, budget_s=budget_s, then=look)

    async def run_script(self, script: Script, keys: Sequence[str], *args: bytes | str | int, budget_s: float) -> Any:
        """`keys` are of one slot. Raises ServerRefused or LinkLost."""
        line = self._line_of(keys[0])
        if line is None:
            raise LinkLost("not connected")
        try:
            return await line.run_script(script, keys, *args, budget_s=budget_s)
        except ServerRefused as error:
            if error.code in WRONG_SERVER:
                self._topology.stale()
            raise

    def _line_of(self, key: str) -> Line | None:
        return self._lines.get(self._slots.owner(slot_of(key))) if self._slots is not None else None

    def _look_at(self, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, ServerRefused) and error.code in WRONG_SERVER:
            self._topology.stale()

    # Subscriptions

    async def subscribe(self, channels: Sequence[bytes], *, sharded: bool = True) -> None:
        """Confirmed by the servers on return. Raises ClusterUnavailable, and then none of them stays subscribed."""
        lines: dict[Line, list[bytes]] = {}
        names = [channel.decode() for channel in channels]
        for name in names:
            line = self._line_of(name)
            if line is None:
                raise ClusterUnavailable()
            lines.setdefault(line, []).append(name.encode())
        self._wanted.update(dict.fromkeys(names, sharded))
        try:
            asked = [line.subscribe(some, sharded=sharded) for line, some in lines.items()]
            # All of them to their end: what is taken back below must not be confirmed later.
            for outcome in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
            if any(self._line_of(each.decode()) is not line for line, some in lines.items() for each in some):
                raise ClusterUnavailable("a slot moved meanwhile")
        except BaseException:
            for name in names:
                self.unsubscribe(name)
            raise

    def want(self, channel: str, *, sharded: bool) -> None:
        """Subscribe now or whenever the line is up."""
        self._wanted[channel] = sharded
        line = self._line_of(channel)
        if line is not None:
            line.want(channel, sharded=sharded)

    def unsubscribe(self, channel: str) -> None:
        self._wanted.pop(channel, None)
        line = self._line_of(channel)
        if line is not None:
            line.unsubscribe(channel)

    # Life

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._topology.run(), name="redis cluster")
            self._topology.stale()
            while True:
                await self._moved.wait()
                self._moved.clear()
                await self._follow(tasks)

    def drop(self) -> None:
        """Give the connections up; `run` makes new ones."""
        for line in self._lines.values():
            line.drop()

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """A line for each master of the present map, and every wanted channel on its own."""
        slots = self._topology.known
        assert slots is not None
        before, self._slots = self._slots, slots
        gone, fresh = self._lines.keys() - slots.addresses, slots.addresses - self._lines.keys()
        moved = [each for each in self._wanted if before is None or _owner(before, each) != _owner(slots, each)]
        if gone or fresh or moved:
            self._down()
        for address in gone:
            self._reconnects += self._lines.pop(address).reconnects
            running = self._running.pop(address)
            running.cancel()
            await asyncio.wait((running,))
        for address in fresh:
            self._lines[address] = self._line(address)
        for channel in moved:
            if before is not None and (old := self._lines.get(_owner(before, channel))) is not None:
                old.unsubscribe(channel)
        for address in fresh:
            for channel, sharded in self._wanted.items():
                if _owner(slots, channel) == address:
                    self._lines[address].want(channel, sharded=sharded)
            self._running[address] = tasks.create_task(self._lines[address].run(), name=f"bus line {address[1]}")
        await asyncio.gather(*(self._move(each) for each in moved if _owner(slots, each) not in fresh))
        self._look()

    async def _move(self, channel: str) -> None:
        """To a line that may serve already: heard there on return, or as soon as the line is up."""
        line, sharded = self._line_of(channel), self._wanted.get(channel)
        if line is None or sharded is None:
            return
        try:
            await line.subscribe([channel.encode()], sharded=sharded)
        except ClusterUnavailable:
            if channel in self._wanted:
                line.want(channel, sharded=sharded)

    def _line(self, address: Address) -> Line:
        async def endpoint() -> Endpoint:
            return self._topology.endpoint(address)

        host, port = address
        ticks = f"{self._tick_channel}:{host}:{port}"
        line = Line(endpoint, tick_channel=ticks, scripts=self._scripts, one_slot=True)
        line.ear = _Part(self)
        return line

    def _look(self) -> None:
        """All of them serve again, or one of them does no more."""
        if all(line.up for line in self._lines.values()):
            if not self._serving.is_set():
                self._serving.set()
                if self.ear is not None:
                    self.ear.line_up()
        else:
            self._down()
            self._topology.stale()

    def _down(self) -> None:
        if self._serving.is_set():
            self._serving.clear()
            if self.ear is not None:
                self.ear.line_down()


class _Part:
    """The ear of one of the lines."""

    def __init__(self, whole: Shards) -> None:
        self._whole = whole

    def message(self, channel: bytes, wire: bytes) -> None:
        if self._whole.ear is not None:
            self._whole.ear.message(channel, wire)

    def line_up(self) -> None:
        self._whole._look()

    def line_down(self) -> None:
        self._whole._look()


def _owner(slots: SlotMap, channel: str) -> Address:
    return slots.owner(slot_of(channel))


def _text(word: bytes | str | int) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)
