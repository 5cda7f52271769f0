"""The health pages and the internal listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from hub.protocol.problems import HttpProblem
from hub.transport import health, middleware


@dataclass
class Node:
    """Its dependencies, which can be broken one by one."""

    broken: set[str] = field(default_factory=set)
    hanging: set[str] = field(default_factory=set)
    draining: bool = False
    asked: int = 0

    def check(self, name: str) -> health.Check:
        async def run() -> None:
            self.asked += 1
            if name in self.hanging:
                await asyncio.sleep(30)
            if name in self.broken:
                raise ConnectionError("host db.internal.example refused")

        return run


Opened = tuple[Node, TestClient[web.Request, web.Application]]


@pytest.fixture
async def opened(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opened]:
    monkeypatch.setattr(health, "_FRESH_S", 0.0)
    node = Node()
    checks = health.Checks(
        required={name: node.check(name) for name in ("database", "redis")},
        optional={"livekit": node.check("livekit")},
        draining=lambda: node.draining,
    )
    app = web.Application()
    middleware.setup(app, origins=frozenset(), https=False)
    health.setup(app, checks)
    async with TestClient(TestServer(app)) as client:
        yield node, client


async def test_the_gauge_turns_also_where_nobody_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_FRESH_S", 0.0)
    monkeypatch.setattr(health, "_LOOK_S", 0.01)
    node = Node()
    checks = health.Checks({"database": node.check("database")}, {}, draining=lambda: node.draining)
    looking = asyncio.create_task(checks.run())
    try:
        for broken, ready in ((set(), 1), ({"database"}, 0), (set(), 1)):
            node.broken = broken
            async with asyncio.timeout(5):
                while health.READY._value.get() != ready:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.01)
        node.draining = True
        async with asyncio.timeout(5):
            while health.READY._value.get() != 0:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
    finally:
        looking.cancel()


async def test_a_node_that_has_all_it_needs_is_ready(opened: Opened) -> None:
    _, client = opened
    for path in ("/livez", "/readyz", "/healthz"):
        assert (await (await client.get(path)).json())["status"] == "ok"
        head = await client.head(path)
        assert (head.status, await head.read()) == (200, b"")
    assert "checks" not in await (await client.get("/readyz")).json()
    verbose = await (await client.get("/readyz?verbose")).json()
    assert {name: one["status"] for name, one in verbose["checks"].items()} == {
        "database": "ok",
        "redis": "ok",
        "livekit": "ok",
    }


@pytest.mark.parametrize(("name", "code"), [("database", "database_unavailable"), ("redis", "cluster_unavailable")])
@pytest.mark.parametrize("how", ["broken", "hanging"])
async def test_a_node_without_what_it_needs_is_not_ready_but_lives(
    opened: Opened, name: str, code: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-194: 503, and no word of what is behind it."""
    monkeypatch.setattr(health, "_DEADLINE_S", 0.1)
    node, client = opened
    getattr(node, how).add(name)
    for path in ("/readyz", "/readyz?verbose", "/healthz"):
        response = await client.get(path)
        text = await response.read()
        problem = msgspec.json.decode(text, type=HttpProblem)
        assert (response.status, problem.code, response.headers["Retry-After"]) == (503, code, "1")
        assert b"internal.example" not in text
    assert (await client.get("/livez")).status == 200
    getattr(node, how).clear()
    assert (await client.get("/readyz")).status == 200


async def test_a_node_without_media_is_degraded_and_still_given_work(opened: Opened) -> None:
    node, client = opened
    node.broken.add("livekit")
    health_page = await client.get("/healthz")
    assert (health_page.status, (await health_page.json())["status"]) == (200, "degraded")
    assert (await client.get("/readyz")).status == 200


async def test_a_draining_node_is_given_no_work_though_all_is_well(opened: Opened) -> None:
    node, client = opened
    node.draining = True
    response = await client.get("/readyz")
    assert (response.status, (await response.json())["code"]) == (503, "server_draining")
    assert (await (await client.get("/healthz")).json())["status"] == "draining"
    assert (await client.get("/livez")).status == 200


async def test_many_probes_share_one_look(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_FRESH_S", 60.0)
    node, client = opened
    await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
    assert node.asked == 3


async def test_metrics_are_inside_only_and_name_no_path(opened: Opened) -> None:
    """Families by route template; the public listener has no such page."""
    node, client = opened
    assert (await client.get("/metrics")).status == 404
    await client.get("/nonsense-path-zebra")
    checks = health.Checks(required={}, optional={}, draining=lambda: node.draining)
    async with TestClient(TestServer(health.internal_app(checks))) as inside:
        response = await inside.get("/metrics")
        text = await response.text()
    assert response.content_type == "text/plain"
    assert 'auralink_hub_http_requests_total{method="GET",route="unmatched",status="404"}' in text
    assert "zebra" not in text
