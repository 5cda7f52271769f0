"""LiveKit itself killed and started again, with a real client in the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from db.pool import Database
from hub.context import Rules
from hub.embedded import LiveKit as LiveKitServer
from hub.embedded import free_port
from hub.media.livekit import LiveKit
from hub.media.values import Grant, Server
from tests.background.conftest import World, eventually
from tests.conftest import TestDatabase
from tests.fakes.livekit import FakeLiveKit
from tests.rtc import RtcClient


@pytest.mark.timeout(150)
async def test_a_killed_livekit_costs_a_real_client_seconds_not_the_call(
    database: TestDatabase, start_livekit: Callable[..., LiveKitServer]
) -> None:
    """S-189, decision 3: the room is made again within 5 s of its return, the client comes back by itself."""
    port = free_port()
    server = start_livekit(f"http://127.0.0.1:{port}/webhooks/livekit")
    db = await Database.open(database.app_dsn, max_size=6)
    keys = Server(url=server.url, api_key=server.api_key, api_secret=server.api_secret)
    async with LiveKit({"default": keys}, timeout_s=1.0) as media:
        world = World(db, FakeLiveKit(), media, Rules())
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/webhooks/livekit", world.receive)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        loops = [asyncio.create_task(each.run()) for each in (world.inbox, world.sweep, world.due)]
        try:
            await _killed_and_back(world, server)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await runner.cleanup()
            await db.close()


async def _killed_and_back(world: World, server: LiveKitServer) -> None:
    call = await world.call("anna")
    token, _ = world.media.mint_token(
        room_name=call.livekit_room_name,
        identity="anna",
        name="Anna",
        metadata={},
        attributes={},
        grant=Grant(can_publish_sources=frozenset({"microphone"})),
        ttl_s=600,
    )
    async with await RtcClient.start(server.ws_url, token, seconds=90, audio=True):
        await eventually(lambda: world.status(call, "anna"), "joined", within_s=20)
        # Until the call is older than what a list may miss.
        await asyncio.sleep(2.5)
        server.kill()
        server.start()

        async def sid() -> bool:
            return (await world.row(call)).livekit_room_sid not in (None, call.livekit_room_sid)

        await eventually(sid, True, within_s=5)
        await eventually(lambda: world.status(call, "anna"), "joined", within_s=25)

        async def publishes() -> Any:
            return (await world.people(call))["anna"].is_audio_enabled

        await eventually(publishes, True, within_s=10)
    assert (await world.row(call)).status == "active"
    names = world.bus.names(call.id)
    assert "participant:left" not in names and "room:ended" not in names
    assert names.count("room:started") == 1
