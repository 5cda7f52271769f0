"""Names of files, as people gave them: shown, never part of a key or a path. Pure."""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote

from hub.protocol.names import clean_name

FALLBACK: Final = "file"
_MOST_BYTES: Final = 255
_SEPARATORS: Final = re.compile(r"[/\\]")
_SPACE: Final = re.compile(r"\s+")
# What has no place in a quoted-string, and what shells and systems of files read something into.
_PLAIN: Final = re.compile(r"[^A-Za-z0-9 ._()+=@,-]")


def clean_filename(value: object) -> str:
    """`value` as one name without a way in it: at most 255 bytes of UTF-8, its ending kept, never empty.

    Whatever hides or turns text around is left out, so that `invoice\\u202egpj.exe` shows what it is.
    """
    if not isinstance(value, str):
        return FALLBACK
    name = unicodedata.normalize("NFC", _SEPARATORS.split(value[:4096].rstrip("/\\"))[-1])
    # Cut in the middle before cleaning, which keeps the beginning: the ending says what it is.
    stem, dot, ending = name.rpartition(".")
    if not dot or len(ending) > 16:
        stem, dot, ending = name, "", ""
    stem, ending = clean_name(stem), _SPACE.sub("", clean_name(ending))
    name = f"{stem or FALLBACK}.{ending}" if ending else stem or FALLBACK
    while len(name.encode()) > _MOST_BYTES:
        stem = stem[:-1]
        name = f"{stem}.{ending}" if ending else stem
    # Neither `.` nor `..` nor a hidden file, nor what Windows takes the end off.
    name = name.strip(". ") if set(name) <= {".", " "} else name.lstrip(".").rstrip(". ")
    return name or FALLBACK


def attachment(name: str) -> str:
    """The Content-Disposition of a download (RFC 6266): one line, whatever the name is."""
    plain = _PLAIN.sub("_", name)
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"
