"""Rates over all nodes, and locks with a fencing token."""

from __future__ import annotations

import asyncio

from hub.cluster import Verdict
from hub.embedded import Valkey
from tests.cluster.conftest import OpenNode
from tests.cluster.hearing import until


async def test_a_limit_counts_over_all_nodes_and_refills_evenly(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    verdicts = await asyncio.gather(*(node.limits.allow("k", 10, 1.0) for node in (a, b) * 10))
    assert sum(verdict.allowed for verdict in verdicts) == 10
    refused = [verdict for verdict in verdicts if not verdict.allowed]
    assert all(0 < verdict.retry_after_ms <= 100 for verdict in refused)
    await asyncio.sleep(0.25)
    allowed = [await a.limits.allow("k", 10, 1.0) for _ in range(5)]
    # 250 ms are two and a half of them, whatever the sleep and the calls took beyond.
    assert 2 <= sum(verdict.allowed for verdict in allowed) <= 4
    assert await a.limits.allow("another", 1, 60) == Verdict(True)


async def test_waiting_as_long_as_told_is_enough(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    for _ in range(3):
        assert (await a.limits.allow("k", 3, 0.3)).allowed
    refused = await a.limits.allow("k", 3, 0.3)
    await asyncio.sleep(refused.retry_after_ms / 1000)
    assert (await a.limits.allow("k", 3, 0.3)).allowed


async def test_looking_counts_nothing(open_node: OpenNode, own_valkey: Valkey) -> None:
    a, _ = await open_node("a", url=own_valkey.url)
    for key in ("shared", "alone"):
        if key == "alone":
            own_valkey.stop()
        for _ in range(3):
            assert (await a.limits.look(key, 2, 60)).allowed
        for _ in range(2):
            assert (await a.limits.allow(key, 2, 60)).allowed
        assert 0 < (await a.limits.look(key, 2, 60)).retry_after_ms <= 30_001


async def test_what_is_given_back_can_be_used_again(open_node: OpenNode, own_valkey: Valkey) -> None:
    a, _ = await open_node("a", url=own_valkey.url)
    for key in ("shared", "alone"):
        if key == "alone":
            own_valkey.stop()
        await a.limits.give_back(key, 2, 60)
        for _ in range(2):
            assert (await a.limits.allow(key, 2, 60)).allowed
        assert not (await a.limits.allow(key, 2, 60)).allowed
        await a.limits.give_back(key, 2, 60)
        assert (await a.limits.allow(key, 2, 60)).allowed
        assert not (await a.limits.allow(key, 2, 60)).allowed


async def test_without_redis_each_node_counts_for_itself(open_node: OpenNode, own_valkey: Valkey) -> None:
    a, _ = await open_node("a", url=own_valkey.url)
    own_valkey.stop()
    verdicts = [await a.limits.allow("k", 3, 60) for _ in range(5)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False, False]
    assert 0 < verdicts[-1].retry_after_ms <= 20_001


async def test_one_node_at_a_time_and_tokens_only_grow(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    first = await a.lock.acquire("sweep")
    assert first is not None
    assert first.held
    assert await b.lock.acquire("sweep") is None
    assert await a.lock.acquire("sweep") is None
    await a.lock.release(first)
    assert not first.held
    second = await b.lock.acquire("sweep")
    assert second is not None
    assert second.token > first.token
    # Releasing what one no longer holds changes nothing.
    await a.lock.release(first)
    assert await a.lock.acquire("sweep") is None


async def test_a_lock_is_renewed_while_its_holder_lives(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    first = await a.lock.acquire("short", ttl_s=0.3)
    assert first is not None
    await asyncio.sleep(0.7)
    assert first.held
    assert await b.lock.acquire("short") is None


async def test_a_holder_that_was_away_loses_the_lock_and_hears_of_it(open_node: OpenNode) -> None:
    (a, _), (b, _) = await open_node("a"), await open_node("b")
    told: list[str] = []
    first = await a.lock.acquire("sweep", on_lost=lambda: told.append("lost"))
    assert first is not None
    await a._door.command("DEL", a.bus._keys.lock("sweep"))
    second = await b.lock.acquire("sweep")
    assert second is not None
    await a.lock._renew(first, 6)
    assert not first.held
    assert told == ["lost"]
    assert second.held
    assert second.token > first.token


async def test_a_lost_fence_counter_does_not_bring_old_tokens_back(open_node: OpenNode) -> None:
    a, _ = await open_node("a")
    first = await a.lock.acquire("sweep")
    assert first is not None
    await a.lock.release(first)
    await a._door.command("DEL", a.bus._keys.fence("sweep"))
    await asyncio.sleep(0.005)
    second = await a.lock.acquire("sweep")
    assert second is not None
    assert second.token > first.token


async def test_a_holder_without_redis_stops_before_its_lease_ends(open_node: OpenNode, own_valkey: Valkey) -> None:
    a, _ = await open_node("a", url=own_valkey.url)
    first = await a.lock.acquire("sweep", ttl_s=0.5)
    assert first is not None
    own_valkey.stop()
    await until(lambda: not first.held, 1)
