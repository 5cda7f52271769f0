"""Nodes as operators and people see them: emptied and filled again, killed, spoken through; and who is there then."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from hub.embedded import LiveKit, Valkey
from tests.conftest import TestDatabase
from tests.e2e.stage import ROOT, NodeProcess, Person, Stage, eventually, stage_of

GRACE_S = 4


@pytest_asyncio.fixture
async def stage(database: TestDatabase, valkey: Valkey, livekit: LiveKit, env_name: str) -> AsyncIterator[Stage]:
    """Two nodes, in two regions."""
    stage = stage_of(database, valkey, livekit, env_name)
    try:
        for region in ("eu", "us"):
            await stage.node(AURALINK_REGION=region, AURALINK_SOCKET_GRACE_S=str(GRACE_S))
        yield stage
    finally:
        await stage.close()


async def befriend(stage: Stage, owner: str, contact: str) -> None:
    tenant = (await stage.rows("SELECT id FROM tenants"))[0]["id"]
    for one in (owner, contact):
        await stage.rows("INSERT INTO users (tenant_id, id) VALUES ($1, $2) ON CONFLICT DO NOTHING", tenant, one)
    await stage.rows(
        "INSERT INTO contacts (tenant_id, owner_id, contact_user_id, status) VALUES ($1, $2, $3, 'accepted')",
        tenant,
        owner,
        contact,
    )


async def nodes_of(operator: Person) -> dict[str, dict[str, Any]]:
    answer = await operator.rest("GET", "/admin/nodes")
    assert answer.status == 200, answer
    return {node["node_id"]: node for node in answer.body["items"]}


async def ready(node: NodeProcess) -> int:
    async with aiohttp.ClientSession() as http, http.get(f"{node.url}/readyz") as response:
        return response.status


async def handshake(node: NodeProcess) -> tuple[int, str | None]:
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    url = f"{node.url}/socket.io/?EIO=4&transport=websocket"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as response:
        return response.status, response.headers.get("Retry-After")


def seen(person: Person, user_id: str) -> list[str]:
    return [
        view["status"]
        for name, event in person.heard
        if name == "presence:changed"
        for view in event["presences"]
        if view["user_id"] == user_id
    ]


async def cli(stage: Stage, *words: str) -> tuple[int, str]:
    environ = stage.environ(AURALINK_PUBLIC_URL=stage.nodes[0].url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hub", *words),
        cwd=ROOT,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.timeout(120)
async def test_a_node_is_emptied_by_rest_and_filled_again(stage: Stage) -> None:
    """S-108, S-247: 503 to handshakes and probes, its people go elsewhere unnoticed, then it takes people again."""
    first, second = stage.nodes
    operator = stage.person("cli", operator=True)
    ada, ben = stage.person("ada", node=first), stage.person("ben", node=second)
    call_id = (await ada.create())["call_id"]
    for person in (ada, ben):
        await person.connect()
        await person.join(call_id)
    ben_id = (await stage.rows("SELECT id FROM call_participants WHERE user_id = 'ben'"))[0]["id"]
    shown = await nodes_of(operator)
    assert {name: (node["status"], node["region"]) for name, node in shown.items()} == {
        "node-0": ("ready", "eu"),
        "node-1": ("ready", "us"),
    }
    await eventually(lambda: _sockets(operator, "node-1", 1))
    assert (await ben.rest("POST", "/admin/nodes/node-1/drain", {})).status == 403
    assert (await operator.rest("POST", "/admin/nodes/nowhere/drain", {})).status == 404

    answer = await operator.rest("POST", "/admin/nodes/node-1/drain", {"reason": "new kernel"})
    assert (answer.status, answer.body["node"]["status"]) == (202, "draining")
    closing = await ben.wait_for("session:closing")
    assert (closing["code"], closing["reconnect"]) == ("server_draining", True)
    assert await ready(second) == 503
    status, retry_after = await handshake(second)
    assert (status, retry_after is not None) == (503, True)
    assert await ready(first) == 200
    again = stage.person("ben", node=first)
    await again.connect()
    await again.join(call_id)
    # Who was only sent away is not kept by the node that lives on: their grace ends, and nobody hears of a return.
    await asyncio.sleep(GRACE_S + 2)
    assert ada.left(str(ben_id)) == []
    assert await stage.statuses(call_id) == {"ada": "joined", "ben": "joined"}

    answer = await operator.rest("POST", "/admin/nodes/node-1/undrain", {})
    assert (answer.status, answer.body["node"]["status"]) == (202, "ready")
    assert await ready(second) == 200
    back = stage.person("cleo", node=second)
    await back.connect()
    await back.join(call_id)
    audited = await stage.rows("SELECT action, target_id, reason, actor FROM audit_log ORDER BY id")
    assert [tuple(row) for row in audited if row["action"].startswith("node:")] == [
        ("node:drain", "node-1", "new kernel", "cli"),
        ("node:undrain", "node-1", None, "cli"),
    ]


async def _sockets(operator: Person, node_id: str, count: int) -> bool:
    sockets: int | None = (await nodes_of(operator))[node_id]["load"].get("sockets")
    return sockets == count


@pytest.mark.timeout(120)
async def test_people_who_do_not_come_back_from_an_emptied_node_have_left_after_the_grace(stage: Stage) -> None:
    first, second = stage.nodes
    operator = stage.person("cli", operator=True)
    ada, ben = stage.person("ada", node=first), stage.person("ben", node=second)
    call_id = (await ada.create())["call_id"]
    for person in (ada, ben):
        await person.connect()
    await ada.join(call_id)
    ben_id = (await ben.join(call_id))["self"]["participant_id"]
    assert (await operator.rest("POST", "/admin/nodes/node-1/drain", {})).status == 202
    await ben.socket.disconnect()
    told = await ada.wait_for_left(ben_id, timeout_s=GRACE_S + 10)
    assert told["left_reason"] == "connection_lost"


@pytest.mark.timeout(120)
async def test_the_command_line_lists_drains_and_undrains(stage: Stage) -> None:
    """S-247"""
    code, out = await cli(stage, "node", "list", "--json")
    assert code == 0, out
    assert [(node["node_id"], node["status"]) for node in json.loads(out)["items"]] == [
        ("node-0", "ready"),
        ("node-1", "ready"),
    ]
    code, out = await cli(stage, "node", "drain", "node-1")
    assert (code, out.strip()) == (0, "node-1 is draining")
    code, out = await cli(stage, "node", "list")
    assert code == 0
    rows = [line.split()[:3] for line in out.splitlines()[1:]]
    assert rows == [["node-0", "ready", "eu"], ["node-1", "draining", "us"]]
    code, out = await cli(stage, "node", "undrain", "node-1", "--json")
    assert (code, json.loads(out)["node"]["status"]) == (0, "ready")
    code, out = await cli(stage, "node", "drain", "no/where")
    assert code == 1
    assert "not_found" in out
    await stage.nodes[1].kill()
    await eventually(lambda: _lost(stage), timeout_s=10)
    code, out = await cli(stage, "node", "drain", "node-1")
    assert code == 1


async def _lost(stage: Stage) -> bool:
    nodes = await nodes_of(stage.people[0] if stage.people else stage.person("cli", operator=True))
    return bool(nodes["node-1"]["status"] == "lost")


@pytest.mark.timeout(120)
async def test_an_announcement_reaches_every_socket_of_the_tenant_on_all_nodes_and_nobody_else(stage: Stage) -> None:
    """S-247: once each, and it is audited."""
    people = [stage.person(f"p{n}", node=stage.nodes[n % 2]) for n in range(6)]
    stranger = stage.person("stranger", tenant="elsewhere", node=stage.nodes[1])
    for person in (*people, stranger):
        await person.connect()
    boss = stage.person("boss", admin=True)
    assert (await people[0].rest("POST", "/admin/announce", {"message": "hi"})).status == 403
    assert (await boss.rest("POST", "/admin/announce", {"message": "a\nb"})).status == 422
    answer = await boss.rest("POST", "/admin/announce", {"message": "Maintenance at noon", "level": "warning"})
    assert (answer.status, answer.body) == (200, {"nodes": ["node-0", "node-1"], "unreached": []})
    for person in people:
        heard = await person.wait_for("server:announced", timeout_s=3)
        assert (heard["message"], heard["level"]) == ("Maintenance at noon", "warning")
    await asyncio.sleep(0.5)
    assert [person.names().count("server:announced") for person in people] == [1] * 6
    assert "server:announced" not in stranger.names()
    (row,) = await stage.rows("SELECT actor, details FROM audit_log WHERE action = 'server:announce'")
    assert (row["actor"], json.loads(row["details"])["message"]) == ("boss", "Maintenance at noon")


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_contacts_see_each_other_come_go_and_survive_a_nodes_death(stage: Stage) -> None:
    """S-243, S-111: deltas within a second, no word of a reconnect, offline after lease and grace of a killed node."""
    first, second = stage.nodes
    ada, ben = stage.person("ada", node=first), stage.person("ben", node=second)
    await ada.create()
    await befriend(stage, "ada", "ben")
    await ada.connect()
    watched = await ada.ask("presence:watch", user_ids=["ben", "ada"])
    assert {view["user_id"]: view["status"] for view in watched["presences"]} == {"ben": "offline", "ada": "online"}

    async def told(person: Person, user_id: str, *statuses: str, within_s: float = 1.0) -> None:
        async def so() -> bool:
            return seen(person, user_id)[-len(statuses) :] == list(statuses)

        await eventually(so, timeout_s=within_s, every_s=0.02)

    await ben.connect()
    await told(ada, "ben", "online")
    await ben.ask("presence:set", status="away", text="lunch")
    await told(ada, "ben", "online", "away")
    await ben.ask("presence:set", status="online")
    call_id = (await ben.create())["call_id"]
    await ben.join(call_id)
    await told(ada, "ben", "in_call")
    await ben.ask("room:leave", call_id=call_id)
    await told(ada, "ben", "in_call", "online")
    listed = await ada.rest("GET", "/presence?user_ids=ben,ada")
    looks = [(view["status"], view["text"]) for view in listed.body["presences"]]
    assert looks == [("online", "lunch"), ("online", None)]
    # A second device, and a goodbye on the first: nothing to tell. Then the last one says goodbye.
    before = len(seen(ada, "ben"))
    phone = stage.person("ben", node=first)
    await phone.connect()
    await ben.socket.disconnect()
    await asyncio.sleep(1)
    assert len(seen(ada, "ben")) == before
    await phone.socket.disconnect()
    await told(ada, "ben", "offline")

    # A cut line and a return within the grace: no flap.
    again = stage.person("ben", node=second)
    await again.connect()
    await told(ada, "ben", "offline", "online")
    before = len(seen(ada, "ben"))
    again.cut_socket()
    await asyncio.sleep(GRACE_S - 1.5)
    third = stage.person("ben", node=second)
    await third.connect()
    await asyncio.sleep(GRACE_S)
    assert seen(ada, "ben")[before:] == []

    await second.kill()
    died = time.monotonic()
    await asyncio.sleep(4)
    assert seen(ada, "ben")[before:] == []
    await told(ada, "ben", "online", "offline", within_s=8 + GRACE_S + 3)
    assert GRACE_S <= time.monotonic() - died <= 8 + GRACE_S + 3
