"""Counting who opens a link: people, not bots; and nobody's address is kept."""

from __future__ import annotations

import hmac
import secrets
from datetime import timedelta
from typing import Final
from uuid import UUID

from db import link_visits, links
from db.link_visits import Point
from db.links import Link
from db.pool import Transaction
from hub.context import Context
from hub.protocol import errors
from hub.protocol.errors import FieldError
from hub.protocol.links import AskAnalytics, Funnel, LinkAnalytics, LinkPoint, Source
from hub.state.visits import device_of, is_bot

DIRECT: Final = "direct"
_STEPS: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
_POINTS: Final = 1000
# Without a range: two days by the hour, three months by the day, two years by the week.
_DEFAULT_POINTS: Final = {"hour": 48, "day": 90, "week": 104}
_SHOWN: Final = 50


async def opened(ctx: Context, tx: Transaction, link_id: UUID, referrer: str) -> None:
    """Somebody looks at the link: a click. In a transaction of the link's creator."""
    if not _counts(ctx) or await links.hold(tx, link_id) is None:
        return
    await _click(ctx, tx, link_id, referrer, opened=True)


async def validated(ctx: Context, tx: Transaction, link_id: UUID) -> None:
    """Somebody came in by it (`links.use` holds its row): a click as well, where they did not open it just before."""
    await link_visits.used(tx, link_id, ctx.now())
    if not _counts(ctx):
        return
    visitor = await _visitor(ctx, tx, link_id)
    if not await link_visits.follow(tx, link_id, ctx.now().date(), visitor):
        await _click(ctx, tx, link_id, ctx.visitor.referrer, opened=False)


def _counts(ctx: Context) -> bool:
    return ctx.visitor.opens and not is_bot(ctx.visitor.agent)


async def _click(ctx: Context, tx: Transaction, link_id: UUID, referrer: str, *, opened: bool) -> None:
    now = ctx.now()
    new = await link_visits.visit(tx, link_id, now.date(), await _visitor(ctx, tx, link_id), opened=opened)
    device = device_of(ctx.visitor.agent)
    await link_visits.click(tx, link_id, now, new=new, referrer=referrer or DIRECT, device=device)


async def _visitor(ctx: Context, tx: Transaction, link_id: UUID) -> bytes:
    """Who it is, for this link and this day, and of no use to anybody afterwards."""
    salt = await link_visits.salt(tx, ctx.now().date(), secrets.token_bytes(32))
    who = f"{link_id}\n{ctx.visitor.network}\n{ctx.visitor.agent}"
    return hmac.digest(salt, who.encode(), "sha256")[:16]


async def analytics(ctx: Context, tx: Transaction, link: Link, message: AskAnalytics) -> LinkAnalytics:
    step = _STEPS[message.step]
    until = message.to or ctx.now()
    try:
        since = message.from_ or until - step * _DEFAULT_POINTS[message.step]
        points = (until - since) / step
    except OverflowError:
        points = -1.0
    if not 0 <= points <= _POINTS:
        text = f"a range of at most {_POINTS} steps, beginning before its end"
        raise errors.ValidationFailed(f"from: {text}", errors=[FieldError("from", text)])
    people, seconds = await link_visits.joined(tx, link.id)
    series = await link_visits.series(tx, link.id, message.step, since, until, _POINTS + 1)
    return LinkAnalytics(
        link_id=link.id,
        clicks=link.click_count,
        unique_visitors=link.unique_visitors,
        funnel=Funnel(link.click_count, link.use_count, people, round(seconds / 60, 2)),
        referrers=[Source(*each) for each in await link_visits.sources(tx, link.id, "referrer", _SHOWN)],
        devices=[Source(*each) for each in await link_visits.sources(tx, link.id, "device", _SHOWN)],
        step=message.step,
        series=[_point(each) for each in series],
    )


def _point(point: Point) -> LinkPoint:
    return LinkPoint(point.at, point.clicks, point.visitors, point.uses)
