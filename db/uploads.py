"""SQL about uploads: files on their way in, by whatever way, with the space they reserve.

The life of one: `open_` → (`take` a writer's fence → `begun` → `record_part` …) → `lease` → `files.add` and `finish` in
one transaction; or `drop`. An upload is seen by its uploader only: the transaction's user must be they.
"""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from db.pool import Transaction


class UploadPart(msgspec.Struct, frozen=True):
    """A part that the store has kept. Numbers begin at 1."""

    number: int
    etag: str
    size_bytes: int


class Upload(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS. `id` is the transfer's, and the id of the file that it becomes."""

    id: UUID
    tenant_id: UUID
    call_id: UUID
    uploader_id: str
    source: str
    name: str
    mime_type: str
    # Reserved of the quotas: the size, or the most that may come where nobody said it.
    size_bytes: int
    sha256: str | None
    access_level: str
    expires_in_hours: int | None
    storage_key: str
    multipart_id: str | None
    parts: tuple[UploadPart, ...]
    # Durable, in order, from the beginning.
    stored_bytes: int
    fence: int
    writer: str | None
    # Durable behind the parts, in an object of its own: less than a part, laid aside by a writer that had to go.
    tail_key: str | None
    tail_bytes: int
    completing_until: datetime | None
    open_until: datetime | None
    expires_at: datetime
    created_at: datetime
    updated_at: datetime


class Usage(msgspec.Struct, frozen=True):
    """What files and uploads take, reservations included."""

    call_bytes: int
    call_files: int
    tenant_bytes: int
    tenant_files: int


COLUMNS = """
id, tenant_id, call_id, uploader_id, source, name, mime_type, size_bytes, sha256, access_level, expires_in_hours,
storage_key, multipart_id, parts, stored_bytes, fence, writer, tail_key, tail_bytes, completing_until, open_until,
expires_at, created_at, updated_at
"""


_PARTS: Final = Upload.__struct_fields__.index("parts")


def _upload(row: Any) -> Upload:
    values = list(row)
    values[_PARTS] = msgspec.convert(values[_PARTS], tuple[UploadPart, ...])
    return Upload(*values)


OPEN = f"""
INSERT INTO uploads (id, call_id, uploader_id, source, name, mime_type, size_bytes, sha256, access_level,
                     expires_in_hours, storage_key, open_until, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
RETURNING {COLUMNS}
"""


async def open_(
    tx: Transaction,
    upload_id: UUID,
    call_id: UUID,
    *,
    uploader_id: str,
    source: str,
    name: str,
    mime_type: str,
    size_bytes: int,
    sha256: str | None,
    access_level: str,
    expires_in_hours: int | None,
    storage_key: str,
    open_until: datetime | None = None,
    expires_at: datetime,
) -> Upload:
    """Reserve the space. Whether that is within the quotas say `usage` after it, and a rollback.

    `open_until`: until when a client may put bytes by itself; later than that the key is cleared once more.
    `expires_at`: an upload that is not finished by then is dropped by the sweep.
    """
    row = await tx.fetchrow(
        OPEN,
        upload_id,
        call_id,
        uploader_id,
        source,
        name,
        mime_type,
        size_bytes,
        sha256,
        access_level,
        expires_in_hours,
        storage_key,
        open_until,
        expires_at,
    )
    assert row is not None
    return _upload(row)


GET = f"SELECT {COLUMNS} FROM uploads WHERE id = $1"


async def get(tx: Transaction, upload_id: UUID) -> Upload | None:
    row = await tx.fetchrow(GET, upload_id)
    return _upload(row) if row else None


COUNT_OPEN = "SELECT count(*) FROM uploads WHERE uploader_id = $1 AND expires_at > $2"


async def count_open(tx: Transaction, uploader_id: str, now: datetime) -> int:
    """How many that person has open."""
    return int(await tx.fetchval(COUNT_OPEN, uploader_id, now))


# The call's row as well, so that both counts are of one moment: whoever has just reserved holds both.
USAGE = """
SELECT coalesce(c.bytes, 0), coalesce(c.files, 0), coalesce(t.bytes, 0), coalesce(t.files, 0)
FROM (SELECT app_tenant_id() AS tenant_id) me
LEFT JOIN tenant_file_usage t ON t.tenant_id = me.tenant_id
LEFT JOIN call_file_usage c ON c.tenant_id = me.tenant_id AND c.call_id = $1
"""


async def usage(tx: Transaction, call_id: UUID) -> Usage:
    """What the call's and the tenant's files take. After `open_` in one transaction: with it, and nobody between."""
    row = await tx.fetchrow(USAGE, call_id)
    assert row is not None
    return Usage(*row)


TAKE = f"""
UPDATE uploads SET fence = fence + 1, writer = $2, completing_until = NULL
WHERE id = $1 AND expires_at > $3 AND (completing_until IS NULL OR completing_until <= $3)
RETURNING {COLUMNS}
"""


async def take(tx: Transaction, upload_id: UUID, writer: str, now: datetime) -> Upload | None:
    """Become the one writer: the `fence` of the answer goes with every write, older ones are refused from now on.

    None: there is no such upload, it has expired, or it is just being made a file of.
    """
    row = await tx.fetchrow(TAKE, upload_id, writer, now)
    return _upload(row) if row else None


BEGUN = """
UPDATE uploads SET multipart_id = $3
WHERE id = $1 AND fence = $2 AND multipart_id IS NULL AND completing_until IS NULL RETURNING true
"""


async def begun(tx: Transaction, upload_id: UUID, fence: int, multipart_id: str) -> bool:
    """Keep the store's id of the multipart upload. False: another writer took over, or one was begun already."""
    return await tx.fetchval(BEGUN, upload_id, fence, multipart_id) is not None


RECORD_PART = """
UPDATE uploads
SET parts = parts || $5::jsonb, stored_bytes = stored_bytes + $4, tail_key = NULL, tail_bytes = 0
WHERE id = $1 AND fence = $2 AND stored_bytes = $3 AND stored_bytes + $4 <= size_bytes AND completing_until IS NULL
RETURNING stored_bytes
"""


async def record_part(tx: Transaction, upload_id: UUID, fence: int, offset: int, part: UploadPart) -> int | None:
    """The part that begins at `offset` is durable; how many bytes are, with it.

    None, and nothing recorded: another writer took over, it does not begin where the last one ended, it is more than
    was asked for, or the file is just being made.
    """
    kept = [msgspec.to_builtins(part)]
    stored: int | None = await tx.fetchval(RECORD_PART, upload_id, fence, offset, part.size_bytes, kept)
    return stored


HOLD = "SELECT true FROM uploads WHERE id = $1 AND fence = $2 AND completing_until IS NULL FOR SHARE"


async def hold(tx: Transaction, upload_id: UUID, fence: int) -> bool:
    """Whether it is that writer's still; then it stays there until the transaction ends."""
    return await tx.fetchval(HOLD, upload_id, fence) is not None


LAY_ASIDE = """
UPDATE uploads SET writer = NULL, tail_key = coalesce($4, tail_key), tail_bytes = coalesce($5, tail_bytes)
WHERE id = $1 AND fence = $2 AND stored_bytes = $3 AND completing_until IS NULL RETURNING true
"""


async def lay_aside(
    tx: Transaction, upload_id: UUID, fence: int, stored_bytes: int, tail_key: str | None, tail_bytes: int | None
) -> bool:
    """Its writer gives it up, for anybody to `take`; with the tail that it has laid aside, None: no other than before.
    The tail begins at `stored_bytes`.

    False: another writer took over, there are more parts than that, or the file is just being made.
    """
    kept: bool | None = await tx.fetchval(LAY_ASIDE, upload_id, fence, stored_bytes, tail_key, tail_bytes)
    return kept is not None


RELEASE = "UPDATE uploads SET writer = NULL WHERE id = $1 AND fence = $2 AND completing_until IS NULL"


async def release(tx: Transaction, upload_id: UUID, fence: int) -> None:
    """Its writer gives it up with what the row says of it."""
    await tx.execute(RELEASE, upload_id, fence)


LEASE = f"""
UPDATE uploads SET completing_until = $2, fence = fence + 1
WHERE id = $1 AND (completing_until IS NULL OR completing_until <= $3)
RETURNING {COLUMNS}
"""


async def lease(tx: Transaction, upload_id: UUID, until: datetime, now: datetime) -> Upload | None:
    """Be the one who makes a file of it, until then; writers are shut out from now on.

    None: somebody else is about it, or there is no such upload (any more).
    """
    row = await tx.fetchrow(LEASE, upload_id, until, now)
    return _upload(row) if row else None


SERVE_FROM = f"""
UPDATE uploads SET storage_key = $3, open_until = NULL WHERE id = $1 AND fence = $2 RETURNING {COLUMNS}
"""


async def serve_from(tx: Transaction, upload_id: UUID, fence: int, storage_key: str) -> Upload | None:
    """Its bytes are brought from where a client put them to that key; of the other one the caller takes care."""
    row = await tx.fetchrow(SERVE_FROM, upload_id, fence, storage_key)
    return _upload(row) if row else None


UNLEASE = "UPDATE uploads SET completing_until = NULL WHERE id = $1 AND fence = $2"


async def unlease(tx: Transaction, upload_id: UUID, fence: int) -> None:
    """It could not be made a file of now; somebody may try again, or go on writing."""
    await tx.execute(UNLEASE, upload_id, fence)


FINISH = "DELETE FROM uploads WHERE id = $1 AND fence = $2 RETURNING true"


async def finish(tx: Transaction, upload_id: UUID, fence: int) -> bool:
    """Its file is made (`files.add`, before this and in the same transaction): bytes under another key than the file's
    are left to a tombstone. False: somebody else has it in hand by now, and the transaction must not be committed."""
    return await tx.fetchval(FINISH, upload_id, fence) is not None


DROP = "DELETE FROM uploads WHERE id = $1 RETURNING true"


async def drop(tx: Transaction, upload_id: UUID) -> bool:
    """Give the space back and leave a tombstone, by which the bytes follow. False: no such upload."""
    return await tx.fetchval(DROP, upload_id) is not None
