"""SQL about the audit log: who did what to whom, when and why. Rows are added and never changed.

Every act of moderation, access and administration is a row of it. As the act commits, the row is sealed into the
tenant's hash chain (db/audit_chain.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from db.pool import Transaction


class Entry(msgspec.Struct, frozen=True):
    # Grows with time, so it is also the place in the list.
    id: int
    at: datetime
    actor: str
    action: str
    target_type: str
    target_id: str | None
    reason: str | None
    details: dict[str, Any]


ADD = """
INSERT INTO audit_log (actor, action, target_type, target_id, reason, details)
VALUES ($1, $2, $3, $4, left($5, 500), $6)
"""


async def add(
    tx: Transaction,
    *,
    actor: str,
    action: str,
    target_type: str,
    target_id: str | None,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write an act down, in the transaction of the act itself: either both are there or neither.

    `actor`: the user id of whoever did it. `action`: as the command is called (`participant:kick`), at most 100
    characters. `target_type` and `target_id`: what it was done to (`participant`, `user`, `call`, `link`, `ticket` …,
    and its id as text). `reason`: what the actor said, cut at 500 characters. `details`: what else an auditor asks for,
    as a small JSON object: the `call_id`, the value before and after; no secrets, no tokens, no passwords.
    Costs one statement; acts of one tenant wait for each other only while they commit.
    """
    await tx.execute(ADD, actor, action, target_type, target_id, reason, dict(details or {}))


PAGE = """
SELECT id, at, actor, action, target_type, target_id, reason, details FROM audit_log
WHERE id < coalesce($1, 9223372036854775807)
  AND ($2::text IS NULL OR actor = $2)
  AND ($3::text IS NULL OR target_type = $3)
  AND ($4::text IS NULL OR target_id = $4)
ORDER BY id DESC LIMIT $5
"""


async def page(
    tx: Transaction,
    *,
    before_id: int | None = None,
    actor: str | None = None,
    target_type: str | None = None,
    target_id: str | None = None,
    limit: int,
) -> list[Entry]:
    """The tenant's log, newest first, below `before_id`."""
    return [Entry(*row) for row in await tx.fetch(PAGE, before_id, actor, target_type, target_id, limit)]


LATELY = """
SELECT true FROM audit_log WHERE actor = $1 AND action = $2 AND at > now() - interval '1 hour' LIMIT 1
"""


async def did_lately(tx: Transaction, actor: str, action: str) -> bool:
    """Whether somebody did that within the hour, as the log has it."""
    return bool(await tx.fetchval(LATELY, actor, action))
