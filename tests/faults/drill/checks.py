"""Whether a history keeps the promises: pure functions from entries to violations, to be run when all is over."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tests.faults.drill.history import (
    Cut,
    Entry,
    Fail,
    Fault,
    Final,
    Gone,
    Healed,
    Heard,
    Info,
    Invoke,
    Ok,
    Picture,
    Roster,
)

# How long somebody who was put out may still hear the room where no fault explains it, and after the last one.
PUT_OUT_S = 5.0
ROSTER_S = 5.0


class Violation(msgspec.Struct, frozen=True):
    check: str
    at: float
    text: str


@dataclass
class Op:
    """One command from end to end."""

    invoke: Invoke
    outcome: Ok | Fail | Info | None = None

    @property
    def acked(self) -> bool:
        return isinstance(self.outcome, Ok)


@dataclass
class Stay:
    """One client in one room, from the join to the end of it, over all its sockets."""

    client: str
    call: str
    began: float
    ended: float | None = None
    taken: list[Picture | Heard] = field(default_factory=list)


def ops(history: Iterable[Entry]) -> dict[int, Op]:
    found: dict[int, Op] = {}
    for entry in history:
        if isinstance(entry, Invoke):
            found[entry.op] = Op(entry)
        elif isinstance(entry, Ok | Fail | Info):
            found[entry.op].outcome = entry
    return found


def stays(history: Iterable[Entry]) -> dict[int, Stay]:
    found: dict[int, Stay] = {}
    for entry in history:
        if isinstance(entry, Picture | Heard):
            stay = found.setdefault(entry.stay, Stay(entry.client, entry.call, entry.at))
            stay.taken.append(entry)
        elif isinstance(entry, Gone) and entry.stay in found:
            found[entry.stay].ended = entry.at
    return found


def order(history: Sequence[Entry]) -> list[Violation]:
    """Everybody finds the same event at the same position of a room."""
    found: dict[tuple[str, str, int], tuple[str, str]] = {}
    wrong = []
    for entry in history:
        if not isinstance(entry, Heard) or entry.offset is None:
            continue
        first, name = found.setdefault((entry.call, entry.epoch, entry.offset), (entry.digest, entry.name))
        if first != entry.digest:
            text = f"{entry.client} has {entry.name} at {entry.epoch}:{entry.offset}, others have {name}"
            wrong.append(Violation("order", entry.at, text))
    return wrong


def gaps(history: Sequence[Entry]) -> list[Violation]:
    """From one snapshot to the next, nobody misses a position and nobody gets one twice."""
    at: dict[int, tuple[str, int]] = {}
    wrong = []
    for entry in history:
        if isinstance(entry, Picture):
            if entry.recovered and entry.stay in at:
                if entry.epoch != at[entry.stay][0]:
                    text = f"{entry.client} was recovered from {at[entry.stay][0]} into another epoch {entry.epoch}"
                    wrong.append(Violation("gaps", entry.at, text))
                continue
            at[entry.stay] = (entry.epoch, entry.offset)
        elif isinstance(entry, Heard) and entry.offset is not None:
            epoch, offset = at.get(entry.stay, ("", -1))
            if (entry.epoch, entry.offset) != (epoch, offset + 1):
                text = f"{entry.client} took {entry.epoch}:{entry.offset} after {epoch}:{offset}"
                wrong.append(Violation("gaps", entry.at, text))
            at[entry.stay] = (entry.epoch, entry.offset)
    return wrong


def doubles(history: Sequence[Entry]) -> list[Violation]:
    """One command has one effect, however often it was sent; a refused one has none."""
    places: dict[tuple[str, str, int], dict[tuple[str, int], float]] = defaultdict(dict)
    for entry in history:
        if isinstance(entry, Heard) and entry.mark and entry.offset is not None:
            places[(entry.call, entry.user, entry.mark)].setdefault((entry.epoch, entry.offset), entry.at)
    wrong = []
    for (_, user, mark), found in places.items():
        if len(found) > 1:
            text = f"change {mark} of {user} happened {len(found)} times: {sorted(found)}"
            wrong.append(Violation("doubles", max(found.values()), text))
    for op in ops(history).values():
        asked = op.invoke
        if not isinstance(op.outcome, Fail) or not asked.mark:
            continue
        happened = places.get((asked.call, asked.client, asked.mark))
        if happened:
            text = f"change {asked.mark} of {asked.client} was refused ({op.outcome.code}) and happened"
            wrong.append(Violation("doubles", min(happened.values()), text))
    return wrong


def losses(history: Sequence[Entry]) -> list[Violation]:
    """What was acked reaches everybody whose stay covers it: as an event, or in a snapshot that tells of it."""
    acked = [op for op in ops(history).values() if op.acked and op.invoke.mark]
    by_call: dict[str, list[Op]] = defaultdict(list)
    for op in acked:
        by_call[op.invoke.call].append(op)
    wrong = []
    for stay in stays(history).values():
        # Of a stay that ended, `gaps` speaks: what was under way to it then need not arrive.
        if stay.ended is not None:
            continue
        wrong += _lost_to(stay, by_call[stay.call])
    return wrong


def _lost_to(stay: Stay, acked: Sequence[Op]) -> list[Violation]:
    heard = {(entry.user, entry.mark) for entry in stay.taken if isinstance(entry, Heard) and entry.mark}
    pictures = [entry for entry in stay.taken if isinstance(entry, Picture) and not entry.recovered]
    times = [picture.at for picture in pictures]
    wrong = []
    for op in acked:
        asked = op.invoke
        if asked.at < stay.began or (asked.client, asked.mark) in heard:
            continue
        later = pictures[bisect_right(times, asked.at) :]
        # Who is in no snapshot any more has taken their marks with them.
        if any(picture.marks.get(asked.client, asked.mark) >= asked.mark for picture in later):
            continue
        text = f"{stay.client} never learned of change {asked.mark} of {asked.client}, acked {asked.at:.3f}"
        wrong.append(Violation("losses", asked.at, text))
    return wrong


def capacity(history: Sequence[Entry], most: Mapping[str, int]) -> list[Violation]:
    """Never more people in a room at a time than it has seats, by what is certain and by what snapshots show."""
    asked = ops(history)
    inside: dict[str, set[str]] = defaultdict(set)
    # Who is being put out while they come in is not certain to be in.
    doubtful: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for entry in history:
        if isinstance(entry, Picture):
            if entry.by == "room:join" and not doubtful[entry.call][entry.client]:
                inside[entry.call].add(entry.client)
            if len(entry.marks) > most.get(entry.call, len(entry.marks)):
                text = f"a snapshot shows {len(entry.marks)} people in {most[entry.call]} seats"
                wrong.append(Violation("capacity", entry.at, text))
            if len(inside[entry.call]) > most.get(entry.call, len(inside[entry.call])):
                text = f"{len(inside[entry.call])} people are in {most[entry.call]} seats"
                wrong.append(Violation("capacity", entry.at, text))
        elif isinstance(entry, Cut):
            for people in inside.values():
                people.discard(entry.client)
        elif isinstance(entry, Gone):
            inside[entry.call].discard(entry.client)
        elif isinstance(entry, Invoke) and entry.command in ("room:leave", "participant:kick"):
            who = entry.target or entry.client
            inside[entry.call].discard(who)
            doubtful[entry.call][who] += entry.command == "participant:kick"
        elif isinstance(entry, Ok | Fail) and (op := asked[entry.op].invoke).command == "participant:kick":
            doubtful[op.call][op.target] -= 1
    return wrong


def put_out(history: Sequence[Entry]) -> list[Violation]:
    """Who was kicked hears the room no longer, unless they came in again."""
    kicks = [op for op in ops(history).values() if op.acked and op.invoke.command == "participant:kick"]
    trouble = _trouble(history)
    wrong = []
    mine: dict[tuple[str, str], list[Stay]] = defaultdict(list)
    for stay in stays(history).values():
        mine[(stay.client, stay.call)].append(stay)
    for op in kicks:
        assert op.outcome is not None
        until = _calm_after(op.outcome.at, trouble) + PUT_OUT_S
        for stay in mine[(op.invoke.target, op.invoke.call)]:
            if stay.began > op.invoke.at or (stay.ended is not None and stay.ended <= until):
                continue
            again = any(
                isinstance(entry, Picture) and entry.by == "room:join" and entry.at > op.invoke.at
                for entry in stay.taken
            )
            late = [entry for entry in stay.taken if isinstance(entry, Heard) and entry.at > until]
            if late and not again:
                text = f"{stay.client} was kicked at {op.outcome.at:.3f} and still heard {late[0].name}"
                wrong.append(Violation("put_out", late[0].at, text))
    return wrong


def _trouble(history: Iterable[Entry]) -> list[tuple[float, float]]:
    """From a fault to its healing; without an end where it never healed."""
    found: list[tuple[float, float]] = []
    since: float | None = None
    for entry in history:
        if isinstance(entry, Fault) and since is None:
            since = entry.at
        elif isinstance(entry, Healed) and since is not None:
            found.append((since, entry.at))
            since = None
    if since is not None:
        found.append((since, float("inf")))
    return found


def _calm_after(at: float, trouble: Sequence[tuple[float, float]]) -> float:
    # What begins within the time that is allowed counts as well.
    for began, ended in trouble:
        if began <= at + PUT_OUT_S and at <= ended:
            at = ended
    return at


def rosters(history: Sequence[Entry]) -> list[Violation]:
    """Five seconds after a heal the hub shows who is there, and goes on doing so until the next fault."""
    wrong = []
    healed: float | None = None
    for entry in history:
        if isinstance(entry, Fault):
            healed = None
        elif isinstance(entry, Healed):
            healed = entry.at
        elif isinstance(entry, Roster) and healed is not None and entry.at >= healed + ROSTER_S:
            missing, ghosts = set(entry.truth) - set(entry.shown), set(entry.shown) - set(entry.truth)
            if missing or ghosts:
                after = entry.at - healed
                text = f"{after:.1f} s after the heal: {len(missing)} are missing, {len(ghosts)} are ghosts"
                wrong.append(Violation("rosters", entry.at, f"{text} ({_few(missing)} / {_few(ghosts)})"))
    return wrong


def finals(history: Sequence[Entry]) -> list[Violation]:
    """A client that applied the events has the picture of one that came just now; and so everybody has the same."""
    wrong = []
    of_call: dict[str, tuple[tuple[str, int, bool], ...]] = {}
    for entry in history:
        if not isinstance(entry, Final):
            continue
        if entry.people != entry.fresh:
            more, less = set(entry.people) - set(entry.fresh), set(entry.fresh) - set(entry.people)
            text = f"{entry.client} sees {_few(more)}, a newcomer {_few(less)}"
            wrong.append(Violation("finals", entry.at, text))
        if of_call.setdefault(entry.call, entry.fresh) != entry.fresh:
            wrong.append(Violation("finals", entry.at, f"two snapshots of {entry.call} differ"))
    return wrong


def false_lefts(history: Sequence[Entry]) -> list[Violation]:
    """Nobody is said to have left for a lost connection while their stay went on.

    For drills in which everybody comes back in time.
    """
    mine = {(stay.client, stay.call): stay for stay in stays(history).values() if stay.ended is None}
    wrong = []
    for entry in history:
        if isinstance(entry, Heard):
            for user, reason in entry.left:
                if (user, entry.call) in mine and entry.at > mine[(user, entry.call)].began:
                    text = f"{entry.client} was told that {user} left ({reason})"
                    wrong.append(Violation("false_lefts", entry.at, text))
    return wrong


CHECKS: Mapping[str, Callable[[Sequence[Entry]], list[Violation]]] = {
    "order": order,
    "gaps": gaps,
    "doubles": doubles,
    "losses": losses,
    "put_out": put_out,
    "rosters": rosters,
    "finals": finals,
}


def all_of(history: Sequence[Entry], most: Mapping[str, int] | None = None) -> list[Violation]:
    found = [violation for check in CHECKS.values() for violation in check(history)]
    return sorted([*found, *capacity(history, most or {})], key=lambda violation: violation.at)


def _few(some: Iterable[object]) -> str:
    listed = sorted(map(str, some))
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "nothing"
