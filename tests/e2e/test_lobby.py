"""A lobby over several nodes, one of which dies while people wait."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import aiohttp
import jwt
import pytest
import pytest_asyncio

from hub.context import GuestPass
from hub.embedded import LiveKit, Valkey
from tests.conftest import TestDatabase
from tests.e2e.stage import NodeProcess, Person, Stage, stage_of


@pytest_asyncio.fixture
async def stage(database: TestDatabase, valkey: Valkey, livekit: LiveKit, env_name: str) -> AsyncIterator[Stage]:
    """Two nodes."""
    stage = stage_of(database, valkey, livekit, env_name)
    try:
        for _ in range(2):
            await stage.node()
        yield stage
    finally:
        await stage.close()


async def guest_of(stage: Stage, call_id: str, user_id: str, node: NodeProcess) -> Person:
    """As a link would make one that asks for approval."""
    tenant: UUID = (await stage.call(call_id))["tenant_id"]
    guest = GuestPass(UUID(call_id), "participant", approval=True)
    issued = stage.tokens.issue_guest(tenant=tenant, guest=guest, display_name="A Guest", user_id=user_id)
    person = Person(user_id, node.url, issued.token)
    stage.people.append(person)
    return person


async def come_back(person: Person, node: NodeProcess, since: dict[str, Any]) -> Person:
    """The same guest on another node, as a client reconnects: from where it heard last."""
    again = Person(person.user_id, node.url, person.token)
    auth = {"token": again.token, "protocol": "1", "user_since": f"{since['epoch']}:{since['offset']}"}
    await again.socket.connect(node.url, auth=auth, transports=["websocket"], wait_timeout=10)
    ready = await again.wait_for("session:ready")
    assert ready["recovery"]["recovered"] is True
    return again


async def requests_served(node: NodeProcess) -> int:
    """REST calls that node has answered, of whatever kind, but for probes."""
    async with aiohttp.ClientSession() as http, http.get(f"{node.internal_url}/metrics") as response:
        text = await response.text()
    lines = re.findall(r"^auralink_hub_http_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    return sum(int(float(count)) for labels, count in lines if "/api/" in labels)


@pytest.mark.timeout(150)
async def test_who_waits_is_let_in_on_another_node_after_theirs_was_killed(stage: Stage) -> None:
    """S-077: one guest is back before the host decides, one after; neither asks by REST, and both get their tokens."""
    staying, doomed = stage.nodes
    host = stage.person("host", node=staying)
    call_id = (await host.create())["call_id"]
    await host.connect()
    await host.join(call_id)
    early, late = [await guest_of(stage, call_id, f"guest:{n}", doomed) for n in (1, 2)]
    since = {}
    for place, guest in enumerate((early, late), 1):
        await guest.connect()
        since[guest] = (await guest.wait_for("session:ready"))["recovery"]["user"]
        refused = await guest.ack("room:join", call_id=call_id)
        assert refused["error"]["code"] == "lobby_required"
        ticket = await guest.ask("lobby:knock", call_id=call_id)
        assert (ticket["status"], ticket["position"]) == ("waiting", place)
        await host.wait_for("lobby:knocked", lambda event, of=guest: event["entry"]["user_id"] == of.user_id)  # type: ignore[misc]
    served = await requests_served(staying)
    assert served > 0, "the metric has another name by now"

    await doomed.kill()
    early = await come_back(early, staying, since[early])
    stage.people.append(early)
    # Asking anew keeps the place; both still wait, whatever became of their node.
    assert (await early.ask("lobby:knock", call_id=call_id))["position"] == 1
    (first, _) = (await host.ask("lobby:list", call_id=call_id))["items"]
    by_rest = await host.rest("POST", f"/rooms/{call_id}/lobby/{first['ticket']}/admit", {})
    assert (by_rest.status, by_rest.body) == (200, {"count": 1})
    assert (await host.ask("lobby:admit", call_id=call_id, all=True))["count"] == 1
    admitted = await early.wait_for("lobby:admitted")
    assert admitted["entry"]["call_id"] == call_id

    # The word was said while this one was nowhere.
    late = await come_back(late, staying, since[late])
    stage.people.append(late)
    await late.wait_for("lobby:admitted")
    # One, the host's.
    assert await requests_served(staying) == served + 1
    for guest in (early, late):
        joined = await guest.join(call_id, media=False)
        media = await guest.ask("media:authorize", call_id=call_id)
        assert joined["self"]["status"] == "joined"
        assert jwt.decode(media["token"], options={"verify_signature": False})["video"]["roomJoin"] is True
    assert set((await stage.statuses(call_id)).values()) == {"joined"}
