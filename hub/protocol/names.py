"""What may stand in a name: one line that shows itself and turns nothing around. Pure.

Control characters break other clients' lists; marks of direction, line separators and the byte order mark make a text
look like another one. The joiners (U+200C, U+200D) stay: scripts and emoji need them. Alone they show nothing.
"""

from __future__ import annotations

import re
from typing import Final

_TURNS: Final = r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
# For Python and for JavaScript alike. Python's `$` also stands before a last line break, hence the `(?!\n)` behind it.
_KEPT_OUT: Final = r"\x00-\x1f\x7f-\x9f" + _TURNS
_SHOWS_NOTHING: Final = r"\s\u00ad\u180e\u200b-\u200d\u2060-\u2064"
NAME: Final = rf"^[^{_KEPT_OUT}]*[^{_SHOWS_NOTHING}{_KEPT_OUT}][^{_KEPT_OUT}]*$(?!\n)"
# Free text may have lines.
TEXT: Final = rf"^[^\x00-\x08\x0b-\x1f\x7f-\x9f{_TURNS}]*$(?!\n)"
# One to sixteen characters: an emoji may be put together of many, and of digits, but not of words.
EMOJI: Final = rf"^(?=.*[^{_SHOWS_NOTHING}])[^\sA-Za-z{_KEPT_OUT}]{{1,16}}$(?!\n)"

_SPACE: Final = re.compile(r"[\s\x85]+")
_OUT: Final = re.compile(rf"[{_KEPT_OUT}\ud800-\udfff]")
_VISIBLE: Final = re.compile(rf"[^{_SHOWS_NOTHING}]")


def shows(text: str) -> bool:
    """Whether there is anything in it to be seen."""
    return _VISIBLE.search(text) is not None


def clean_name(value: object) -> str:
    """`value` as one line of at most 128 characters that cannot hide or turn anything around."""
    if not isinstance(value, str):
        return ""
    # Cut before the work: the input is as long as somebody liked.
    shown = " ".join(_OUT.sub("", _SPACE.sub(" ", value[:1024])).split())[:128].strip()
    return shown if _VISIBLE.search(shown) else ""
