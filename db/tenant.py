"""Whose data a transaction may see. The policies of the tables read what is set here."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from db.pool import Transaction

# true: until the end of this transaction. A plain SET would outlive it and meet the next request.
ENTER = "SELECT set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)"


async def enter(tx: Transaction, tenant_id: UUID, user_id: str | None) -> None:
    """From here on the transaction sees this tenant, and of private things those of `user_id` (None: of nobody)."""
    await tx.execute(ENTER, str(tenant_id), user_id or "")
