"""The few looks across tenants. Each is a function of the database that runs as hub_system; the app role may call it.

They work in a transaction without a tenant (`Database.system`), and in any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


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
