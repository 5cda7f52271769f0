"""SQL about contacts, as far as presence asks: whom somebody may see."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from db.pool import Transaction

SHOWN = "SELECT contact_user_id, hidden_since FROM contacts_shown($1::text[])"


async def shown(tx: Transaction, user_ids: Sequence[str]) -> dict[str, datetime | None]:
    """Of these people, the accepted contacts of the transaction's user; with since when they block that user."""
    return {row["contact_user_id"]: row["hidden_since"] for row in await tx.fetch(SHOWN, user_ids)}
