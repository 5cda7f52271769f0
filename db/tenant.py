"""Whose data a transaction may see. The policies of the tables read what is set here."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from db.pool import Transaction

# true: until the end of this transaction. A plain SET would outlive it and meet the next request.
ENTER = "SELECT set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)"

HEAD = "SELECT set_config('app.headed_call', $1, true)"


async def enter(tx: Transaction, tenant_id: UUID, user_id: str | None) -> None:
    """From here on the transaction sees this tenant, and of private things those of `user_id` (None: of nobody)."""
    await tx.execute(ENTER, str(tenant_id), user_id or "")


async def head(tx: Transaction, call_id: UUID) -> None:
    """From here on the transaction also sees the links of that call, whoever made them. The caller has seen to it that
    its user heads the call."""
    await tx.execute(HEAD, str(call_id))
