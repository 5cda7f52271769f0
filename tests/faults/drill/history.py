"""What clients did and heard in a drill, in the order in which it happened; kept in memory, written out where asked.

All times are of one monotonic clock: every client lives in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

_MOST = 5_000_000


class _Entry(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    at: float


class Invoke(_Entry, frozen=True):
    """A command leaves. `mark`: the number a `participant:update` carries; `target`: whom it is about."""

    op: int
    client: str
    command: str
    call: str
    mark: int = 0
    target: str = ""


class Ok(_Entry, frozen=True):
    op: int


class Fail(_Entry, frozen=True):
    """Refused with a code that says that nothing happened."""

    op: int
    code: str


class Info(_Entry, frozen=True):
    """Nobody knows whether it happened: no answer, or one that leaves it open."""

    op: int
    code: str


class Picture(_Entry, frozen=True):
    """A snapshot or a recovery. Recovered: what was missed follows as `Heard`. `by`: the command it answered."""

    client: str
    stay: int
    call: str
    by: str
    epoch: str
    offset: int
    recovered: bool
    # Of everybody in the room: their last mark.
    marks: dict[str, int]
    hands: tuple[str, ...] = ()


class Heard(_Entry, frozen=True):
    """An event that the client took as the next one. `offset` None: of a degraded node, without a position."""

    client: str
    stay: int
    call: str
    epoch: str
    offset: int | None
    name: str
    digest: str
    # Whose change of themselves, and its number.
    user: str = ""
    mark: int = 0
    # Who left by it: user and reason.
    left: tuple[tuple[str, str], ...] = ()


class Cut(_Entry, frozen=True):
    """The client lost its socket; its stays go on."""

    client: str


class Gone(_Entry, frozen=True):
    """The stay is over: left, kicked, refused."""

    client: str
    stay: int
    call: str
    why: str


class Delayed(_Entry, frozen=True):
    """The client could not come back into a room, or sync it, for now."""

    client: str
    call: str
    command: str
    code: str


class Fault(_Entry, frozen=True):
    what: str


class Healed(_Entry, frozen=True):
    """Everything runs again."""


class Roster(_Entry, frozen=True):
    """Who the hub says is live in a room, and who is, by session; taken while nothing changed on the clients' side."""

    call: str
    shown: tuple[str, ...]
    truth: tuple[str, ...]


class Final(_Entry, frozen=True):
    """At the very end, with nothing under way: what a client has put together from events, as (user, mark, hand up)."""

    client: str
    stay: int
    call: str
    epoch: str
    offset: int
    people: tuple[tuple[str, int, bool], ...]
    # The same from a fresh snapshot.
    fresh: tuple[tuple[str, int, bool], ...]


Entry = Invoke | Ok | Fail | Info | Picture | Heard | Cut | Gone | Delayed | Fault | Healed | Roster | Final


class History:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        # What clients got again below their position: filtered, and no violation.
        self.repeats = 0
        self._ops = 0
        self._stays = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def add(self, entry: Entry) -> None:
        if len(self.entries) >= _MOST:
            raise OverflowError("the history is too long to be checked")
        self.entries.append(entry)

    def next_op(self) -> int:
        self._ops += 1
        return self._ops

    def next_stay(self) -> int:
        self._stays += 1
        return self._stays

    def write(self, file: Path) -> None:
        with file.open("wb") as out:
            for entry in self.entries:
                out.write(msgspec.json.encode(entry) + b"\n")


def read(file: Path) -> list[Entry]:
    decoder = msgspec.json.Decoder(Entry)
    with file.open("rb") as lines:
        return [decoder.decode(line) for line in lines]
