"""The bus when Redis or the way to it fails: nothing lost, nothing twice, or everybody is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.cluster import Cluster
from hub.embedded import Valkey
from hub.protocol.errors import ClusterUnavailable
from tests.cluster.conftest import OpenNode
from tests.cluster.hearing import line_of, until
from tests.cluster.test_roster import entry, states
from tests.fakes.proxy import Proxy


class Said(msgspec.Struct, frozen=True):
    text: str


@pytest.fixture
async def proxy(valkey: Valkey) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", valkey.port) as one:
        yield one


def through(proxy: Proxy, url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"))


async def say(node: Cluster, call_id: UUID, *texts: str) -> None:
    for text in texts:
        await node.bus.to_room(call_id, "chat:posted", Said(text))


async def test_nothing_is_lost_or_doubled_when_redis_kills_the_subscriptions(open_node: OpenNode) -> None:
    """D13."""
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await b.bus.subscribe_room(call_id)
    for n in range(60):
        await say(a, call_id, str(n))
        if n in (10, 30):
            await a._door.command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.01)
    await until(lambda: len(ear_a.events) >= 60 and len(ear_b.events) >= 60)
    assert ear_a.said == ear_b.said == [str(n) for n in range(60)]
    assert ear_a.offsets == ear_b.offsets == list(range(1, 61))
    assert ear_a.resyncs == ear_b.resyncs == []


async def test_a_hole_is_filled_from_the_log_before_what_follows(open_node: OpenNode) -> None:
    """D13: a subscription that is lost for a moment on the hearing node only."""
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await b.bus.subscribe_room(call_id)
    await say(a, call_id, "1", "2")
    await until(lambda: len(ear_b.events) == 2)
    channel = b.bus._keys.room(call_id).channel
    hear = line_of(b)._hear
    assert hear is not None
    hear.send("SUNSUBSCRIBE", channel)
    await asyncio.sleep(0.05)
    await say(a, call_id, "3", "4", "5")
    hear.send("SSUBSCRIBE", channel)
    await asyncio.sleep(0.05)
    assert ear_b.said == ["1", "2"]
    await say(a, call_id, "6", "7")
    await until(lambda: len(ear_b.events) == 7)
    assert ear_b.said == ["1", "2", "3", "4", "5", "6", "7"]
    assert ear_b.offsets == list(range(1, 8))
    assert ear_b.resyncs == []
    assert b.bus.counters.repaired >= 3


async def test_a_hole_that_the_log_no_longer_covers_is_announced(open_node: OpenNode) -> None:
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await b.bus.subscribe_room(call_id)
    hear = line_of(b)._hear
    assert hear is not None
    hear.send("SUNSUBSCRIBE", b.bus._keys.room(call_id).channel)
    for _ in range(11):
        await asyncio.gather(*(say(a, call_id, "x") for _ in range(100)))
    hear.send("SSUBSCRIBE", b.bus._keys.room(call_id).channel)
    await asyncio.sleep(0.05)
    await say(a, call_id, "y")
    await until(lambda: ear_b.resyncs == [call_id])
    await say(a, call_id, "z")
    await until(lambda: ear_b.said == ["z"])


async def test_a_half_open_link_is_noticed_and_nothing_is_lost(
    open_node: OpenNode, proxy: Proxy, valkey: Valkey
) -> None:
    """D11: the existing connections of one node go silent, new ones work."""
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b", url=through(proxy, valkey.url))
    call_id = uuid4()
    await b.bus.subscribe_room(call_id)
    await say(a, call_id, "before")
    await until(lambda: bool(ear_b.events))
    proxy.set("freeze")
    frozen_at = time.monotonic()
    await say(a, call_id, "1", "2", "3")
    await until(lambda: len(ear_b.events) == 4, 6)
    assert time.monotonic() - frozen_at <= 5
    assert ear_b.said == ["before", "1", "2", "3"]
    assert ear_b.offsets == [1, 2, 3, 4]
    assert ear_b.resyncs == []


async def test_a_hung_redis_costs_a_publisher_half_a_second_and_then_nothing(
    open_node: OpenNode, proxy: Proxy, valkey: Valkey
) -> None:
    """D12: and whoever is on the same node still hears, without an offset."""
    a, ear = await open_node("a", url=through(proxy, valkey.url))
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await say(a, call_id, "before")
    await until(lambda: bool(ear.events))
    proxy.set("blackhole")
    started = time.monotonic()
    assert await a.bus.to_room(call_id, "chat:posted", Said("here first")) is None
    assert time.monotonic() - started <= 0.6
    await until(lambda: a.degraded, 0.5)
    started = time.monotonic()
    assert await a.bus.to_room(call_id, "chat:posted", Said("here only")) is None
    assert time.monotonic() - started <= 0.05
    assert ear.said == ["before", "here first", "here only"]
    assert "offset" not in ear.events[-1]
    for refused in (a.bus.position(call_id), a.roster.sessions(call_id), a.bus.subscribe_room(uuid4()), a.ping()):
        started = time.monotonic()
        with pytest.raises(ClusterUnavailable):
            await refused
        assert time.monotonic() - started <= 1.2
    await until(lambda: ear.flags == [True], 3)
    proxy.set("pass")
    await until(lambda: ear.flags == [True, False] and ear.resyncs == [call_id], 5)
    assert not a.degraded


async def test_after_an_outage_the_nodes_hear_each_other_and_every_gap_is_announced(
    open_node: OpenNode, own_valkey: Valkey
) -> None:
    """D10: Redis killed and back with its data; what was said meanwhile reached one node only."""
    (a, ear_a), (b, ear_b) = await open_node("a", url=own_valkey.url), await open_node("b", url=own_valkey.url)
    spoken, quiet = uuid4(), uuid4()
    for node in (a, b):
        await node.bus.subscribe_room(spoken)
        await node.bus.subscribe_room(quiet)
    await say(a, spoken, "before")
    await say(a, quiet, "before")
    await until(lambda: len(ear_b.events) == 2)
    own_valkey.kill()
    await asyncio.sleep(0.3)
    await say(a, spoken, "meanwhile")
    assert ear_a.said[-1] == "meanwhile"
    await asyncio.sleep(1.0)
    own_valkey.start()
    back_at = time.monotonic()
    await until(lambda: not a.degraded)
    await say(a, quiet, "after")
    await until(lambda: ear_b.said[-1] == "after")
    assert time.monotonic() - back_at <= 3
    await until(lambda: spoken in ear_b.resyncs and spoken in ear_a.resyncs)
    assert "meanwhile" not in ear_b.said
    # What lost nothing goes on in its epoch.
    assert quiet not in ear_b.resyncs


async def test_what_a_late_node_told_its_own_is_announced_to_those_who_were_back_before_it(
    open_node: OpenNode, proxy: Proxy, valkey: Valkey
) -> None:
    """D10: two nodes lose Redis; the first one back begins a new epoch, and its members take their snapshots of it.

    What the other one tells its own members after that is in none of those snapshots.
    """
    async with Proxy("127.0.0.1", valkey.port) as other_proxy:
        a, ear_a = await open_node("a", url=through(proxy, valkey.url))
        b, ear_b = await open_node("b", url=through(other_proxy, valkey.url))
        call_id = uuid4()
        for node in (a, b):
            await node.bus.subscribe_room(call_id)
        await say(a, call_id, "before")
        await until(lambda: ear_a.said == ear_b.said == ["before"])
        proxy.set("refuse")
        other_proxy.set("refuse")
        await asyncio.sleep(0.1)
        await say(a, call_id, "on a only")
        await say(b, call_id, "on b only")
        proxy.set("pass")
        await until(lambda: ear_a.resyncs == [call_id] and not a.degraded)
        first = await a.bus.position(call_id)
        await say(b, call_id, "on b only, later")
        other_proxy.set("pass")
        await until(lambda: ear_a.resyncs == [call_id, call_id])
        assert (await a.bus.position(call_id)).epoch != first.epoch
        assert ear_a.said == ["before", "on a only"]
        await until(lambda: not b.degraded and call_id in ear_b.resyncs)
        await say(b, call_id, "after")
        await until(lambda: ear_a.said[-1] == ear_b.said[-1] == "after")


async def test_nodes_that_come_back_together_take_one_new_epoch(
    open_node: OpenNode, proxy: Proxy, valkey: Valkey
) -> None:
    """What happened before the epoch began is in every snapshot of it."""
    url = through(proxy, valkey.url)
    (a, ear_a), (b, ear_b) = await open_node("a", url=url), await open_node("b", url=url)
    call_id = uuid4()
    for node in (a, b):
        await node.bus.subscribe_room(call_id)
    proxy.set("refuse")
    await asyncio.sleep(0.1)
    await say(a, call_id, "on a only")
    await say(b, call_id, "on b only")
    await asyncio.sleep(0.1)
    proxy.set("pass")
    await until(lambda: not a.degraded and not b.degraded and bool(ear_a.resyncs and ear_b.resyncs))
    await asyncio.sleep(0.5)
    assert ear_a.resyncs == ear_b.resyncs == [call_id]


async def test_a_redis_that_lost_its_data_gives_every_room_a_new_epoch(open_node: OpenNode, tmp_path: Path) -> None:
    with Valkey(tmp_path / "forgetful", settings={"appendonly": "no"}) as forgetful:
        (a, ear_a), (b, ear_b) = await open_node("a", url=forgetful.url), await open_node("b", url=forgetful.url)
        call_id = uuid4()
        await a.bus.subscribe_room(call_id)
        await b.bus.subscribe_room(call_id)
        before = await a.bus.to_room(call_id, "chat:posted", Said("before"))
        assert before is not None
        await until(lambda: bool(ear_a.events and ear_b.events))
        forgetful.kill()
        await asyncio.sleep(0.2)
        forgetful.start()
        await until(lambda: ear_a.resyncs == [call_id] and ear_b.resyncs == [call_id], 5)
        assert await b.bus.since(call_id, before) is None
        await until(lambda: not a.degraded and not b.degraded, 5)
        after = await b.bus.to_room(call_id, "chat:posted", Said("after"))
        assert after is not None
        assert after.epoch != before.epoch
        await until(lambda: ear_a.said[-1] == ear_b.said[-1] == "after")


async def test_a_redis_that_lost_the_end_of_a_log_does_not_reuse_its_offsets(open_node: OpenNode) -> None:
    """A failover to a replica that lagged behind."""
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await b.bus.subscribe_room(call_id)
    await say(a, call_id, "1", "2", "3")
    await until(lambda: len(ear_a.events) == len(ear_b.events) == 3)
    head, log = a.bus._keys.room(call_id).head, a.bus._keys.room(call_id).log
    await a._door.command("HSET", head, "offset", 1)
    await a._door.command("DEL", log)
    await a._door.command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: call_id in ear_a.resyncs and call_id in ear_b.resyncs)
    await until(lambda: not a.degraded)
    await say(a, call_id, "after")
    await until(lambda: ear_a.said[-1] == ear_b.said[-1] == "after")


async def test_a_log_that_lost_its_end_and_grew_again_is_noticed(open_node: OpenNode) -> None:
    (a, ear_a), (b, _) = await open_node("a"), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await say(b, call_id, "1", "2", "3")
    await until(lambda: len(ear_a.events) == 3)
    hear = line_of(a)._hear
    assert hear is not None
    hear.send("SUNSUBSCRIBE", a.bus._keys.room(call_id).channel)
    await asyncio.sleep(0.02)
    await a._door.command("HSET", a.bus._keys.room(call_id).head, "offset", 1)
    await a._door.command("DEL", a.bus._keys.room(call_id).log)
    # Offsets 2 to 5 again, for other events.
    await say(b, call_id, "two", "three", "four", "five")
    a.bus._line.drop()
    await until(lambda: ear_a.resyncs == [call_id])


async def test_a_node_that_was_frozen_past_its_lease_does_not_publish_under_its_old_name(open_node: OpenNode) -> None:
    """P9: the script itself refuses what comes after the lease."""
    (a, _), (b, ear_b) = await open_node("a"), await open_node("b")
    call_id, before = uuid4(), a.incarnation
    await b.bus.subscribe_room(call_id)
    await a._door.command("DEL", a.bus._keys.lease(before))
    # As after a freeze: the clock and the lease are those of long ago.
    a.nodes.clock._at_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert a.nodes.clock._redis_ms is not None
    a.nodes.clock._redis_ms -= 60_000
    a.nodes.lease_until_ms -= 60_000
    await say(a, call_id, "after the freeze")
    await until(lambda: bool(ear_b.events))
    assert a.incarnation != before
    assert a.bus.counters.failed == 1


async def test_an_event_whose_answer_was_lost_is_not_told_twice(
    open_node: OpenNode, proxy: Proxy, valkey: Valkey
) -> None:
    (a, ear_a), (b, ear_b) = await open_node("a", url=through(proxy, valkey.url)), await open_node("b")
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await b.bus.subscribe_room(call_id)
    proxy.latency_s = 0.2
    # There and back is over the budget, but not over the deadline of the script.
    await say(a, call_id, "once")
    proxy.latency_s = 0
    await until(lambda: bool(ear_b.events))
    await asyncio.sleep(0.5)
    assert ear_a.said == ["once"]
    assert ear_b.said == ["once"]


async def test_a_flood_while_the_line_breaks_keeps_order_everywhere(
    open_node: OpenNode, proxy: Proxy, valkey: Valkey
) -> None:
    """D9 under resets: two senders, two nodes, the hearing one loses its connections again and again."""
    (a, ear_a), (b, ear_b) = await open_node("a"), await open_node("b", url=through(proxy, valkey.url))
    call_id = uuid4()
    await a.bus.subscribe_room(call_id)
    await b.bus.subscribe_room(call_id)
    for n in range(200):
        await say(a, call_id, str(n))
        if n % 50 == 25:
            proxy.set("reset")
        await asyncio.sleep(0.002)
    await until(lambda: len(ear_a.events) == 200 and len(ear_b.events) == 200)
    assert ear_a.events == ear_b.events
    assert ear_b.said == [str(n) for n in range(200)]
    assert b.bus.reconnects >= 1


async def test_a_hub_that_starts_without_redis_comes_up_and_joins_when_it_can(
    open_node: OpenNode, own_valkey: Valkey
) -> None:
    own_valkey.stop()
    started = time.monotonic()
    a, _ = await open_node("a", url=own_valkey.url)
    assert time.monotonic() - started < 3
    assert a.degraded
    own_valkey.start()
    await until(lambda: not a.degraded, 4)
    assert [node.node_id for node in await a.nodes.list()] == ["a"]


async def test_rosters_are_whole_again_soon_after_redis_lost_everything(open_node: OpenNode, tmp_path: Path) -> None:
    with Valkey(tmp_path / "forgetful", settings={"appendonly": "no"}) as forgetful:
        (a, _), (b, _) = await open_node("a", url=forgetful.url), await open_node("b", url=forgetful.url)
        call_id = uuid4()
        for n in range(5):
            await a.roster.enter(call_id, entry(f"a{n}"))
        await b.roster.enter(call_id, entry("b"))
        forgetful.kill()
        await b.roster.interrupt([(call_id, "b")])
        await a.roster.leave(call_id, "a0")
        forgetful.start()
        back_at = time.monotonic()
        expected = {"b": "interrupted", **{f"a{n}": "live" for n in range(1, 5)}}

        async def settled() -> None:
            while True:
                try:
                    if await states(a, call_id) == await states(b, call_id) == expected:
                        return
                except ClusterUnavailable:
                    pass
                await asyncio.sleep(0.05)

        await asyncio.wait_for(settled(), 5)
        assert time.monotonic() - back_at <= 5
