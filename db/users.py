"""SQL about users: what tokens said of people, kept so that calls can name their owners."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from db.pool import Transaction


class User(msgspec.Struct, frozen=True):
    id: str
    is_guest: bool
    display_name: str | None
    avatar_url: str | None
    created_at: datetime
    last_seen_at: datetime


# The tenant's row in the same round trip. A person who does nothing new is written at most once a minute: every command
# of theirs passes here. Foreign keys are checked at the end of the statement, so the order of the two is no matter.
SEEN = """
WITH tenant AS (INSERT INTO tenants (id) VALUES (app_tenant_id()) ON CONFLICT DO NOTHING)
INSERT INTO users AS known (id, display_name, avatar_url) VALUES ($1, $2, $3)
ON CONFLICT (tenant_id, id) DO UPDATE
SET display_name = coalesce(excluded.display_name, known.display_name),
    avatar_url = coalesce(excluded.avatar_url, known.avatar_url),
    last_seen_at = now()
WHERE known.last_seen_at < now() - interval '1 minute'
   OR excluded.display_name <> coalesce(known.display_name, '')
   OR excluded.avatar_url <> coalesce(known.avatar_url, '')
"""
_NAME_LENGTH = 200
_URL_LENGTH = 2048


async def seen(
    tx: Transaction, user_id: str, *, display_name: str | None = None, avatar_url: str | None = None
) -> None:
    """Make or refresh a user, and the tenant. A token is no form: long names are cut, long addresses left out."""
    name = (display_name or "").replace("\0", "")[:_NAME_LENGTH]
    url = avatar_url or ""
    if len(url) > _URL_LENGTH or "\0" in url:
        url = ""
    await tx.execute(SEEN, user_id, name or None, url or None)


MENTIONED = "INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING"


async def mentioned(tx: Transaction, user_id: str) -> None:
    """Make a user of whom nothing is known but the id, if need be: somebody may be asked for before they ever come."""
    await tx.execute(MENTIONED, user_id)


BY_IDS = """
SELECT id, is_guest, display_name, avatar_url, created_at, last_seen_at FROM users WHERE id = ANY ($1::text[])
"""


async def by_ids(tx: Transaction, user_ids: Sequence[str]) -> dict[str, User]:
    """Those of them that were ever seen."""
    return {row["id"]: User(*row) for row in await tx.fetch(BY_IDS, user_ids)}
