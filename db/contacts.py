"""SQL about contacts: whom somebody knows, asks and blocks, and whom they may see.

Everything here is about the transaction's user. Two people have a row each, and neither can read the other's; what one
does to the other's goes through functions of the database. Changes to a pair take turns (`hold`).
"""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class Contact(msgspec.Struct, frozen=True):
    """One row. `incoming`: the other has asked, and the owner may agree. `kept_status`: what was before a block."""

    id: UUID
    owner_id: str
    user_id: str
    display_name: str | None
    status: str
    incoming: bool
    favorite: bool
    notes: str | None
    kept_status: str | None
    blocked_at: datetime | None
    created_at: datetime
    updated_at: datetime


COLUMNS = (
    "id, owner_id, contact_user_id, display_name, status, incoming, favorite, notes, kept_status, blocked_at,"
    " created_at, updated_at"
)

SHOWN = "SELECT contact_user_id, hidden_since FROM contacts_shown($1::text[])"


async def shown(tx: Transaction, user_ids: Sequence[str]) -> dict[str, datetime | None]:
    """Of these people, the accepted contacts of the transaction's user; with since when they block that user."""
    return {row["contact_user_id"]: row["hidden_since"] for row in await tx.fetch(SHOWN, user_ids)}


BLOCKING = "SELECT user_id FROM contacts_blocking($1::text[])"


async def blocking(tx: Transaction, user_ids: Sequence[str]) -> frozenset[str]:
    """Who of these blocks the transaction's user. Nothing that user hears may depend on it."""
    return frozenset(row["user_id"] for row in await tx.fetch(BLOCKING, user_ids))


HOLD = """
SELECT pg_advisory_xact_lock(hashtextextended(
    concat_ws(' ', app_tenant_id(), least($1, app_user_id()), greatest($1, app_user_id())), 0))
"""


async def hold(tx: Transaction, other: str) -> None:
    """Until the transaction ends nobody else changes anything between the two."""
    await tx.execute(HOLD, other)


GET = f"SELECT {COLUMNS} FROM contacts WHERE owner_id = app_user_id() AND id = $1"


async def get(tx: Transaction, contact_id: UUID) -> Contact | None:
    row = await tx.fetchrow(GET, contact_id)
    return Contact(*row) if row else None


WITH = f"SELECT {COLUMNS} FROM contacts WHERE owner_id = app_user_id() AND contact_user_id = $1"


async def with_(tx: Transaction, other: str) -> Contact | None:
    """The transaction's user's own row about the other."""
    row = await tx.fetchrow(WITH, other)
    return Contact(*row) if row else None


COUNT = "SELECT count(*) FROM contacts WHERE owner_id = app_user_id()"


async def count(tx: Transaction) -> int:
    return int(await tx.fetchval(COUNT))


PAGE = f"""
SELECT {COLUMNS} FROM contacts
WHERE owner_id = app_user_id()
  AND ($1::text IS NULL OR status = $1) AND ($2::boolean IS NULL OR incoming = $2)
  AND ($3::boolean IS NULL OR favorite = $3)
  AND (created_at, id)
      < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
ORDER BY created_at DESC, id DESC LIMIT $6
"""


async def page(
    tx: Transaction,
    *,
    status: str | None = None,
    incoming: bool | None = None,
    favorite: bool | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int,
) -> list[Contact]:
    """The transaction's user's own list, newest first."""
    at, id_ = after or (None, None)
    return [Contact(*row) for row in await tx.fetch(PAGE, status, incoming, favorite, at, id_, limit)]


ADD = f"""
INSERT INTO contacts (owner_id, contact_user_id, display_name, favorite, notes, status, blocked_at)
VALUES (app_user_id(), $1, $2, $3, $4, $5, CASE WHEN $5 = 'blocked' THEN now() END)
RETURNING {COLUMNS}
"""


async def add(
    tx: Transaction, other: str, *, display_name: str | None, favorite: bool, notes: str | None, status: str
) -> Contact:
    """Both users must be known, and the pair held."""
    row = await tx.fetchrow(ADD, other, display_name, favorite, notes, status)
    assert row is not None
    return Contact(*row)


CHANGE = f"""
UPDATE contacts SET display_name = $2, favorite = $3, notes = $4
WHERE owner_id = app_user_id() AND id = $1 RETURNING {COLUMNS}
"""


async def change(
    tx: Transaction, contact_id: UUID, *, display_name: str | None, favorite: bool, notes: str | None
) -> Contact:
    """What the owner keeps for themselves."""
    row = await tx.fetchrow(CHANGE, contact_id, display_name, favorite, notes)
    assert row is not None
    return Contact(*row)


SET_STATUS = f"""
UPDATE contacts
SET status = $2, incoming = $3, kept_status = $4, blocked_at = CASE WHEN $2 = 'blocked' THEN now() END
WHERE owner_id = app_user_id() AND id = $1 RETURNING {COLUMNS}
"""


async def set_status(
    tx: Transaction, contact_id: UUID, status: str, *, incoming: bool = False, kept_status: str | None = None
) -> Contact:
    row = await tx.fetchrow(SET_STATUS, contact_id, status, incoming, kept_status)
    assert row is not None
    return Contact(*row)


REMOVE = "DELETE FROM contacts WHERE owner_id = app_user_id() AND id = $1"


async def remove(tx: Transaction, contact_id: UUID) -> None:
    await tx.execute(REMOVE, contact_id)


OF_OTHER = f"SELECT {COLUMNS} FROM contact_of_other($1)"


async def of_other(tx: Transaction, other: str) -> Contact | None:
    """The other's row about the transaction's user, who must not learn what is in it."""
    row = await tx.fetchrow(OF_OTHER, other)
    return Contact(*row) if row else None


ASK = f"SELECT {COLUMNS} FROM contact_ask($1, $2)"


async def ask(tx: Transaction, other: str, *, at_most: int) -> Contact | None:
    """The transaction's user asks the other: the other's row if that changed it, `accepted` if they had asked too.

    `at_most`: as many requests may wait for the other; more do not arrive.
    """
    row = await tx.fetchrow(ASK, other, at_most)
    return Contact(*row) if row else None


AGREE = f"SELECT {COLUMNS} FROM contact_agree($1)"


async def agree(tx: Transaction, other: str) -> Contact | None:
    """The transaction's user agrees to what the other asked: the other's row where that changed what they see."""
    row = await tx.fetchrow(AGREE, other)
    return Contact(*row) if row else None


PART = f"SELECT {COLUMNS} FROM contact_part($1)"


async def part(tx: Transaction, other: str) -> Contact | None:
    """The transaction's user parts from the other: the other's row that is gone with it."""
    row = await tx.fetchrow(PART, other)
    return Contact(*row) if row else None
