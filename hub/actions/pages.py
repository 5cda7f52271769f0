"""Places in a list, as opaque text: where the last page ended, checked when it comes back."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from hub.protocol import errors


class Place(NamedTuple):
    """After the item made at `at` with this `id`; ids break ties."""

    at: datetime
    id: str


_DECODER = msgspec.json.Decoder(Place)


def cursor(at: datetime, id_: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(Place(at, str(id_)))).rstrip(b"=").decode()


def place(text: str | None) -> Place | None:
    """Raises InvalidCursor for anything `cursor` cannot have made."""
    if text is None:
        return None
    try:
        found = _DECODER.decode(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise errors.InvalidCursor() from None
    if found.at.tzinfo is None or len(found.id) > 128 or "\0" in found.id:
        raise errors.InvalidCursor()
    try:
        return Place(found.at.astimezone(UTC), found.id)
    except OverflowError:
        # Within the calendar where it was written, and beyond it in UTC.
        raise errors.InvalidCursor() from None


def row(text: str | None) -> tuple[datetime, UUID] | None:
    """The place in a list of rows whose ids are UUIDs."""
    found = place(text)
    if found is None:
        return None
    try:
        return found.at, UUID(found.id)
    except ValueError:
        raise errors.InvalidCursor() from None
