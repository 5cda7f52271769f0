"""SQL about ringing: who is called to which call by whom, what became of it, and everybody's call log of that.

A row is seen by its caller and its callee; by the caller alone where the callee blocks them (`silent`).
"""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class Invite(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS."""

    id: UUID
    tenant_id: UUID
    invite_id: UUID
    call_id: UUID
    caller_id: str
    callee_id: str
    # ringing | accepted | declined | busy | canceled | missed
    status: str
    silent: bool
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    answered_session: str | None
    answered_device: str | None


class Ringing(msgspec.Struct, frozen=True):
    """What somebody who has just come is told of an invite that rings for them."""

    tenant_id: UUID
    callee_id: str
    invite_id: UUID
    call_id: UUID
    call_name: str
    call_type: str
    caller_id: str
    caller_name: str | None
    avatar_url: str | None
    created_at: datetime
    expires_at: datetime


COLUMNS = (
    "id, tenant_id, invite_id, call_id, caller_id, callee_id, status, silent, created_at, expires_at, ended_at,"
    " answered_session, answered_device"
)

ADD = """
INSERT INTO invites (invite_id, call_id, caller_id, callee_id, silent, admits, created_at, expires_at)
SELECT $1, $2, app_user_id(), callee, callee = ANY ($4::text[]), $5, $6, $7 FROM unnest($3::text[]) callee
ON CONFLICT DO NOTHING RETURNING callee_id
"""


async def add(
    tx: Transaction,
    invite_id: UUID,
    call_id: UUID,
    callees: Sequence[str],
    *,
    silent: Sequence[str],
    admits: bool,
    now: datetime,
    expires_at: datetime,
) -> list[str]:
    """The transaction's user calls these people; those for whom it rings now, the rest being called by them already."""
    rows = await tx.fetch(ADD, invite_id, call_id, callees, silent, admits, now, expires_at)
    return [row["callee_id"] for row in rows]


ANSWER = f"""
UPDATE invites SET status = $2, ended_at = $3, answered_session = $4, answered_device = $5
WHERE invite_id = $1 AND callee_id = app_user_id() AND NOT silent AND status = 'ringing' AND expires_at > $3
RETURNING {COLUMNS}
"""


async def answer(
    tx: Transaction, invite_id: UUID, status: str, now: datetime, *, session_id: str | None, device_id: str | None
) -> Invite | None:
    """The transaction's user answers. None: it does not ring for them, or no longer. One answer wins, on any node."""
    row = await tx.fetchrow(ANSWER, invite_id, status, now, session_id, device_id)
    return Invite(*row) if row else None


CANCEL = f"""
UPDATE invites SET status = 'canceled', ended_at = $2
WHERE invite_id = $1 AND caller_id = app_user_id() AND status = 'ringing' RETURNING {COLUMNS}
"""


async def cancel(tx: Transaction, invite_id: UUID, now: datetime) -> list[Invite]:
    """The transaction's user calls no longer: what still rang."""
    return [Invite(*row) for row in await tx.fetch(CANCEL, invite_id, now)]


TO_ME = f"SELECT {COLUMNS} FROM invites WHERE invite_id = $1 AND callee_id = app_user_id() AND NOT silent"


async def to_me(tx: Transaction, invite_id: UUID) -> Invite | None:
    row = await tx.fetchrow(TO_ME, invite_id)
    return Invite(*row) if row else None


BY_ME = "SELECT true FROM invites WHERE invite_id = $1 AND caller_id = app_user_id() LIMIT 1"


async def by_me(tx: Transaction, invite_id: UUID) -> bool:
    return bool(await tx.fetchval(BY_ME, invite_id))


LETS_IN = """
SELECT true FROM invites
WHERE call_id = $1 AND callee_id = app_user_id() AND NOT silent AND status = 'accepted' AND admits
  AND ended_at > coalesce($2, '-infinity'::timestamptz) LIMIT 1
"""


async def lets_in(tx: Transaction, call_id: UUID, since: datetime | None) -> bool:
    """Whether the transaction's user accepted, after `since`, an invite of somebody who may let people in."""
    return bool(await tx.fetchval(LETS_IN, call_id, since))


# The newest of both directions, each by its own index.
PAGE = f"""
WITH mine AS (
    (SELECT id, created_at FROM invites
     WHERE caller_id = app_user_id() AND $1::text IS DISTINCT FROM 'incoming'
       AND ($2::text IS NULL OR status = $2) AND ($3::uuid IS NULL OR call_id = $3)
       AND (created_at, id)
           < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
     ORDER BY created_at DESC, id DESC LIMIT $6)
    UNION ALL
    (SELECT id, created_at FROM invites
     WHERE callee_id = app_user_id() AND NOT silent AND $1::text IS DISTINCT FROM 'outgoing'
       AND ($2::text IS NULL OR status = $2) AND ($3::uuid IS NULL OR call_id = $3)
       AND (created_at, id)
           < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
     ORDER BY created_at DESC, id DESC LIMIT $6)
    ORDER BY created_at DESC, id DESC LIMIT $6)
SELECT {COLUMNS} FROM invites WHERE id IN (SELECT id FROM mine) ORDER BY created_at DESC, id DESC
"""


async def page(
    tx: Transaction,
    *,
    direction: str | None = None,
    status: str | None = None,
    call_id: UUID | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int,
) -> list[Invite]:
    """The transaction's user's call log, newest first. `direction`: incoming, outgoing or both."""
    at, id_ = after or (None, None)
    return [Invite(*row) for row in await tx.fetch(PAGE, direction, status, call_id, at, id_, limit)]


END_RINGING = f"SELECT {COLUMNS} FROM system_end_ringing($1, $2)"


async def end_ringing(tx: Transaction, now: datetime, limit: int) -> list[Invite]:
    """End what has rung long enough (`missed`), and what rings for a call that is over (`canceled`), of all tenants."""
    return [Invite(*row) for row in await tx.fetch(END_RINGING, now, limit)]


RINGING = """
SELECT tenant_id, callee_id, invite_id, call_id, call_name, call_type, caller_id, caller_name, avatar_url, created_at,
       expires_at
FROM system_ringing($1::uuid[], $2::text[], $3)
"""


async def ringing(tx: Transaction, people: Sequence[tuple[UUID, str]], limit: int) -> list[Ringing]:
    """What rings for these people (tenant, user), of whatever tenant."""
    tenants, users = [tenant for tenant, _ in people], [user for _, user in people]
    return [Ringing(*row) for row in await tx.fetch(RINGING, tenants, users, limit)]


FORGET = "SELECT system_forget_invites($1, $2)"


async def forget(tx: Transaction, created_before: datetime, limit: int) -> int:
    """Delete what is older; how many, at most `limit`."""
    return int(await tx.fetchval(FORGET, created_before, limit))
