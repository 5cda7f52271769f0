"""kill -9 of a node under its clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tests.faults.drill.client import Client
from tests.faults.drill.figures import Figure, at_most, none, told
from tests.faults.drill.ground import Ground, until
from tests.faults.drill.load import delivery, false_lefts, quiet, resumption, senders
from tests.faults.drill.plan import Plan, Scenario

_ROOM = 10
_SHOWN_S = 8.0


async def _kill(ground: Ground, plan: Plan) -> Sequence[Figure]:
    grace_s = 5 if plan.short else 25
    await ground.several(2 if plan.short else 3, AURALINK_SOCKET_GRACE_S=str(grace_s))
    people = await ground.crowd(plan.people(500))
    calls = await ground.rooms(people, _ROOM)
    async with senders(ground.speakers(people, max(1, len(people) // 40))):
        await asyncio.sleep(1 if plan.short else 3)
        victim = ground.nodes[0]
        sessions = {client.session for client in people if client.node == victim.url}
        killed = ground.fault("kill -9")
        await victim.kill()
        shown_s = await _shown(ground, calls, sessions, killed)
        # The first who would be given up wrongly would be now.
        await asyncio.sleep(max(0.0, killed + _SHOWN_S + grace_s + 3 - time.monotonic()))
    await quiet(ground)
    return [
        told("clients", len(people)),
        told("of them on the node that died", len(sessions)),
        at_most("shown as connected after the kill", shown_s, _SHOWN_S, "s"),
        *resumption(people),
        false_lefts(ground),
        none("not back at the end", _missing(people)),
        *delivery(ground),
    ]


async def _shown(ground: Ground, calls: list[str], sessions: set[str], killed: float) -> float:
    """How long after the kill one of its sessions was last seen as live."""
    last = killed

    async def nobody() -> bool:
        nonlocal last
        if sessions & await ground.live_sessions(calls):
            last = time.monotonic()
            return False
        return True

    await until(nobody, timeout_s=30, every_s=0.2)
    return last - killed


def _missing(people: list[Client]) -> int:
    return sum(not (client.settled.is_set() and client.rooms) for client in people)


async def _alternate(ground: Ground, plan: Plan) -> Sequence[Figure]:
    kills = 3 if plan.short else 20
    await ground.several(2)
    people = await ground.crowd(plan.people(60))
    await ground.rooms(people, _ROOM)
    async with senders(ground.speakers(people, 3)):
        for turn in range(kills):
            node = ground.nodes[turn % 2]
            began = ground.fault(f"kill -9 of node {turn % 2}")
            await node.kill()
            await ground.start(node)
            ground.healed()
            await asyncio.sleep(max(0.0, began + 15 - time.monotonic()))
    await quiet(ground)
    return [
        told("kills", kills),
        *resumption(people),
        false_lefts(ground),
        none("not back at the end", _missing(people)),
        *delivery(ground),
    ]


KILLED = Scenario("killed", "kill -9 of one of three nodes under 500 clients", _kill)
ALTERNATING = Scenario("alternating", "20 kills of two nodes, one after the other, 15 s apart", _alternate)
