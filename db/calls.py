"""SQL about calls. Status, times and counts are derived elsewhere; here is what people decide about a call."""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from db.pool import Transaction


class Call(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS."""

    id: UUID
    tenant_id: UUID
    owner_id: str
    name: str
    call_type: str
    status: str
    livekit_room_name: str
    livekit_room_sid: str | None
    region: str | None
    max_participants: int
    recording_enabled: bool
    screen_sharing_enabled: bool
    file_sharing_enabled: bool
    chat_enabled: bool
    locked: bool
    lobby_enabled: bool
    metadata: dict[str, Any]
    participant_count: int
    peak_participant_count: int
    quality_score: float | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    duration_seconds: float | None
    end_reason: str | None
    empty_since: datetime | None
    due_at: datetime | None
    waiting_expires_at: datetime | None
    updated_at: datetime
    version: int


# Named, not *: a node of the last version must go on working when a newer migration adds a column.
COLUMNS = """
id, tenant_id, owner_id, name, call_type, status, livekit_room_name, livekit_room_sid, region, max_participants,
recording_enabled, screen_sharing_enabled, file_sharing_enabled, chat_enabled, locked, lobby_enabled, metadata,
participant_count, peak_participant_count, quality_score, created_at, started_at, ended_at, duration_seconds,
end_reason, empty_since, due_at, waiting_expires_at, updated_at, version
"""


ADD = f"""
INSERT INTO calls (
    owner_id, name, call_type, livekit_room_name, livekit_room_sid, region, max_participants, recording_enabled,
    screen_sharing_enabled, file_sharing_enabled, chat_enabled, lobby_enabled, metadata, waiting_expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
RETURNING {COLUMNS}
"""


async def add(
    tx: Transaction,
    *,
    owner_id: str,
    name: str,
    call_type: str,
    livekit_room_name: str,
    livekit_room_sid: str | None = None,
    region: str | None = None,
    max_participants: int = 100,
    recording_enabled: bool = False,
    screen_sharing_enabled: bool = True,
    file_sharing_enabled: bool = True,
    chat_enabled: bool = True,
    lobby_enabled: bool = False,
    metadata: Mapping[str, Any] | None = None,
    waiting_expires_at: datetime | None = None,
) -> Call:
    """A waiting call. Its owner must have been seen (`users.seen`)."""
    row = await tx.fetchrow(
        ADD,
        owner_id,
        name,
        call_type,
        livekit_room_name,
        livekit_room_sid,
        region,
        max_participants,
        recording_enabled,
        screen_sharing_enabled,
        file_sharing_enabled,
        chat_enabled,
        lobby_enabled,
        dict(metadata or {}),
        waiting_expires_at,
    )
    assert row is not None
    return Call(*row)


GET = f"SELECT {COLUMNS} FROM calls WHERE id = $1"


async def get(tx: Transaction, call_id: UUID) -> Call | None:
    row = await tx.fetchrow(GET, call_id)
    return Call(*row) if row else None


BY_ROOM_NAME = f"SELECT {COLUMNS} FROM calls WHERE livekit_room_name = $1"


async def by_room_name(tx: Transaction, room_name: str) -> Call | None:
    row = await tx.fetchrow(BY_ROOM_NAME, room_name)
    return Call(*row) if row else None


# NO KEY: those whose foreign key only has to know that the call is there need not wait.
LOCK = f"SELECT {COLUMNS} FROM calls WHERE id = $1 FOR NO KEY UPDATE"


async def lock(tx: Transaction, call_id: UUID) -> Call | None:
    """The call as it stands, held until the transaction ends: who changes a call or counts seats begins here."""
    row = await tx.fetchrow(LOCK, call_id)
    return Call(*row) if row else None


CHANGE = f"""
UPDATE calls
SET name = coalesce($2, name), locked = coalesce($3, locked), lobby_enabled = coalesce($4, lobby_enabled),
    chat_enabled = coalesce($5, chat_enabled), file_sharing_enabled = coalesce($6, file_sharing_enabled),
    screen_sharing_enabled = coalesce($7, screen_sharing_enabled),
    recording_enabled = coalesce($8, recording_enabled), metadata = coalesce($9, metadata),
    max_participants = coalesce($10, max_participants)
WHERE id = $1
RETURNING {COLUMNS}
"""


async def change(
    tx: Transaction,
    call_id: UUID,
    *,
    name: str | None = None,
    locked: bool | None = None,
    lobby_enabled: bool | None = None,
    chat_enabled: bool | None = None,
    file_sharing_enabled: bool | None = None,
    screen_sharing_enabled: bool | None = None,
    recording_enabled: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
    max_participants: int | None = None,
) -> Call:
    """Settings; None leaves one as it is. `version` grows if anything differs. Raises LookupError for no such call."""
    row = await tx.fetchrow(
        CHANGE,
        call_id,
        name,
        locked,
        lobby_enabled,
        chat_enabled,
        file_sharing_enabled,
        screen_sharing_enabled,
        recording_enabled,
        None if metadata is None else dict(metadata),
        max_participants,
    )
    if row is None:
        raise LookupError(f"no call {call_id}")
    return Call(*row)


DELETE = "DELETE FROM calls WHERE id = $1 RETURNING true"


async def delete(tx: Transaction, call_id: UUID) -> bool:
    """With participants, links, metrics and files; each file leaves a tombstone for its bytes. False: no such call."""
    return await tx.fetchval(DELETE, call_id) is not None


# Two walks down two indexes, newest first, each no longer than the page: the calls a person owns and those they are
# in. DISTINCT because one person may be in a call by several devices.
PAGE_OF_USER = f"""
WITH mine AS (
    (SELECT c.id FROM calls c
     WHERE c.owner_id = $1
       AND (c.created_at, c.id)
           < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
       AND c.created_at >= coalesce($4, '-infinity'::timestamptz)
       AND c.created_at < coalesce($5, 'infinity'::timestamptz)
       AND ($6::text IS NULL OR c.status = $6)
       AND ($7::text IS NULL OR c.call_type = $7)
       AND ($8::text IS NULL OR position(lower($8) IN lower(c.name)) > 0)
     ORDER BY c.created_at DESC, c.id DESC LIMIT $9)
    UNION
    (SELECT DISTINCT ON (p.call_created_at, p.call_id) p.call_id
     FROM call_participants p JOIN calls c ON c.tenant_id = p.tenant_id AND c.id = p.call_id
     WHERE p.user_id = $1
       AND (p.call_created_at, p.call_id)
           < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
       AND p.call_created_at >= coalesce($4, '-infinity'::timestamptz)
       AND p.call_created_at < coalesce($5, 'infinity'::timestamptz)
       AND ($6::text IS NULL OR c.status = $6)
       AND ($7::text IS NULL OR c.call_type = $7)
       AND ($8::text IS NULL OR position(lower($8) IN lower(c.name)) > 0)
       AND ($10::timestamptz IS NULL OR c.owner_id = $1 OR NOT EXISTS (
            SELECT FROM call_bans b
            WHERE b.call_id = p.call_id AND b.user_id = $1 AND (b.expires_at IS NULL OR b.expires_at > $10)))
     ORDER BY p.call_created_at DESC, p.call_id DESC LIMIT $9))
SELECT {COLUMNS} FROM calls WHERE id IN (SELECT id FROM mine) ORDER BY created_at DESC, id DESC LIMIT $9
"""
PAGE_OF_TENANT = f"""
SELECT {COLUMNS} FROM calls c
WHERE (c.created_at, c.id)
      < (coalesce($1, 'infinity'::timestamptz), coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
  AND c.created_at >= coalesce($3, '-infinity'::timestamptz) AND c.created_at < coalesce($4, 'infinity'::timestamptz)
  AND ($5::text IS NULL OR c.status = $5)
  AND ($6::text IS NULL OR c.call_type = $6)
  AND ($7::text IS NULL OR position(lower($7) IN lower(c.name)) > 0)
ORDER BY c.created_at DESC, c.id DESC LIMIT $8
"""


async def page(
    tx: Transaction,
    *,
    user_id: str | None = None,
    status: str | None = None,
    call_type: str | None = None,
    created_from: datetime | None = None,
    created_before: datetime | None = None,
    text: str | None = None,
    after: tuple[datetime, str | UUID] | None = None,
    not_banned_at: datetime | None = None,
    limit: int,
) -> list[Call]:
    """Calls newest first, older than `after`, the (created_at, id) of the last one of the page before.

    `user_id`: calls that person owns or has a part in, without those of others that they are banned from
    `not_banned_at` that time; None: the whole tenant's. Raises ValueError where the id in `after` is no UUID.
    """
    at, last = after or (None, None)
    if isinstance(last, str):
        last = UUID(last)
    filters = (at, last, created_from, created_before, status, call_type, text or None, limit)
    if user_id is None:
        rows = await tx.fetch(PAGE_OF_TENANT, *filters)
    else:
        rows = await tx.fetch(PAGE_OF_USER, user_id, *filters, not_banned_at)
    return [Call(*row) for row in rows]


COUNTS = "SELECT status, count(*) FROM calls GROUP BY status"


async def counts(tx: Transaction) -> dict[str, int]:
    """How many calls the tenant has, by status; a status that none has is 0."""
    found = {row["status"]: row["count"] for row in await tx.fetch(COUNTS)}
    return {status: found.get(status, 0) for status in ("waiting", "active", "ended")}


PEOPLE_IN_CALLS = "SELECT coalesce(sum(participant_count), 0) FROM calls WHERE status <> 'ended'"


async def people_in_calls(tx: Transaction) -> int:
    return int(await tx.fetchval(PEOPLE_IN_CALLS))
