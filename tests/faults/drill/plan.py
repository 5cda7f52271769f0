"""How large a drill is."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.faults.drill.figures import Figure
from tests.faults.drill.ground import Ground


@dataclass(frozen=True)
class Plan:
    # Of the scenario's own number where None.
    clients: int | None = None
    minutes: float = 10.0
    seed: int = 0
    # How long the hub waits for somebody whose socket is lost, and how long faults last, in smoke tests.
    short: bool = False
    random: random.Random = field(default_factory=random.Random)

    def people(self, default: int) -> int:
        return default if self.clients is None else self.clients


Play = Callable[[Ground, Plan], Awaitable[Sequence[Figure]]]


@dataclass(frozen=True)
class Scenario:
    name: str
    summary: str
    play: Play
