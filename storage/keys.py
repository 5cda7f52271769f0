"""Keys of objects: made here, of ids alone, as `tenant/call/file`. What a person named a file lives in the database.

The characters are those that every store takes (Supabase refuses others), and no key is ever a path out of a
directory.
"""

from __future__ import annotations

import re
import secrets
from uuid import UUID

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_MOST_CHARS = 512
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# All that this file makes.
_OURS = re.compile(
    rf"({_UUID})/({_UUID})/{_UUID}(?:\.incoming|\.preview|\.infected(?:-[0-9a-f]{{16}})?|(?:\.fence-\d+)?(?:\.tail-\d+)?)"
)


def content(tenant_id: UUID, call_id: UUID, file_id: UUID) -> str:
    """Where a file's bytes are."""
    return f"{tenant_id}/{call_id}/{file_id}"


def incoming(tenant_id: UUID, call_id: UUID, file_id: UUID) -> str:
    """Where a client puts a file itself, by a signed URL.

    Never the key it is served from: the URL stays good until it expires, so what lies there can be replaced after it
    was checked. `Store.move` it to `content`, then check.
    """
    return f"{tenant_id}/{call_id}/{file_id}.incoming"


def tail(content_key: str, fence: int) -> str:
    """Where the writer with that fence lays what is less than a part, for whoever goes on."""
    return f"{content_key}.tail-{fence}"


def preview(tenant_id: UUID, call_id: UUID, file_id: UUID) -> str:
    """Where a file's preview is."""
    return f"{tenant_id}/{call_id}/{file_id}.preview"


def infected(tenant_id: UUID, call_id: UUID, file_id: UUID) -> str:
    """Where the bytes of an infected file are kept: under a key that no URL was ever signed for. Another one each time:
    what was infected once may be thought clean for a while."""
    return f"{tenant_id}/{call_id}/{file_id}.infected-{secrets.token_hex(8)}"


def written(tenant_id: UUID, call_id: UUID, file_id: UUID, fence: int) -> str:
    """Where whoever makes the file under that fence puts it: not where somebody may still be writing who was late."""
    return f"{content(tenant_id, call_id, file_id)}.fence-{fence}"


def of_call(tenant_id: UUID, call_id: UUID) -> str:
    """What all keys of a call begin with."""
    return f"{tenant_id}/{call_id}/"


def call_of(key: str) -> tuple[UUID, UUID] | None:
    """(tenant_id, call_id) of a key that is made here; None: somebody else's, in a bucket that they use as well."""
    ours = _OURS.fullmatch(key)
    return (UUID(ours[1]), UUID(ours[2])) if ours else None


def check(key: str) -> str:
    """The key, if it is one. Raises ValueError."""
    if len(key) > _MOST_CHARS or not _KEY.fullmatch(key):
        raise ValueError(f"not a storage key: {key[:80]!r}")
    return key
