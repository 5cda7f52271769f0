"""The figures of a batch: medians, ratios within it, and how they stand to what was aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from tests.bench.machine import Machine
from tests.bench.rows import MEASUREMENTS, Figure, Goal, Measurement
from tests.bench.servers import BARE, CENTRIFUGE, HUB, NODE, SERVERS, STOCK, TITLES

Values = Mapping[str, Sequence[float | None]]
"""By server, one value a run; None where that run failed."""


class Row(msgspec.Struct, kw_only=True, omit_defaults=False):
    name: str
    unit: str
    what: str
    better: Literal["more", "less"]
    runs: int
    hub: float | None
    node: float | None
    stock: float | None
    bare: float | None
    centrifuge: float | None
    ratio_node: float | None
    ratio_bare: float | None
    goal: str
    # None where something that the goal speaks of was not measured.
    reached: bool | None
    # Saturated runs in which the load client was as busy as the server: the figure is then its limit.
    client_bound: list[str]
    values: dict[str, list[float | None]]


class Report(msgspec.Struct, kw_only=True):
    machine: Machine
    command: str
    versions: dict[str, str]
    missing: dict[str, str]
    # Whatever went wrong, in words: lost, doubled, overtaken or refused messages, and runs that failed.
    faults: list[str]
    rows: list[Row]


def row(figure: Figure, measurement: Measurement, values: Values, client_bound: Sequence[str]) -> Row:
    medians = {name: _median(values.get(name, ())) for name in SERVERS}
    ratio_node, ratio_bare = _ratio(values, NODE), _ratio(values, BARE)
    return Row(
        name=figure.row,
        unit=figure.unit,
        what=measurement.what,
        better=figure.better,
        runs=max((len(runs) for runs in values.values()), default=0),
        hub=medians[HUB],
        node=medians[NODE],
        stock=medians[STOCK],
        bare=medians[BARE],
        centrifuge=medians[CENTRIFUGE],
        ratio_node=ratio_node,
        ratio_bare=ratio_bare,
        goal=_words(figure.goal, figure.better),
        reached=_reached(figure, medians[HUB], ratio_node, ratio_bare),
        client_bound=list(client_bound),
        values={name: list(runs) for name, runs in values.items()},
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratio(values: Values, other: str) -> float | None:
    """The median of the ratios of runs that followed each other: what slows the machine for a while slows both."""
    pairs = zip(values.get(HUB, ()), values.get(other, ()), strict=False)
    ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    return statistics.median(ratios) if ratios else None


def _reached(figure: Figure, ours: float | None, ratio_node: float | None, ratio_bare: float | None) -> bool | None:
    goal = figure.goal
    pairs = [
        (wanted, got)
        for wanted, got in ((goal.node, ratio_node), (goal.bare, ratio_bare), (goal.figure, ours))
        if wanted is not None
    ]
    if not pairs or any(got is None for _, got in pairs):
        return None
    return all(got >= wanted if figure.better == "more" else got <= wanted for wanted, got in pairs if got is not None)


def _words(goal: Goal, better: str) -> str:
    sign = "≥" if better == "more" else "≤"
    parts = []
    if goal.node is not None:
        parts.append(f"{sign} {goal.node:g} × Node")
    if goal.bare is not None:
        parts.append(f"{sign} {goal.bare:g} × bare")
    if goal.figure is not None:
        parts.append(f"{sign} {goal.figure:g}")
    return ", ".join(parts)


# For people

_COLUMNS = (HUB, NODE, STOCK, BARE, CENTRIFUGE)
_HEADS = ("hub", "Node", "stock", "bare", "centrifuge")


def table(report: Report) -> str:
    lines = [
        f"{'row':<19}{'unit':<17}" + "".join(f"{head:>11}" for head in _HEADS) + f"{'×Node':>8}{'×bare':>7}  goal",
    ]
    for each in report.rows:
        figures = "".join(f"{_short(getattr(each, name), name in each.client_bound):>11}" for name in _COLUMNS)
        ratios = f"{_ratio_text(each.ratio_node):>8}{_ratio_text(each.ratio_bare):>7}"
        lines.append(f"{each.name:<19}{each.unit:<17}{figures}{ratios}  {_verdict(each)}")
    lines += ["", *_footnotes(report)]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    lines = [
        "| | hub | Node | stock | bare C | Centrifugo | × Node | × bare |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in report.rows:
        figures = " | ".join(_short(getattr(each, name), name in each.client_bound) for name in _COLUMNS)
        ratios = f"{_ratio_text(each.ratio_node)} | {_ratio_text(each.ratio_bare)}"
        lines.append(f"| {each.what} (`{each.name}`, {each.unit}) | {figures} | {ratios} |")
    machine = report.machine
    lines += ["", f"{machine.cpu}, {machine.kernel}, Python {machine.python}, Node {machine.node}; `{report.command}`"]
    return "\n".join(lines)


def _footnotes(report: Report) -> list[str]:
    machine = report.machine
    notes = [
        f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}, Node {machine.node};"
        f" server on core {machine.server_core}, client on core {machine.client_core}",
        "medians; ratios are medians of runs side by side; ~ the load client was the limit",
    ]
    if machine.load > 1:
        notes.append(f"the machine was busy when this began (load {machine.load}): trust ratios only, and those little")
    notes += [f"left out: {TITLES[name]}: {reason}" for name, reason in report.missing.items()]
    return notes + [f"FAULT: {fault}" for fault in report.faults]


def _verdict(each: Row) -> str:
    mark = {True: "reached", False: "MISSED", None: ""}[each.reached]
    return f"{each.goal}  {mark}".strip()


def _short(value: float | None, client_bound: bool) -> str:
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"~{text}" if client_bound else text


def _ratio_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def names() -> list[str]:
    """Of all rows, in their order."""
    return [figure.row for measurement in MEASUREMENTS for figure in measurement.figures]
