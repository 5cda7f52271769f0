"""Scores, levels, alerts and advice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.state import quality
from hub.state.quality import LEVELS, Measured, Watch, level_of

# Computed by hand from G.107 with the defaults named in the module: (rtt, jitter, loss) → R, MOS.
GOLDEN = [
    ((20, 2, 0), 92.3, 4.39),
    ((100, 10, 0.5), 86.4, 4.24),
    ((150, 20, 2), 74.0, 3.78),
    ((300, 40, 5), 46.9, 2.41),
    ((600, 80, 10), 0.2, 1.00),
    ((100, 5, 30), 19.9, 1.25),
]


@pytest.mark.parametrize(("given_", "r", "mos"), GOLDEN)
def test_the_golden_table(given_: tuple[float, float, float], r: float, mos: float) -> None:
    """S-095: the E-model."""
    rtt, jitter, loss = given_
    assert quality.r_factor(rtt, jitter, loss) == pytest.approx(r, abs=0.06)
    found = quality.score(Measured(latency_ms=rtt, jitter_ms=jitter, packet_loss_pct=loss))
    assert found.value == pytest.approx(mos, abs=0.011)
    assert found.r_factor == pytest.approx(max(r, 0), abs=0.06)


def test_nothing_wrong_is_nearly_five_and_a_third_lost_is_bad() -> None:
    """S-095: perfect inputs come near the best there is; 30 % loss is at most 2."""
    assert quality.score(Measured()).value >= 4.3
    assert quality.score(Measured(packet_loss_pct=30)).value <= 2


def test_a_picture_alone_has_livekits_score() -> None:
    seen = Measured(video_fps=30, video_bitrate_kbps=900, latency_ms=100, jitter_ms=5, packet_loss_pct=2)
    assert quality.score(seen).value == pytest.approx((100 - 1.5 - 20) / 20, abs=0.01)
    assert quality.score(seen).r_factor is None


@pytest.mark.parametrize("state", ["disconnected", "failed", "closed"])
def test_a_connection_that_is_gone_has_zero(state: str) -> None:
    assert quality.score(Measured(ice_state=state)).value == 0


numbers = st.floats(0, 1e5)


@given(rtt=numbers, jitter=numbers, loss=st.floats(0, 100), more=st.floats(0.1, 100))
def test_worse_is_never_better(rtt: float, jitter: float, loss: float, more: float) -> None:
    def value(rtt: float, jitter: float, loss: float) -> float:
        found = quality.score(Measured(latency_ms=rtt, jitter_ms=jitter, packet_loss_pct=loss)).value
        assert 1 <= found <= 4.5
        return found

    here = value(rtt, jitter, loss)
    assert value(rtt + more, jitter, loss) <= here
    assert value(rtt, jitter + more, loss) <= here
    assert value(rtt, jitter, min(100, loss + more)) <= here


def seen(watch: Watch, *values: float) -> list[str]:
    return [watch.see((Measured(),), value, at * 5.0).level for at, value in enumerate(values)]


def test_a_level_falls_at_the_second_bad_report_and_rises_at_the_third_good_one() -> None:
    watch = Watch()
    assert seen(watch, 4.3, 2.0, 4.3, 2.0, 2.0) == ["excellent", "excellent", "excellent", "excellent", "poor"]
    assert seen(watch, 4.4, 4.4, 2.0, 4.4, 4.4, 4.4) == ["poor"] * 5 + ["excellent"]
    # On the edge it stays where it is.
    assert seen(Watch(), 3.9, *[4.05, 3.95] * 10) == ["good"] * 21


@given(st.lists(st.floats(0, 4.5), min_size=1, max_size=40))
def test_a_level_never_changes_without_reports_that_say_so(values: list[float]) -> None:
    watch = Watch()
    before = None
    for at, value in enumerate(values):
        verdict = watch.see((Measured(),), value, float(at))
        assert verdict.changed == (verdict.level != before)
        if before is not None and verdict.changed:
            worse = LEVELS.index(verdict.level) < LEVELS.index(before)
            window = values[max(0, at - (1 if worse else 2)) : at + 1]
            for each in window:
                assert (LEVELS.index(level_of(each)) < LEVELS.index(before)) == worse
        before = verdict.level


def test_an_alert_comes_with_the_second_report_and_goes_with_the_second_good_one() -> None:
    """S-114: and says what is wrong, where, and for how long."""
    watch = Watch()

    def report(loss: float, at: float) -> list[str]:
        measured = Measured(direction="uplink", packet_loss_pct=loss)
        return [alert.text for alert in watch.see((measured,), 3.0, at).alerts]

    assert report(9, 0) == []
    assert report(9, 15) == ["The uplink loses 9 % for 15 s"]
    assert report(9, 20) == []
    # Neither bad nor good.
    assert report(3, 25) == report(3, 30) == []
    assert report(0, 35) == []
    assert report(0, 40) == ["The uplink is well again: little is lost"]


def test_advice_follows_the_trouble_and_ends_with_it() -> None:
    """S-107."""
    watch = Watch()
    bad = Measured(direction="uplink", packet_loss_pct=12, connection_type="udp")
    for at in range(3):
        verdict = watch.see((bad,), 1.9, at * 5.0)
    assert verdict.advice == ("camera_off", "use_relay") and verdict.next_in_ms == quality.NEXT_IN_TROUBLE_MS
    for at in range(3, 8):
        verdict = watch.see((Measured(direction="uplink", packet_loss_pct=0, connection_type="udp"),), 4.4, at * 5.0)
    assert verdict.advice == () and verdict.next_in_ms == quality.NEXT_MS
    gone = Watch()
    for at in range(2):
        verdict = gone.see((Measured(ice_state="failed"),), 0.0, at * 5.0)
    assert verdict.advice == ("check_network",) and verdict.alerts[0].cause == "disconnected"
