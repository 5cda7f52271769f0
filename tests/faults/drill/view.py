"""What a client knows of one room, by the rules every client has to keep: positions, holes, snapshots. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Verdict = Literal["apply", "repeat", "hole"]
_IN = frozenset({"joined", "reconnecting"})


class Person(msgspec.Struct, frozen=True):
    """Somebody in the room, as far as the drills look at them."""

    user: str
    status: str
    role: str
    # The number of their last change, which they write into their metadata.
    mark: int


class View:
    """One room as one client sees it."""

    def __init__(self) -> None:
        self.epoch = ""
        self.offset = -1
        self.people: dict[str, Person] = {}
        self.hands: tuple[str, ...] = ()

    @property
    def position(self) -> dict[str, Any] | None:
        """As `since`; None before the first snapshot."""
        return {"epoch": self.epoch, "offset": self.offset} if self.epoch else None

    @property
    def present(self) -> frozenset[str]:
        return frozenset(person.user for person in self.people.values() if person.status in _IN)

    def summary(self) -> tuple[tuple[str, int, bool], ...]:
        """Who is here, with the number of their last change and whether their hand is up."""
        there = [(key, each) for key, each in self.people.items() if each.status in _IN]
        return tuple(sorted((each.user, each.mark, key in self.hands) for key, each in there))

    def place(self, epoch: str, offset: int) -> Verdict:
        """What is to be done with a recorded event that comes at this position."""
        if epoch == self.epoch and offset <= self.offset:
            return "repeat"
        return "apply" if epoch == self.epoch and offset == self.offset + 1 else "hole"

    def picture(self, answer: Mapping[str, Any]) -> None:
        """A snapshot in place of everything known."""
        self.epoch, self.offset = answer["position"]["epoch"], answer["position"]["offset"]
        self.people = {each["participant_id"]: person(each) for each in answer["participants"]}
        self.hands = tuple(hand["participant_id"] for hand in answer["hands"])

    def apply(self, name: str, data: Mapping[str, Any]) -> None:
        """An event that is next, or one without a position."""
        if data.get("offset") is not None:
            self.epoch, self.offset = data["epoch"], data["offset"]
        match name:
            case "participant:joined":
                self.people |= {each["participant_id"]: person(each) for each in data["participants"]}
            case "participant:left":
                gone = {each["participant_id"] for each in data["participants"]}
                self.people = {key: each for key, each in self.people.items() if key not in gone}
                self.hands = tuple(hand for hand in self.hands if hand not in gone)
            case "participant:updated":
                changed = data["participant"]
                # Somebody who has left is not brought back by what was said about them before.
                if changed["participant_id"] in self.people:
                    self.people[changed["participant_id"]] = person(changed)
            case "hand:raised" | "hand:lowered":
                self.hands = tuple(hand["participant_id"] for hand in data["queue"])


def person(shown: Mapping[str, Any]) -> Person:
    return Person(shown["user_id"], shown["status"], shown["role"], mark(shown))


def mark(shown: Mapping[str, Any]) -> int:
    found = shown["metadata"].get("mark", 0)
    return found if isinstance(found, int) else 0


def digest(name: str, data: Any) -> str:
    """The same for the same event, whichever way it came: pushed, or among the missed."""
    text = msgspec.json.encode([name, data], order="deterministic")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def own_mark(name: str, data: Mapping[str, Any]) -> tuple[str, int] | None:
    """Whose change, and which, where an event is somebody's change of themselves."""
    if name != "participant:updated":
        return None
    about, by = data["participant"], data.get("by") or {}
    if by.get("user_id") != about["user_id"] or not mark(about):
        return None
    return about["user_id"], mark(about)


def left(name: str, data: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Who left by this event, with the reason."""
    if name != "participant:left":
        return ()
    return [(each["user_id"], each.get("left_reason") or "") for each in data["participants"]]
