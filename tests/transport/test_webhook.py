"""LiveKit's webhooks: verified, stored once, answered; nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from livekit.api import AccessToken, VideoGrants

from db.pool import Database
from hub.media import webhooks
from hub.transport import middleware, webhook
from tests.conftest import TestDatabase

KEYS = {"devkey": "a-livekit-secret-of-thirty-two-chars", "oldkey": "the-livekit-secret-of-the-year-before"}


def body(**changes: Any) -> bytes:
    event = {
        "event": "participant_joined",
        "id": f"EV_{uuid4().hex}",
        "createdAt": str(int(time.time())),
        "room": {"sid": "RM_a", "name": "room_abcdefgh1234_1767605400", "turnPassword": "hunter2"},
        "participant": {"sid": "PA_a", "identity": "ada"},
        **changes,
    }
    return json.dumps(event).encode()


def sign(raw: bytes, key: str = "devkey", **how: Any) -> str:
    return webhooks.sign(raw, key, KEYS[key], **how)


@dataclass
class Receiver:
    client: TestClient[web.Request, web.Application]
    db: Database
    admin: asyncpg.Connection[asyncpg.Record]
    woken: int = 0

    def wake(self) -> None:
        self.woken += 1

    async def post(self, raw: bytes, authorization: str | None) -> aiohttp.ClientResponse:
        headers = {"Content-Type": "application/webhook+json"}
        if authorization is not None:
            headers["Authorization"] = authorization
        response = await self.client.post("/webhooks/livekit", data=raw, headers=headers)
        await response.read()
        return response

    async def stored(self) -> int:
        return int(await self.admin.fetchval("SELECT count(*) FROM livekit_webhook_inbox"))


@pytest.fixture
async def receiver(database: TestDatabase) -> AsyncIterator[Receiver]:
    db = await Database.open(database.app_dsn)
    admin = await asyncpg.connect(database.admin_dsn)
    app = web.Application()
    middleware.setup(app, origins=frozenset(), https=False)

    client = TestClient(TestServer(app))
    opened = Receiver(client, db, admin)
    webhook.setup(app, verify=lambda raw, auth: webhooks.verify(raw, auth, KEYS), db=db, wake=opened.wake)
    async with client:
        yield opened
    await admin.close()
    await db.close()


async def test_a_signed_event_is_stored_and_the_worker_woken(receiver: Receiver) -> None:
    """S-131, S-158: POST at the root, not under /api."""
    raw = body()
    assert (await receiver.post(raw, sign(raw))).status == 200
    assert (await receiver.stored(), receiver.woken) == (1, 1)
    payload = await receiver.admin.fetchval("SELECT payload::text FROM livekit_webhook_inbox")
    assert "hunter2" not in payload


async def test_the_same_event_many_times_at_once_is_stored_once_and_always_welcome(receiver: Receiver) -> None:
    """S-131: LiveKit repeats itself."""
    raw = body()
    statuses = [
        response.status for response in await asyncio.gather(*(receiver.post(raw, sign(raw)) for _ in range(5)))
    ]
    assert statuses == [200] * 5
    assert (await receiver.stored(), receiver.woken) == (1, 1)


async def test_an_event_nobody_knows_yet_is_stored_too(receiver: Receiver) -> None:
    raw = body(event="hologram_started")
    assert (await receiver.post(raw, sign(raw))).status == 200
    assert await receiver.stored() == 1


async def test_every_key_of_a_rotation_is_accepted(receiver: Receiver) -> None:
    """S-159"""
    for key in KEYS:
        raw = body()
        assert (await receiver.post(raw, sign(raw, key))).status == 200
    assert await receiver.stored() == 2


FORGED: dict[str, Callable[[bytes], str | None]] = {
    "no signature": lambda raw: None,
    "nonsense": lambda raw: "nonsense",
    "another key": lambda raw: webhooks.sign(raw, "strangerkey", KEYS["devkey"]),
    "another secret": lambda raw: webhooks.sign(raw, "devkey", "x" * 40),
    "another body": lambda raw: sign(raw + b" "),
    "long expired": lambda raw: sign(raw, valid_for=timedelta(seconds=-120)),
    "a participant's token": lambda raw: (
        AccessToken("devkey", KEYS["devkey"])
        .with_identity("ada")
        .with_grants(VideoGrants(room_join=True, room="r"))
        .to_jwt()
    ),
    "alg none": lambda raw: jwt.encode({"iss": "devkey", "exp": 2**31}, "", algorithm="none"),
}


@pytest.mark.parametrize("case", FORGED)
async def test_a_forged_event_is_refused_without_a_reason_and_leaves_nothing(receiver: Receiver, case: str) -> None:
    """S-131, S-159: signature, body hash, time, key: 401 and no effect."""
    raw = body()
    response = await receiver.post(raw, FORGED[case](raw))
    problem = await response.json()
    assert (response.status, problem["code"], problem["detail"]) == (
        401,
        "unauthenticated",
        "the webhook does not verify",
    )
    assert (await receiver.stored(), receiver.woken) == (0, 0)


async def test_other_methods_are_not_allowed(receiver: Receiver) -> None:
    """S-158"""
    response = await receiver.client.get("/webhooks/livekit")
    assert (response.status, (await response.json())["code"]) == (405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


async def test_an_event_of_two_megabytes_is_taken_and_one_of_five_is_not(receiver: Receiver) -> None:
    """Metadata of half a megabyte, escaped, is legal in LiveKit."""
    large = body(participant={"sid": "PA_a", "identity": "ada", "metadata": "x" * 2 * 1024 * 1024})
    assert (await receiver.post(large, sign(large))).status == 200
    huge = body(participant={"sid": "PA_a", "identity": "ada", "metadata": "x" * 5 * 1024 * 1024})
    assert (await receiver.post(huge, sign(huge))).status == 413
    assert await receiver.stored() == 1


async def test_an_event_that_cannot_be_stored_is_asked_for_again_soon(receiver: Receiver) -> None:
    """S-131: the only 5xx; LiveKit tries again."""
    await receiver.db.close()
    raw = body()
    response = await receiver.post(raw, sign(raw))
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert (await response.json())["code"] == "database_unavailable"
    assert receiver.woken == 0


async def test_a_database_that_hangs_does_not_hold_livekit_up(receiver: Receiver, database: TestDatabase) -> None:
    """S-131: one second, then 503."""
    async with receiver.admin.transaction():
        await receiver.admin.execute("LOCK TABLE livekit_webhook_inbox IN ACCESS EXCLUSIVE MODE")
        raw = body()
        started = time.monotonic()
        response = await receiver.post(raw, sign(raw))
        assert response.status == 503
        assert time.monotonic() - started < 2.5
    assert (await receiver.post(raw, sign(raw))).status == 200
    assert await receiver.stored() == 1
