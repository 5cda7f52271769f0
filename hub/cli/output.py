"""How the command line speaks: to people by default, as JSON with `--json`; colours only where they are wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec

OK, FAILURE, USAGE = 0, 1, 2


class Failed(Exception):
    """Ends the command with exit code 1; the text is one line for the person at the terminal."""


def say(text: str = "") -> None:
    print(text, flush=True)


def note(text: str) -> None:
    """Something beside the result: to stderr, so that the result can be piped."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    raise Failed(text)


def emit_json(value: Any) -> None:
    say(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, colour: int) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if coloured() else text


def good(text: str) -> str:
    return paint(text, 32)


def bad(text: str) -> str:
    return paint(text, 31)


def dim(text: str) -> str:
    return paint(text, 2)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str) -> None:
    """Print `rows` under the headings of `columns` (key → heading), or `empty` where there are none."""
    if not rows:
        say(empty)
        return
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(heading), *(len(row[i]) for row in cells)) for i, heading in enumerate(columns.values())]
    say(dim("  ".join(heading.ljust(width) for heading, width in zip(columns.values(), widths, strict=True)).rstrip()))
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    # A name from outside must not move the cursor.
    return "–" if value is None else "".join(ch if ch.isprintable() else "·" for ch in str(value))
