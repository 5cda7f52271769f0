"""SQL about tenants: rows made by being seen."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from db.pool import Transaction


class Tenant(msgspec.Struct, frozen=True):
    id: UUID
    name: str | None
    settings: dict[str, Any]
    created_at: datetime


SEEN = "INSERT INTO tenants (id) VALUES (app_tenant_id()) ON CONFLICT DO NOTHING"


async def seen(tx: Transaction) -> None:
    """Make sure that the transaction's tenant has its row, which all its other rows hang on."""
    await tx.execute(SEEN)


GET = "SELECT id, name, settings, created_at FROM tenants WHERE id = app_tenant_id()"


async def get(tx: Transaction) -> Tenant | None:
    """The transaction's own tenant; None before anybody of it was seen."""
    row = await tx.fetchrow(GET)
    return Tenant(*row) if row else None
