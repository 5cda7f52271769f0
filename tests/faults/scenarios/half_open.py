"""One node's connections to Redis go silent without being closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.faults.drill import checks
from tests.faults.drill.figures import Figure, at_most, none, told
from tests.faults.drill.ground import Ground, until
from tests.faults.drill.load import answers, counted, delivery, false_lefts, quiet, senders
from tests.faults.drill.plan import Plan, Scenario

_DEAF_S = 5.0
_ALLOWED = frozenset({"ok", "cluster_unavailable", "rate_limited", "timeout"})


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    async with ground.proxied_redis() as (proxy, url):
        await ground.node()
        victim = await ground.node(redis_url=url)
        people = await ground.crowd(plan.people(60))
        await ground.rooms(people, 10)
        deaf = [client for client in people if client.node == victim.url]
        async with senders(ground.speakers(people, 2), every_s=0.7):
            await asyncio.sleep(2)
            for client in people:
                client.answers.clear()
            began = ground.fault("half-open link")
            proxy.set("freeze")
            heard: dict[str, float] = {}
            for client in deaf:
                client.on_event = _listen(heard, client.user)
            # What was on its way may still have come in the first moment.
            settle = began + 0.3
            hearing_s = await until(lambda: _all(heard, len(deaf), settle), timeout_s=30, every_s=0.05)
            ground.healed()
            await asyncio.sleep(5)
            replies = answers(people, _ALLOWED)
        await quiet(ground)
        await ground.finish()
        return [
            told("clients on the deaf node", len(deaf)),
            at_most("deaf for", hearing_s if hearing_s is not None else 99, _DEAF_S, "s"),
            *replies,
            none("sockets lost", sum(len(client.resumes) for client in people)),
            told("events mended from the log", await ground.bus_count(victim, "repaired")),
            false_lefts(ground),
            *delivery(ground),
            counted(ground, "clients with a wrong picture", checks.finals(ground.history.entries)),
        ]


def _listen(heard: dict[str, float], user: str) -> Callable[[str, dict[str, Any], float], None]:
    def listen(name: str, data: dict[str, Any], at: float) -> None:
        if data.get("offset") is not None:
            heard[user] = time.monotonic()

    return listen


async def _all(heard: dict[str, float], count: int, since: float) -> bool:
    return sum(at > since for at in heard.values()) == count


HALF_OPEN = Scenario("half_open", "one node's links to Redis go silent without being closed", _play)
