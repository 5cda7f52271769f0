"""Counting who opens a link: clicks, visitors, where from, with what, when, and how far they came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hub.background.tidy import Tidy
from hub.context import NOBODY, Visitor
from hub.protocol.errors import ValidationFailed
from tests.actions.conftest import Node, Person

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148"
TABLET = "Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X)"
DESKTOP = "Mozilla/5.0 (X11; Linux x86_64)"


def visitor(hub: Node, network: str = "192.0.2.1", agent: str = DESKTOP, **fields: Any) -> Person:
    return Person(hub, NOBODY, Visitor(network, agent, **fields))


async def a_link(hub: Node, **fields: Any) -> Any:
    ann = hub.person("ann")
    return await ann.do("link:create", call_id=await ann.room(), **fields)


async def seen(hub: Node, link: Any, **fields: Any) -> Any:
    return await hub.person("ann").do("link:analytics", link_id=link.link_id, **fields)


async def test_ten_opens_are_ten_clicks_and_ten_validations_too(hub: Node) -> None:
    """S-071: but one open and the validation that follows it are one."""
    for names, clicks in ((["resolve"] * 10, 10), (["validate"] * 10, 10), (["resolve", "validate"] * 5, 5)):
        link = await a_link(hub)
        for name in names:
            await visitor(hub).do(f"link:{name}", short_code=link.short_code)
        found = await seen(hub, link)
        assert (found.clicks, found.funnel.clicks, found.funnel.validated) == (clicks, clicks, names.count("validate"))
        shown = await hub.person("ann").do("link:get", link_id=link.link_id)
        assert (shown.click_count, shown.use_count) == (clicks, names.count("validate"))


async def test_a_visitor_is_one_address_and_browser_a_day(hub: Node) -> None:
    """S-072: five opens by one and two by another are two visitors; nobody's address is in the database."""
    link = await a_link(hub)
    for person, times in ((visitor(hub, "203.0.113.77"), 5), (visitor(hub, "2001:db8:77::/64"), 2)):
        for _ in range(times):
            await person.do("link:resolve", short_code=link.short_code)
    found = await seen(hub, link)
    assert (found.clicks, found.unique_visitors) == (7, 2)
    for table in ("link_visitors", "link_hours", "link_sources", "shareable_links"):
        assert "203.0.113.77" not in str(await hub.rows(f"SELECT * FROM {table}")), table
        assert "2001:db8" not in str(await hub.rows(f"SELECT * FROM {table}")), table
    # The same pair at another link, or on another day, is another hash.
    other = await a_link(hub)
    await visitor(hub, "203.0.113.77").do("link:resolve", short_code=other.short_code)
    hub.ahead = timedelta(days=1)
    await visitor(hub, "203.0.113.77").do("link:resolve", short_code=link.short_code)
    hashes = [row[0] for row in await hub.rows("SELECT visitor FROM link_visitors")]
    assert len(set(hashes)) == len(hashes) == 4


async def test_hashes_and_salts_are_forgotten_and_numbers_stay(hub: Node) -> None:
    """S-072: after the next day nobody can tell who a visitor was."""
    link = await a_link(hub)
    await visitor(hub).do("link:resolve", short_code=link.short_code)
    await Tidy(hub.db, hub.clock, chat_for=timedelta(days=365), quality_for=timedelta(days=365)).once()
    assert await hub.value("SELECT count(*) FROM link_visitors") == 1
    hub.ahead = timedelta(days=2)
    assert await Tidy(hub.db, hub.clock, chat_for=timedelta(days=365), quality_for=timedelta(days=365)).once() >= 1
    for table in ("link_visitors", "visitor_salts"):
        assert await hub.value(f"SELECT count(*) FROM {table}") == 0
    found = await seen(hub, link)
    assert (found.clicks, found.unique_visitors) == (1, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"},
        {"agent": "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)"},
        {"agent": "WhatsApp/2.23.20.0 A"},
        {"agent": "facebookexternalhit/1.1"},
        {"opens": False},
    ],
)
async def test_bots_and_looks_ahead_are_left_out(hub: Node, fields: dict[str, Any]) -> None:
    link = await a_link(hub)
    await visitor(hub, **fields).do("link:resolve", short_code=link.short_code)
    found = await seen(hub, link)
    assert (found.clicks, found.unique_visitors, found.series, found.devices) == (0, 0, [], [])


async def test_where_from_and_with_what(hub: Node) -> None:
    """S-123, S-139: hosts only, the most frequent first."""
    link = await a_link(hub)
    for agent, referrer in (
        (PHONE, "https://www.example.com/secret?token=1"),
        (PHONE, "https://example.com/other"),
        (TABLET, "https://chat.example.org"),
        (DESKTOP, "not an address"),
    ):
        await visitor(hub, agent=agent).do("link:resolve", short_code=link.short_code, referrer=referrer)
    await visitor(hub, agent="curl/8.0", referrer="news.example.net").do("link:validate", short_code=link.short_code)
    found = await seen(hub, link)
    assert [(each.source, each.clicks) for each in found.referrers] == [
        ("example.com", 2),
        ("chat.example.org", 1),
        ("direct", 1),
        ("news.example.net", 1),
    ]
    assert {each.source: each.clicks for each in found.devices} == {"mobile": 2, "tablet": 1, "desktop": 1, "other": 1}
    assert "secret" not in str(await hub.rows("SELECT * FROM link_sources"))


async def test_the_series_has_every_step_in_which_something_was(hub: Node) -> None:
    """S-123: by hour, day and week, the numbers adding up."""
    link = await a_link(hub)
    at = datetime.now(UTC).replace(hour=0, minute=30) + timedelta(days=1)
    for hours in (0, 0, 3, 26):
        hub.ahead = at + timedelta(hours=hours) - datetime.now(UTC)
        await visitor(hub).do("link:resolve", short_code=link.short_code)
    await visitor(hub).do("link:validate", short_code=link.short_code)
    since = (at - timedelta(days=1)).isoformat()
    until = (at + timedelta(days=3)).isoformat()
    for step, clicks in (("hour", [2, 1, 1]), ("day", [3, 1])):
        found = await seen(hub, link, step=step, to=until, **{"from": since})
        assert [point.clicks for point in found.series] == clicks
        assert sum(point.validated for point in found.series) == 1
        assert sum(point.unique_visitors for point in found.series) == found.unique_visitors == 2
        assert all(point.at.minute == 0 for point in found.series)
    assert sum(point.clicks for point in (await seen(hub, link, step="week", to=until)).series) == 4
    for range_ in ({"from": until, "to": since}, {"from": "2000-01-01T00:00:00Z", "step": "hour"}):
        with pytest.raises(ValidationFailed):
            await seen(hub, link, **range_)


async def test_the_funnel_ends_with_people_and_their_minutes(hub: Node) -> None:
    """S-140, S-191: who clicked, validated, came in and how long they stayed, as the call's own book has it."""
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await ann.do("link:create", call_id=call_id)
    await visitor(hub, "192.0.2.9").do("link:resolve", short_code=link.short_code)
    for number in range(3):
        passed = await visitor(hub, f"192.0.2.{number}").do("link:validate", short_code=link.short_code)
        if number == 0:
            continue
        socket = Person(hub, await hub.tokens.real.verify(passed.guest_token)).socket()
        await socket.join(call_id)
        hub.ahead += timedelta(minutes=number)
        await socket.do("room:leave", call_id=call_id)
    found = (await seen(hub, link)).funnel
    assert (found.clicks, found.validated, found.joined) == (4, 3, 2)
    booked = await hub.value("SELECT sum(duration_seconds) FROM call_participants WHERE via_link_id IS NOT NULL")
    assert found.minutes == round(booked / 60, 2)
    assert 3.0 <= found.minutes < 4.0


async def test_anybodys_referrers_fill_no_table(hub: Node) -> None:
    link = await a_link(hub)
    await hub.rows(
        "INSERT INTO link_sources (tenant_id, link_id, kind, source, clicks)"
        " SELECT tenant_id, id, 'referrer', 'host' || n, 1 FROM shareable_links, generate_series(1, 200) n"
    )
    for host in ("host7", "one-more", "another"):
        await visitor(hub, referrer=host).do("link:resolve", short_code=link.short_code)
    counts = dict(await hub.rows("SELECT source, clicks FROM link_sources WHERE clicks > 1 AND kind = 'referrer'"))
    assert counts == {"host7": 2, "other": 2}
