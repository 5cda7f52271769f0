"""SIGTERM under load: one node, and a rolling restart of all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import aiohttp

from tests.e2e.stage import NodeProcess
from tests.faults.drill.figures import Figure, at_most, none, told
from tests.faults.drill.ground import Ground
from tests.faults.drill.load import delivery, false_lefts, quiet, resumption, senders
from tests.faults.drill.plan import Plan, Scenario

_EXIT_S, _UNREADY_S = 15.0, 1.0


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    await ground.several(2 if plan.short else 3)
    people = await ground.crowd(plan.people(500))
    await ground.rooms(people, 10)
    exits, codes, unready = [], [], []
    async with senders(ground.speakers(people, max(1, len(people) // 40))):
        await asyncio.sleep(1 if plan.short else 2)
        for node in ground.nodes[:1] if plan.short else ground.nodes:
            ground.fault("SIGTERM")
            began = time.monotonic()
            watching = asyncio.create_task(_unready(ground, node, began))
            codes.append(await node.stop(timeout_s=60))
            exits.append(time.monotonic() - began)
            unready.append(await watching)
            await ground.start(node)
            ground.healed()
            await asyncio.sleep(2)
        # Those who came back must not be given up either.
        await asyncio.sleep(1 if plan.short else 28)
    await quiet(ground)
    out_of_livekit = sum(method in ("RemoveParticipant", "DeleteRoom") for method in ground.livekit.methods)
    return [
        told("clients", len(people)),
        told("nodes restarted", len(exits)),
        at_most("not ready after the signal", max(unready), _UNREADY_S, "s"),
        at_most("slowest exit", max(exits), _EXIT_S, "s"),
        none("exit codes that are not 0", sum(code != 0 for code in codes)),
        *resumption(people),
        none("not back at the end", sum(not client.settled.is_set() or not client.rooms for client in people)),
        false_lefts(ground),
        none("people or rooms taken out of LiveKit", out_of_livekit),
        *delivery(ground),
    ]


async def _unready(ground: Ground, node: NodeProcess, began: float) -> float:
    """How long the node still said that it is ready."""
    last = began
    while time.monotonic() - began < 10:
        try:
            async with ground.http.get(f"{node.url}/readyz", timeout=aiohttp.ClientTimeout(total=2)) as response:
                if response.status != 200:
                    break
                last = time.monotonic()
        except (aiohttp.ClientError, TimeoutError, OSError):
            break
        await asyncio.sleep(0.05)
    return last - began


DRAINED = Scenario("drained", "SIGTERM under load, and a rolling restart of all nodes", _play)
