"""SIGSTOP of a node for longer than its lease, and SIGCONT."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from uuid import UUID

from hub.cluster.envelope import Signer
from hub.cluster.keys import Keys
from tests.faults.drill import checks
from tests.faults.drill.figures import Figure, at_most, none, told
from tests.faults.drill.ground import CLUSTER_SECRET, Ground, until
from tests.faults.drill.intruder import Intruder, intruder
from tests.faults.drill.load import counted, delivery, false_lefts, quiet, senders
from tests.faults.drill.plan import Plan, Scenario

_DEAD_S, _REJOIN_S = 8.0, 3.0


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    frozen_s = 10 if plan.short else 30
    await ground.several(3)
    people = await ground.crowd(plan.people(90))
    # They would sit out any silence, and so are still there when the node wakes.
    patient = [ground.client(f"patient{i}", first=0, patient=True) for i in range(max(1, len(people) // 10))]
    await ground.each(patient, lambda client: client.start())
    everybody = [*people, *patient]
    calls = await ground.rooms(everybody, 10)
    victim = ground.nodes[0]
    before = {node.incarnation for node in await ground.watcher.nodes.list() if node.node_id == "node-0"}
    async with intruder(ground.servers.valkey.url) as ear, senders(ground.speakers(everybody, 3)):
        ear.overhear([Keys(ground.env).room(UUID(call)).channel for call in calls])
        await asyncio.sleep(2)
        sessions = {client.session for client in everybody if client.node == victim.url}
        stopped = ground.fault("SIGSTOP")
        victim.freeze()
        shown_s = await until(lambda: _none_live(ground, calls, sessions), timeout_s=20)
        await asyncio.sleep(max(0.0, stopped + frozen_s - time.monotonic()))
        thawed = ground.healed()
        victim.thaw()
        rejoin_s = await until(lambda: _reborn(ground, before), timeout_s=20)
        await asyncio.sleep(10)
        stale = _said_by(ground, ear, before, thawed)
        newcomer = ground.client("newcomer", nodes=[victim.url])
        await newcomer.start()
        entered = await newcomer.join(calls[0])
    await quiet(ground)
    return [
        told("frozen for", frozen_s, "s"),
        at_most("shown as connected after the stop", shown_s if shown_s is not None else 99, _DEAD_S, "s"),
        at_most("registered anew after waking", rejoin_s if rejoin_s is not None else 99, _REJOIN_S, "s"),
        none("events of the old incarnation after waking", stale),
        none("newcomers refused on the woken node", int(entered != "ok")),
        none("not back at the end", sum(not client.settled.is_set() or not client.rooms for client in everybody)),
        false_lefts(ground),
        *delivery(ground),
        counted(ground, "clients with a wrong picture", await _wrong(ground)),
    ]


async def _none_live(ground: Ground, calls: list[str], sessions: set[str]) -> bool:
    return not sessions & await ground.live_sessions(calls)


async def _reborn(ground: Ground, before: set[str]) -> bool:
    found = await ground.watcher.nodes.list()
    return any(node.node_id == "node-0" and node.incarnation not in before for node in found)


def _said_by(ground: Ground, ear: Intruder, incarnations: set[str], since: float) -> int:
    """How many messages of these incarnations Redis still passed on."""
    signer = Signer(CLUSTER_SECRET.encode(), ground.env)
    opened = [signer.open(channel, wire) for at, channel, wire in ear.heard if at > since]
    return sum(each is not None and each[1].incarnation in incarnations for each in opened)


async def _wrong(ground: Ground) -> list[checks.Violation]:
    await ground.finish()
    return checks.finals(ground.history.entries)


FROZEN = Scenario("frozen", "SIGSTOP of one of three nodes for 30 s, and SIGCONT", _play)
