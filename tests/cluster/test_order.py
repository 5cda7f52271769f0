"""The order machine of a room, against every way a line can mangle what Redis recorded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hub.cluster.envelope import Envelope, Head
from hub.cluster.order import Arrival, RoomOrder

NOW_MS = 1_000_000


def recorded(offset: int, *, epoch: str = "e", sender: str = "n1", number: int | None = None) -> Arrival:
    number = offset if number is None else number
    return Head(epoch, offset), Envelope(1, "recorded", sender, number, NOW_MS, "chat:posted")


def repair(order: RoomOrder, log: list[Arrival], epoch: str = "e") -> tuple[list[int], bool]:
    """What the bus does: read the log, then let what was held arrive again."""
    at = log[-1][0] if log else Head(epoch, 0)
    order.ask()
    outcome = order.repaired(at, [arrival for arrival in log if arrival[0].offset >= order.last])
    heard = [head.offset for head, _ in outcome.deliver]
    _, later, overflowed = order.release()
    assert not later
    assert not overflowed
    return heard, outcome.resynced


@settings(max_examples=60)
@given(st.data())
def test_whatever_is_lost_doubled_or_late_is_heard_once_and_in_order(data: st.DataObject) -> None:
    """D9, D13."""
    senders = data.draw(st.lists(st.sampled_from(("n1", "n2", "n3")), min_size=1, max_size=30))
    log = [recorded(offset, sender=sender) for offset, sender in enumerate(senders, 1)]
    arrivals = data.draw(st.lists(st.sampled_from(log), max_size=60))
    order = RoomOrder(Head("e", 0), None, NOW_MS - 60)
    heard: list[int] = []
    for head, envelope in arrivals:
        # The log holds at least what was ever heard of; what came later may or may not be there yet.
        verdict = order.arrive(head, envelope, NOW_MS)
        if verdict == "deliver":
            heard.append(head.offset)
        elif verdict == "held" and data.draw(st.booleans()):
            until = data.draw(st.integers(head.offset, len(log)))
            more, resynced = repair(order, log[: max(until, order.last)])
            assert not resynced
            heard += more
    more, _ = repair(order, log)
    assert heard + more == list(range(1, len(log) + 1))


def test_a_message_out_of_turn_waits_for_the_log() -> None:
    order = RoomOrder(Head("e", 0), None, NOW_MS - 60)
    assert order.arrive(*recorded(2), NOW_MS) == "held"
    assert repair(order, [recorded(1), recorded(2)]) == ([1, 2], False)
    assert order.arrive(*recorded(2), NOW_MS) == "duplicate"
    assert order.arrive(*recorded(3), NOW_MS) == "deliver"


def test_a_replay_with_the_next_offset_is_not_believed() -> None:
    order = RoomOrder(Head("e", 0), None, NOW_MS - 60)
    log = [recorded(1, number=10)]
    assert order.arrive(*log[0], NOW_MS) == "deliver"
    assert order.arrive(*recorded(2, number=10), NOW_MS) == "held"
    assert repair(order, log) == ([], False)
    assert order.arrive(*recorded(2, number=11), NOW_MS) == "deliver"


def test_an_old_message_with_the_next_offset_is_looked_up() -> None:
    order = RoomOrder(Head("e", 5), None, NOW_MS + 60_000)
    assert order.arrive(*recorded(6), NOW_MS + 60_000) == "held"


def test_another_epoch_is_a_resync_and_goes_on_from_there() -> None:
    order = RoomOrder(Head("e", 5), None, NOW_MS - 60)
    assert order.arrive(*recorded(1, epoch="f"), NOW_MS) == "held"
    assert repair(order, [recorded(1, epoch="f")]) == ([], True)
    assert order.arrive(*recorded(2, epoch="f"), NOW_MS) == "deliver"


def test_a_log_that_lacks_what_was_missed_is_a_resync() -> None:
    order = RoomOrder(Head("e", 2), None, NOW_MS - 60)
    assert repair(order, [recorded(5), recorded(6)]) == ([], True)
    assert order.last == 6


def test_a_log_that_went_back_is_told_apart_from_one_that_stands_still() -> None:
    order = RoomOrder(Head("e", 0), None, NOW_MS - 60)
    for offset in (1, 2, 3):
        order.arrive(*recorded(offset), NOW_MS)
    assert not order.repaired(Head("e", 3), [recorded(3)]).rolled_back
    assert order.repaired(Head("e", 2), [recorded(2)]).rolled_back
    assert order.repaired(Head("e", 4), [recorded(3, number=99), recorded(4, number=100)]).rolled_back


def test_what_is_held_is_bounded_and_what_did_not_fit_is_read_once_more() -> None:
    order = RoomOrder(Head("e", 0), None, NOW_MS - 60)
    order.ask()
    for offset in range(2, 5000):
        order.arrive(*recorded(offset), NOW_MS)
    forged, later, overflowed = order.release()
    assert (forged, len(later), overflowed) == (0, 1000, True)


def test_what_came_while_the_log_was_read_arrives_again() -> None:
    order = RoomOrder(Head("e", 0), None, NOW_MS - 60)
    assert order.arrive(*recorded(2), NOW_MS) == "held"
    order.ask()
    assert order.arrive(*recorded(3), NOW_MS) == "held"
    outcome = order.repaired(Head("e", 2), [recorded(1), recorded(2)])
    assert [head.offset for head, _ in outcome.deliver] == [1, 2]
    assert order.release() == (0, [recorded(3)], False)
    assert order.arrive(*recorded(3), NOW_MS) == "deliver"


def test_what_was_held_and_is_not_in_the_log_was_never_recorded() -> None:
    order = RoomOrder(Head("e", 0), None, NOW_MS - 60)
    assert order.arrive(*recorded(9), NOW_MS) == "held"
    order.ask()
    order.repaired(Head("e", 1), [recorded(1)])
    assert order.release() == (1, [], False)
