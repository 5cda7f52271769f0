"""SQL about who opens links: clicks, visitors and uses by hour, by where from, with what; and how far they came.

In a transaction of the link's tenant and creator, whose row comes first (`links.hold`, `links.use`): visits of one link
take turns.
"""

from __future__ import annotations

from datetime import date, datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class Point(msgspec.Struct, frozen=True):
    at: datetime
    clicks: int
    visitors: int
    uses: int


SALT = "SELECT visitor_salt($1, $2)"


async def salt(tx: Transaction, day: date, candidate: bytes) -> bytes:
    """The day's salt for the hashes of visitors; `candidate`, 32 random bytes, where it has none yet."""
    return bytes(await tx.fetchval(SALT, day, candidate))


# Whether their last open is still without a validation; a validation takes it.
FOLLOW = """
UPDATE link_visitors SET opened = false
WHERE link_id = $1 AND day = $2 AND visitor = $3 AND opened
RETURNING true
"""


async def follow(tx: Transaction, link_id: UUID, day: date, visitor: bytes) -> bool:
    """Whether a validation belongs to an open that was counted already."""
    return await tx.fetchval(FOLLOW, link_id, day, visitor) is not None


VISIT = """
INSERT INTO link_visitors (link_id, day, visitor, opened) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, link_id, day, visitor) DO UPDATE SET opened = excluded.opened
RETURNING xmax = 0
"""


async def visit(tx: Transaction, link_id: UUID, day: date, visitor: bytes, *, opened: bool) -> bool:
    """Whether they are new on that day."""
    return bool(await tx.fetchval(VISIT, link_id, day, visitor, opened))


COUNT = """
UPDATE shareable_links SET click_count = click_count + 1, unique_visitors = unique_visitors + $2 WHERE id = $1
"""
HOUR = """
INSERT INTO link_hours AS known (link_id, hour, clicks, visitors, uses)
VALUES ($1, date_trunc('hour', $2, 'UTC'), $3, $4, $5)
ON CONFLICT (tenant_id, link_id, hour) DO UPDATE
SET clicks = known.clicks + excluded.clicks, visitors = known.visitors + excluded.visitors,
    uses = known.uses + excluded.uses
"""
# Anybody can send any referrer: what comes beyond the first so many is one more, `other`.
SOURCE = """
INSERT INTO link_sources AS known (link_id, kind, source, clicks)
SELECT $1, $2, CASE WHEN EXISTS (SELECT FROM link_sources WHERE link_id = $1 AND kind = $2 AND source = $3)
                      OR (SELECT count(*) FROM link_sources WHERE link_id = $1 AND kind = $2) < $4
                    THEN $3 ELSE 'other' END, 1
ON CONFLICT (tenant_id, link_id, kind, source) DO UPDATE SET clicks = known.clicks + 1
"""
_SOURCES = 200


async def click(tx: Transaction, link_id: UUID, at: datetime, *, new: bool, referrer: str, device: str) -> None:
    await tx.execute(COUNT, link_id, int(new))
    await tx.execute(HOUR, link_id, at, 1, int(new), 0)
    await tx.execute(SOURCE, link_id, "referrer", referrer, _SOURCES)
    await tx.execute(SOURCE, link_id, "device", device, _SOURCES)


async def used(tx: Transaction, link_id: UUID, at: datetime) -> None:
    await tx.execute(HOUR, link_id, at, 0, 0, 1)


SERIES = """
SELECT date_trunc($2, hour, 'UTC') AS at, sum(clicks)::bigint, sum(visitors)::bigint, sum(uses)::bigint
FROM link_hours WHERE link_id = $1 AND hour >= date_trunc('hour', $3, 'UTC') AND hour < $4
GROUP BY 1 ORDER BY 1 LIMIT $5
"""


async def series(
    tx: Transaction, link_id: UUID, step: str, since: datetime, until: datetime, limit: int
) -> list[Point]:
    """By `step` (hour, day, week; UTC), the oldest first; steps without anything are not there."""
    return [Point(*row) for row in await tx.fetch(SERIES, link_id, step, since, until, limit)]


SOURCES = """
SELECT source, clicks FROM link_sources WHERE link_id = $1 AND kind = $2 ORDER BY clicks DESC, source LIMIT $3
"""


async def sources(tx: Transaction, link_id: UUID, kind: str, limit: int) -> list[tuple[str, int]]:
    return [(row[0], row[1]) for row in await tx.fetch(SOURCES, link_id, kind, limit)]


JOINED = """
SELECT count(DISTINCT user_id) FILTER (WHERE joined_at IS NOT NULL), coalesce(sum(duration_seconds), 0)
FROM call_participants WHERE via_link_id = $1
"""


async def joined(tx: Transaction, link_id: UUID) -> tuple[int, float]:
    """How many people came into the call by the link, and how many seconds they were there in all."""
    row = await tx.fetchrow(JOINED, link_id)
    assert row is not None
    return int(row[0]), float(row[1])


FORGET = "SELECT system_forget_visits($1, $2, $3)"


async def forget(tx: Transaction, until: date, old: datetime, limit: int) -> int:
    """Forget visitors and salts of before `until` and hours of before `old`; how many rows, some at a time."""
    return int(await tx.fetchval(FORGET, until, old, limit))
