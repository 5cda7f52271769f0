"""What people look like, out of their devices and their choice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from hub.state.presence import Choice, Known, Presence, own, seen_by

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMES = st.integers(0, 100).map(lambda minutes: NOON + timedelta(minutes=minutes))
CHOICES = st.builds(Choice, st.sampled_from(("online", "away", "busy", "invisible")), st.none() | st.text(), TIMES)
KNOWN = st.builds(Known, st.lists(st.booleans(), max_size=4).map(tuple), st.none() | CHOICES, st.none() | TIMES)


def test_a_choice_goes_before_a_call_and_a_call_before_being_connected() -> None:
    """S-243"""
    busy = Choice("busy", "writing", NOON)
    assert seen_by(Known((False,))) == Presence("online")
    assert seen_by(Known((False, True))) == Presence("in_call")
    assert seen_by(Known((False, True), busy)) == Presence("busy", "writing")
    assert seen_by(Known((True,), Choice("online", "hi", NOON))) == Presence("in_call", "hi")
    assert seen_by(Known((), busy, NOON)) == Presence("offline", None, NOON)


def test_who_is_invisible_looks_as_if_they_had_gone_then_and_stays_so_when_they_do_go() -> None:
    hidden = Choice("invisible", "ssh", NOON)
    gone = Presence("offline", None, NOON)
    assert seen_by(Known((True,), hidden)) == gone
    assert seen_by(Known((), hidden, NOON + timedelta(hours=5))) == gone
    assert seen_by(Known((True,), hidden), themselves=True) == Presence("invisible", "ssh")


def test_whom_somebody_blocks_sees_them_gone_since_then_whatever_they_do() -> None:
    later = NOON + timedelta(hours=1)
    for known in (Known((True,)), Known((), None, later), Known((), Choice("invisible", None, later))):
        assert seen_by(known, hidden_since=NOON) == Presence("offline", None, NOON)
    assert seen_by(Known((), None, NOON), hidden_since=later) == Presence("offline", None, NOON)


@given(KNOWN)
def test_nobody_else_ever_sees_that_somebody_is_invisible(known: Known) -> None:
    seen = seen_by(known)
    assert seen.status != "invisible"
    assert seen.status == "offline" or (known.devices and seen == own(known.devices, known.choice, known.last_seen))
    assert (seen.last_seen is None) or seen.status == "offline"
    assert seen.text is None or seen.status != "offline"


@given(KNOWN, TIMES)
def test_the_order_of_devices_is_no_matter_and_blocked_people_learn_nothing(known: Known, since: datetime) -> None:
    turned = Known(tuple(reversed(known.devices)), known.choice, known.last_seen)
    assert seen_by(turned) == seen_by(known)
    hidden = seen_by(known, hidden_since=since)
    assert (hidden.status, hidden.text) == ("offline", None)
    assert hidden.last_seen is not None and hidden.last_seen <= since
