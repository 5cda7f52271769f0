"""Senders on three nodes, one room: everybody hears the same, in the same order, without a hole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tests.faults.drill import checks
from tests.faults.drill.client import Client
from tests.faults.drill.figures import Figure, none, told
from tests.faults.drill.ground import Ground
from tests.faults.drill.history import Heard
from tests.faults.drill.load import counted, delivery, quiet
from tests.faults.drill.plan import Plan, Scenario

_EVENTS = 3_000


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    events = 300 if plan.short else _EVENTS
    await ground.several(3, AURALINK_MAX_PARTICIPANTS="500")
    # The hub takes 20 changes in 10 s of one person: so many speak for each node, one after the other.
    per_node = max(2, (plan.people(60) + 2) // 3)
    people = await ground.crowd(3 * per_node)
    (call,) = await ground.rooms(people, len(people))
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for node in range(3):
            tasks.create_task(_speak(people[node::3], call, events // 3))
    took_s = time.monotonic() - began
    await quiet(ground)
    heard = {client.user: _heard(ground, client.user) for client in people}
    whole = [places for places in heard.values() if len([1 for _, mark in places if mark]) >= events]
    await ground.finish()
    return [
        told("members", len(people)),
        told("events", events),
        told("events per second", events / took_s),
        none("members who did not hear every event", len(people) - len(whole)),
        none("members who heard another order", len(people) - _same(list(heard.values()))),
        *delivery(ground),
        counted(ground, "clients with a wrong picture", checks.finals(ground.history.entries)),
    ]


async def _speak(clients: Sequence[Client], call: str, events: int) -> None:
    done = 0
    while done < events:
        for client in clients:
            if done < events and await client.update(call) == "ok":
                done += 1
        await asyncio.sleep(0)


def _heard(ground: Ground, user: str) -> list[tuple[tuple[str, int], int]]:
    """Positions and marks, as this client took them, from the first change on."""
    taken = [
        ((entry.epoch, entry.offset), entry.mark)
        for entry in ground.history
        if isinstance(entry, Heard) and entry.client == user and entry.offset is not None
    ]
    first = next((index for index, (_, mark) in enumerate(taken) if mark), 0)
    return taken[first:]


def _same(heard: Sequence[object]) -> int:
    """How many agree with most."""
    return max(sum(other == each for other in heard) for each in heard)


ORDERED = Scenario("ordered", "senders on three nodes, 3,000 events, one order for everybody", _play)
