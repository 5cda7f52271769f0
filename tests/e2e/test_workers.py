"""`serve --workers N`: one port, N nodes, and a parent that keeps them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from hub.embedded import LiveKit, Valkey, free_port
from tests.conftest import TestDatabase
from tests.e2e.stage import NodeProcess, Person, Stage, eventually, stage_of

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


@pytest_asyncio.fixture
async def stage(database: TestDatabase, valkey: Valkey, livekit: LiveKit, env_name: str) -> AsyncIterator[Stage]:
    stage = stage_of(database, valkey, livekit, env_name)
    try:
        yield stage
    finally:
        await stage.close()


class Workers:
    """A parent with two workers, all of them serving."""

    def __init__(self, stage: Stage, process: NodeProcess, internal: int) -> None:
        self.stage, self.process, self.internal = stage, process, internal
        self.operator = stage.person("cli", operator=True)

    async def statuses(self) -> dict[str, str]:
        try:
            answer = await self.operator.rest("GET", "/admin/nodes")
        except aiohttp.ClientError:
            return {}
        return {node["node_id"]: node["status"] for node in answer.body["items"]} if answer.status == 200 else {}

    async def serving(self) -> bool:
        return self.process.log().count("worker_serves") == 2

    async def both(self) -> bool:
        return await self.statuses() == {"hub-1": "ready", "hub-2": "ready"}

    def pids(self) -> list[int]:
        return sorted(child.pid for child in psutil.Process(self.process.pid).children())

    async def connected(self, count: int, prefix: str) -> list[Person]:
        people = [self.stage.person(f"{prefix}{n}") for n in range(count)]
        for person in people:
            await person.connect()
            await person.wait_for("session:ready")
        return people


async def workers(stage: Stage) -> Workers:
    internal = free_port()
    process = await stage.node(
        arguments=("--workers", "2"),
        until_ready=False,
        AURALINK_NODE_ID="hub",
        AURALINK_INTERNAL_LISTEN=f"127.0.0.1:{internal}",
    )
    started = Workers(stage, process, internal)
    # Three interpreters at once: where a machine is busy that takes its time.
    # A node is in the list before its door is open: the parent knows when it serves.
    await eventually(started.serving, timeout_s=90)
    await eventually(started.both, timeout_s=30)
    return started


def node_of(person: Person) -> str:
    ready: dict[str, Any] = next(event for name, event in person.heard if name == "session:ready")
    return str(ready["server"]["node_id"])


async def metrics_of(port: int) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as response:
        assert response.status == 200
        return await response.text()


async def test_two_workers_share_the_port_and_one_hub(stage: Stage) -> None:
    """Connections are spread, a room spans both, each has its own metrics."""
    hub = await workers(stage)
    people = await hub.connected(24, "p")
    found = [node_of(person) for person in people]
    assert set(found) == {"hub-1", "hub-2"}
    call_id = (await people[0].create())["call_id"]
    for person in people[:8]:
        await person.join(call_id)
    await people[0].ask("hand:raise", call_id=call_id)
    for person in people[:8]:
        await person.wait_for("hand:raised")
    for number in (1, 2):
        text = await metrics_of(hub.internal + number - 1)
        (line,) = [line for line in text.splitlines() if line.startswith("auralink_hub_sessions ")]
        assert float(line.split()[1]) == found.count(f"hub-{number}")


async def test_a_killed_worker_is_started_again_while_the_other_serves(stage: Stage) -> None:
    hub = await workers(stage)
    people = await hub.connected(12, "p")
    victims = hub.pids()
    os.kill(victims[0], signal.SIGKILL)
    # At once: the kernel has only the other one to give connections to.
    others = await asyncio.wait_for(hub.connected(6, "q"), 20)
    (still,) = {node_of(person) for person in others}
    for person in people:
        if node_of(person) == still:
            assert (await person.ask("session:ping"))["node_id"] == still

    async def two_again() -> bool:
        # The list of nodes shows the dead one as ready until its lease has lapsed: the parent knows better.
        return hub.process.log().count("worker_serves") == 3

    await eventually(two_again, timeout_s=90)
    assert victims[1] in hub.pids()
    assert victims[0] not in hub.pids()
    more = await hub.connected(16, "r")
    assert {node_of(person) for person in more} == {"hub-1", "hub-2"}


async def test_sigterm_drains_all_workers_and_ends_with_zero(stage: Stage) -> None:
    """P18"""
    hub = await workers(stage)
    people = await hub.connected(8, "p")
    pids = hub.pids()
    started = time.monotonic()
    assert await hub.process.stop(timeout_s=15) == 0, hub.process.log()[-3000:]
    assert time.monotonic() - started < 15
    assert not any(psutil.pid_exists(pid) for pid in pids)
    for person in people:
        assert (await person.wait_for("session:closing"))["code"] == "server_draining"


async def test_sighup_restarts_one_worker_after_the_other_and_nobody_is_refused(stage: Stage) -> None:
    hub = await workers(stage)
    before = hub.pids()
    os.kill(hub.process.pid, signal.SIGHUP)
    refused: list[str] = []
    served = 0

    async def replaced() -> bool:
        nonlocal served
        try:
            answer = await hub.operator.rest("GET", "/limits")
            served += answer.status == 200
            if answer.status != 200:
                refused.append(str(answer))
        except aiohttp.ServerDisconnectedError:
            # A kept connection of a worker that ended.
            pass
        except aiohttp.ClientError as error:
            refused.append(f"{time.time():.3f} {error!r}")
        now = hub.pids()
        return hub.process.log().count("workers_restarted") == 1 and not set(now) & set(before)

    await eventually(replaced, timeout_s=180, every_s=0.1)
    assert refused == [], hub.process.log()
    assert served > 20


async def test_a_drained_worker_gets_no_connections_and_an_undrained_one_does(stage: Stage) -> None:
    hub = await workers(stage)
    assert (await hub.operator.rest("POST", "/admin/nodes/hub-2/drain", {})).status == 202
    people = await hub.connected(16, "p")
    assert {node_of(person) for person in people} == {"hub-1"}
    assert (await hub.operator.rest("POST", "/admin/nodes/hub-2/undrain", {})).status == 202
    people = await hub.connected(24, "q")
    assert {node_of(person) for person in people} == {"hub-1", "hub-2"}


async def test_workers_end_when_their_parent_is_killed(stage: Stage) -> None:
    hub = await workers(stage)
    pids = hub.pids()
    await hub.process.kill()

    async def gone() -> bool:
        return not any(psutil.pid_exists(pid) for pid in pids)

    await eventually(gone, timeout_s=20)


async def test_who_is_told_to_stop_while_it_waits_for_its_database_stops(stage: Stage) -> None:
    for arguments, nodes in (((), 1), (("--workers", "2"), 2)):
        process = await stage.node(
            arguments=arguments, until_ready=False, DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none"
        )

        async def waits(process: NodeProcess = process, nodes: int = nodes) -> bool:
            return process.log().count("waiting_for_database") == nodes

        await eventually(waits, timeout_s=60)
        started = time.monotonic()
        assert await process.stop(timeout_s=20) == 0, process.log()
        assert time.monotonic() - started < 10


async def test_what_keeps_the_first_worker_from_serving_ends_the_parent(stage: Stage) -> None:
    """A wrong setting is no crash loop."""
    taken = await stage.node()
    port = taken.url.rpartition(":")[2]
    process = await stage.node(arguments=("--workers", "2"), until_ready=False, AURALINK_LISTEN=f"127.0.0.1:{port}")
    assert await process.ended(timeout_s=90) == 1
    assert "cannot listen on" in process.log()
    # The owner of the schema is above row level security: no node serves as that.
    process = await stage.node(arguments=("--workers", "2"), until_ready=False, DATABASE_URL=stage.database.owner_dsn)
    assert await process.ended(timeout_s=90) == 1
    assert "worker_never_served" in process.log()
