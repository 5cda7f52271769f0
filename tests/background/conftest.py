"""A hub of workers only: real PostgreSQL, a LiveKit that fails on demand, a bus with a memory, a clock that jumps."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from aiohttp import web

from db import calls, inbox, participants, tenants, users
from db.calls import Call
from db.participants import Participant
from db.pool import Database
from hub.actions.orders import learn
from hub.actions.settle import Settled, grace_of, settle
from hub.background.due import Due
from hub.background.inbox import Inbox
from hub.background.sweep import Sweep
from hub.context import Rules
from hub.media import webhooks
from hub.media.livekit import LiveKit
from hub.state.facts import FactEvent, RoomStarted
from tests.conftest import TestDatabase
from tests.fakes.livekit import FakeLiveKit


class Clock:
    """The real one, set forward by the test."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def forward(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


class Ears:
    """A bus that remembers what a room was told."""

    def __init__(self) -> None:
        self.heard: list[tuple[UUID, str, Any]] = []

    async def to_room(self, call_id: UUID, name: str, payload: Any, *, recorded: bool = True) -> None:
        self.heard.append((call_id, name, msgspec.to_builtins(payload, str_keys=True)))

    def names(self, call_id: UUID) -> list[str]:
        return [name for heard_in, name, _ in self.heard if heard_in == call_id]

    def last(self, name: str) -> Any:
        return next(payload for _, heard, payload in reversed(self.heard) if heard == name)


class Leader:
    def __init__(self) -> None:
        self.leading = True

    async def leads(self) -> bool:
        return self.leading


class World:
    """One node's workers, and the hands of those who act on the database beside them."""

    def __init__(self, db: Database, livekit: FakeLiveKit, media: LiveKit, rules: Rules) -> None:
        self.db, self.livekit, self.media, self.rules = db, livekit, media, rules
        self.bus = Ears()
        self.clock = Clock()
        self.inbox = Inbox(self, webhooks.parse, poll_s=0.2)
        self.leader = Leader()
        self.sweep = Sweep(self, self.leader, regions=["default"], every_s=1.0, probe_s=0.1)
        self.due = Due(self)
        self.tenant_id = uuid4()
        # While false every webhook is answered 503 and nothing is kept, as when the hub is down.
        self.listening = True

    async def call(self, *identities: str, room: bool = True) -> Call:
        """A call with its room, and people who have their tokens."""
        name = f"room_hub0{secrets.token_hex(6)}_{int(self.clock().timestamp())}"
        info = await self.media.create_room(name, departure_timeout_s=20, empty_timeout_s=300) if room else None
        async with self.db.tenant(self.tenant_id) as tx:
            await tenants.seen(tx)
            await users.seen(tx, "owner", display_name="Owner", avatar_url=None)
            call = await calls.add(
                tx,
                owner_id="owner",
                name="Test",
                call_type="group",
                livekit_room_name=name,
                livekit_room_sid=info.sid if info else None,
                region="default",
                waiting_expires_at=self.clock() + timedelta(days=1),
            )
            news: list[FactEvent] = []
            if info is not None:
                started = RoomStarted(
                    at=info.created_at, known_at=self.clock(), room_sid=info.sid, room_created_at=info.created_at
                )
                news.append(started)
            await settle(tx, call.id, self.clock(), fold=news, grace=self.grace)
        for identity in identities:
            await self.invite(call, identity)
        return call

    @property
    def grace(self) -> Any:
        return grace_of(self.rules)

    async def invite(self, call: Call, identity: str) -> Participant:
        user_id, _, device_id = identity.partition(":")
        now = self.clock()
        async with self.db.tenant(self.tenant_id, user_id) as tx:
            await users.seen(tx, user_id, display_name=user_id, avatar_url=None)
            person = await participants.admit(
                tx,
                call.id,
                user_id=user_id,
                identity=identity,
                device_id=device_id or None,
                role="participant",
                display_name=user_id,
                metadata={},
                via_link_id=None,
                now=now,
            )
            await participants.token_issued(tx, person.id, now, now + timedelta(seconds=600))
            await settle(tx, call.id, now, grace=self.grace)
        return person

    async def settle(self, call: Call, *news: FactEvent) -> Settled:
        return await learn(self, self.tenant_id, call.id, news)

    async def work_off(self) -> None:
        """Everything that LiveKit sends is received, and everything received is worked off."""
        await self.livekit.settled()
        while await self.inbox.once():
            await self.livekit.settled()

    async def row(self, call: Call) -> Call:
        async with self.db.tenant(self.tenant_id) as tx:
            found = await calls.get(tx, call.id)
        assert found is not None
        return found

    async def people(self, call: Call) -> dict[str, Participant]:
        async with self.db.tenant(self.tenant_id) as tx:
            return {person.identity: person for person in await participants.of_call(tx, call.id)}

    async def status(self, call: Call, identity: str) -> str:
        return (await self.people(call))[identity].status

    async def receive(self, request: web.Request) -> web.Response:
        raw = await request.read()
        if not self.listening:
            return web.Response(status=503)
        event = self.media.verify_webhook(raw, request.headers["Authorization"])
        async with self.db.system() as tx:
            await inbox.store(tx, event)
        self.inbox.wake.set()
        return web.Response()


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
async def world(database: TestDatabase, rules: Rules) -> AsyncIterator[World]:
    db = await Database.open(database.app_dsn, max_size=6)
    async with FakeLiveKit(time_scale=0.05) as livekit, LiveKit({"default": livekit.server}, timeout_s=0.5) as media:
        made = World(db, livekit, media, rules)
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/webhooks/livekit", made.receive)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        livekit.webhook_urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/livekit")
        try:
            yield made
        finally:
            await livekit.sender.stop()
            await runner.cleanup()
            await db.close()


async def eventually(ask: Any, wanted: Any, *, within_s: float = 5.0) -> None:
    """`await ask()` becomes `wanted` in time."""
    async with asyncio.timeout(within_s):
        while (found := await ask()) != wanted:  # noqa: ASYNC110 - it looks at a database
            await asyncio.sleep(0.05)
    assert found == wanted
