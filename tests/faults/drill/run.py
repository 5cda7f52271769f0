"""One scenario after the other, each on its own ground; what breaks in one does not end the others."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.faults.drill.figures import Figure, Outcome
from tests.faults.drill.ground import Servers, ground
from tests.faults.drill.plan import Plan, Scenario

# Beyond what a scenario takes by itself: nothing here may hang for ever.
_LIMIT_S = 900.0


async def play(servers: Servers, scenario: Scenario, plan: Plan, *, keep: Path | None = None) -> Outcome:
    """`keep`: where to write the history."""
    started = time.monotonic()
    figures: list[Figure] = []
    broke = ""
    async with ground(servers) as place:
        try:
            async with asyncio.timeout(_LIMIT_S + plan.minutes * 60):
                figures = list(await scenario.play(place, plan))
        except Exception as error:
            broke = f"{type(error).__name__}: {_reason(error)}"
        if keep is not None:
            place.history.write(keep / f"{scenario.name}.jsonl")
            for number, node in enumerate(place.nodes):
                (keep / f"{scenario.name}-node-{number}.log").write_text(node.log())
        return Outcome(scenario.name, time.monotonic() - started, figures, place.found, broke)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
