"""What is meant for one person has the rule of rooms: an order, a log, and an honest word where it has a hole."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import msgspec

from hub.cluster import Cluster, Direct
from hub.context import Position
from hub.embedded import Valkey
from tests.cluster.conftest import OpenNode
from tests.cluster.hearing import Ear, line_of, until

TENANT = UUID(int=3)


async def say(node: Cluster, *numbers: int, user_id: str = "anna") -> None:
    for number in numbers:
        await node.bus.to_user(TENANT, user_id, "invite:received", {"n": number, "call_id": UUID(int=9)})


def said(ear: Ear) -> list[int]:
    return [event["n"] for _, _, event in ear.users]


def of(missed: list[Direct] | None) -> list[dict[str, Any]] | None:
    return None if missed is None else [msgspec.json.decode(one.data) for one in missed]


def place(node: Cluster) -> Position:
    position = node.bus.position_of_user(TENANT, "anna")
    assert position is not None
    return position


async def test_three_nodes_agree_on_the_order_of_what_two_of_them_say(open_node: OpenNode) -> None:
    """S-246: each once, numbered without a hole; a call that is named in it stays."""
    nodes = [await open_node(name) for name in "abc"]
    (a, ear_a), (b, ear_b), (c, ear_c) = nodes
    for node, _ in nodes:
        await node.bus.subscribe_users([(TENANT, "anna")])
    await asyncio.gather(say(a, *range(50)), say(b, *range(50, 100)))
    await until(lambda: all(len(ear.users) == 100 for _, ear in nodes))
    assert ear_a.users == ear_b.users == ear_c.users
    events = [event for _, _, event in ear_c.users]
    assert [event["offset"] for event in events] == list(range(1, 101))
    assert {event["call_id"] for event in events} == {str(UUID(int=9))}
    assert place(c).offset == 100
    assert ear_a.user_resyncs == []


async def test_what_was_missed_is_had_on_another_node_whole_and_once(open_node: OpenNode) -> None:
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    await a.bus.subscribe_users([(TENANT, "anna")])
    before = place(a)
    await say(a, 1, 2, 3)
    await until(lambda: place(a).offset == before.offset + 3)
    a.bus.unsubscribe_user(TENANT, "anna")
    # Nobody is there to hear these.
    await say(a, 4, 5)
    await b.bus.subscribe_users([(TENANT, "anna")])
    missed = await b.bus.missed_by_user(TENANT, "anna", Position(before.epoch, before.offset + 3))
    here = place(b)
    assert [event["n"] for event in of(missed) or ()] == [4, 5]
    await say(a, 6)
    await until(lambda: said(ear_b) == [6])
    assert here.offset == 5
    assert await b.bus.missed_by_user(TENANT, "anna", place(b)) == []


async def test_a_resume_under_fire_loses_and_repeats_nothing(open_node: OpenNode) -> None:
    """Somebody listens from where `missed_by_user` ended, while events go on and on."""
    (a, _), (b, ear) = await open_node("a"), await open_node("b")
    await a.bus.subscribe_users([(TENANT, "anna")])
    start = place(a)

    async def storm() -> None:
        for number in range(300):
            await say(a, number)

    going = asyncio.create_task(storm())
    await asyncio.sleep(0.05)
    await b.bus.subscribe_users([(TENANT, "anna")])
    for _ in range(10):
        missed = await b.bus.missed_by_user(TENANT, "anna", start)
        # No await between these two, as at the edge.
        begun = len(ear.users)
        assert missed is not None
        got = [event["n"] for event in of(missed) or ()]
        assert got == list(range(len(got)))
        await asyncio.sleep(0.01)
        follow = said(ear)[begun:]
        assert follow[:1] in ([], [len(got)])
    await going
    await until(lambda: said(ear)[-1:] == [299])
    assert got + said(ear)[begun:] == list(range(300))


async def test_where_not_everything_is_there_any_more_it_says_so(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    await a.bus.subscribe_users([(TENANT, "anna")])
    start = place(a)
    await asyncio.gather(*(say(a, n) for n in range(1100)))
    await until(lambda: place(a).offset == 1100, 30)
    assert await a.bus.missed_by_user(TENANT, "anna", start) is None
    assert len(await a.bus.missed_by_user(TENANT, "anna", Position(start.epoch, 200)) or ()) == 900
    for strange in (Position("feed", 3), Position(start.epoch, 5000), Position(start.epoch, -1)):
        assert await a.bus.missed_by_user(TENANT, "anna", strange) is None
    assert a.bus.position_of_user(TENANT, "nobody") is None
    assert await a.bus.missed_by_user(TENANT, "nobody", start) is None


async def test_what_one_node_said_while_redis_was_away_ends_the_epoch(open_node: OpenNode, own_valkey: Valkey) -> None:
    """Sessions of that node hear it at once; all others learn that they missed something."""
    (a, ear_a), (b, ear_b) = await open_node("a", url=own_valkey.url), await open_node("b", url=own_valkey.url)
    for node in (a, b):
        await node.bus.subscribe_users([(TENANT, "anna")])
    await say(a, 1)
    await until(lambda: said(ear_b) == [1])
    before = place(b)
    own_valkey.stop()
    await until(lambda: a.bus.degraded)
    await say(a, 2)
    await until(lambda: said(ear_a) == [1, 2])
    assert "offset" not in ear_a.users[-1][2]
    own_valkey.start()
    await until(lambda: ear_a.user_resyncs == ear_b.user_resyncs == ["anna"], timeout_s=10)
    assert said(ear_b) == [1]
    assert place(b).epoch != before.epoch
    assert await b.bus.missed_by_user(TENANT, "anna", before) is None
    await say(b, 3)
    await until(lambda: said(ear_a)[-1] == said(ear_b)[-1] == 3)


async def test_a_hole_is_mended_from_the_log(open_node: OpenNode) -> None:
    (a, _), (b, ear) = await open_node("a"), await open_node("b")
    await b.bus.subscribe_users([(TENANT, "anna")])
    hear, channel = line_of(b)._hear, b.bus._keys.user(TENANT, "anna").channel
    assert hear is not None
    hear.send("SUNSUBSCRIBE", channel)
    await asyncio.sleep(0.05)
    await say(a, 1, 2)
    hear.send("SSUBSCRIBE", channel)
    await asyncio.sleep(0.05)
    await say(a, 3)
    await until(lambda: said(ear) == [1, 2, 3])
    assert ear.user_resyncs == []


async def test_forged_and_replayed_words_to_a_user_have_no_effect(open_node: OpenNode) -> None:
    a, ear = await open_node("a")
    await a.bus.subscribe_users([(TENANT, "anna")])
    await a.bus.subscribe_room(call_id := uuid4())
    keys, wires = a.bus._keys.user(TENANT, "anna"), []
    tap = a.bus._hearing.message

    def listen(channel: bytes, wire: bytes) -> None:
        wires.append(wire)
        tap(channel, wire)

    a.bus._hearing.message = listen  # type: ignore[method-assign]
    await say(a, 1)
    await until(lambda: said(ear) == [1])
    sealed = wires[0].partition(b"\n")[2]
    for head in (b"", b"%s:2" % place(a).epoch.encode(), b"feed:1"):
        await a._door.command("SPUBLISH", keys.channel, head + b"\n" + sealed)
        await a._door.command("SPUBLISH", a.bus._keys.room(call_id).channel, head + b"\n" + sealed)
    await a._door.command("SPUBLISH", keys.channel, b"junk")
    await asyncio.sleep(0.2)
    await say(a, 2)
    await until(lambda: said(ear) == [1, 2])
    assert (ear.events, ear.user_resyncs, ear.resyncs) == ([], [], [])


async def test_a_node_hears_nothing_of_rooms_and_users_it_has_nobody_in(open_node: OpenNode) -> None:
    """S-246: every event reaches every member once, and no node without one."""
    (a, ear_a), (b, ear_b), (c, ear_c) = await open_node("a"), await open_node("b"), await open_node("c")
    call_id, wires = uuid4(), []
    c.bus._hearing.message = lambda channel, wire: wires.append(channel)  # type: ignore[method-assign]
    for node in (a, b):
        await node.bus.subscribe_room(call_id)
        await node.bus.subscribe_users([(TENANT, "anna")])
    for number in range(20):
        await a.bus.to_room(call_id, "chat:posted", {"text": str(number)})
        await c.bus.to_room(call_id, "chat:typing", {"text": "…"}, recorded=False)
        await say(c, number)
    await until(lambda: len(ear_a.events) == len(ear_b.events) == 40 and len(ear_a.users) == len(ear_b.users) == 20)
    await asyncio.sleep(0.05)
    assert [event["offset"] for event in ear_b.events if "offset" in event] == list(range(1, 21))
    for keys in (a.bus._keys.room(call_id), a.bus._keys.user(TENANT, "anna")):
        _, listening = await a._door.command("PUBSUB", "SHARDNUMSUB", keys.channel)
        assert listening == 2
    assert (wires, ear_c.events, ear_c.users) == ([], [], [])
