"""SQL about tombstones: bytes whose row is gone. Whoever deletes them from the store clears the tombstone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class Tombstone(msgspec.Struct, frozen=True):
    tenant_id: UUID
    id: int
    storage_key: str
    preview_storage_key: str | None
    # The multipart upload to abort, where the bytes were never whole.
    multipart_id: str | None
    attempts: int


ADD = "INSERT INTO file_tombstones (file_id, storage_key, next_attempt_at) VALUES ($1, $2, $3)"


async def add(tx: Transaction, file_id: UUID, storage_key: str, at: datetime) -> None:
    """These bytes are to be deleted, not before `at`."""
    await tx.execute(ADD, file_id, storage_key, at)


OF_FILE = """
SELECT tenant_id, id, storage_key, preview_storage_key, multipart_id, attempts FROM file_tombstones
WHERE file_id = $1 AND next_attempt_at <= $2 ORDER BY id LIMIT 10
"""


async def of_file(tx: Transaction, file_id: UUID, now: datetime) -> list[Tombstone]:
    """What is to be deleted of a file that has just gone."""
    return [Tombstone(*row) for row in await tx.fetch(OF_FILE, file_id, now)]


CLEAR = "DELETE FROM file_tombstones WHERE id = ANY ($1::bigint[])"


async def clear(tx: Transaction, ids: Sequence[int]) -> None:
    """Their bytes are gone."""
    await tx.execute(CLEAR, ids)


POSTPONE = """
UPDATE file_tombstones SET attempts = attempts + 1, next_attempt_at = $2, last_error = $3 WHERE id = $1
"""


async def postpone(tx: Transaction, tombstone_id: int, at: datetime, error: str) -> None:
    """The store did not delete them; again then."""
    await tx.execute(POSTPONE, tombstone_id, at, error[:500])


SPARE = "DELETE FROM file_tombstones WHERE file_id = $1 AND storage_key = $2"


async def spare(tx: Transaction, file_id: UUID, storage_key: str) -> None:
    """These bytes are the file's after all."""
    await tx.execute(SPARE, file_id, storage_key)
