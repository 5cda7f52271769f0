"""Counters that are plain integers until somebody asks."""

from __future__ import annotations

from prometheus_client import generate_latest

from db import queries
from db.calls import GET
from hub import metrics


def test_timings_and_totals_are_scraped_like_the_librarys_own() -> None:
    timing, totals = metrics.Timing("test_wait", "Waits"), metrics.Totals("test_sum", "Sums", "kind")
    for seconds in (0.0005, 0.3, 9.0):
        timing.observe(seconds)
    totals.read = lambda: {"a": 3}
    text = generate_latest(metrics.REGISTRY).decode()
    assert 'auralink_hub_test_wait_seconds_bucket{le="0.5"} 2.0' in text and "test_wait_seconds_count 3.0" in text
    assert "# TYPE auralink_hub_test_sum_total counter" in text and 'auralink_hub_test_sum_total{kind="a"} 3.0' in text


def test_a_statement_is_called_by_its_constant_and_never_by_its_text() -> None:
    known = queries.names()
    assert queries.name_of(GET, known) == "calls.GET"
    assert queries.name_of("BEGIN;", known) == "begin"
    assert queries.name_of("SELECT * FROM users WHERE id = 'ann'", known) == "other"


def test_tallies_and_outcomes_are_scraped_like_the_librarys_own() -> None:
    tally = metrics.Tally("test_tally", "Things", "kind")
    outcomes = metrics.Outcomes("test_deed", "Deeds", "Time", "kind", "outcome")
    tally.add(1, "a")
    tally.add(2, "a")
    tally.add(1, "b")
    for seconds in (0.0005, 0.001, 0.3, 9.0):
        outcomes.add(seconds, ("a", "ok"))
    text = generate_latest(metrics.REGISTRY).decode()
    assert 'auralink_hub_test_tally_total{kind="a"} 3.0' in text and '_tally_total{kind="b"} 1.0' in text
    assert 'auralink_hub_test_deeds_total{kind="a",outcome="ok"} 4.0' in text
    assert "# TYPE auralink_hub_test_deed_seconds histogram" in text
    for edge, below in (("0.001", 2), ("0.25", 2), ("0.5", 3), ("5.0", 3), ("+Inf", 4)):
        assert f'auralink_hub_test_deed_seconds_bucket{{kind="a",le="{edge}"}} {below}.0' in text
    assert 'test_deed_seconds_count{kind="a"} 4.0' in text and 'test_deed_seconds_sum{kind="a"} 9.3015' in text
