"""The bus between two nodes of one environment, everything well."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.cluster import Cluster
from hub.context import Position
from hub.protocol.errors import ClusterUnavailable
from tests.cluster.conftest import OpenNode
from tests.cluster.hearing import line_of, until


class Said(msgspec.Struct, frozen=True):
    text: str


async def test_every_node_hears_two_senders_in_the_same_order_without_gaps(open_node: OpenNode) -> None:
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await asyncio.gather(a.bus.subscribe_room(call_id), b.bus.subscribe_room(call_id))

    # What is stamped about the moment of the subscription is looked up in the log.
    await asyncio.sleep(0.1)

    async def talk(node: Cluster, who: str) -> None:
        for start in range(0, 300, 10):
            await asyncio.gather(
                *(node.bus.to_room(call_id, "chat:posted", Said(f"{who}{n}")) for n in range(start, start + 10))
            )

    await asyncio.gather(talk(a, "a"), talk(b, "b"))
    await until(lambda: len(ear_a.events) == 600 and len(ear_b.events) == 600)
    assert ear_a.events == ear_b.events
    assert ear_a.offsets == list(range(1, 601))
    assert sorted(ear_a.said) == sorted([f"a{n}" for n in range(300)] + [f"b{n}" for n in range(300)])
    assert a.bus.counters.repairs == b.bus.counters.repairs == 0


async def test_one_senders_awaited_events_keep_their_order(open_node: OpenNode) -> None:
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await b.bus.subscribe_room(call_id)
    for n in range(50):
        await a.bus.to_room(call_id, "chat:posted", Said(str(n)))
    await until(lambda: len(ear_b.events) == 50)
    assert ear_b.said == [str(n) for n in range(50)]


async def test_an_event_carries_its_position_and_who_caused_it(open_node: OpenNode) -> None:
    a, ear = await open_node("a")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    position = await a.bus.to_room(
        call_id,
        "hand:raised",
        {"text": "x", "call_id": call_id, "by": "nobody"},
        by={"user_id": "u"},
        skip_session="s1",
    )
    await until(lambda: bool(ear.events))
    (event,) = ear.events
    assert position == Position(event["epoch"], 1)
    assert event["ts"].endswith("Z")
    assert event == {
        "call_id": str(call_id),
        "epoch": event["epoch"],
        "offset": 1,
        "ts": event["ts"],
        "by": {"user_id": "u"},
        "text": "x",
    }
    assert (ear.names, ear.skipped) == (["hand:raised"], ["s1"])


async def test_an_ephemeral_event_has_no_offset_and_is_not_kept(open_node: OpenNode) -> None:
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await b.bus.subscribe_room(call_id)
    before = await a.bus.position(call_id)
    assert await a.bus.to_room(call_id, "chat:typing", {}, recorded=False) is None
    await until(lambda: bool(ear_a.events and ear_b.events))
    assert "offset" not in ear_b.events[0]
    assert await a.bus.position(call_id) == before
    assert await b.bus.since(call_id, before) == []


async def test_a_node_hears_only_rooms_it_subscribed_to(open_node: OpenNode) -> None:
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    mine, other = uuid4(), uuid4()
    await b.bus.subscribe_room(mine)
    await a.bus.to_room(other, "chat:posted", Said("elsewhere"))
    await a.bus.to_room(mine, "chat:posted", Said("here"))
    await until(lambda: bool(ear_b.events))
    b.bus.unsubscribe_room(mine)
    await a.bus.to_room(mine, "chat:posted", Said("after"))
    await asyncio.sleep(0.05)
    assert ear_b.said == ["here"]


async def test_leaving_and_coming_back_at_once_misses_nothing_after_the_return(open_node: OpenNode) -> None:
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await b.bus.subscribe_room(call_id)
    for n in range(30):
        b.bus.unsubscribe_room(call_id)
        await b.bus.subscribe_room(call_id)
        await a.bus.to_room(call_id, "chat:posted", Said(str(n)))
        await until(lambda n=n: len(ear_b.events) == n + 1)  # type: ignore[misc]
    assert ear_b.said == [str(n) for n in range(30)]


async def test_concurrent_subscriptions_to_one_room_are_one(open_node: OpenNode) -> None:
    a, ear = await open_node("a")
    call_id = uuid4()
    await asyncio.gather(*(a.bus.subscribe_room(call_id) for _ in range(20)))
    await a.bus.to_room(call_id, "chat:posted", Said("once"))
    await until(lambda: bool(ear.events))
    await asyncio.sleep(0.02)
    assert ear.said == ["once"]


async def test_since_tells_exactly_what_came_after_a_position_on_any_node(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    start = await a.bus.position(call_id)
    assert start.offset == 0
    for n in range(5):
        await a.bus.to_room(call_id, "chat:posted", Said(str(n)), by={"user_id": "u"})
    missed = await b.bus.since(call_id, Position(start.epoch, 2))
    assert missed is not None
    assert [(one.event, one.data["offset"], one.data["text"]) for one in missed] == [
        ("chat:posted", 3, "2"),
        ("chat:posted", 4, "3"),
        ("chat:posted", 5, "4"),
    ]
    assert await b.bus.since(call_id, Position(start.epoch, 5)) == []
    assert await b.bus.since(call_id, Position("another", 5)) is None
    # From the future: a log that lost its end must not call this caught up.
    assert await b.bus.since(call_id, Position(start.epoch, 6)) is None


async def test_the_log_keeps_a_thousand_events_and_says_so_when_asked_for_more(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    call_id = uuid4()
    while (end := await a.bus.position(call_id)).offset < 1100:
        # Few at a time: one that a busy machine does not get through in time begins the log anew.
        await asyncio.gather(*(a.bus.to_room(call_id, "chat:posted", Said("x")) for _ in range(20)))
    missed = await a.bus.since(call_id, Position(end.epoch, end.offset - 1000))
    assert missed is not None
    assert [one.data["offset"] for one in missed] == list(range(end.offset - 999, end.offset + 1))
    assert await a.bus.since(call_id, Position(end.epoch, end.offset - 1001)) is None


async def test_publishes_of_one_loop_turn_leave_in_one_write(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    link = line_of(a)._publish
    assert link is not None and link._transport is not None
    writes: list[int] = []
    write = link._transport.write

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            writes.append(len(data))
            write(data)

    transport = link._transport
    link._transport = Counting()  # type: ignore[assignment]
    await asyncio.gather(*(a.bus.to_room(uuid4(), "chat:posted", Said("x")) for _ in range(100)))
    link._transport = transport
    # A tick may fall into the same moment.
    assert len(writes) <= 2


async def test_a_user_hears_on_every_node_that_serves_them(open_node: OpenNode) -> None:
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    tenant_id = uuid4()
    await a.bus.subscribe_users([(tenant_id, "anna}:x")])
    await b.bus.subscribe_users([(tenant_id, "anna}:x")])
    await b.bus.subscribe_users([(uuid4(), "anna}:x")])
    await a.bus.to_user(tenant_id, "anna}:x", "invite:received", {"n": 1})
    await until(lambda: bool(ear_a.users and ear_b.users))
    await asyncio.sleep(0.02)
    assert ear_a.users == ear_b.users
    ((user_id, name, event),) = ear_a.users
    assert (user_id, name, event["offset"], event["n"]) == ("anna}:x", "invite:received", 1, 1)


async def test_a_control_message_reaches_one_node(open_node: OpenNode) -> None:
    (a, ear_a), (_, ear_b) = await open_node("a"), await open_node("b")
    await a.bus.control("b", {"do": "close_session", "session_id": "s"})
    await a.bus.control("a", {"do": "self"})
    await until(lambda: bool(ear_b.controls))
    assert ear_b.controls == [{"do": "close_session", "session_id": "s"}]
    assert ear_a.controls == [{"do": "self"}]


async def test_scripts_that_were_flushed_are_sent_again(open_node: OpenNode) -> None:
    a, ear = await open_node("a")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await a._door.command("SCRIPT", "FLUSH")
    await asyncio.gather(*(a.bus.to_room(call_id, "chat:posted", Said(str(n))) for n in range(10)))
    await until(lambda: len(ear.events) == 10)
    assert ear.offsets == list(range(1, 11))


async def test_a_deaf_bus_is_not_ready_though_redis_answers(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    await a.hears()
    hear = line_of(a)._hear
    assert hear is not None
    hear.close()
    with pytest.raises(ClusterUnavailable):
        async with asyncio.timeout(5):
            while True:
                await a.hears()
                await asyncio.sleep(0)
    await a.ping()
    await until(lambda: not a.degraded)
    await a.hears()


@pytest.mark.parametrize(
    "url", ["http://x", "redis+cluster://x:1/2", "redis+cluster://x:port", "redis+sentinel://x:1/"]
)
async def test_a_url_that_cannot_serve_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)redis"):
        Cluster(url.replace("http", "http-not-redis"), env="test", secret=b"0" * 32)


async def test_a_room_keeps_its_log_in_one_slot_and_expires(open_node: OpenNode, env_name: str) -> None:
    a, _ = await open_node("a")
    call_id = uuid4()
    await a.bus.to_room(call_id, "chat:posted", Said("x"))
    found = await a._door.command("KEYS", f"aura:{env_name}:room:*")
    assert sorted(found) == [f"aura:{env_name}:room:{{{call_id}}}:{part}".encode() for part in ("head", "log")]
    for key in found:
        assert await a._door.command("PTTL", key) > 0


@pytest.mark.parametrize(("window_s", "kept"), [(1.0, False), (120.0, True)])
async def test_events_can_be_had_again_for_the_window_that_is_set(
    open_node: OpenNode, window_s: float, kept: bool
) -> None:
    a, _ = await open_node("a", recovery_window_s=window_s)
    call_id = uuid4()
    begin = await a.bus.position(call_id)
    for word in ("one", "two", "three"):
        await a.bus.to_room(call_id, "chat:posted", Said(word))
        await asyncio.sleep(1.05)
    assert (await a.bus.since(call_id, begin) is not None) is kept
    missed = await a.bus.since(call_id, Position(begin.epoch, 2))
    assert [one.data["text"] for one in missed or []] == ["three"]


async def test_what_is_not_recorded_is_told_at_once_where_no_other_node_listens(open_node: OpenNode) -> None:
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await a.bus.to_room(call_id, "chat:typing", Said("alone"), recorded=False)
    assert ear_a.said == ["alone"]
    await b.bus.subscribe_room(call_id)
    await until(lambda: not _direct(a, call_id))
    await a.bus.to_room(call_id, "chat:typing", Said("both"), recorded=False)
    await until(lambda: ear_a.said == ["alone", "both"] and ear_b.said == ["both"])
    # B goes, and A learns of it by the next answer of Redis.
    b.bus.unsubscribe_room(call_id)
    numbers = iter(range(1000))

    async def speak() -> bool:
        await a.bus.to_room(call_id, "chat:typing", Said(str(next(numbers))), recorded=False)
        await asyncio.sleep(0.02)
        return _direct(a, call_id)

    async with asyncio.timeout(5):
        while not await speak():
            pass
    before = len(ear_a.said)
    await a.bus.to_room(call_id, "chat:typing", Said("alone again"), recorded=False)
    assert ear_a.said[before:] == ["alone again"]
    assert ear_b.said == ["both", *ear_b.said[1:]]


async def test_what_is_not_recorded_does_not_overtake_what_is(open_node: OpenNode) -> None:
    a, ear = await open_node("a")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    # What is stamped about the moment of the subscription is looked up in the log.
    await asyncio.sleep(0.1)
    for n in range(20):
        recorded = asyncio.ensure_future(a.bus.to_room(call_id, "chat:posted", Said(f"{n} recorded")))
        await asyncio.sleep(0)
        await a.bus.to_room(call_id, "chat:typing", Said(f"{n} fleeting"), recorded=False)
        if n % 2:
            await recorded
            await a.bus.to_room(call_id, "chat:typing", Said(f"{n} after the answer"), recorded=False)
    await until(lambda: len(ear.said) == 50)
    said = [[f"{n} recorded", f"{n} fleeting", *([f"{n} after the answer"] if n % 2 else [])] for n in range(20)]
    assert ear.said == [text for texts in said for text in texts]


async def test_an_answer_from_before_another_node_came_says_nothing(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    stream = a.bus._hearing.stream(a.bus._keys.room(call_id))
    assert stream is not None and stream.alone
    asked = stream.arrivals
    stream.company()
    stream.counted(1, asked)
    assert not stream.alone
    stream.counted(1, stream.arrivals)
    assert stream.alone


async def test_a_node_that_may_not_hear_of_others_tells_by_redis(open_node: OpenNode) -> None:
    """After a break of the line, whoever came meanwhile was not heard."""
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    assert _direct(a, call_id)
    stream, line = a.bus._hearing.stream(a.bus._keys.room(call_id)), line_of(a)
    assert stream is not None and line._hear is not None
    trusted = stream.arrivals
    line._hear.close()
    await until(lambda: stream.arrivals > trusted)
    await b.bus.subscribe_room(call_id)
    assert await a.bus.wait_up(5)
    # Both have told each other by the time that A has read its log again.
    await until(lambda: not a.bus._hearing._to_repair)
    # Where the nodes' ideas of the time are apart, B takes the first ones for older than its subscription.
    async with asyncio.timeout(10):
        while "both" not in ear_b.said:
            await a.bus.to_room(call_id, "chat:typing", Said("both"), recorded=False)
            await asyncio.sleep(0.05)
    await until(lambda: len(ear_a.said) >= len(ear_b.said))


def _direct(node: Cluster, call_id: UUID) -> bool:
    stream = node.bus._hearing.stream(node.bus._keys.room(call_id))
    return stream is not None and stream.direct and node.bus._line.hears
