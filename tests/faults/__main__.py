"""Break things under a running hub, and see whether it keeps what it promises.

Real nodes as processes, a real Valkey and PostgreSQL of our own on 127.0.0.1; LiveKit is a stand-in, since no media
flows. Exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import shlex
import sys
from pathlib import Path

import msgspec

from tests.bench import machine
from tests.faults.drill.figures import Outcome, Report, table
from tests.faults.drill.ground import prepare, servers
from tests.faults.drill.plan import Plan, Scenario
from tests.faults.drill.run import play
from tests.faults.scenarios import SCENARIOS

# Thousands of sockets, each open on both sides.
_FILES = 12_000


def main() -> int:
    options = _options()
    if options.list:
        for each in SCENARIOS.values():
            print(f"{each.name:<14}{each.summary}")
        return 0
    _allow_files()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    random.seed(seed)
    _say(f"seed {seed}")
    plan = Plan(clients=options.clients, minutes=options.minutes, seed=seed, short=options.short)
    chosen = [SCENARIOS[name] for name in options.only or SCENARIOS]
    outcomes = asyncio.run(_play_all(chosen, plan, options.keep))
    if options.json:
        here = msgspec.to_builtins(machine.look())
        report = Report(here, shlex.join(["scripts/faults", *sys.argv[1:]]), seed, outcomes)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    broken = [each.scenario for each in outcomes if not each.kept]
    print(f"seed {seed}: " + (f"BROKEN in {', '.join(broken)}" if broken else "every promise kept"))
    return 1 if broken else 0


async def _play_all(chosen: list[Scenario], plan: Plan, keep: Path | None) -> list[Outcome]:
    outcomes = []
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with servers() as running:
        await prepare(running)
        for scenario in chosen:
            _say(f"{scenario.name}: {scenario.summary}")
            outcome = await play(running, scenario, plan, keep=keep)
            print(table(outcome), flush=True)
            outcomes.append(outcome)
    return outcomes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--list", action="store_true", help="say which scenarios there are")
    parser.add_argument("--only", type=_words, help="only these, as in killed,half_open")
    parser.add_argument("--clients", type=int, help="how many people, instead of each scenario's own number")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long `history` goes on (10)")
    parser.add_argument("--seed", type=int, help="of everything that is left to chance; printed in any case")
    parser.add_argument("--short", action="store_true", help="shorter faults: for a look, not for a verdict")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write what every client did and heard there")
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(SCENARIOS)
    if unknown:
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    if options.clients is not None and options.clients < 3:
        parser.error("--clients: three at least")
    return options


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say(text: str) -> None:
    print(f"faults: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
