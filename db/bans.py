"""SQL about bans: who may not come into a call, until when."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class Ban(msgspec.Struct, frozen=True):
    user_id: str
    banned_by: str
    reason: str | None
    created_at: datetime
    # None: as long as the call.
    expires_at: datetime | None


ADD = """
INSERT INTO call_bans (call_id, user_id, banned_by, reason, expires_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant_id, call_id, user_id) DO UPDATE
SET banned_by = excluded.banned_by, reason = excluded.reason, created_at = now(), expires_at = excluded.expires_at
RETURNING user_id, banned_by, reason, created_at, expires_at
"""


async def add(
    tx: Transaction, call_id: UUID, user_id: str, *, banned_by: str, reason: str | None, expires_at: datetime | None
) -> Ban:
    """Ban somebody, or replace the ban they have."""
    row = await tx.fetchrow(ADD, call_id, user_id, banned_by, reason, expires_at)
    assert row is not None
    return Ban(*row)


ACTIVE = """
SELECT user_id, banned_by, reason, created_at, expires_at FROM call_bans
WHERE call_id = $1 AND user_id = $2 AND (expires_at IS NULL OR expires_at > $3)
"""


async def active(tx: Transaction, call_id: UUID, user_id: str, now: datetime) -> Ban | None:
    row = await tx.fetchrow(ACTIVE, call_id, user_id, now)
    return Ban(*row) if row else None


REMOVE = "DELETE FROM call_bans WHERE call_id = $1 AND user_id = $2 RETURNING true"


async def remove(tx: Transaction, call_id: UUID, user_id: str) -> bool:
    """False: there was none."""
    return await tx.fetchval(REMOVE, call_id, user_id) is not None


OF_CALL = """
SELECT user_id, banned_by, reason, created_at, expires_at FROM call_bans
WHERE call_id = $1 AND (expires_at IS NULL OR expires_at > $2) ORDER BY created_at DESC, user_id
"""


async def of_call(tx: Transaction, call_id: UUID, now: datetime) -> list[Ban]:
    return [Ban(*row) for row in await tx.fetch(OF_CALL, call_id, now)]
