"""The fake LiveKit with the door in front of it, and a receiver of webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from hub.media.livekit import LiveKit
from tests.fakes.livekit import FakeLiveKit

# So that a failed assert of the shared suite says what it saw.
pytest.register_assert_rewrite("tests.media.contract")


@pytest.fixture
async def fake() -> AsyncIterator[FakeLiveKit]:
    """Ten times as fast as LiveKit in everything it waits for."""
    async with FakeLiveKit(time_scale=0.1) as server:
        yield server


@pytest.fixture
async def door(fake: FakeLiveKit) -> AsyncIterator[LiveKit]:
    async with LiveKit({"default": fake.server}) as livekit:
        yield livekit


@pytest.fixture
async def hasty(fake: FakeLiveKit) -> AsyncIterator[LiveKit]:
    """A door that waits for 0.2 s only, for tests in which the time runs out."""
    async with LiveKit({"default": fake.server}, timeout_s=0.2) as livekit:
        yield livekit


class Receiver:
    """A webhook receiver that answers as the test wants: `answers` are used up, then 200."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.authorizations: list[str] = []
        self.answers: list[web.Response] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.authorizations.append(request.headers["Authorization"])
        return self.answers.pop(0) if self.answers else web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application(client_max_size=4 * 1024 * 1024)
    app.router.add_post("/webhooks/livekit", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/livekit"
    yield made
    await runner.cleanup()
