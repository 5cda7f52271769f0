"""Measure the hub beside Node's Socket.IO, python-socketio as it comes, Centrifugo's library and what a kernel allows.

Each server has one core, the load client another. Servers take turns; the figures are medians, and ratios are taken
between runs that followed each other. A lost, doubled, overtaken or refused message of the hub makes it exit with 1.
"""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

from tests.bench import machine, plot, report, rows
from tests.bench.build import HERE, Missing
from tests.bench.runs import Batch, Plan
from tests.bench.servers import BARE, CENTRIFUGE, HUB, NODE, SERVERS, STOCK, Lab

# Ten thousand connections, and some.
_FILES = 12_000
# The others are slow: one to come up, one to build.
_QUICK_SERVERS = (HUB, NODE, BARE)


def main() -> int:
    options = _options()
    if sys.platform != "linux":
        sys.exit("bench: the load client needs epoll, and cores to be pinned: Linux only")
    _allow_files()
    here = machine.look()
    _say(f"{here.cpu}, {here.cores} cores, load {here.load}")
    if here.load > 1.5:
        _say("the machine is busy: the figures will say more about that than about the servers")
    plan = Plan(
        measurements=_chosen(options.rows, options.quick),
        servers=options.servers or (_QUICK_SERVERS if options.quick else SERVERS),
        runs=options.runs or (1 if options.quick else 3),
        quick=options.quick,
        dur_s=options.dur or (1.0 if options.quick else 3.0),
        warm_s=0.4 if options.quick else 1.0,
    )
    try:
        lab = Lab(here, tuple(plan.servers), say=_say, preferred=options.prefer)
    except Missing as reason:
        sys.exit(f"bench: {reason}")
    for name, why in lab.missing.items():
        _say(f"left out: {name}: {why}")
    try:
        batch = Batch(lab, plan, _say)
        made = report.Report(
            machine=here,
            command=shlex.join(["scripts/bench", *sys.argv[1:]]),
            versions=_versions(),
            missing=lab.missing,
            faults=batch.faults,
            rows=batch.rows(),
        )
    finally:
        lab.close()
    print(report.markdown(made) if options.markdown else report.table(made))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    if options.plot:
        options.plot.write_text(plot.svg(made))
    return 1 if batch.hub_failed or HUB in lab.missing else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run each, in about a minute")
    parser.add_argument("--rows", type=_words, help="only what these come from, as in fanout_1000,ack")
    parser.add_argument("--servers", type=_words, help=f"only these of {','.join(SERVERS)}")
    parser.add_argument("--runs", type=int, help="runs of each server in each row (3)")
    parser.add_argument("--dur", type=float, help="seconds of a run (3)")
    parser.add_argument("--prefer", action="store_true", help="before whatever else runs on this machine (needs root)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every run there")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the rows there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    for given, known in ((options.rows, report.names()), (options.servers, SERVERS)):
        unknown = set(given or ()) - set(known)
        if unknown:
            parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _chosen(wanted: tuple[str, ...] | None, quick: bool) -> list[rows.Measurement]:
    if wanted is None:
        return [each for each in rows.MEASUREMENTS if not (quick and each.long)]
    return [each for each in rows.MEASUREMENTS if any(figure.row in wanted for figure in each.figures)]


def _versions() -> dict[str, str]:
    lock = msgspec.json.decode((HERE / "peers" / "node" / "package-lock.json").read_bytes())
    go = next(
        line.split()[-1]
        for line in (HERE / "peers/centrifuge/go.mod").read_text().splitlines()
        if "/centrifuge v" in line
    )
    return {
        NODE: lock["packages"]["node_modules/socket.io"]["version"],
        STOCK: version("python-socketio"),
        CENTRIFUGE: go,
    }


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < _FILES:
        _say(f"only {wanted} open files are allowed here: rooms of 10,000 will not come up")


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
