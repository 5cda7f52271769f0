"""Webhooks that lie, come five times, come to two nodes, or come while the database is away."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from typing import Any

import aiohttp
import pytest

from hub.media.webhooks import sign
from tests.e2e.stage import NodeProcess, Person, Stage, eventually
from tests.faults.conftest import Servers

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def two_nodes(hub: Stage) -> tuple[NodeProcess, NodeProcess]:
    """That never sweep while these tests run: what is put right is put right by webhooks."""
    while len(hub.nodes) < 2:
        await hub.node(AURALINK_SWEEP_S="300")
    return hub.nodes[0], hub.nodes[1]


def participant_event(event: str, call: dict[str, Any], identity: str, sid: str, **participant: Any) -> bytes:
    now = int(time.time())
    room = {"sid": call["room_id"], "name": call["room_name"], "creationTime": str(now)}
    person = {"sid": sid, "identity": identity, "state": "ACTIVE", "joinedAt": str(now), **participant}
    body = {"event": event, "id": f"EV_{secrets.token_hex(8)}", "createdAt": str(now), "room": room}
    return json.dumps({**body, "participant": person}).encode()


async def post(node: NodeProcess, raw: bytes, authorization: str | None) -> int:
    headers = {"Content-Type": "application/webhook+json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        async with http.post(f"{node.url}/webhooks/livekit", data=raw, headers=headers) as response:
            if response.status == 503:
                assert int(response.headers["Retry-After"]) >= 1
            return response.status


async def waiting_for_ben(hub: Stage) -> tuple[Person, dict[str, Any], str]:
    """A call whose host listens by a socket; ben has a token and has not come."""
    await two_nodes(hub)
    ada, ben = hub.person("ada"), hub.person("ben")
    call = await ada.create()
    await ada.connect()
    await ada.join(call["call_id"])
    return ada, call, (await ben.ticket(call["call_id"]))["participant_id"]


async def test_a_webhook_that_does_not_verify_has_no_effect(breakable: Stage, servers: Servers) -> None:
    """S-131: unsigned, signed by another, signed for another body, too old: 401, nothing kept, nothing changed."""
    ada, call, _ = await waiting_for_ben(breakable)
    key, secret = servers.livekit.api_key, servers.livekit.api_secret
    raw = participant_event("participant_joined", call, "ben", "PA_forged")
    lies = [
        None,
        "",
        "Bearer nonsense",
        sign(raw, key, "another secret of at least thirty-two characters"),
        sign(raw, "another", secret),
        sign(raw + b" ", key, secret),
        f"Bearer {ada.token}",
    ]
    statuses = [await post(node, raw, lie) for lie in lies for node in breakable.nodes]
    assert set(statuses) == {401}
    assert not await breakable.rows("SELECT 1 FROM livekit_webhook_inbox WHERE participant_sid = 'PA_forged'")
    assert (await breakable.statuses(call["call_id"]))["ben"] == "joining"
    await breakable.send_home()


async def test_what_comes_five_times_to_two_nodes_has_one_effect(breakable: Stage, servers: Servers) -> None:
    """S-188, S-248: and webhooks alone, without a socket of his, bring ben in and out."""
    ada, call, ben_id = await waiting_for_ben(breakable)
    key, secret = servers.livekit.api_key, servers.livekit.api_secret

    async def flood(raw: bytes) -> None:
        authorization = sign(raw, key, secret)
        both = [breakable.nodes[n % 2] for n in range(5)]
        assert await asyncio.gather(*(post(node, raw, authorization) for node in both)) == [200] * 5

    sid = f"PA_{secrets.token_hex(4)}"
    await flood(participant_event("participant_joined", call, "ben", sid))
    await ada.wait_for("room:started")
    await eventually(lambda: _is(breakable, call, "ben", "joined"))
    assert (await breakable.call(call["call_id"]))["participant_count"] == 2
    left = participant_event("participant_left", call, "ben", sid, disconnectReason="CLIENT_INITIATED")
    await flood(left)
    told = await ada.wait_for_left(ben_id, timeout_s=10)
    assert told["left_reason"] == "left"
    # Late and once more, on the other node: nothing.
    await flood(left)
    await asyncio.sleep(1)
    assert len(ada.left(ben_id)) == 1
    names = Counter(name for name, _ in ada.heard)
    assert names["room:started"] == 1
    joined = [one for name, event in ada.heard if name == "participant:joined" for one in event["participants"]]
    assert [one["participant_id"] for one in joined] == [ben_id]
    kept = await breakable.rows("SELECT event, status FROM livekit_webhook_inbox WHERE participant_sid = $1", sid)
    assert Counter(row["event"] for row in kept) == {"participant_joined": 1, "participant_left": 1}
    await eventually(lambda: _worked_off(breakable, sid))
    await breakable.send_home()


@pytest.mark.timeout(90)
async def test_webhooks_that_come_while_the_database_is_away_are_taken_at_the_next_try(
    breakable: Stage, servers: Servers
) -> None:
    """S-188, S-189: 503, so LiveKit tries again; 200 would lose the event."""
    ada, call, _ = await waiting_for_ben(breakable)
    dan = breakable.person("dan")
    ticket = await dan.ticket(call["call_id"])
    servers.postgres.stop()
    try:
        raw = participant_event("participant_joined", call, "ben", "PA_refused")
        authorization = sign(raw, servers.livekit.api_key, servers.livekit.api_secret)
        assert [await post(node, raw, authorization) for node in breakable.nodes] == [503, 503]
        await dan.connect_media(ticket)
        # Long enough for LiveKit's first try to have failed.
        await asyncio.sleep(2)
    finally:
        servers.postgres.start()
    await ada.wait_for(
        "participant:joined",
        lambda event: ticket["participant_id"] in {one["participant_id"] for one in event["participants"]},
        timeout_s=30,
    )
    query = "SELECT event FROM livekit_webhook_inbox WHERE room_name = $1 AND event = 'participant_joined'"
    assert len(await breakable.rows(query, call["room_name"])) == 1
    assert (await breakable.statuses(call["call_id"]))["dan"] == "joined"
    await breakable.send_home()


async def _is(hub: Stage, call: dict[str, Any], identity: str, status: str) -> bool:
    return (await hub.statuses(call["call_id"]))[identity] == status


async def _worked_off(hub: Stage, sid: str) -> bool:
    rows = await hub.rows("SELECT status FROM livekit_webhook_inbox WHERE participant_sid = $1", sid)
    return all(row["status"] == "done" for row in rows)
