"""SQL about quality: reports as they come, in batches; pages, steps of time and sums of them."""

# Column lists are ours.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from db.pool import Transaction

Aggregate = Literal["avg", "min", "max", "p95"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of one participant's connection over `window_ms`. Scores 0–5; `latency_ms` is the round trip."""

    call_id: UUID
    participant_id: UUID
    recorded_at: datetime
    window_ms: int | None = None
    direction: str | None = None
    packet_loss_pct: float | None = None
    jitter_ms: float | None = None
    latency_ms: float | None = None
    bandwidth_kbps: float | None = None
    video_width: int | None = None
    video_height: int | None = None
    video_fps: float | None = None
    audio_bitrate_kbps: float | None = None
    video_bitrate_kbps: float | None = None
    connection_type: str | None = None
    ice_state: str | None = None
    quality_score: float
    r_factor: float | None = None
    score_version: int = 1
    region: str | None = None
    node_id: str | None = None


class Row(msgspec.Struct, frozen=True):
    id: int
    report: Report


class Step(msgspec.Struct, frozen=True):
    """What was reported from `at` on, for one step of time."""

    at: datetime
    reports: int
    packet_loss_pct: float | None
    jitter_ms: float | None
    latency_ms: float | None
    bandwidth_kbps: float | None
    video_fps: float | None
    audio_bitrate_kbps: float | None
    video_bitrate_kbps: float | None
    quality_score: float


COLUMNS = ", ".join(Report.__struct_fields__)
_TYPES = {
    "call_id": "uuid", "participant_id": "uuid", "recorded_at": "timestamptz", "window_ms": "integer",
    "video_width": "integer", "video_height": "integer", "score_version": "smallint", "direction": "text",
    "connection_type": "text", "ice_state": "text", "region": "text", "node_id": "text",
}  # fmt: skip


def _arrays() -> str:
    names = enumerate(Report.__struct_fields__, 1)
    return ", ".join(f"${number}::{_TYPES.get(name, 'double precision')}[]" for number, name in names)


# In the order of their ids, so that two nodes that write at once wait for each other and never both. Reports of a call
# that was deleted meanwhile are nobody's any more.
ADD = f"""
WITH given AS (SELECT * FROM unnest({_arrays()}) AS g({COLUMNS})),
held AS (
    SELECT c.id FROM calls c WHERE c.id IN (SELECT call_id FROM given) ORDER BY c.id FOR NO KEY UPDATE),
kept AS (
    INSERT INTO quality_metrics ({COLUMNS})
    SELECT {", ".join(f"g.{name}" for name in Report.__struct_fields__)} FROM given g
    JOIN held h ON h.id = g.call_id
    JOIN call_participants p ON p.id = g.participant_id AND p.call_id = g.call_id
    RETURNING call_id, participant_id, quality_score),
of_people AS (
    UPDATE call_participants p SET
        quality_score = (coalesce(p.quality_score, 0) * p.quality_reports + k.total) / (p.quality_reports + k.times),
        quality_reports = p.quality_reports + k.times
    FROM (SELECT participant_id, sum(quality_score) AS total, count(*) AS times FROM kept GROUP BY 1) k
    WHERE p.id = k.participant_id),
of_calls AS (
    UPDATE calls c SET
        quality_score = (coalesce(c.quality_score, 0) * c.quality_reports + k.total) / (c.quality_reports + k.times),
        quality_reports = c.quality_reports + k.times
    FROM (SELECT call_id, sum(quality_score) AS total, count(*) AS times FROM kept GROUP BY 1) k
    WHERE c.id = k.call_id)
SELECT count(*) FROM kept
"""


async def add(tx: Transaction, reports: Sequence[Report]) -> int:
    """Keep them, and bring the mean scores of their participants and calls up to date; how many were kept.

    The score of a participant and of a call is the mean of all their reports' scores, each of the same weight.
    """
    columns = zip(*(msgspec.structs.astuple(report) for report in reports), strict=True)
    return int(await tx.fetchval(ADD, *map(list, columns)))


PAGE = f"""
SELECT id, {COLUMNS} FROM quality_metrics
WHERE call_id = $1 AND ($2::uuid IS NULL OR participant_id = $2)
  AND ($3::timestamptz IS NULL OR recorded_at >= $3) AND ($4::timestamptz IS NULL OR recorded_at < $4)
  AND ($5::timestamptz IS NULL OR (recorded_at, id) < ($5, $6))
ORDER BY recorded_at DESC, id DESC LIMIT $7
"""


async def page(
    tx: Transaction,
    call_id: UUID,
    *,
    participant_id: UUID | None,
    since: datetime | None,
    until: datetime | None,
    after: tuple[datetime, int] | None,
    limit: int,
) -> list[Row]:
    """Reports as they came, newest first. `since` is included, `until` is not; `after` is the last one of the page
    before.
    """
    rows = await tx.fetch(PAGE, call_id, participant_id, since, until, *(after or (None, None)), limit)
    return [Row(row["id"], Report(**dict(list(row.items())[1:]))) for row in rows]


_MEASURES = Step.__struct_fields__[2:]


def _steps(aggregate: Aggregate) -> str:
    def of(name: str) -> str:
        if aggregate == "p95":
            return f"percentile_cont(0.95) WITHIN GROUP (ORDER BY {name})"
        return f"{aggregate}({name})"

    return f"""
SELECT date_bin($5, recorded_at, 'epoch') AS at, count(*) AS reports, {", ".join(map(of, _MEASURES))}
FROM quality_metrics
WHERE call_id = $1 AND ($2::uuid IS NULL OR participant_id = $2)
  AND ($3::timestamptz IS NULL OR recorded_at >= $3) AND ($4::timestamptz IS NULL OR recorded_at < $4)
GROUP BY 1 ORDER BY 1 DESC LIMIT $6
"""


STEPS_AVG, STEPS_MIN, STEPS_MAX, STEPS_P95 = _steps("avg"), _steps("min"), _steps("max"), _steps("p95")
_OF: dict[Aggregate, str] = {"avg": STEPS_AVG, "min": STEPS_MIN, "max": STEPS_MAX, "p95": STEPS_P95}


async def steps(
    tx: Transaction,
    call_id: UUID,
    *,
    participant_id: UUID | None,
    since: datetime | None,
    until: datetime | None,
    step: timedelta,
    aggregate: Aggregate,
    limit: int,
) -> list[Step]:
    """The last `limit` steps of time in which something was reported, the newest first."""
    rows = await tx.fetch(_OF[aggregate], call_id, participant_id, since, until, step, limit)
    return [Step(*row) for row in rows]


FORGET = "SELECT system_forget_quality($1, $2)"


async def forget(tx: Transaction, recorded_before: datetime, limit: int) -> int:
    """Delete reports of any tenant that are older; how many, at most `limit`."""
    return int(await tx.fetchval(FORGET, recorded_before, limit))
