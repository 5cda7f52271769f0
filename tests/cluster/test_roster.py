"""Who is in which room, over two nodes; leases that lapse, graces that end, nodes that come back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import pytest

from hub.cluster import Cluster, SessionInfo
from hub.cluster.roster import _entering
from hub.context import RosterEntry
from hub.embedded import Valkey
from hub.protocol.errors import ClusterUnavailable
from tests.cluster.conftest import OpenNode
from tests.cluster.hearing import until
from tests.fakes.proxy import Proxy


def entry(session_id: str = "s1", participant_id: UUID | None = None) -> RosterEntry:
    return RosterEntry(
        session_id=session_id,
        participant_id=participant_id or uuid4(),
        user_id="anna",
        tenant_id=uuid4(),
        node_id="",
        incarnation="",
    )


async def states(node: Cluster, call_id: UUID) -> dict[str, str]:
    return {one.session_id: one.state for one in await node.roster.sessions(call_id)}


def through(proxy: Proxy, url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"))


async def die(node: Cluster) -> None:
    """The node is gone without a word, and its lease has lapsed."""
    assert node._running is not None
    node._running.cancel()
    await asyncio.wait((node._running,))
    await node._door.command("DEL", node.bus._keys.lease(node.incarnation))
    # The end of the lease is part of its record; six seconds have gone by.
    await node._door.command("ZADD", node.bus._keys.incarnations, 1, node.incarnation)


async def test_every_node_sees_who_entered_and_left(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    call_id, anna, ben = uuid4(), entry("s1"), entry("s2")
    await a.roster.enter(call_id, anna)
    await b.roster.enter(call_id, ben)
    seen = await a.roster.sessions(call_id)
    assert sorted(seen, key=lambda one: one.session_id) == sorted(
        await b.roster.sessions(call_id), key=lambda one: one.session_id
    )
    assert {(one.session_id, one.node_id, one.incarnation) for one in seen} == {
        ("s1", "a", a.incarnation),
        ("s2", "b", b.incarnation),
    }
    await a.roster.leave(call_id, "s1")
    assert await states(b, call_id) == {"s2": "live"}
    assert (await b.roster.sweep(0)).lost == []


async def test_a_lost_socket_is_interrupted_and_lost_once_after_the_grace(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    call_id, anna = uuid4(), entry()
    await a.roster.enter(call_id, anna)
    await a.roster.interrupt([(call_id, "s1")])
    assert await states(b, call_id) == {"s1": "interrupted"}
    assert await b.roster.lost(30) == []
    await asyncio.sleep(0.05)
    both = await asyncio.gather(a.roster.lost(0.05), b.roster.lost(0.05))
    (lost,) = [*both[0], *both[1]]
    assert (lost.call_id, lost.entry.participant_id) == (call_id, anna.participant_id)
    assert abs((datetime.now(UTC) - lost.since).total_seconds()) < 5
    assert await states(a, call_id) == {}


async def test_a_loss_that_nobody_confirms_is_handed_out_again(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.cluster.roster._CONFIRM_MS", 100)
    a, _ = await open_node("a")
    call_id = uuid4()
    await a.roster.enter(call_id, entry())
    await a.roster.interrupt([(call_id, "s1")])
    await asyncio.sleep(0.01)
    (first,) = await a.roster.lost(0)
    assert await a.roster.lost(0) == []
    await asyncio.sleep(0.12)
    (again,) = await a.roster.lost(0)
    assert again == first
    await a.roster.confirm(again)
    await asyncio.sleep(0.12)
    assert await a.roster.lost(0) == []


async def test_a_return_on_another_node_within_the_grace_goes_unnoticed(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    call_id, participant = uuid4(), uuid4()
    await a.roster.enter(call_id, entry("old", participant))
    await a.roster.interrupt([(call_id, "old")])
    await b.roster.enter(call_id, entry("new", participant))
    await asyncio.sleep(0.02)
    assert await states(a, call_id) == {"new": "live"}
    assert await a.roster.lost(0) == []


async def test_a_participant_is_lost_with_the_last_session_only(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    call_id, participant = uuid4(), uuid4()
    await a.roster.enter(call_id, entry("one", participant))
    await a.roster.enter(call_id, entry("two", participant))
    await a.roster.interrupt([(call_id, "one")])
    await asyncio.sleep(0.01)
    assert await a.roster.lost(0) == []
    assert await states(a, call_id) == {"two": "live"}
    await a.roster.interrupt([(call_id, "two")])
    await asyncio.sleep(0.01)
    (lost,) = await a.roster.lost(0)
    assert lost.entry.session_id == "two"


async def test_a_dead_nodes_sessions_are_interrupted_for_all_and_handed_out_once(open_node: OpenNode) -> None:
    (a, _), (b, _), (c, _) = await open_node("a"), await open_node("b"), await open_node("c")
    call_id = uuid4()
    for n in range(20):
        await a.roster.enter(call_id, entry(f"s{n}"))
    await die(a)
    assert set((await states(b, call_id)).values()) == {"interrupted"}
    first = await b.roster.sweep(30)
    assert len(first.interrupted) == 20
    assert [node.node_id for node in await b.nodes.list()] == ["b", "c"]
    found: list[str] = []
    for swept in await asyncio.gather(*(node.roster.sweep(30) for node in (b, c, b, c))):
        found += [lost.entry.session_id for lost in swept.lost]
    # The lease ended long ago, so the grace is over as well.
    found += [lost.entry.session_id for lost in first.lost]
    assert sorted(found) == sorted(f"s{n}" for n in range(20))


async def test_a_dead_incarnation_cannot_write(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    call_id, participant = uuid4(), uuid4()
    await a.roster.enter(call_id, entry("s1", participant))
    await die(a)
    await b.roster.enter(call_id, entry("s2", participant))
    # What the frozen node still does under its old name.
    old = RosterEntry("s3", uuid4(), "mallory", uuid4(), "a", a.incarnation)
    assert await a.roster._change([_entering(call_id, old)]) == [b"fenced"]
    await a.roster.leave(call_id, "s2")
    await a.roster.interrupt([(call_id, "s1")])
    assert await states(b, call_id) == {"s2": "live"}


async def test_a_node_whose_lease_lapsed_returns_under_a_new_name_with_its_sessions(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    call_id, before = uuid4(), a.incarnation
    await a.roster.enter(call_id, entry())
    a.sessions.opened(SessionInfo("s1", UUID(int=1), "anna", datetime.now(UTC)))
    await until(lambda: not a.sessions._owed)
    await a._door.command("DEL", a.bus._keys.lease(before))
    assert await states(b, call_id) == {"s1": "interrupted"}
    await a.nodes.beat()
    assert a.incarnation != before
    await until(lambda: not a.roster._owed and not a.sessions._owed)
    (now,) = await b.roster.sessions(call_id)
    assert (now.state, now.incarnation) == ("live", a.incarnation)
    assert [info.incarnation for info in await b.sessions.list(UUID(int=1))] == [a.incarnation]
    # What the old name held is not swept away under the new one.
    await b._door.command("ZADD", b.bus._keys.incarnations, 1, before)
    swept = await b.roster.sweep(0)
    assert (swept.interrupted, swept.lost) == ([], [])
    assert await states(b, call_id) == {"s1": "live"}


async def test_sessions_that_were_seen_as_lost_do_not_come_back_by_themselves(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    gone: list[str] = []
    a.roster.when_gone(lambda call_id, lost: gone.append(lost.session_id))
    call_id, anna = uuid4(), entry()
    await a.roster.enter(call_id, anna)
    await a._door.command("DEL", a.bus._keys.lease(a.incarnation))
    await b._door.command("ZADD", b.bus._keys.incarnations, 1, a.incarnation)
    (lost,) = await b.roster.lost(30)
    await b.roster.confirm(lost)
    await a.nodes.beat()
    await until(lambda: gone == ["s1"])
    assert await states(b, call_id) == {}
    # Joining again is something else.
    await a.roster.enter(call_id, anna)
    assert await states(b, call_id) == {"s1": "live"}


async def test_a_room_that_everybody_left_leaves_nothing_behind(open_node: OpenNode, env_name: str) -> None:
    a, _ = await open_node("a")
    call_id = uuid4()
    for session_id in ("s1", "s2"):
        await a.roster.enter(call_id, entry(session_id))
    await a.roster.interrupt([(call_id, "s2")])
    for session_id in ("s1", "s2"):
        await a.roster.leave(call_id, session_id)
    assert await a.roster.lost(0) == []
    left = await a._door.command("KEYS", f"aura:{env_name}:{{presence}}:*")
    assert {key.decode().split(":")[3] for key in left} == {"lease", "nodes", "lately", "incarnations"}


async def test_nodes_are_listed_while_their_lease_holds(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    a.nodes.load = lambda: {"sockets": 7}
    await a.nodes.drain()
    first, second = await b.nodes.list()
    assert (first.node_id, first.draining, first.load) == ("a", True, {"sockets": 7})
    assert (second.node_id, second.incarnation, second.region) == ("b", b.incarnation, "default")
    await a.stop()
    assert [node.node_id for node in await b.nodes.list()] == ["b"]


async def test_a_node_that_went_without_a_goodbye_is_shown_as_lost_for_a_while(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a, _), (b, _), (c, _) = await open_node("a"), await open_node("b"), await open_node("c")
    await die(a)
    await c.stop()

    async def shown() -> dict[str, bool]:
        return {node.node_id: node.lost for node in await b.nodes.all()}

    assert await shown() == {"a": True, "b": False}
    assert [node.node_id for node in await b.nodes.list()] == ["b"]
    # The sweep that clears away after it does not hide it.
    await b.roster.sweep(0)
    assert await shown() == {"a": True, "b": False}
    again, _ = await open_node("a")
    assert await shown() == {"a": False, "b": False}
    await die(again)
    monkeypatch.setattr("hub.cluster.nodes._LOST_SHOWN_MS", 1)
    await asyncio.sleep(0.01)
    assert await shown() == {"b": False}


async def test_a_drained_node_can_be_shown_as_ready_again(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    for draining in (True, False):
        await a.nodes.drain(draining)
        assert [node.draining for node in await b.nodes.list()] == [draining, False]


async def test_the_sessions_of_a_tenant_are_listed_and_found_on_any_node(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    tenant, other = uuid4(), uuid4()
    for n, node in enumerate((a, b)):
        node.sessions.opened(SessionInfo(f"s{n}", tenant, "anna", datetime.now(UTC)))
    a.sessions.opened(SessionInfo("foreign", other, "eve", datetime.now(UTC)))
    await until(lambda: not a.sessions._owed and not b.sessions._owed)
    await asyncio.sleep(0.02)
    assert [(info.session_id, info.node_id) for info in await a.sessions.list(tenant)] == [("s0", "a"), ("s1", "b")]
    found = await b.sessions.find(tenant, "s0")
    assert found is not None
    assert found.node_id == "a"
    assert await b.sessions.find(tenant, "foreign") is None
    a.sessions.closed("s0")
    await until(lambda: not a.sessions._owed)
    await asyncio.sleep(0.02)
    assert [info.session_id for info in await b.sessions.list(tenant)] == ["s1"]
    await die(b)
    assert await a.sessions.list(tenant) == []
    assert await a.sessions.find(tenant, "s1") is None


async def test_a_control_message_to_a_node_that_is_not_there_is_refused(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    with pytest.raises(ClusterUnavailable):
        await a.bus.control("nobody", {"do": "close_session"})


async def test_a_second_entrance_that_redis_does_not_take_leaves_the_first_one_standing(
    open_node: OpenNode, valkey: Valkey
) -> None:
    async with Proxy("127.0.0.1", valkey.port) as proxy:
        a, _ = await open_node("a", url=through(proxy, valkey.url))
        b, _ = await open_node("b")
        call_id, anna = uuid4(), entry("s1")
        await a.roster.enter(call_id, anna)
        proxy.set("refuse")
        with pytest.raises(ClusterUnavailable):
            await a.roster.enter(call_id, anna)
        proxy.set("pass")
        await until(lambda: not a.degraded)
        # Whatever is owed to Redis is brought there within a moment.
        await asyncio.sleep(1.5)
        assert await states(b, call_id) == {"s1": "live"}


async def test_a_leave_that_is_overtaken_by_a_return_removes_nobody(open_node: OpenNode, valkey: Valkey) -> None:
    """They go to Redis by different connections: what counts is the later one, whichever arrives last."""
    async with Proxy("127.0.0.1", valkey.port) as proxy:
        a, _ = await open_node("a", url=through(proxy, valkey.url))
        b, _ = await open_node("b")
        call_id, anna = uuid4(), entry("s1")
        await a.roster.enter(call_id, anna)
        proxy.latency_s = 0.3
        leaving = asyncio.create_task(a.roster.leave(call_id, "s1"))
        await asyncio.sleep(0.1)
        proxy.latency_s = 0.0
        await a.roster.enter(call_id, anna)
        await leaving
        await asyncio.sleep(0.5)
        assert await states(b, call_id) == {"s1": "live"}


async def test_many_changes_at_once_are_each_as_if_alone_and_in_order(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    call_id, other_id, anna, ben = uuid4(), uuid4(), entry("s1"), entry("s2")
    await a.roster.enter(call_id, anna)
    await asyncio.gather(
        a.roster.enter(other_id, anna),
        a.roster.leave(call_id, "s1"),
        a.roster.enter(call_id, ben),
        *(a.roster.enter(call_id, entry(f"more{n}")) for n in range(250)),
    )
    assert await states(b, other_id) == {"s1": "live"}
    assert await states(b, call_id) == {"s2": "live", **{f"more{n}": "live" for n in range(250)}}
    await a.roster.interrupt([(other_id, "s1"), *((call_id, f"more{n}") for n in range(250)), (call_id, "nobody")])
    assert await states(b, other_id) == {"s1": "interrupted"}
    assert await states(b, call_id) == {"s2": "live", **{f"more{n}": "interrupted" for n in range(250)}}


async def test_a_roster_that_cannot_be_read_holds_up_no_other(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    broken, whole, participant = uuid4(), uuid4(), uuid4()
    await a._door.command("HSET", a.bus._keys.presence + f"people:{broken}", str(participant), "not JSON")
    failed, entered = await asyncio.gather(
        a.roster.enter(broken, entry("s1", participant)), a.roster.enter(whole, entry("s2")), return_exceptions=True
    )
    assert isinstance(failed, ClusterUnavailable)
    assert entered is None
    assert await states(a, whole) == {"s2": "live"}
