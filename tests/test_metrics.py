"""Counters that are plain integers until somebody asks."""

from __future__ import annotations

from prometheus_client import generate_latest

from hub import metrics


def test_tallies_and_timings_are_scraped_like_the_librarys_own() -> None:
    tally = metrics.Tally("test_tally", "Things", "kind")
    timing = metrics.Timing("test_timing", "Time", "kind")
    tally.add(1, "a")
    tally.add(2, "a")
    tally.add(1, "b")
    for seconds in (0.0005, 0.001, 0.3, 9.0):
        timing.observe("a", seconds)
    text = generate_latest(metrics.REGISTRY).decode()
    assert 'auralink_hub_test_tally_total{kind="a"} 3.0' in text and '_tally_total{kind="b"} 1.0' in text
    assert "# TYPE auralink_hub_test_timing_seconds histogram" in text
    for edge, below in (("0.001", 2), ("0.25", 2), ("0.5", 3), ("5.0", 3), ("+Inf", 4)):
        assert f'auralink_hub_test_timing_seconds_bucket{{kind="a",le="{edge}"}} {below}.0' in text
    assert 'test_timing_seconds_count{kind="a"} 4.0' in text and 'test_timing_seconds_sum{kind="a"} 9.3015' in text
