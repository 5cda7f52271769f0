"""SQL about lobbies: who waits to be let into a call, in the order in which they knocked, and what was decided."""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class Entry(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS."""

    call_id: UUID
    user_id: str
    ticket: UUID
    display_name: str
    # waiting | admitted | denied | canceled | timed_out
    status: str
    by_link: bool
    knocked_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    reason: str | None
    # Of who was denied: when they may knock again.
    again_at: datetime | None


COLUMNS = """
call_id, user_id, ticket, display_name, status, by_link, knocked_at, expires_at, decided_at, reason, again_at
"""

KNOCK = f"""
INSERT INTO lobby_entries (call_id, user_id, display_name, by_link, via_link_id, expires_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant_id, call_id, user_id) DO UPDATE
SET ticket = gen_random_uuid(), status = 'waiting', display_name = excluded.display_name, by_link = excluded.by_link,
    via_link_id = excluded.via_link_id, knocked_at = clock_timestamp(), expires_at = excluded.expires_at,
    decided_at = NULL, decided_by = NULL, reason = NULL, untold_since = NULL,
    again_at = NULL
RETURNING {COLUMNS}
"""


async def knock(
    tx: Transaction,
    call_id: UUID,
    user_id: str,
    *,
    display_name: str,
    by_link: bool,
    via_link_id: UUID | None,
    expires_at: datetime,
) -> Entry:
    """At the end of the queue, with a new ticket. The caller holds the call (`calls.lock`)."""
    row = await tx.fetchrow(KNOCK, call_id, user_id, display_name, by_link, via_link_id, expires_at)
    assert row is not None
    return Entry(*row)


OF_USER = f"SELECT {COLUMNS} FROM lobby_entries WHERE call_id = $1 AND user_id = $2"


async def of_user(tx: Transaction, call_id: UUID, user_id: str) -> Entry | None:
    """What became of somebody's last knock."""
    row = await tx.fetchrow(OF_USER, call_id, user_id)
    return Entry(*row) if row else None


BY_TICKET = f"SELECT {COLUMNS} FROM lobby_entries WHERE call_id = $1 AND ticket = $2"


async def by_ticket(tx: Transaction, call_id: UUID, ticket: UUID) -> Entry | None:
    row = await tx.fetchrow(BY_TICKET, call_id, ticket)
    return Entry(*row) if row else None


QUEUE = f"""
SELECT {COLUMNS} FROM lobby_entries WHERE call_id = $1 AND status = 'waiting' ORDER BY knocked_at, ticket
"""


async def queue(tx: Transaction, call_id: UUID) -> list[Entry]:
    """Those who wait, the longest first."""
    return [Entry(*row) for row in await tx.fetch(QUEUE, call_id)]


QUEUE_OF_LINK = f"""
SELECT {COLUMNS} FROM lobby_entries
WHERE call_id = $1 AND status = 'waiting' AND via_link_id = $2 ORDER BY knocked_at, ticket
"""


async def queue_of_link(tx: Transaction, call_id: UUID, link_id: UUID) -> list[Entry]:
    """Those of the queue who came by that link."""
    return [Entry(*row) for row in await tx.fetch(QUEUE_OF_LINK, call_id, link_id)]


DECIDE = f"""
UPDATE lobby_entries SET status = $2, decided_at = $3, decided_by = $4, reason = $5, again_at = $7, untold_since = $8
WHERE call_id = $1 AND status = 'waiting' AND ticket = ANY ($6::uuid[])
RETURNING {COLUMNS}
"""


async def decide(
    tx: Transaction,
    call_id: UUID,
    tickets: Sequence[UUID],
    status: str,
    now: datetime,
    *,
    by: str | None = None,
    reason: str | None = None,
    again_at: datetime | None = None,
    untold_since: datetime | None = None,
) -> list[Entry]:
    """Those of them who were still waiting, as they are now. `untold_since`: what was decided is to be told."""
    rows = await tx.fetch(DECIDE, call_id, status, now, by, reason, list(tickets), again_at, untold_since)
    return [Entry(*row) for row in rows]


UNTOLD = f"SELECT {COLUMNS} FROM lobby_entries WHERE call_id = $1 AND untold_since <= $2 ORDER BY knocked_at, ticket"


async def untold(tx: Transaction, call_id: UUID, before: datetime) -> list[Entry]:
    """Those who were marked by then, and are not known to have been told."""
    return [Entry(*row) for row in await tx.fetch(UNTOLD, call_id, before)]


TOLD = """
UPDATE lobby_entries SET untold_since = NULL
WHERE call_id = $1 AND ticket = ANY ($2::uuid[]) AND untold_since <= $3
"""


async def told(tx: Transaction, call_id: UUID, tickets: Sequence[UUID], now: datetime) -> None:
    """They were told what was decided until then."""
    await tx.execute(TOLD, call_id, list(tickets), now)


FORGET = "DELETE FROM lobby_entries WHERE call_id = $1 AND user_id = $2"


async def forget(tx: Transaction, call_id: UUID, user_id: str) -> None:
    """Whatever was decided about somebody: they have to knock again."""
    await tx.execute(FORGET, call_id, user_id)


FORGET_LINK = "DELETE FROM lobby_entries WHERE call_id = $1 AND via_link_id = $2 AND status = 'admitted'"


async def forget_link(tx: Transaction, call_id: UUID, link_id: UUID) -> None:
    """Who came by that link and was let in has to knock again."""
    await tx.execute(FORGET_LINK, call_id, link_id)


DUE = "SELECT tenant_id, call_id FROM system_lobbies_due($1, $2)"


async def due(tx: Transaction, now: datetime, limit: int) -> list[tuple[UUID, UUID]]:
    """(tenant, call) where somebody has waited long enough, or for a call that is over, or is not known to have been
    told what was decided 5 s ago. Sees every tenant."""
    return [(row["tenant_id"], row["call_id"]) for row in await tx.fetch(DUE, now, limit)]
