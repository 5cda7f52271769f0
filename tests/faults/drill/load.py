"""People who go on changing themselves while something breaks, and what became of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.faults.drill import checks
from tests.faults.drill.checks import Violation
from tests.faults.drill.client import Client, Resume
from tests.faults.drill.figures import Figure, at_least, at_most, none, percentile, told
from tests.faults.drill.ground import Ground

# The hub takes 20 changes in ten seconds of one person.
_EVERY_S = 1.0


@asynccontextmanager
async def senders(
    clients: Sequence[Client], *, every_s: float = _EVERY_S, patience_s: float = 60
) -> AsyncIterator[None]:
    """Each of them changes their number in their rooms every so often; on the way out, until the last is answered."""
    stop = asyncio.Event()

    async def one(client: Client) -> None:
        await asyncio.sleep(random.uniform(0, every_s))
        while not stop.is_set():
            for call in list(client.rooms):
                await client.update(call, patience_s=patience_s)
            try:
                async with asyncio.timeout(every_s * random.uniform(0.8, 1.2)):
                    await stop.wait()
            except TimeoutError:
                pass

    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(one(client))
        try:
            yield
        finally:
            stop.set()


def delivery(ground: Ground) -> list[Figure]:
    """The promises about events that hold whatever breaks."""
    history = ground.history.entries
    acked = sum(op.acked and bool(op.invoke.mark) for op in checks.ops(history).values())
    return [
        told("changes acked", acked),
        counted(ground, "acked changes lost", checks.losses(history)),
        counted(ground, "holes, repeats or jumps taken", checks.gaps(history)),
        counted(ground, "positions that members disagree on", checks.order(history)),
        counted(ground, "commands done twice, or done though refused", checks.doubles(history)),
    ]


def counted(ground: Ground, name: str, violations: Sequence[Violation]) -> Figure:
    ground.found += violations
    return none(name, len(violations))


def resumption(clients: Sequence[Client], *, share: float = 99.9, within_s: float = 5.0) -> list[Figure]:
    """How those came back who lost their socket."""
    resumes = [resume for client in clients for resume in client.resumes]
    return [*_times(resumes), *_shares(clients, resumes, share, within_s)]


def _times(resumes: Sequence[Resume]) -> list[Figure]:
    took = [resume.took_s for resume in resumes]
    return [
        told("came back", len(took)),
        told("back in the room, p50", percentile(took, 0.5), "s"),
        told("back in the room, p99", percentile(took, 0.99), "s"),
        told("back in the room, last", max(took, default=0.0), "s"),
    ]


def _shares(clients: Sequence[Client], resumes: Sequence[Resume], share: float, within_s: float) -> list[Figure]:
    away = sum(not client.settled.is_set() for client in clients)
    good = sum(resume.recovered and resume.took_s <= within_s for resume in resumes)
    every = len(resumes) + away
    return [
        at_least(f"resumed without a snapshot within {within_s:g} s", 100 * good / every if every else 100, share, "%")
    ]


def answers(clients: Sequence[Client], allowed: frozenset[str], *, within_s: float = 3.0) -> list[Figure]:
    """That everybody was answered, in time and with a code that fits."""
    every = [answer for client in clients for answer in client.answers]
    codes = Counter(code for _, code in every)
    wrong = sum(count for code, count in codes.items() if code not in allowed)
    slowest = max((seconds for seconds, code in every if code != "none"), default=0.0)
    known = [told(f"answered {code}", count) for code, count in sorted(codes.items())]
    return [
        *known,
        none("answered with a code that does not fit", wrong),
        at_most("slowest answer", slowest, within_s, "s"),
    ]


def false_lefts(ground: Ground) -> Figure:
    return counted(ground, "false participant:left", checks.false_lefts(ground.history.entries))


async def quiet(ground: Ground, seconds: float = 2.0) -> None:
    """Until nothing has been heard for a moment, at most ten times that."""
    give_up = time.monotonic() + 10 * seconds
    before = -1
    while time.monotonic() < give_up and before != len(ground.history.entries):
        before = len(ground.history.entries)
        await asyncio.sleep(seconds)
