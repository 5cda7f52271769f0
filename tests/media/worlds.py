"""One LiveKit with people in it, twice: the fake one, and the real one with WebRTC clients, for the same tests."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from aiohttp import web
from livekit.protocol import models

from hub import embedded
from hub.media.livekit import LiveKit
from hub.media.values import SOURCES, Grant, Server, WebhookEvent
from tests.fakes.livekit import FakeLiveKit, JoinRefused
from tests.rtc import RtcClient

EVERYTHING = Grant(can_publish_sources=SOURCES)


class Person(Protocol):
    """A client in a room."""

    async def publish(self, source: str) -> str:
        """The track's sid."""
        ...

    async def leave(self) -> None: ...

    async def gone(self) -> str:
        """Wait until the server put them out; LiveKit's reason."""
        ...

    async def hears(self, text: str) -> None:
        """Wait for this data message."""
        ...

    def heard(self) -> list[str]:
        """All data messages so far."""
        ...

    async def subscribed(self, track_sid: str) -> None:
        """Wait until this track is received."""
        ...

    async def unsubscribed(self, track_sid: str) -> None:
        """Wait until it is not any more."""
        ...


class World:
    """`door` to a LiveKit whose webhooks are kept in `events`. `room`: a name that no other test has."""

    door: LiveKit

    def __init__(self) -> None:
        self.events: list[WebhookEvent] = []
        self.room = f"room_{secrets.token_hex(6)}_1"
        self._runner: web.AppRunner | None = None

    async def join(self, identity: str, grant: Grant = EVERYTHING, *, token: str | None = None) -> Person:
        """Raises JoinRefused."""
        raise NotImplementedError

    def token(self, identity: str, grant: Grant = EVERYTHING, *, room: str | None = None) -> str:
        token, _ = self.door.mint_token(
            room_name=room or self.room,
            identity=identity,
            name=identity.title(),
            metadata={"role": "participant"},
            attributes={"color": "green"},
            grant=grant,
        )
        return token

    async def event(
        self, name: str, wanted: Callable[[WebhookEvent], bool] = lambda _: True, *, timeout_s: float = 15
    ) -> WebhookEvent:
        """The first such webhook of this test's room, past or to come."""
        async with asyncio.timeout(timeout_s):
            while True:
                for event in self.events:
                    if event.event == name and event.room_name == self.room and wanted(event):
                        return event
                await asyncio.sleep(0.01)

    async def listen(self, port: int) -> str:
        app = web.Application()
        app.router.add_post("/webhooks/livekit", self._hear)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/webhooks/livekit"

    async def _hear(self, request: web.Request) -> web.Response:
        self.events.append(self.door.verify_webhook(await request.read(), request.headers["Authorization"]))
        return web.Response()

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.door.aclose()
        if self._runner is not None:
            await self._runner.cleanup()


class FakeWorld(World):
    async def __aenter__(self) -> Self:
        self.fake = await FakeLiveKit.start()
        self.fake.webhook_urls.append(await self.listen(0))
        self.door = LiveKit({"default": self.fake.server})
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.fake.crash()
        await super().__aexit__(*error)

    async def join(self, identity: str, grant: Grant = EVERYTHING, *, token: str | None = None) -> Person:
        sid = self.fake.join(self.room, identity, token=token or self.token(identity, grant))
        return _Pretended(self.fake, self.room, identity, sid)


class _Pretended:
    def __init__(self, fake: FakeLiveKit, room: str, identity: str, sid: str) -> None:
        self._fake, self._room, self._identity, self._sid = fake, room, identity, sid

    async def publish(self, source: str) -> str:
        return self._fake.publish(self._room, self._identity, source)

    async def leave(self) -> None:
        self._fake.leave(self._room, self._identity)

    async def gone(self) -> str:
        """The fake has no connection to cut: its word for it is the webhook."""
        for delivery in self._fake.sender.deliveries:
            who = delivery.event.participant
            if delivery.event.event == "participant_left" and who.sid == self._sid:
                return models.DisconnectReason.Name(who.disconnect_reason)
        raise AssertionError(f"{self._identity} is still there")

    async def hears(self, text: str) -> None:
        assert text in self.heard()

    def heard(self) -> list[str]:
        return [data.decode() for data in self._fake.received(self._room, self._identity)]

    async def subscribed(self, track_sid: str) -> None:
        assert track_sid not in self._fake.rooms[self._room].participants[self._identity].unsubscribed

    async def unsubscribed(self, track_sid: str) -> None:
        assert track_sid in self._fake.rooms[self._room].participants[self._identity].unsubscribed


class RealWorld(World):
    def __init__(self, server: embedded.LiveKit) -> None:
        super().__init__()
        self._server = server
        self._clients: list[RtcClient] = []

    async def __aenter__(self) -> Self:
        await self.listen(self._server.webhook_port)
        self.door = LiveKit(
            {"default": Server(url=self._server.url, api_key=self._server.api_key, api_secret=self._server.api_secret)}
        )
        return self

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.gather(*(client.kill() for client in self._clients))
        await self.door.delete_room(self.room)
        await super().__aexit__(*error)

    async def join(self, identity: str, grant: Grant = EVERYTHING, *, token: str | None = None) -> Person:
        client = await RtcClient.start(self.door.public_url(), token or self.token(identity, grant))
        self._clients.append(client)
        try:
            await client.wait_for("connected", timeout_s=30)
        except AssertionError as error:
            raise JoinRefused(str(client.events)) from error
        # Until the media connection stands too, LiveKit does not call them active.
        await self.event(
            "participant_joined", lambda event: event.participant is not None and event.participant.identity == identity
        )
        return _Real(self, client)


class _Real:
    def __init__(self, world: World, client: RtcClient) -> None:
        self._world, self._client = world, client

    async def publish(self, source: str) -> str:
        await self._client.tell("publish", source=source)
        sid = str((await self._client.wait_for("track_published", source=source))["track_sid"])
        # LiveKit lists a track once its media flows.
        await self._world.event("track_published", lambda event: event.track is not None and event.track.sid == sid)
        return sid

    async def leave(self) -> None:
        await self._client.leave()

    async def gone(self) -> str:
        return str((await self._client.wait_for("disconnected"))["reason"])

    async def hears(self, text: str) -> None:
        await self._client.wait_for("data", data=text)

    def heard(self) -> list[str]:
        return [seen["data"] for seen in self._client.events if seen["event"] == "data"]

    async def subscribed(self, track_sid: str) -> None:
        await self._client.wait_for("track_subscribed", track_sid=track_sid)
        before = self._frames()
        async with asyncio.timeout(15):
            while self._frames() == before:  # noqa: ASYNC110  # they are counted in another process
                await asyncio.sleep(0.1)

    async def unsubscribed(self, track_sid: str) -> None:
        """The library does not tell; but no media comes any more."""
        async with asyncio.timeout(15):
            seen, since = self._frames(), time.monotonic()
            while time.monotonic() - since < 1.5:
                await asyncio.sleep(0.1)
                if self._frames() != seen:
                    seen, since = self._frames(), time.monotonic()

    def _frames(self) -> int:
        """How often the client said that media came; it does so every half second in which some did."""
        return sum(seen["event"] == "frames" for seen in self._client.events)
