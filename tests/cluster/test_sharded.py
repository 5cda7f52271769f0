"""A Redis Cluster of three masters: the same promises, and a slot that moves takes nothing with it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.crc import key_slot

from hub.cluster import Cluster
from hub.cluster.link import LinkLost
from hub.cluster.topology import SLOTS, slot_map, slot_of
from hub.context import Position, RosterEntry
from hub.protocol.errors import ClusterUnavailable
from tests.cluster.hearing import SECRET, Ear, until
from tests.cluster.test_sentinel import answers, server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("key", ["a", "{a}b", "x{a}y{b}", "{}a", "{a", "a}", "aura:t:room:{1-2}:log", "é{ü}"])
async def test_slots_are_those_of_redis(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())


async def test_a_cluster_with_a_hole_is_none() -> None:
    whole = [[0, 99, [b"h", 1, b"id"]], [100, SLOTS - 1, [b"", 2, b"id"]]]
    slots = slot_map(whole, "asked")
    assert slots.owner(99) == ("h", 1) and slots.owner(100) == ("asked", 2)
    for bad in (whole[:1], whole[1:], []):
        with pytest.raises(LinkLost):
            slot_map(bad, "asked")


class Masters:
    """Three of them, each with a third of the slots."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.ids: list[str] = []
        self.processes: list[asyncio.subprocess.Process] = []

    @property
    def url(self) -> str:
        return f"redis+cluster://:sentinel-test@127.0.0.1:{self.ports[0]},127.0.0.1:{self.ports[1]}"

    async def ask(self, number: int, *words: Any) -> Any:
        client = Redis(port=self.ports[number], password="sentinel-test", driver_info=None, decode_responses=True)
        try:
            return await cast("Any", client).execute_command(*words)
        finally:
            await client.aclose()

    async def meet(self) -> None:
        third = SLOTS // 3
        for number, port in enumerate(self.ports):
            last = SLOTS - 1 if number == 2 else (number + 1) * third - 1
            await self.ask(number, "CLUSTER", "ADDSLOTSRANGE", number * third, last)
            await self.ask(number, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                await self.ask(0, "CLUSTER", "MEET", "127.0.0.1", port)
        for port in self.ports:
            await answers(port, ("CLUSTER", "INFO"), "cluster_state:ok")
        self.ids = [await self.ask(number, "CLUSTER", "MYID") for number in range(3)]

    def owner(self, key: str) -> int:
        return min(slot_of(key) // (SLOTS // 3), 2)

    async def move(self, key: str, to: int) -> None:
        """The slot of `key`, with what is in it."""
        slot, owner = slot_of(key), self.owner(key)
        await self.ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[owner])
        await self.ask(owner, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[to])
        while keys := await self.ask(owner, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            way = ("MIGRATE", "127.0.0.1", self.ports[to], "", 0, 5000, "AUTH", "sentinel-test", "KEYS", *keys)
            await self.ask(owner, *way)
        for number in (to, owner, 3 - to - owner):
            await self.ask(number, "CLUSTER", "SETSLOT", slot, "NODE", self.ids[to])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def masters(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Masters]:
    directory: Path = tmp_path_factory.mktemp("masters")
    made = Masters([_port() for _ in range(3)])
    lines = (
        "cluster-enabled yes",
        "requirepass sentinel-test",
        "masterauth sentinel-test",
        "cluster-node-timeout 2000",
    )
    async with AsyncExitStack() as stack:
        for number, port in enumerate(made.ports):
            made.processes.append(await stack.enter_async_context(server(directory / str(number), port, *lines)))
            await answers(port, ("PING",), "True")
        await made.meet()
        yield made


def _port() -> int:
    """One whose twin, 10,000 above, is free too: there the nodes talk."""
    while True:
        with socket.socket() as probe, socket.socket() as twin:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1]) % 20_000 + 12_000
            try:
                twin.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@asynccontextmanager
async def two_nodes(masters: Masters, env: str) -> AsyncIterator[tuple[tuple[Cluster, Ear], tuple[Cluster, Ear]]]:
    async with AsyncExitStack() as stack:
        nodes = []
        for name in ("a", "b"):
            cluster = Cluster(masters.url, env=env, secret=SECRET, node_id=name)
            ear = Ear()
            cluster.bus.listen(ear)
            await cluster.start()
            stack.push_async_callback(cluster.stop)
            nodes.append((cluster, ear))
        yield nodes[0], nodes[1]


def _rooms(masters: Masters, env: str) -> list[UUID]:
    """One on each master."""
    found: dict[int, UUID] = {}
    while len(found) < 3:
        call_id = uuid4()
        found[masters.owner(f"aura:{env}:room:{{{call_id}}}")] = call_id
    return [found[number] for number in range(3)]


async def test_rooms_on_every_master_are_heard_on_every_node_in_order(masters: Masters, env_name: str) -> None:
    """S-157: rooms, control, rosters and limits, wherever their keys are."""
    async with two_nodes(masters, env_name) as ((a, _), (b, heard)):
        rooms, tenant = _rooms(masters, env_name), uuid4()
        for call_id in rooms:
            await b.bus.subscribe_room(call_id)
        await b.bus.subscribe_users([(tenant, "ben"), *((tenant, f"user-{n}") for n in range(20))])
        for number in range(20):
            for call_id in rooms:
                sender = a if number % 2 else b
                assert await sender.bus.to_room(call_id, "test:said", {"text": str(number)}) is not None
                await a.bus.to_room(call_id, "test:fleeting", {"text": str(number)}, recorded=False)
        await a.bus.to_user(tenant, "ben", "test:direct", {"text": "hello"})
        await until(lambda: len(heard.events) == 120 and len(heard.users) == 1)
        for call_id in rooms:
            of_room = [event for event in heard.events if event["call_id"] == str(call_id) and "offset" in event]
            assert [event["offset"] for event in of_room] == list(range(1, 21))
            entry = RosterEntry("s1", uuid4(), "ada", tenant, "", "")
            await a.roster.enter(call_id, entry)
            assert [each.session_id for each in await b.roster.sessions(call_id)] == ["s1"]
        await a.bus.control("b", {"kind": "evict", "n": 1})
        await until(lambda: bool(heard.controls))
        assert {node.node_id for node in await a.nodes.list()} == {"a", "b"}
        assert (await a.limits.allow("k", 1, 60)).allowed
        assert await b._door.command("EXISTS", f"aura:{env_name}:limit:k") == 1


async def test_a_slot_that_moves_takes_no_event_with_it(masters: Masters, env_name: str) -> None:
    """S-157: all of them are heard, or the room is told that some are missing."""
    async with two_nodes(masters, env_name) as ((a, _), (b, heard)):
        call_id = _rooms(masters, env_name)[0]
        await b.bus.subscribe_room(call_id)
        moving = asyncio.create_task(masters.move(f"aura:{env_name}:room:{{{call_id}}}", 2))
        told = 0
        while not moving.done() or told < 40:
            await a.bus.to_room(call_id, "test:said", {"text": str(told)})
            told += 1
            await asyncio.sleep(0.02)
        await moving
        async with asyncio.timeout(30):
            while "test:last" not in heard.names:
                await a.bus.to_room(call_id, "test:last", {"text": "last"})
                await asyncio.sleep(0.2)
        await until(lambda: not a.degraded and not b.degraded, 10)
        said = [event["text"] for event in heard.events if event["text"] != "last"]
        assert said == [str(number) for number in range(told)] or heard.resyncs


async def test_a_master_that_hangs_is_a_cluster_that_is_away_and_comes_back(masters: Masters, env_name: str) -> None:
    """S-157: there is no replica to take over: whoever asks is answered in time, and it mends itself."""
    async with two_nodes(masters, env_name) as ((a, _), (b, heard)):
        call_id = _rooms(masters, env_name)[0]
        await b.bus.subscribe_room(call_id)
        masters.processes[0].send_signal(signal.SIGSTOP)
        try:
            clock = asyncio.get_running_loop().time
            started = clock()
            while not a.degraded:
                await a.bus.to_room(call_id, "test:said", {"text": "into the void"})
                assert clock() - started < 10
            started = clock()
            with pytest.raises(ClusterUnavailable):
                await b.bus.since(call_id, Position("x", 0))
            assert clock() - started < 2
        finally:
            masters.processes[0].send_signal(signal.SIGCONT)
        await until(lambda: not a.degraded and not b.degraded, 30)
        async with asyncio.timeout(20):
            while "test:last" not in heard.names:
                await a.bus.to_room(call_id, "test:last", {"text": "last"})
                await asyncio.sleep(0.2)
        await until(lambda: call_id in heard.resyncs, 10)
