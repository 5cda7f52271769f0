"""SQL about files: what was shared in calls. Private ones are seen by their uploader's transactions only."""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class File(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS."""

    id: UUID
    tenant_id: UUID
    call_id: UUID
    uploader_id: str
    name: str
    size_bytes: int
    # As the sender declared it, and as its bytes say.
    mime_type: str
    detected_mime_type: str | None
    sha256: str
    storage_key: str
    access_level: str
    source: str
    # pending | clean | infected | failed | skipped
    scan_status: str
    scan_result: str | None
    scanned_at: datetime | None
    # none | pending | ready | failed
    preview_status: str
    preview_storage_key: str | None
    expires_at: datetime | None
    created_at: datetime


COLUMNS = """
id, tenant_id, call_id, uploader_id, name, size_bytes, mime_type, detected_mime_type, sha256, storage_key, access_level,
source, scan_status, scan_result, scanned_at, preview_status, preview_storage_key, expires_at, created_at
"""


ADD = f"""
INSERT INTO files (id, call_id, uploader_id, name, size_bytes, mime_type, detected_mime_type, sha256, storage_key,
                   access_level, source, scan_status, scanned_at, preview_status, expires_at, created_at, completed_at,
                   status)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16, 'ready')
RETURNING {COLUMNS}
"""


async def add(
    tx: Transaction,
    file_id: UUID,
    call_id: UUID,
    *,
    uploader_id: str,
    name: str,
    size_bytes: int,
    mime_type: str,
    detected_mime_type: str | None,
    sha256: str,
    storage_key: str,
    access_level: str,
    source: str,
    scan_status: str,
    scanned_at: datetime | None,
    preview_status: str,
    expires_at: datetime | None,
    now: datetime,
) -> File:
    """A file whose bytes are whole and checked. From now on others see it."""
    row = await tx.fetchrow(
        ADD,
        file_id,
        call_id,
        uploader_id,
        name,
        size_bytes,
        mime_type,
        detected_mime_type,
        sha256,
        storage_key,
        access_level,
        source,
        scan_status,
        scanned_at,
        preview_status,
        expires_at,
        now,
    )
    assert row is not None
    return File(*row)


GET = f"SELECT {COLUMNS} FROM files WHERE id = $1"


async def get(tx: Transaction, file_id: UUID) -> File | None:
    row = await tx.fetchrow(GET, file_id)
    return File(*row) if row else None


LOCK = f"SELECT {COLUMNS} FROM files WHERE id = $1 FOR NO KEY UPDATE"


async def lock(tx: Transaction, file_id: UUID) -> File | None:
    """The file as it stands, held until the transaction ends."""
    row = await tx.fetchrow(LOCK, file_id)
    return File(*row) if row else None


OF_CALL = f"""
SELECT {COLUMNS} FROM files
WHERE call_id = $1
  AND (created_at, id)
      < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
  AND (expires_at IS NULL OR expires_at > $4)
  AND ($5 OR access_level = 'public' OR uploader_id = app_user_id())
ORDER BY created_at DESC, id DESC LIMIT $6
"""


async def of_call(
    tx: Transaction,
    call_id: UUID,
    *,
    now: datetime,
    takes_part: bool,
    after: tuple[datetime, UUID] | None = None,
    limit: int,
) -> list[File]:
    """Files of a call, newest first, older than `after`. Without `takes_part` only the public ones and one's own."""
    at, last = after or (None, None)
    return [File(*row) for row in await tx.fetch(OF_CALL, call_id, at, last, now, takes_part, limit)]


OF_UPLOADER = f"""
SELECT {COLUMNS} FROM files
WHERE uploader_id = $1
  AND (created_at, id)
      < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
  AND (expires_at IS NULL OR expires_at > $4)
ORDER BY created_at DESC, id DESC LIMIT $5
"""


async def of_uploader(
    tx: Transaction, uploader_id: str, *, now: datetime, after: tuple[datetime, UUID] | None = None, limit: int
) -> list[File]:
    """Somebody's files in all calls, newest first, older than `after`."""
    at, last = after or (None, None)
    return [File(*row) for row in await tx.fetch(OF_UPLOADER, uploader_id, at, last, now, limit)]


MOVE = f"UPDATE files SET call_id = $2, storage_key = $3 WHERE id = $1 RETURNING {COLUMNS}"


async def move(tx: Transaction, file_id: UUID, call_id: UUID, storage_key: str) -> File | None:
    """To another call of the tenant, its bytes being under another key; None: no such file (any more)."""
    row = await tx.fetchrow(MOVE, file_id, call_id, storage_key)
    return File(*row) if row else None


SCANNED = f"""
UPDATE files SET scan_status = $2, scan_result = $3, scanned_at = $4, storage_key = $5,
                 preview_status = CASE WHEN $2 IN ('clean', 'skipped') THEN preview_status ELSE 'none' END,
                 work_attempts = 0, work_after = $4
WHERE id = $1 AND scan_status = 'pending'
RETURNING {COLUMNS}
"""


async def scanned(
    tx: Transaction, file_id: UUID, scan_status: str, *, result: str | None, now: datetime, storage_key: str
) -> File | None:
    """What the scanner said; the bytes are under `storage_key` now. None: nothing was to be scanned (any more).

    A preview that was to be made is made of clean bytes only.
    """
    row = await tx.fetchrow(SCANNED, file_id, scan_status, result and result[:500], now, storage_key)
    return File(*row) if row else None


RESCAN = f"""
UPDATE files SET scan_status = 'pending', scan_result = NULL, work_attempts = 0, work_after = $2
WHERE id = $1 RETURNING {COLUMNS}
"""


async def rescan(tx: Transaction, file_id: UUID, now: datetime) -> File | None:
    """Have it scanned again; until then nobody has it. None: no such file."""
    row = await tx.fetchrow(RESCAN, file_id, now)
    return File(*row) if row else None


PREVIEWING = """
UPDATE files SET preview_storage_key = $2
WHERE id = $1 AND preview_status = 'pending' AND scan_status IN ('clean', 'skipped')
RETURNING true
"""


async def previewing(tx: Transaction, file_id: UUID, key: str) -> bool:
    """There will be a preview under that key, which goes with the file from now on. False: nobody waits for it."""
    return await tx.fetchval(PREVIEWING, file_id, key) is not None


PREVIEWED = f"""
UPDATE files SET preview_status = $2, preview_storage_key = $3
WHERE id = $1 AND preview_status = 'pending' AND scan_status IN ('clean', 'skipped')
RETURNING {COLUMNS}
"""


async def previewed(tx: Transaction, file_id: UUID, preview_status: str, key: str | None) -> File | None:
    """`ready` with its key, or `failed`. None: nobody waits for it (any more)."""
    row = await tx.fetchrow(PREVIEWED, file_id, preview_status, key)
    return File(*row) if row else None


LATER = "UPDATE files SET work_after = $2 WHERE id = $1"


async def later(tx: Transaction, file_id: UUID, at: datetime) -> None:
    """Scan it, or make its preview, not before then."""
    await tx.execute(LATER, file_id, at)


DOWNLOADED = "UPDATE files SET download_count = download_count + 1 WHERE id = $1"


async def downloaded(tx: Transaction, file_id: UUID) -> None:
    """Somebody was shown the way to its bytes."""
    await tx.execute(DOWNLOADED, file_id)


DELETE = f"DELETE FROM files WHERE id = $1 RETURNING {COLUMNS}"


async def delete(tx: Transaction, file_id: UUID) -> File | None:
    """The row goes and leaves a tombstone, by which the bytes follow. None: no such file."""
    row = await tx.fetchrow(DELETE, file_id)
    return File(*row) if row else None
