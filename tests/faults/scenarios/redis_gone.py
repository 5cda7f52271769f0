"""Redis is killed: for long with its data kept, and shortly with its data lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from hub.protocol.errors import ClusterUnavailable
from tests.faults.drill import checks
from tests.faults.drill.client import Client
from tests.faults.drill.figures import Figure, at_most, none, told
from tests.faults.drill.ground import Ground, until
from tests.faults.drill.history import Picture
from tests.faults.drill.load import answers, counted, delivery, false_lefts, quiet, senders
from tests.faults.drill.plan import Plan, Scenario

_ACROSS_S, _ROSTER_S, _DEGRADED_S = 3.0, 5.0, 3.0
_ALLOWED = frozenset({"ok", "cluster_unavailable", "rate_limited", "timeout"})


async def _kept(ground: Ground, plan: Plan) -> Sequence[Figure]:
    return await _play(ground, plan, 6 if plan.short else 35, lose=False)


async def _lost(ground: Ground, plan: Plan) -> Sequence[Figure]:
    return await _play(ground, plan, 3 if plan.short else 5, lose=True)


async def _play(ground: Ground, plan: Plan, gone_s: float, *, lose: bool) -> Sequence[Figure]:
    await ground.several(2 if plan.short else 3)
    people = await ground.crowd(plan.people(90))
    calls = await ground.rooms(people, 10)
    listening = _Across(people)
    valkey = ground.servers.valkey
    # So impatient that they do not wait for Redis: what is acked meanwhile must reach everybody all the same.
    async with senders(ground.speakers(people, 3), patience_s=4.0):
        await asyncio.sleep(2)
        for client in people:
            client.answers.clear()
        began = ground.fault("redis killed")
        await asyncio.to_thread(valkey.kill)
        await asyncio.sleep(max(0.0, began + gone_s - time.monotonic()))
        during = _during(people)
        if lose:
            await asyncio.to_thread(ground.lose_redis_data)
        await asyncio.to_thread(valkey.start)
        back = ground.healed()
        across_s, same_s = await asyncio.gather(
            until(lambda: listening.since(back), timeout_s=30, every_s=0.05),
            until(lambda: _same(ground, people, calls), timeout_s=30),
        )
        await asyncio.sleep(5)
    await quiet(ground)
    degraded = [
        min((at for at in client.notices.get("server:degraded", []) if at > began), default=began + 99) - began
        for client in people
    ]
    await ground.finish()
    return [
        told("Redis gone for", gone_s, "s"),
        at_most("server:degraded after", max(degraded), _DEGRADED_S, "s"),
        *during,
        at_most("events across nodes after Redis is back", across_s if across_s is not None else 99, _ACROSS_S, "s"),
        at_most("rosters right, after Redis is back", same_s if same_s is not None else 99, _ROSTER_S, "s"),
        told("snapshots taken because of a gap", listening.snapshots(ground, back)),
        none("sockets lost", sum(len(client.resumes) for client in people)),
        false_lefts(ground),
        *delivery(ground),
        counted(ground, "clients with a wrong picture", checks.finals(ground.history.entries)),
    ]


def _during(people: Sequence[Client]) -> list[Figure]:
    return answers(people, _ALLOWED)


async def _same(ground: Ground, people: Sequence[Client], calls: list[str]) -> bool:
    try:
        shown = await ground.live_sessions(calls)
    except ClusterUnavailable:
        return False
    return shown == {client.session for client in people if client.rooms}


class _Across:
    """Which clients have heard, with a position, what was said on another node."""

    def __init__(self, people: Sequence[Client]) -> None:
        self._node_of = {client.user: client.node for client in people}
        self._heard: dict[str, float] = {}
        for client in people:
            client.on_event = self._listen(client)

    def _listen(self, client: Client) -> Callable[[str, dict[str, Any], float], None]:
        def heard(name: str, data: dict[str, Any], at: float) -> None:
            by = data.get("by")
            if data.get("offset") is None or not isinstance(by, dict):
                return
            if self._node_of.get(by.get("user_id", "")) not in (None, client.node):
                self._heard[client.user] = at

        return heard

    async def since(self, back: float) -> bool:
        """Everybody has."""
        return all(self._heard.get(user, 0.0) > back for user in self._node_of)

    @staticmethod
    def snapshots(ground: Ground, back: float) -> int:
        return sum(isinstance(entry, Picture) and not entry.recovered and entry.at > back for entry in ground.history)


REDIS_GONE = Scenario("redis_gone", "Redis killed for 35 s, with its data there afterwards", _kept)
REDIS_EMPTIED = Scenario("redis_emptied", "Redis killed for 5 s, with all its data lost", _lost)
