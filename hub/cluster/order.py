"""In which order a node hears a room: pure. What comes out of turn is not delivered but looked up in the room's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from hub.cluster.envelope import Envelope, Head

# An event of a healthy bus is milliseconds old. An older one may be real (a stalled node), or a replay: the log knows.
FRESH_MS = 10_000
# How far two nodes' ideas of Redis' clock may be apart: a round trip of their heartbeats.
CLOCKS_MS = 50
# Held while the log is being read; what does not fit is in the log as well.
HELD = 1000
_SENDERS = 256

Arrival = tuple[Head, Envelope]
Verdict = Literal["deliver", "duplicate", "held"]


class Freshness:
    """Which messages of one channel are new: a sender's numbers only grow, and nothing is older than the
    subscription.
    """

    __slots__ = ("_numbers", "_since_ms")

    def __init__(self, since_ms: int) -> None:
        self._since_ms = since_ms
        self._numbers: dict[str, int] = {}

    def new(self, envelope: Envelope, now_ms: int) -> bool:
        young = envelope.at_ms >= max(self._since_ms, now_ms - FRESH_MS)
        return young and envelope.number > self._numbers.get(envelope.incarnation, -1)

    def note(self, envelope: Envelope) -> None:
        numbers = self._numbers
        if envelope.incarnation not in numbers and len(numbers) >= _SENDERS:
            del numbers[next(iter(numbers))]
        numbers[envelope.incarnation] = max(envelope.number, numbers.get(envelope.incarnation, -1))


class Repaired(msgspec.Struct, frozen=True):
    """What reading the log brought. `resynced`: events are missing for good; whoever is in the room needs a snapshot.

    `rolled_back`: the server lost events that were already delivered; the room needs a new epoch before anything else.
    """

    deliver: Sequence[Arrival] = ()
    resynced: bool = False
    rolled_back: bool = False


class RoomOrder:
    """The position of one room, or of what is meant for one user, on this node."""

    __slots__ = ("_asked", "_fresh", "_held", "_last_id", "_overflowed", "epoch", "last", "repairing")

    def __init__(self, head: Head, last: Envelope | None, now_ms: int) -> None:
        self.epoch = head.epoch
        self.last = head.offset
        # Who sent the event at `last`: tells a log that lost its end and grew again from the one we know.
        self._last_id = _identity(last)
        # What was stamped about now may have been recorded before, and sent again by somebody else: the log knows.
        self._fresh = Freshness(now_ms + CLOCKS_MS)
        if last is not None:
            self._fresh.note(last)
        self._held: list[Arrival] = []
        self._asked = 0
        self._overflowed = False
        self.repairing = False

    def arrive(self, head: Head, envelope: Envelope, now_ms: int) -> Verdict:
        """`held`: the log has to be read; the event waits until `repaired`."""
        if head.epoch == self.epoch and head.offset <= self.last:
            return "duplicate"
        in_turn = head.epoch == self.epoch and head.offset == self.last + 1 and envelope.kind == "recorded"
        if in_turn and not self.repairing and self._fresh.new(envelope, now_ms):
            self._advance(head, envelope)
            return "deliver"
        self.repairing = True
        if len(self._held) < HELD:
            self._held.append((head, envelope))
        else:
            self._overflowed = True
        return "held"

    def ask(self) -> None:
        """The log is going to be read now: what is held so far must be in it, if it was recorded at all."""
        self.repairing = True
        self._asked = len(self._held)
        self._overflowed = False

    def repaired(self, head: Head, entries: Sequence[Arrival]) -> Repaired:
        """Take the log as read: where it stands, and its entries from `last` on, that one included if it is there."""
        if head.epoch != self.epoch:
            self._jump(head, entries)
            return Repaired(resynced=True)
        known = [envelope for at, envelope in entries if at.offset == self.last]
        if head.offset < self.last or (known and self._last_id and _identity(known[0]) != self._last_id):
            return Repaired(rolled_back=True)
        missed = [arrival for arrival in entries if arrival[0].offset > self.last]
        if [at.offset for at, _ in missed] != list(range(self.last + 1, head.offset + 1)):
            self._jump(head, entries)
            return Repaired(resynced=True)
        for at, envelope in missed:
            self._advance(at, envelope)
        return Repaired(deliver=missed)

    def release(self) -> tuple[int, list[Arrival], bool]:
        """After `repaired`: how many of those held before `ask` nobody recorded, those that came later, to let them
        arrive again, and whether more came later than could be held.
        """
        before, later = self._held[: self._asked], self._held[self._asked :]
        forged = sum(head.epoch == self.epoch and head.offset > self.last for head, _ in before)
        self._held, self._asked, self.repairing = [], 0, False
        return forged, later, self._overflowed

    def hold_again(self, arrivals: list[Arrival]) -> None:
        self._held += arrivals

    def heard(self, envelope: Envelope) -> bool:
        return self._fresh._numbers.get(envelope.incarnation, -1) >= envelope.number

    def _jump(self, head: Head, entries: Sequence[Arrival]) -> None:
        self.epoch, self.last = head.epoch, head.offset
        last = [envelope for at, envelope in entries if at == head]
        self._last_id = _identity(last[0]) if last else None

    def _advance(self, head: Head, envelope: Envelope) -> None:
        self.last = head.offset
        self._last_id = _identity(envelope)
        self._fresh.note(envelope)


def _identity(envelope: Envelope | None) -> tuple[str, int] | None:
    return (envelope.incarnation, envelope.number) if envelope is not None else None
