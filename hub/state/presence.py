"""What a person looks like to others, out of all their devices and of what they chose. Pure.

A choice (away, busy, invisible) goes before being in a call, that before merely being connected. `online` is the choice
to have none. Who is invisible looks like somebody who went when they became so.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import msgspec

Chosen = Literal["online", "away", "busy", "invisible"]
Shown = Literal["online", "away", "busy", "in_call", "offline", "invisible"]
"""`invisible` is shown to nobody but its owner."""


class Choice(msgspec.Struct, frozen=True):
    status: Chosen
    text: str | None
    at: datetime


class Known(msgspec.Struct, frozen=True):
    """`devices`: of each connected one (a lost one counts until its grace is over), whether it is in a call."""

    devices: tuple[bool, ...] = ()
    choice: Choice | None = None
    last_seen: datetime | None = None


class Presence(msgspec.Struct, frozen=True):
    """`last_seen` is there while offline; None where nobody knows."""

    status: Shown
    text: str | None = None
    last_seen: datetime | None = None


UNKNOWN = Presence("offline")


def merged(devices: Iterable[bool], choice: Choice | None, last_seen: datetime | None) -> Presence:
    """As others see it."""
    shown = own(devices, choice, last_seen)
    if shown.status == "invisible" or (shown.status == "offline" and choice and choice.status == "invisible"):
        assert choice is not None
        return Presence("offline", None, choice.at)
    return shown


def own(devices: Iterable[bool], choice: Choice | None, last_seen: datetime | None) -> Presence:
    """As the person themselves sees it."""
    devices = tuple(devices)
    if not devices:
        return Presence("offline", None, last_seen)
    text = choice.text if choice else None
    if choice is not None and choice.status != "online":
        return Presence(choice.status, text)
    return Presence("in_call" if any(devices) else "online", text)


def seen_by(known: Known, *, themselves: bool = False, hidden_since: datetime | None = None) -> Presence:
    """`hidden_since`: when the person blocked who is looking. For them the person went at that time, for good."""
    if themselves:
        return own(known.devices, known.choice, known.last_seen)
    shown = merged(known.devices, known.choice, known.last_seen)
    if hidden_since is None:
        return shown
    seen = shown.last_seen
    return Presence("offline", None, min(seen, hidden_since) if seen is not None else hidden_since)
