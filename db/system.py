"""The few looks across tenants. Each is a function of the database that runs as hub_system; the app role may call it.

They work in a transaction without a tenant (`Database.system`), and in any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction
from db.tombstones import Tombstone


class OpenCall(msgspec.Struct, frozen=True):
    tenant_id: UUID
    call_id: UUID
    room_name: str
    region: str | None
    status: str
    created_at: datetime


class DueCall(msgspec.Struct, frozen=True):
    tenant_id: UUID
    call_id: UUID
    due_at: datetime


CALL_BY_ROOM_NAME = "SELECT tenant_id, call_id FROM system_call_by_room_name($1)"


async def call_by_room_name(tx: Transaction, room_name: str) -> tuple[UUID, UUID] | None:
    """(tenant_id, call_id) of the call that a LiveKit room belongs to."""
    row = await tx.fetchrow(CALL_BY_ROOM_NAME, room_name)
    return (row["tenant_id"], row["call_id"]) if row else None


MOVING_CALLS = "SELECT tenant_id, call_id, room_name, region, status, created_at FROM system_moving_calls($1)"


async def moving_calls(tx: Transaction, listed: Iterable[str] = ()) -> list[OpenCall]:
    """Every call that has not ended, oldest first; without those that wait for nobody in particular: their room is
    known to be gone and is none of the `listed`, and nobody is in them or about to be."""
    return [OpenCall(*row) for row in await tx.fetch(MOVING_CALLS, list(listed))]


DUE_CALLS = "SELECT tenant_id, call_id, due_at FROM system_due_calls($1, $2)"


async def due_calls(tx: Transaction, now: datetime, limit: int) -> list[DueCall]:
    """Calls that change by the passing of time until `now`, the longest due first."""
    return [DueCall(*row) for row in await tx.fetch(DUE_CALLS, now, limit)]


NEXT_DUE = "SELECT system_next_due()"


async def next_due(tx: Transaction) -> datetime | None:
    found: datetime | None = await tx.fetchval(NEXT_DUE)
    return found


ORPHAN_ROOMS = "SELECT room_name FROM system_orphan_rooms($1)"


async def orphan_rooms(tx: Transaction, room_names: Iterable[str]) -> list[str]:
    """Of LiveKit's rooms, those that no open call has."""
    return [row["room_name"] for row in await tx.fetch(ORPHAN_ROOMS, list(room_names))]


FORGET_RESULTS = "SELECT system_forget_results($1, $2)"


async def forget_results(tx: Transaction, now: datetime, limit: int) -> int:
    """Delete kept answers whose time is over; how many, at most `limit`."""
    return int(await tx.fetchval(FORGET_RESULTS, now, limit))


class ExpiredUpload(msgspec.Struct, frozen=True):
    tenant_id: UUID
    uploader_id: str
    upload_id: UUID


class ExpiredFile(msgspec.Struct, frozen=True):
    tenant_id: UUID
    uploader_id: str
    call_id: UUID
    file_id: UUID


class StoredFile(msgspec.Struct, frozen=True):
    """What the store has to hold of a file; `preview_storage_key` only where there is a preview."""

    tenant_id: UUID
    file_id: UUID
    storage_key: str
    preview_storage_key: str | None
    size_bytes: int
    sha256: str


class ClaimedFile(msgspec.Struct, frozen=True):
    tenant_id: UUID
    uploader_id: str
    file_id: UUID
    # How often it was claimed, this time included.
    attempts: int


EXPIRED_UPLOADS = "SELECT tenant_id, uploader_id, upload_id FROM system_expired_uploads($1, $2)"


async def expired_uploads(tx: Transaction, now: datetime, limit: int) -> list[ExpiredUpload]:
    """Uploads that nobody finished in time and nobody is finishing now."""
    return [ExpiredUpload(*row) for row in await tx.fetch(EXPIRED_UPLOADS, now, limit)]


EXPIRED_FILES = "SELECT tenant_id, uploader_id, call_id, file_id FROM system_expired_files($1, $2)"


async def expired_files(tx: Transaction, now: datetime, limit: int) -> list[ExpiredFile]:
    """Files whose time is over."""
    return [ExpiredFile(*row) for row in await tx.fetch(EXPIRED_FILES, now, limit)]


DUE_TOMBSTONES = """
SELECT tenant_id, tombstone_id, storage_key, preview_storage_key, multipart_id, attempts
FROM system_due_tombstones($1, $2)
"""


async def due_tombstones(tx: Transaction, now: datetime, limit: int) -> list[Tombstone]:
    """Bytes to be deleted now."""
    return [Tombstone(*row) for row in await tx.fetch(DUE_TOMBSTONES, now, limit)]


CLAIM_FILES = """
SELECT tenant_id, uploader_id, file_id, attempts FROM system_claim_files($1, $2, $3 * interval '1 second', $4)
"""


async def claim_files(
    tx: Transaction, now: datetime, limit: int, lease_s: float, *, scans: bool = True
) -> list[ClaimedFile]:
    """Files to be scanned or to get a preview, this caller's alone for `lease_s`. Without `scans` those that have been
    scanned."""
    return [ClaimedFile(*row) for row in await tx.fetch(CLAIM_FILES, now, limit, lease_s, scans)]


KNOWN_KEYS = "SELECT storage_key FROM system_known_keys($1)"


async def known_keys(tx: Transaction, keys: Iterable[str]) -> frozenset[str]:
    """Of these keys of the store, those that belong to a file, an upload or a tombstone."""
    return frozenset(row[0] for row in await tx.fetch(KNOWN_KEYS, list(keys)))


HELD_KEYS = "SELECT storage_key FROM system_held_keys($1)"


async def held_keys(tx: Transaction, keys: Iterable[str]) -> frozenset[str]:
    """Of these keys of the store, those under which a file or an upload has its bytes."""
    return frozenset(row[0] for row in await tx.fetch(HELD_KEYS, list(keys)))


KNOWN_CALLS = "SELECT tenant_id, call_id FROM system_known_calls($1, $2)"


async def known_calls(tx: Transaction, asked: Iterable[tuple[UUID, UUID]]) -> frozenset[tuple[UUID, UUID]]:
    """Of these (tenant_id, call_id), those that this database knows."""
    pairs = list(asked)
    rows = await tx.fetch(KNOWN_CALLS, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return frozenset((row[0], row[1]) for row in rows)


PUBLIC_FILE = "SELECT tenant_id, call_id FROM system_public_file($1)"


async def public_file(tx: Transaction, file_id: UUID) -> tuple[UUID, UUID] | None:
    """(tenant_id, call_id) of a file that anybody may have; None for every other id."""
    row = await tx.fetchrow(PUBLIC_FILE, file_id)
    return (row[0], row[1]) if row else None


STORED_FILES = """
SELECT tenant_id, file_id, storage_key, preview_storage_key, size_bytes, sha256 FROM system_stored_files($1, $2)
"""


async def stored_files(tx: Transaction, after: UUID, limit: int) -> list[StoredFile]:
    """Files of all tenants in the order of their ids, those behind `after`."""
    return [StoredFile(*row) for row in await tx.fetch(STORED_FILES, after, limit)]
