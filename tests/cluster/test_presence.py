"""Who is there, over two nodes: devices that come and go, nodes that die, watching, and a Redis that forgets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from uuid import UUID, uuid4

import pytest
from msgspec import UNSET

from hub.cluster import Cluster
from hub.embedded import Valkey
from hub.protocol.errors import ClusterUnavailable, Conflict
from hub.state.presence import Known, Presence, seen_by
from tests.cluster.conftest import OpenNode
from tests.cluster.hearing import line_of, until
from tests.cluster.test_roster import die

TENANT = UUID(int=7)


async def looks(node: Cluster, user_id: str = "anna") -> str:
    (known,) = await node.presence.look(TENANT, [user_id])
    return seen_by(known).status


async def becomes(node: Cluster, status: str, user_id: str = "anna", within_s: float = 1.0) -> None:
    async with asyncio.timeout(within_s):
        while await looks(node, user_id) != status:  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(0.01)


class Watcher:
    """What one session heard of those it watches."""

    def __init__(self, node: Cluster, session_id: str = "watcher", user_id: str = "ben") -> None:
        self.node, self.session_id, self.user_id = node, session_id, user_id
        self.heard: list[tuple[str, Presence]] = []
        self.batches: list[int] = []
        self.shown: dict[str, datetime | None] = {}
        node.watching.tell = self._tell
        node.watching.may_see = self._may_see

    def _tell(self, session_id: str, news: list[tuple[str, Presence]]) -> None:
        assert session_id == self.session_id
        self.heard += news
        self.batches.append(len(news))

    async def _may_see(self, tenant_id: UUID, user_id: str, user_ids: object) -> dict[str, datetime | None]:
        assert (tenant_id, user_id) == (TENANT, self.user_id)
        return self.shown

    async def watch(self, *user_ids: str) -> dict[str, str]:
        self.shown.update(dict.fromkeys(user_ids))
        seen = await self.node.watching.watch(
            self.session_id, TENANT, self.user_id, {one: self.shown[one] for one in user_ids}
        )
        return {one: now.status for one, now in seen.items()}

    def statuses(self, user_id: str = "anna") -> list[str]:
        return [now.status for one, now in self.heard if one == user_id]


async def test_devices_on_two_nodes_are_one_person(open_node: OpenNode) -> None:
    """S-243, S-111: in a call by any device, online by any, offline with the last."""
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    assert await looks(a) == "offline"
    a.presence.opened("phone", TENANT, "anna")
    b.presence.opened("laptop", TENANT, "anna")
    await becomes(a, "online")
    call_id = uuid4()
    b.presence.moved("laptop", call_id, True)
    await becomes(a, "in_call")
    b.presence.moved("laptop", call_id, False)
    await becomes(a, "online")
    a.presence.closed("phone", goodbye=True)
    await until(lambda: not a.presence._owed)
    assert await looks(b) == "online"
    b.presence.closed("laptop", goodbye=True)
    await becomes(a, "offline")
    (known,) = await a.presence.look(TENANT, ["anna"])
    assert known.last_seen is not None
    assert abs(known.last_seen.timestamp() - time.time()) < 5


async def test_a_choice_is_the_users_and_outlives_the_device_it_was_made_on(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    a.presence.opened("phone", TENANT, "anna")
    b.presence.opened("laptop", TENANT, "anna")
    known = await a.presence.choose(TENANT, "anna", "busy", "writing")
    assert seen_by(known) == Presence("busy", "writing")
    a.presence.closed("phone", goodbye=True)
    await until(lambda: not a.presence._owed)
    assert await looks(b) == "busy"
    # Without a text the one of before stays, with None it goes.
    assert seen_by(await b.presence.choose(TENANT, "anna", "away", UNSET)) == Presence("away", "writing")
    assert seen_by(await b.presence.choose(TENANT, "anna", "away", None)) == Presence("away")
    invisible = await b.presence.choose(TENANT, "anna", "invisible", None)
    assert (seen_by(invisible).status, seen_by(invisible, themselves=True).status) == ("offline", "invisible")
    assert await looks(a) == "offline"


async def test_a_lost_device_counts_until_its_grace_is_over(open_node: OpenNode) -> None:
    """S-243: and if its owner is back by then, nobody hears a thing."""
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    watcher = Watcher(b)
    a.presence.opened("old", TENANT, "anna")
    await becomes(b, "online")
    assert await watcher.watch("anna") == {"anna": "online"}
    a.presence.closed("old", goodbye=False)
    await until(lambda: not a.presence._owed)
    assert await b.presence.sweep(30) == 0
    b.presence.opened("new", TENANT, "anna")
    await until(lambda: not b.presence._owed)
    await asyncio.sleep(0.05)
    assert await a.presence.sweep(0.01) == 1
    await asyncio.sleep(0.6)
    assert watcher.heard == []
    b.presence.closed("new", goodbye=False)
    await until(lambda: not b.presence._owed)
    await asyncio.sleep(0.05)
    both = await asyncio.gather(a.presence.sweep(0.01), b.presence.sweep(0.01))
    assert sorted(both) == [0, 1]
    await until(lambda: watcher.statuses() == ["offline"])


async def test_who_said_goodbye_in_a_call_is_waited_for_as_the_call_waits(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    a.presence.opened("one", TENANT, "anna")
    a.presence.moved("one", uuid4(), True)
    await becomes(a, "in_call")
    a.presence.closed("one", goodbye=True)
    await until(lambda: not a.presence._owed)
    assert await looks(a) == "in_call"
    # Back by another device and in the call: then it is that device which holds them there.
    a.presence.opened("two", TENANT, "anna")
    call_id = uuid4()
    a.presence.moved("two", call_id, True)
    await until(lambda: not a.presence._owed)
    a.presence.moved("two", call_id, False)
    await becomes(a, "online")


async def test_people_of_a_dead_node_go_offline_after_lease_and_grace_unless_they_are_back(open_node: OpenNode) -> None:
    """S-243"""
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    watcher = Watcher(b)
    for user_id in ("anna", "cleo"):
        a.presence.opened(f"of {user_id}", TENANT, user_id)
        await becomes(b, "online", user_id)
    await watcher.watch("anna", "cleo")
    await die(a)
    # The end of the lease is part of the record of its devices; six seconds have gone by.
    await b._door.command("ZADD", b.bus._keys.holders, round(time.time() * 1000) - 1, a.incarnation)
    b.presence.opened("cleo again", TENANT, "cleo")
    await until(lambda: not b.presence._owed)
    assert await b.presence.sweep(30) == 0
    assert await looks(b) == "online"
    await asyncio.sleep(0.05)
    assert await b.presence.sweep(0.01) == 2
    await until(lambda: watcher.statuses() == ["offline"])
    assert await looks(b, "cleo") == "online"
    assert watcher.statuses("cleo") == []


async def test_a_dead_incarnation_cannot_write_and_comes_back_with_everything(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    a.presence.opened("s", TENANT, "anna")
    await becomes(b, "online")
    await a.presence.choose(TENANT, "anna", "away", None)
    before = a.incarnation
    await a._door.command("DEL", a.bus._keys.lease(before))
    a.presence.closed("s", goodbye=True)
    a.presence.opened("t", TENANT, "ben")
    await asyncio.sleep(0.3)
    # Nothing it says under the old name counts.
    assert (await looks(b), await looks(b, "ben")) == ("away", "offline")
    await a.nodes.beat()
    assert a.incarnation != before
    await becomes(b, "online", "ben", within_s=2)
    await becomes(b, "offline", within_s=2)


@pytest.mark.timeout(60)
async def test_after_redis_lost_everything_all_nodes_agree_again_within_five_seconds(
    open_node: OpenNode, own_valkey: Valkey
) -> None:
    """S-243: choices included, and nobody who is watched is told of a change that was none."""
    (a, _), (b, _) = await open_node("a", url=own_valkey.url), await open_node("b", url=own_valkey.url)
    watcher = Watcher(b)
    for n in range(50):
        (a if n % 2 else b).presence.opened(f"s{n}", TENANT, f"u{n}")
    await a.presence.choose(TENANT, "u1", "busy", "deep")
    await becomes(b, "online", "u49")
    await watcher.watch(*(f"u{n}" for n in range(50)))
    sweeps = [asyncio.create_task(node.presence.run_sweep(0.5)) for node in (a, b)]
    await a._door.command("FLUSHALL")
    started = time.monotonic()
    expected = ["busy" if n == 1 else "online" for n in range(50)]
    users = [f"u{n}" for n in range(50)]

    async def seen(node: Cluster) -> list[str]:
        try:
            return [seen_by(known).status for known in await node.presence.look(TENANT, users)]
        except ClusterUnavailable:
            return []

    async with asyncio.timeout(5):
        while [await seen(a), await seen(b)] != [expected, expected]:  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(0.05)
    assert time.monotonic() - started < 5
    await asyncio.sleep(0.8)
    final = {one: now.status for one, now in watcher.heard}
    assert all(status == expected[users.index(one)] for one, status in final.items()), final
    for task in sweeps:
        task.cancel()


async def test_many_changes_of_many_people_come_together_four_times_a_second(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    watcher = Watcher(b)
    people = [f"u{n}" for n in range(100)]
    assert set((await watcher.watch(*people)).values()) == {"offline"}
    started = time.monotonic()
    for n, one in enumerate(people):
        a.presence.opened(f"s{n}", TENANT, one)
    await until(lambda: len(watcher.heard) == 100)
    assert time.monotonic() - started < 1
    assert len(watcher.batches) <= 3
    for _ in range(5):
        for n in range(100):
            a.presence.moved(f"s{n}", UUID(int=1), True)
        await asyncio.sleep(0.06)
        for n in range(100):
            a.presence.moved(f"s{n}", UUID(int=1), False)
        await asyncio.sleep(0.06)
    await asyncio.sleep(0.6)
    assert {now.status for one, now in watcher.heard[-1:]} <= {"online", "in_call"}
    last = {one: now.status for one, now in watcher.heard}
    assert set(last.values()) == {"online"}
    assert len(watcher.batches) <= 2 + int((time.monotonic() - started) / 0.25)


async def test_who_is_no_longer_watched_is_no_longer_heard_of(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    watcher = Watcher(b)
    await watcher.watch("anna", "cleo")
    b.watching.unwatch("watcher", ["anna", "nobody"])
    a.presence.opened("s1", TENANT, "anna")
    a.presence.opened("s2", TENANT, "cleo")
    await until(lambda: watcher.statuses("cleo") == ["online"])
    assert watcher.statuses() == []
    b.watching.forget("watcher")
    assert (b.watching._watchers, b.watching._last, b.watching._of_tenant) == ({}, {}, {})
    a.presence.closed("s2", goodbye=True)
    await asyncio.sleep(0.4)
    assert watcher.statuses("cleo") == ["online"]


async def test_a_session_watches_a_thousand_people_and_no_more(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    watcher = Watcher(a)
    for start in range(0, 1000, 200):
        await watcher.watch(*(f"u{n}" for n in range(start, start + 200)))
    await watcher.watch("u1")
    with pytest.raises(Conflict):
        await watcher.watch("one more")


async def test_what_was_missed_while_the_line_was_down_is_made_up_for(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    watcher = Watcher(b)
    await watcher.watch("anna")
    line = line_of(b)
    assert line._hear is not None
    line._hear.close()
    a.presence.opened("s", TENANT, "anna")
    await until(lambda: watcher.statuses() == ["online"])


async def test_forged_bells_cause_a_look_and_nothing_else(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    watcher = Watcher(a)
    a.presence.opened("s", TENANT, "anna")
    await becomes(a, "online")
    await watcher.watch("anna")
    bell = a.bus._keys.bell(TENANT)
    for wire in (b"", b"\xff", b"{}", b'["anna"]', b'["nobody"]', b"[1]", b'{"contacts":["anna"]}', b'{"contacts":3}'):
        await a._door.command("SPUBLISH", bell, wire)
    await asyncio.sleep(0.6)
    assert watcher.heard == []


async def test_whom_somebody_may_no_longer_see_goes_for_them_at_once_and_comes_back(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    watcher = Watcher(b)
    a.presence.opened("s", TENANT, "anna")
    await becomes(b, "online")
    await watcher.watch("anna")
    since = datetime.fromisoformat("2026-03-01T12:00:00Z")
    watcher.shown["anna"] = since
    await a.presence.ring(TENANT, ["anna"])
    await until(lambda: watcher.heard == [("anna", Presence("offline", None, since))])
    # What she does now is not for their eyes.
    await a.presence.choose(TENANT, "anna", "busy", None)
    await asyncio.sleep(0.4)
    assert len(watcher.heard) == 1
    watcher.shown["anna"] = None
    await a.presence.ring(TENANT, ["ben"])
    await until(lambda: watcher.statuses() == ["offline", "busy"])
    del watcher.shown["anna"]
    await a.presence.ring(TENANT, ["anna"])
    await until(lambda: watcher.statuses() == ["offline", "busy", "offline"])
    assert b.watching._watchers == {}


async def test_presence_survives_redis_being_away(open_node: OpenNode, own_valkey: Valkey) -> None:
    a, _ = await open_node("a", url=own_valkey.url)
    own_valkey.stop()
    with pytest.raises(ClusterUnavailable):
        await a.presence.choose(TENANT, "anna", "busy", None)
    a.presence.opened("s", TENANT, "anna")
    await asyncio.sleep(0.2)
    own_valkey.start()

    async def known() -> Known:
        try:
            return (await a.presence.look(TENANT, ["anna"]))[0]
        except ClusterUnavailable:
            return Known()

    await eventually(known)


async def eventually(known: Callable[[], Awaitable[Known]]) -> None:
    async with asyncio.timeout(10):
        while not (await known()).devices:  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(0.05)
