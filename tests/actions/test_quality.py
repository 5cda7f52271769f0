"""Quality reports: by socket and by REST, kept, scored, told, and what they come to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from hub.background.tidy import Tidy
from hub.protocol.errors import Forbidden, HubError, InvalidCursor, NotFound, NotInRoom, RateLimited, ValidationFailed
from tests.actions.conftest import Node, Socket

NINE: dict[str, Any] = {
    "packet_loss_pct": 1.5,
    "jitter_ms": 12.25,
    "latency_ms": 80.5,
    "bandwidth_kbps": 2500.0,
    "video_width": 1280,
    "video_height": 720,
    "video_fps": 30.0,
    "audio_bitrate_kbps": 32.5,
    "video_bitrate_kbps": 1200.0,
    "connection_type": "udp",
    "ice_state": "connected",
}


async def gathered(hub: Node, *names: str) -> tuple[UUID, list[Socket], list[UUID]]:
    call_id = await hub.person(names[0]).room()
    sockets = [await hub.person(name).listening() for name in names]
    ids = [(await socket.join(call_id)).self.participant_id for socket in sockets]
    return call_id, sockets, ids


async def test_all_that_is_measured_comes_back_as_it_was_given(hub: Node) -> None:
    """S-085, S-086, S-087, S-088, S-089, S-090, S-091, S-092, S-093, S-094."""
    call_id, _, (hers, _) = await gathered(hub, "ann", "bob")
    answer = await hub.person("ann").do("quality:record", call_id=call_id, direction="uplink", window_ms=5000, **NINE)
    assert (answer.accepted, answer.level) == (1, "good")
    await hub.quality.flush()
    (item,) = (await hub.person("bob").do("quality:list", call_id=call_id)).items
    assert {name: getattr(item, name) for name in NINE} == NINE
    assert (item.participant_id, item.direction, item.window_ms) == (hers, "uplink", 5000)
    assert item.quality_score == answer.score and item.r_factor is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packet_loss_pct", 140),
        ("packet_loss_pct", -1),
        ("jitter_ms", -0.1),
        ("latency_ms", 60_001),
        ("bandwidth_kbps", -5),
        ("video_fps", 241),
        ("video_width", 1.5),
        ("quality_score", 5.1),
        ("connection_type", "pigeon"),
        ("ice_state", "melted"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_name(hub: Node, field: str, value: object) -> None:
    """S-085, S-087…S-095: out of bounds, not a number, no such word."""
    call_id, _, _ = await gathered(hub, "ann")
    for fields in ({field: value}, {"reports": [{field: value}]}):
        with pytest.raises(ValidationFailed) as refused:
            await hub.person("ann").do("quality:record", call_id=call_id, **fields)
        assert field in refused.value.errors[0].path


async def test_only_those_in_the_call_report_and_only_its_people_read(hub: Node) -> None:
    """S-085, S-086: and a foreign call is as missing as one that never was."""
    call_id, (_, bob), _ = await gathered(hub, "ann", "bob")
    for asked in (call_id, uuid4()):
        for command, fields in (("quality:record", {"jitter_ms": 1}), ("quality:list", {})):
            with pytest.raises(NotFound):
                await hub.person("eve").do(command, call_id=asked, **fields)
    await bob.do("room:leave", call_id=call_id)
    with pytest.raises((NotInRoom, Forbidden)):
        await hub.person("bob").do("quality:record", call_id=call_id, jitter_ms=1)
    assert (await hub.person("bob").do("quality:list", call_id=call_id)).items == []


async def test_the_score_of_a_call_is_the_mean_of_all_its_reports(hub: Node) -> None:
    """S-042: live, and in the history when it has ended."""
    call_id, _, _ = await gathered(hub, "ann", "bob")
    await hub.person("ann").do("quality:record", call_id=call_id, quality_score=4)
    await hub.quality.flush()
    assert (await hub.person("ann").do("room:get", call_id=call_id)).quality_score == 4
    await hub.person("bob").do("quality:record", call_id=call_id, reports=[{"quality_score": 2}, {"quality_score": 3}])
    await hub.quality.flush()
    assert (await hub.person("ann").do("room:get", call_id=call_id)).quality_score == 3
    people = await hub.rows("SELECT user_id, quality_score FROM call_participants WHERE call_id = $1", call_id)
    assert {row["user_id"]: row["quality_score"] for row in people} == {"ann": 4, "bob": 2.5}
    await hub.person("ann").do("room:end", call_id=call_id)
    assert (await hub.person("bob").do("room:get", call_id=call_id)).quality_score == 3
    assert (await hub.person("bob").do("room:list")).items[0].quality_score == 3


async def test_pages_are_whole_and_steps_add_up(hub: Node) -> None:
    """S-086: by participant, by time, in steps."""
    call_id, _, (hers, his) = await gathered(hub, "ann", "bob")
    for minute in range(3):
        hub.ahead = timedelta(minutes=minute)
        for name, score in (("ann", 4), ("bob", 1 + minute)):
            await hub.person(name).do("quality:record", call_id=call_id, quality_score=score, jitter_ms=minute * 10)
    hub.ahead = timedelta()
    await hub.quality.flush()
    ann = hub.person("ann")
    seen, cursor = [], None
    while True:
        page = await ann.do("quality:list", call_id=call_id, limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [(item.participant_id, item.quality_score) for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen, key=str) == sorted([(hers, 4)] * 3 + [(his, 1), (his, 2), (his, 3)], key=str)
    assert page.quality_score == 3
    only = await ann.do("quality:list", call_id=call_id, participant_id=his)
    assert [item.quality_score for item in only.items] == [3, 2, 1]
    series = (await ann.do("quality:list", call_id=call_id, participant_id=his, step=60, agg="max")).series
    assert [(step.reports, step.quality_score, step.jitter_ms) for step in series] == [
        (1, 1, 0),
        (1, 2, 10),
        (1, 3, 20),
    ]
    for agg, value in (("avg", 2), ("min", 1), ("max", 3), ("p95", 2.9)):
        series = (await ann.do("quality:list", call_id=call_id, participant_id=his, step=3600, agg=agg)).series
        # The hour may turn in between.
        assert len(series) == 2 or series[0].quality_score == pytest.approx(value)
    later = only.items[0].recorded_at.isoformat()
    assert len((await ann.do("quality:list", call_id=call_id, participant_id=his, **{"from": later})).items) == 1
    assert len((await ann.do("quality:list", call_id=call_id, participant_id=his, to=later)).items) == 2
    for cursor in ("x", "eyJhIjoxfQ"):
        with pytest.raises(InvalidCursor):
            await ann.do("quality:list", call_id=call_id, cursor=cursor)


async def test_others_hear_what_changes_and_the_reporter_what_helps(hub: Node) -> None:
    """S-245, S-114, S-107, S-190: bad for two reports, and well again; told at once."""
    call_id, (ann, bob), (hers, _) = await gathered(hub, "ann", "bob")

    async def report(loss: float) -> Any:
        sample = {"direction": "uplink", "kind": "audio", "packet_loss_pct": loss, "jitter_ms": 3, "rtt_ms": 40}
        picture = {"direction": "uplink", "kind": "video", "fps": 24, "width": 640, "height": 360, "bitrate_kbps": 400}
        down = {"direction": "downlink", "kind": "audio", "packet_loss_pct": 0, "rtt_ms": 40}
        connection = {"type": "udp", "ice_state": "connected"}
        return await ann.do(
            "quality:report", call_id=call_id, window_ms=5000, samples=[sample, picture, down], connection=connection
        )

    first = await report(0)
    assert (first.level, first.advice) == ("excellent", [])
    await report(30)
    worse = await report(30)
    assert worse.level == "lost" and worse.advice and worse.next_in_ms < first.next_in_ms
    await hub.delivered()
    assert [event["level"] for event in bob.told("quality:changed")] == ["excellent", "lost"]
    (alert,) = bob.told("quality:alerted")
    assert (alert["participant_id"], alert["cause"], alert["direction"]) == (str(hers), "loss", "uplink")
    assert alert["text"].startswith("The uplink loses 30 %")
    for _ in range(3):
        better = await report(0)
    assert (better.level, better.advice) == ("excellent", [])
    await hub.delivered()
    assert [event["cleared"] for event in bob.told("quality:alerted")] == [False, True]
    await hub.quality.flush()
    rows = await hub.rows("SELECT direction, video_width, video_fps FROM quality_metrics WHERE call_id = $1", call_id)
    assert len(rows) == 12
    assert {(row["direction"], row["video_width"]) for row in rows} == {("uplink", 640), ("downlink", None)}


async def test_what_is_reported_beyond_the_limit_is_refused_and_not_half_taken(hub: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr("hub.background.quality._WAITING", 3)
    call_id, _, _ = await gathered(hub, "ann")
    for _ in range(3):
        await hub.person("ann").do("quality:record", call_id=call_id, jitter_ms=1)
    with pytest.raises(RateLimited):
        await hub.person("ann").do("quality:record", call_id=call_id, jitter_ms=1)
    await hub.quality.flush()
    await hub.person("ann").do("quality:record", call_id=call_id, jitter_ms=1)


async def test_reports_of_a_call_that_was_deleted_keep_nobody_elses_out(hub: Node) -> None:
    gone, _, _ = await gathered(hub, "ann")
    call_id, _, _ = await gathered(hub, "bob")
    await hub.person("ann").do("quality:record", call_id=gone, jitter_ms=1)
    await hub.person("bob").do("quality:record", call_id=call_id, jitter_ms=1)
    await hub.person("ann").do("room:delete", call_id=gone)
    await hub.quality.flush()
    assert len((await hub.person("bob").do("quality:list", call_id=call_id)).items) == 1


async def test_reports_are_forgotten_and_scores_stay(hub: Node) -> None:
    call_id, _, _ = await gathered(hub, "ann")
    await hub.person("ann").do("quality:record", call_id=call_id, quality_score=2)
    await hub.quality.flush()
    tidy = Tidy(hub.db, hub.clock, chat_for=timedelta(days=90), quality_for=timedelta(days=30))
    await tidy.once()
    assert len((await hub.person("ann").do("quality:list", call_id=call_id)).items) == 1
    hub.ahead = timedelta(days=31)
    await tidy.once()
    page = await hub.person("ann").do("quality:list", call_id=call_id)
    assert page.items == [] and page.quality_score == 2


@pytest.mark.parametrize("fields", [{}, {"jitter_ms": 1, "reports": [{"jitter_ms": 1}]}, {"reports": []}])
async def test_either_one_report_or_several(hub: Node, fields: dict[str, object]) -> None:
    call_id, _, _ = await gathered(hub, "ann")
    with pytest.raises(HubError) as refused:
        await hub.person("ann").do("quality:record", call_id=call_id, **fields)
    assert refused.value.code == "validation_failed"


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
async def test_a_time_beyond_the_calendar_is_refused_by_its_name(hub: Node, at: str) -> None:
    call_id, _, _ = await gathered(hub, "ann")
    for command, field in (("quality:list", "from"), ("quality:list", "to"), ("link:create", "active_from")):
        with pytest.raises(ValidationFailed) as refused:
            await hub.person("ann").do(command, call_id=call_id, **{field: at})
        assert refused.value.errors[0].path == field
