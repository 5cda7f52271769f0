"""Quality: what clients measure, what it comes to, and what they had better do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from db import calls, quality
from db.participants import Participant
from hub.actions import members, pages
from hub.commands import Commands, Http, Rate
from hub.context import Context
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.quality import (
    ListQuality,
    Metrics,
    QualityAlerted,
    QualityAnswer,
    QualityChanged,
    QualityPage,
    Recorded,
    RecordQuality,
    ReportQuality,
    ReportView,
    Sample,
    StepView,
)
from hub.state import quality as state
from hub.state.quality import Measured, Score, Verdict

commands = Commands()

_STEPS = 2_000
_SINGLE = frozenset(Metrics.__struct_fields__)


@commands.add(
    "quality:report", needs="member", rate=Rate(10, per_s=10), emits=(QualityChanged, QualityAlerted), mutates=False
)
async def report(ctx: Context, message: ReportQuality) -> QualityAnswer:
    """Say what your client measured; others hear when your connection changes, and you hear what would help."""
    mine = members.demand_in_call(ctx.member)
    both = [_folded(message, direction) for direction in ("uplink", "downlink")]
    measured = tuple(each for each in both if each is not None) or (_bare(message),)
    scored = [(each, state.score(each), message.window_ms) for each in measured]
    verdict = await _note(ctx, mine, scored)
    return QualityAnswer(verdict.score, verdict.level, verdict.next_in_ms, list(verdict.advice))


@commands.add(
    "quality:record",
    needs="member",
    rate=Rate(20, per_s=10),
    emits=(QualityChanged, QualityAlerted),
    http=Http("POST", "/quality/metrics", 202),
    socket=False,
    mutates=False,
)
async def record(ctx: Context, message: RecordQuality) -> Recorded:
    """Record what was measured, one report or up to 100; the hub scores what comes without a score."""
    mine = members.demand_in_call(ctx.member)
    single = {name: getattr(message, name) for name in _SINGLE}
    given = any(value is not None for value in single.values())
    if given == (message.reports is not None):
        text = "either one report, in fields of its own, or reports"
        raise errors.ValidationFailed(text, errors=[FieldError("reports", text)])
    verdict: Verdict | None = None
    reports: Iterable[Metrics] = message.reports or [Metrics(**single)]
    for each in reports:
        measured = msgspec.convert(each, Measured, from_attributes=True)
        scored = state.score(measured)
        if each.quality_score is not None:
            scored = Score(each.quality_score, None)
        verdict = await _note(ctx, mine, [(measured, scored, each.window_ms)])
    assert verdict is not None
    return Recorded(len(message.reports or [0]), verdict.score, verdict.level)


@commands.add("quality:list", needs="member", http=Http("GET", "/quality/metrics"), socket=False, mutates=False)
async def list_(ctx: Context, message: ListQuality) -> QualityPage:
    """What was reported in a call, as it came or by steps of time."""
    where: dict[str, Any] = {"participant_id": message.participant_id, "since": message.from_, "until": message.to}
    async with ctx.transaction() as tx:
        call = await calls.get(tx, message.call_id)
        if call is None:
            raise errors.NotFound()
        if message.step is not None:
            step = timedelta(seconds=message.step)
            found = await quality.steps(tx, message.call_id, **where, step=step, aggregate=message.agg, limit=_STEPS)
            series = [msgspec.convert(each, StepView, from_attributes=True) for each in reversed(found)]
            return QualityPage([], None, call.quality_score, series)
        rows = await quality.page(tx, message.call_id, **where, after=_after(message.cursor), limit=message.limit + 1)
    items, more = rows[: message.limit], len(rows) > message.limit
    last = items[-1] if items else None
    return QualityPage(
        [msgspec.convert(row.report, ReportView, from_attributes=True) for row in items],
        pages.cursor(last.report.recorded_at, last.id) if more and last else None,
        call.quality_score,
    )


async def _note(ctx: Context, mine: Participant, scored: Sequence[tuple[Measured, Score, int | None]]) -> Verdict:
    """Keep the directions of one report, and tell what changed. Raises RateLimited where the database is behind."""
    call, now = ctx.member.call, ctx.now()
    rows = [_row(ctx, call.id, mine.id, now, *each) for each in scored]
    if not ctx.hub.quality.take(ctx.actor.tenant_id, rows):
        raise errors.RateLimited("too many reports wait to be stored", retry_after_ms=state.NEXT_MS)
    worst = min(score.value for _, score, _ in scored)
    measured = tuple(each for each, _, _ in scored)
    verdict = ctx.hub.quality.watch(mine.id).see(measured, worst, time.monotonic())
    if verdict.changed:
        await ctx.tell(call.id, QualityChanged(mine.id, verdict.score, verdict.level))
    for alert in verdict.alerts:
        told = QualityAlerted(
            mine.id,
            alert.cause,
            alert.direction,
            round(alert.value, 1),
            round(alert.lasted_s, 1),
            alert.cleared,
            alert.text,
        )
        await ctx.tell(call.id, told)
    return verdict


def _row(
    ctx: Context,
    call_id: UUID,
    participant_id: UUID,
    now: datetime,
    measured: Measured,
    score: Score,
    window_ms: int | None,
) -> quality.Report:
    return quality.Report(
        call_id=call_id,
        participant_id=participant_id,
        recorded_at=now,
        window_ms=window_ms,
        quality_score=score.value,
        r_factor=score.r_factor,
        score_version=score.version,
        region=ctx.member.call.region,
        node_id=ctx.hub.node_id,
        **msgspec.structs.asdict(measured),
    )


def _folded(message: ReportQuality, direction: state.Direction) -> Measured | None:
    """The samples of one direction as one: the most of what disturbs, the sum of what flows, the largest picture."""
    samples = [each for each in message.samples if each.direction == direction]
    if not samples:
        return None
    largest = max(samples, key=lambda each: (each.width or 0) * (each.height or 0))
    return msgspec.structs.replace(
        _bare(message),
        direction=direction,
        packet_loss_pct=_most(each.packet_loss_pct for each in samples),
        jitter_ms=_most(each.jitter_ms for each in samples),
        latency_ms=_most(each.rtt_ms for each in samples),
        video_width=largest.width,
        video_height=largest.height,
        video_fps=_most(each.fps for each in samples if each.kind == "video"),
        audio_bitrate_kbps=_flow(samples, "audio"),
        video_bitrate_kbps=_flow(samples, "video"),
    )


def _bare(message: ReportQuality) -> Measured:
    """What is said of the connection as a whole."""
    it = message.connection
    return Measured(bandwidth_kbps=it.bandwidth_kbps, connection_type=it.type, ice_state=it.ice_state)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _flow(samples: Sequence[Sample], kind: str) -> float | None:
    flows = [each.bitrate_kbps for each in samples if each.kind == kind and each.bitrate_kbps is not None]
    return sum(flows) if flows else None


def _after(cursor: str | None) -> tuple[datetime, int] | None:
    found = pages.place(cursor)
    if found is None:
        return None
    if not found.id.isdecimal() or len(found.id) > 18:
        raise errors.InvalidCursor()
    return found.at, int(found.id)
