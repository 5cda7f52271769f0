"""Running the measurements: servers take turns, run by run, so that what slows the machine slows all of them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hub.embedded.process import EmbeddedError
from tests.bench import report
from tests.bench.machine import on_core, prefer
from tests.bench.rows import Measurement, Result
from tests.bench.servers import CENTRIFUGE, HUB, TITLES, Lab, Running, client_environment

# What the load client counts and must not find.
_WRONG = ("lost", "duplicated", "reordered", "foreign", "refused", "failed", "errors")
# Busier than this, and the client may have been what was slow.
_BUSY = 0.95
_LIMIT_S = 300


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    measurements: Sequence[Measurement]
    servers: Sequence[str]
    runs: int
    quick: bool
    dur_s: float
    warm_s: float


class RunFailed(Exception):
    """The text is for the person at the terminal."""


class Batch:
    """The measurements of one invocation, and everything that went wrong in them."""

    def __init__(self, lab: Lab, plan: Plan, say: Callable[[str], None]) -> None:
        self._lab, self._plan, self._say = lab, plan, say
        self.faults: list[str] = []
        # The hub itself lost, doubled or refused something: the benchmark has failed, whatever the figures.
        self.hub_failed = False
        self._done = 0
        self._all = sum(len(self._servers(each)) for each in plan.measurements) * plan.runs

    def rows(self) -> list[report.Row]:
        return [row for measurement in self._plan.measurements for row in self._measure(measurement)]

    def _servers(self, measurement: Measurement) -> list[str]:
        able = self._plan.servers
        return [name for name in measurement.servers if name in able and name not in self._lab.missing]

    def _measure(self, measurement: Measurement) -> list[report.Row]:
        servers = self._servers(measurement)
        results: dict[str, list[Result | None]] = {name: [] for name in servers}
        for number in range(self._plan.runs):
            # Another one begins every time: none is always the one that comes after a busy one.
            for name in servers[number % len(servers) :] + servers[: number % len(servers)]:
                results[name].append(self._run(measurement, name, number))
        bound = [name for name in servers if any(_client_bound(each) for each in results[name])]
        return [
            report.row(
                figure,
                measurement,
                {name: [figure.take(each) if each else None for each in runs] for name, runs in results.items()},
                bound if figure.better == "more" else (),
            )
            for figure in measurement.figures
        ]

    def _run(self, measurement: Measurement, name: str, number: int) -> Result | None:
        self._done += 1
        where = f"{measurement.figures[0].row}, {TITLES[name]}, run {number + 1}"
        try:
            with self._lab.running(name, measurement.setting) as running:
                result = self._load(measurement, name, running)
        except (EmbeddedError, RunFailed) as error:
            self._fault(name, f"{where}: {_briefly(str(error))}")
            return None
        wrong = {key: result[key] for key in _WRONG if result[key]}
        if wrong:
            self._fault(name, f"{where}: {', '.join(f'{count} {what}' for what, count in wrong.items())}")
        figures = ", ".join(f"{figure.take(result):,.4g} {figure.unit}" for figure in measurement.figures)
        self._say(f"[{self._done}/{self._all}] {where}: {figures}")
        return result

    def _load(self, measurement: Measurement, name: str, running: Running) -> Result:
        work = shlex.split(measurement.work)
        # Two nodes: the publisher is on the first, and everybody else on the second.
        ports = ["--port", ",".join(map(str, running.ports))]
        if "--apart" in work:
            work.remove("--apart")
            ports = ["--pub-port", str(running.ports[0]), "--port", str(running.ports[1])]
        # The last of an option counts.
        options = [work[0], "--dur", str(self._plan.dur_s), "--warm", str(self._plan.warm_s), *work[1:]]
        if self._plan.quick:
            options += shlex.split(measurement.quick)
        options += [
            *ports,
            "--pids",
            ",".join(map(str, running.pids)),
            "--tokens",
            str(self._lab.tokens),
            "--label",
            name,
        ]
        if name == CENTRIFUGE:
            options.append("--centrifugo")
        return load(self._lab, options)

    def _fault(self, name: str, text: str) -> None:
        self.faults.append(text)
        self.hub_failed |= name == HUB
        self._say(f"FAULT: {text}")


def load(lab: Lab, options: Sequence[str]) -> Result:
    """One run of the load client on its core. Raises RunFailed where it did not come to an end."""
    with on_core(lab.machine.client_core):
        client = subprocess.Popen(
            [str(lab.load_client), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=client_environment(),
            start_new_session=True,
        )
    if lab.preferred:
        prefer(client.pid)
    try:
        output, errors = client.communicate(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        client.kill()
        client.communicate()
        raise RunFailed(f"the load client ran for more than {_LIMIT_S} s") from None
    except BaseException:
        client.kill()
        client.wait()
        raise
    if client.returncode not in (0, 1):
        raise RunFailed(errors.strip()[-400:] or f"the load client ended with {client.returncode}")
    result: dict[str, Any] = json.loads(output)
    return result


def _briefly(text: str) -> str:
    """The first line, and of a traceback what it says in the end."""
    first, *rest = [line.strip(" |+-") for line in text.splitlines() if line.strip(" |+-")]
    return f"{first} {rest[-1]}"[:400] if rest else first[:400]


def _client_bound(result: Result | None) -> bool:
    return result is not None and result["rate"] == 0 and result.get("client_busy", 0) > _BUSY
