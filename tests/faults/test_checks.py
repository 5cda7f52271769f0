"""The judge of the drills judges rightly: a history that keeps the promises passes, each way to break one is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.drill import checks, history
from tests.faults.drill.history import (
    Cut,
    Entry,
    Fail,
    Fault,
    Final,
    Gone,
    Healed,
    Heard,
    History,
    Info,
    Invoke,
    Ok,
    Picture,
    Roster,
)
from tests.faults.drill.view import View

CALL = "call"
BOTH = (("ada", 2, False), ("ben", 1, False))


def joined(
    at: float, who: str, stay: int, offset: int = 0, epoch: str = "e", by: str = "room:join", **marks: int
) -> Picture:
    return Picture(at, who, stay, CALL, by, epoch, offset, False, {"ada": 0, "ben": 0, **marks})


def heard(at: float, who: str, stay: int, offset: int | None, user: str, mark: int, epoch: str = "e") -> Heard:
    return Heard(at, who, stay, CALL, epoch, offset, "participant:updated", f"{user}{mark}", user, mark)


def changed(at: float, op: int, who: str, mark: int) -> Invoke:
    return Invoke(at, op, who, "participant:update", CALL, mark)


def good() -> list[Entry]:
    """Two people, three changes, a cut, a recovery, and a calm end."""
    return [
        joined(1.0, "ada", 1),
        joined(1.1, "ben", 2),
        changed(2.0, 1, "ada", 1),
        heard(2.1, "ada", 1, 1, "ada", 1),
        heard(2.1, "ben", 2, 1, "ada", 1),
        Ok(2.2, 1),
        Fault(3.0, "kill"),
        Cut(3.0, "ben"),
        changed(3.1, 2, "ada", 2),
        heard(3.2, "ada", 1, 2, "ada", 2),
        Ok(3.3, 2),
        Picture(3.5, "ben", 2, CALL, "room:join", "e", 2, True, {"ada": 2, "ben": 0}),
        heard(3.5, "ben", 2, 2, "ada", 2),
        Healed(4.0),
        changed(5.0, 3, "ben", 1),
        heard(5.1, "ada", 1, 3, "ben", 1),
        heard(5.1, "ben", 2, 3, "ben", 1),
        Ok(5.2, 3),
        Roster(9.5, CALL, ("s1", "s2"), ("s1", "s2")),
        Final(
            11.0, "ada", 1, CALL, "e", 3, (("ada", 2, False), ("ben", 1, False)), (("ada", 2, False), ("ben", 1, False))
        ),
    ]


def without(*unwanted: Callable[[Entry], bool]) -> list[Entry]:
    return [entry for entry in good() if not any(each(entry) for each in unwanted)]


def broken(entries: list[Entry], **most: int) -> set[str]:
    return {violation.check for violation in checks.all_of(sorted(entries, key=lambda entry: entry.at), most)}


def test_a_history_that_keeps_every_promise_passes() -> None:
    assert checks.all_of(good(), {CALL: 2}) == []


def test_two_events_at_one_position_are_seen() -> None:
    other = Heard(2.1, "cleo", 3, CALL, "e", 1, "hand:raised", "something else")
    assert broken([*good(), joined(1.2, "cleo", 3), other]) >= {"order"}


def test_a_hole_that_nobody_announced_is_seen() -> None:
    assert "gaps" in broken(without(lambda e: isinstance(e, Heard) and e.client == "ada" and e.offset == 2))


def test_the_same_position_twice_is_seen() -> None:
    assert broken([*good(), heard(5.3, "ada", 1, 3, "ben", 1)]) == {"gaps"}


def test_another_epoch_without_a_snapshot_is_seen() -> None:
    assert "gaps" in broken([*good(), heard(6.0, "ada", 1, 1, "ben", 2, epoch="f")])


def test_a_recovery_into_another_epoch_is_seen() -> None:
    wrong = Picture(6.0, "ada", 1, CALL, "room:sync", "f", 0, True, {"ada": 2, "ben": 1})
    assert broken([*good(), wrong]) == {"gaps"}


def test_a_snapshot_is_where_a_new_epoch_may_begin() -> None:
    anew = joined(6.0, "ada", 1, epoch="f", by="room:sync", ada=2, ben=1)
    assert broken([*good(), anew, heard(6.1, "ada", 1, 1, "ben", 2, epoch="f")]) == set()


def test_an_acked_change_that_somebody_never_hears_of_is_seen() -> None:
    """Also where the positions of that client have no hole: the log itself has lost it."""
    lost: list[Entry] = [changed(6.0, 9, "ada", 3), heard(6.1, "ada", 1, None, "ada", 3), Ok(6.2, 9)]
    assert broken([*good(), *lost]) == {"losses"}


def test_a_change_that_nobody_acked_may_be_lost() -> None:
    assert broken([*good(), changed(6.0, 9, "ada", 3), Info(9.0, 9, "unanswered")]) == set()


def test_a_snapshot_that_shows_the_change_makes_good_for_the_event() -> None:
    lost: list[Entry] = [changed(6.0, 9, "ada", 3), heard(6.1, "ada", 1, None, "ada", 3), Ok(6.2, 9)]
    late = joined(7.0, "ben", 2, offset=3, by="room:sync", ada=3, ben=1)
    assert broken([*good(), *lost, late]) == set()
    too_early = joined(7.0, "ben", 2, offset=3, by="room:sync", ada=2, ben=1)
    assert broken([*good(), *lost, too_early]) == {"losses"}


def test_one_command_with_two_effects_is_seen() -> None:
    again = [heard(6.0, who, stay, 4, "ben", 1) for who, stay in (("ada", 1), ("ben", 2))]
    assert broken([*good(), *again]) == {"doubles"}


def test_a_refused_command_that_took_effect_is_seen() -> None:
    refused: list[Entry] = [changed(6.0, 9, "ben", 7), Fail(6.1, 9, "rate_limited")]
    effect = [heard(6.2, who, stay, 4, "ben", 7) for who, stay in (("ada", 1), ("ben", 2))]
    assert broken([*good(), *refused, *effect]) == {"doubles"}


def test_more_people_than_seats_are_seen() -> None:
    assert broken([*good(), joined(6.0, "cleo", 3, 3, ada=2, ben=1, cleo=0)], call=2) == {"capacity"}
    assert broken([*good(), joined(6.0, "cleo", 3, 3, ada=2, ben=1)], call=2) == {"capacity"}


def test_who_is_on_the_way_out_holds_no_certain_seat() -> None:
    kick = Invoke(5.9, 9, "ada", "participant:kick", CALL, target="ben")
    cleo = Picture(6.0, "cleo", 3, CALL, "room:join", "e", 3, False, {"ada": 2, "cleo": 0})
    ending: list[Entry] = [Ok(6.1, 9), Gone(6.2, "ben", 2, CALL, "kicked")]
    assert broken([*good(), kick, cleo, *ending], call=2) == set()
    assert broken([*good(), cleo], call=2) == {"capacity"}


def test_somebody_who_was_kicked_and_goes_on_hearing_is_seen() -> None:
    kick: list[Entry] = [Invoke(20.0, 9, "ada", "participant:kick", CALL, target="ben"), Ok(20.1, 9)]
    later = [heard(30.0, who, stay, 4, "ada", 3) for who, stay in (("ada", 1), ("ben", 2))]
    assert broken([*good(), *kick, *later]) == {"put_out"}
    back = joined(21.0, "ben", 2, 3, ada=2, ben=1)
    assert broken([*good(), *kick, back, *later]) == set()


def test_a_kick_under_a_fault_has_until_after_the_heal() -> None:
    kick: list[Entry] = [
        Fault(19.0, "link"),
        Invoke(20.0, 9, "ada", "participant:kick", CALL, target="ben"),
        Ok(20.1, 9),
    ]
    later = [heard(30.0, who, stay, 4, "ada", 3) for who, stay in (("ada", 1), ("ben", 2))]
    assert broken([*good(), *kick, *later, Healed(29.0)]) == set()
    assert broken([*good(), *kick, *later, Healed(22.0)]) == {"put_out"}


@pytest.mark.parametrize("shown", [("s1",), ("s1", "s2", "ghost")])
def test_a_roster_that_is_still_wrong_after_the_heal_is_seen(shown: tuple[str, ...]) -> None:
    assert broken([*good(), Roster(9.6, CALL, shown, ("s1", "s2"))]) == {"rosters"}
    assert broken([*good(), Roster(8.0, CALL, shown, ("s1", "s2"))]) == set()
    assert broken([*good(), Fault(9.55, "stop"), Roster(9.6, CALL, shown, ("s1", "s2"))]) == set()


def test_a_picture_put_together_wrongly_is_seen() -> None:
    fresh = (("ada", 2, False), ("ben", 1, True))
    assert broken([*good(), Final(11.1, "ben", 2, CALL, "e", 3, (("ada", 2, False),), fresh)]) == {"finals"}


def test_a_false_left_is_seen() -> None:
    left = Heard(6.0, "ada", 1, CALL, "e", 4, "participant:left", "x", left=(("ben", "connection_lost"),))
    assert checks.false_lefts(good()) == []
    assert [violation.check for violation in checks.false_lefts([*good(), left])] == ["false_lefts"]


def test_a_history_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    kept = History()
    kept.entries = good()
    kept.write(tmp_path / "history.jsonl")
    assert history.read(tmp_path / "history.jsonl") == good()


def test_a_client_takes_what_is_next_skips_what_it_has_and_sees_a_hole() -> None:
    view = View()
    view.picture({"position": {"epoch": "e", "offset": 3}, "participants": [], "hands": []})
    assert [view.place("e", 3), view.place("e", 4), view.place("e", 5), view.place("f", 4)] == [
        "repeat",
        "apply",
        "hole",
        "hole",
    ]
