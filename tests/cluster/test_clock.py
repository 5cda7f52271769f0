"""What a node makes of Redis' time."""

from __future__ import annotations

from hub.cluster.nodes import Clock, monotonic_s


def test_a_slow_answer_does_not_set_the_clock_forward() -> None:
    clock = Clock()
    clock.sync(1_000_000, monotonic_s() - 0.001)
    # Asked 0.4 s ago, and answered only now: by this alone, it might be 0.4 s later than it is.
    clock.sync(1_000_000, monotonic_s() - 0.4)
    assert 1_000_000 <= clock.now_ms() <= 1_000_200


def test_a_clock_that_another_server_contradicts_follows_that_server() -> None:
    clock = Clock()
    clock.sync(1_000_000, monotonic_s() - 0.001)
    for told_ms in (990_000, 1_050_000):
        clock.sync(told_ms, monotonic_s() - 0.4)
        assert told_ms + 400 <= clock.now_ms() <= told_ms + 600
