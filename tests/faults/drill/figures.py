"""What a drill found: figures beside what was promised, for people and for programs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from tests.faults.drill.checks import Violation

_SHOWN = 5


class Figure(msgspec.Struct, frozen=True):
    """One number. `kept` None: it is told, not promised."""

    name: str
    value: float
    unit: str
    promise: str = ""
    kept: bool | None = None


class Outcome(msgspec.Struct, frozen=True):
    """One scenario, played."""

    scenario: str
    took_s: float
    figures: list[Figure]
    violations: list[Violation] = []
    # Why it could not be played to its end.
    broke: str = ""

    @property
    def kept(self) -> bool:
        return not self.broke and not self.violations and all(each.kept is not False for each in self.figures)


class Report(msgspec.Struct, frozen=True):
    machine: Mapping[str, str | int | float]
    command: str
    seed: int
    outcomes: list[Outcome]


def at_most(name: str, value: float, bound: float, unit: str) -> Figure:
    return Figure(name, round(value, 3), unit, f"≤ {bound:g}", value <= bound)


def at_least(name: str, value: float, bound: float, unit: str) -> Figure:
    return Figure(name, round(value, 3), unit, f"≥ {bound:g}", value >= bound)


def none(name: str, value: float) -> Figure:
    return Figure(name, value, "", "0", value == 0)


def told(name: str, value: float, unit: str = "") -> Figure:
    return Figure(name, round(value, 3), unit)


def percentile(values: Sequence[float], share: float) -> float:
    """0 where there are none."""
    if not values:
        return 0.0
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=1000, method="inclusive")[min(998, max(0, round(share * 1000) - 1))]


def table(outcome: Outcome) -> str:
    lines = [f"{outcome.scenario} ({outcome.took_s:.0f} s)"]
    for each in outcome.figures:
        mark = {True: "kept", False: "BROKEN", None: ""}[each.kept]
        value = f"{each.value:g} {each.unit}".strip()
        lines.append(f"  {each.name:<58}{value:>14}  {each.promise:<10}{mark}".rstrip())
    for violation in outcome.violations[:_SHOWN]:
        lines.append(f"  ! {violation.check}: {violation.text}")
    if len(outcome.violations) > _SHOWN:
        lines.append(f"  ! and {len(outcome.violations) - _SHOWN} more")
    if outcome.broke:
        lines.append(f"  ! could not be played to its end: {outcome.broke}")
    return "\n".join(lines)
