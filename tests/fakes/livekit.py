"""A LiveKit for tests that need it to misbehave: real rooms, people and tracks, LiveKit's errors, and fault knobs.

    async with FakeLiveKit(webhook_urls=[url]) as livekit:      # or `livekit = await FakeLiveKit.start()`
        LiveKit({"default": livekit.server})                    # the hub's door, against it
        livekit.join("room_a_1", "anna")                        # what a WebRTC client would do
        livekit.faults.fail_next("CreateRoom", "unavailable")
        livekit.faults.hang.add("*")                            # no call is answered any more
        await livekit.crash(); await livekit.restart()          # refused connections; then empty, on the same port
        assert livekit.methods == ["CreateRoom", …]             # `.calls` has requests and grants

It is no replacement for the real server, against which the same contract tests run: no media, no signalling.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web
from google.protobuf.message import Message
from livekit.api import TokenVerifier
from livekit.api.access_token import VideoGrants
from livekit.protocol import models, room, webhook

from hub.media.values import Server
from tests.fakes.livekit_api import METHODS, Refusal, may_publish, verified
from tests.fakes.webhooks import WebhookFaults, WebhookSender

API_KEY = "fakekey"
API_SECRET = "fake-livekit-secret-of-40-characters-long"


@dataclass
class Faults:
    """What goes wrong. Methods are Twirp's names ("CreateRoom"), "*" stands for all."""

    # Never answered, as long as this holds.
    hang: set[str] = field(default_factory=set)
    # Answered, but this late.
    slow_s: float = 0.0
    # The connection is cut without an answer. (For refused connections: `crash()`.)
    cut: bool = False
    # A proxy's error page.
    html_502: bool = False
    # Done, but the answer is lost.
    lose_answer: set[str] = field(default_factory=set)
    webhooks: WebhookFaults = field(default_factory=WebhookFaults)
    _next: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))

    def fail_next(self, method: str, code: str = "internal", times: int = 1) -> None:
        """The next `times` calls are answered with this Twirp code and have no effect."""
        self._next[method].extend([code] * times)

    def planned(self, method: str) -> str | None:
        return self._next[method].popleft() if self._next[method] else None

    def hangs(self, method: str) -> bool:
        return bool(self.hang & {method, "*"})


@dataclass(frozen=True)
class Call:
    method: str
    request: Message
    grants: VideoGrants | None
    # "" where it was answered with success.
    code: str


@dataclass
class Participant:
    info: models.ParticipantInfo
    received: list[room.SendDataRequest] = field(default_factory=list)
    unsubscribed: set[str] = field(default_factory=set)


@dataclass
class Room:
    info: models.Room
    participants: dict[str, Participant] = field(default_factory=dict)
    # Since when it is empty, by the loop's clock; None while somebody is there.
    empty_since: float | None = None
    ever_joined: bool = False


class JoinRefused(Exception):
    """What a client's connect would fail with."""


class FakeLiveKit:
    """`time_scale` shortens all of LiveKit's waits: webhook retries, ages, and the timeouts of empty rooms."""

    def __init__(
        self,
        *,
        webhook_urls: list[str] | None = None,
        time_scale: float = 1.0,
        remote_unmute: bool = True,
        max_metadata_bytes: int = 16_384,
        api_key: str = API_KEY,
        api_secret: str = API_SECRET,
    ) -> None:
        self.faults = Faults()
        self.calls: list[Call] = []
        self.rooms: dict[str, Room] = {}
        self.remote_unmute, self.max_metadata_bytes, self.time_scale = remote_unmute, max_metadata_bytes, time_scale
        self.api_key, self.api_secret = api_key, api_secret
        self.sender = WebhookSender(api_key, api_secret, scale=time_scale)
        self.sender.faults = self.faults.webhooks
        self.sender.urls = list(webhook_urls or [])
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    @classmethod
    async def start(cls, port: int = 0, **options: object) -> FakeLiveKit:
        fake = cls(**options)  # type: ignore[arg-type]
        await fake._listen(port)
        return fake

    async def __aenter__(self) -> Self:
        await self._listen(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.crash()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def server(self) -> Server:
        return Server(url=self.url, api_key=self.api_key, api_secret=self.api_secret)

    @property
    def webhook_urls(self) -> list[str]:
        """Where events go; append to it."""
        return self.sender.urls

    @property
    def methods(self) -> list[str]:
        return [call.method for call in self.calls]

    async def crash(self) -> None:
        """Gone at once, with all rooms and everything that waited to be sent. Also how a test stops it."""
        self._ended.set()
        if self._reaper:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        await self.sender.stop()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None
        self.rooms.clear()

    async def restart(self) -> None:
        """Up again where it was, knowing nothing."""
        await self._listen(self.port)

    async def settled(self, timeout_s: float = 10.0) -> None:
        """Until every webhook has been delivered or given up."""
        await self.sender.settled(timeout_s)

    # What clients do

    def join(
        self,
        room_name: str,
        identity: str,
        *,
        token: str | None = None,
        name: str = "",
        metadata: str = "",
        attributes: dict[str, str] | None = None,
        kind: str = "STANDARD",
        active: bool = True,
    ) -> str:
        """Connect; the sid is returned. With `token` the rights, name and so on are the token's, as for a real client.

        A second join of an identity takes the first one's place. `active=False`: stays at JOINED, without a webhook.
        """
        info = models.ParticipantInfo(identity=identity, name=name, metadata=metadata, attributes=attributes, kind=kind)
        if token is None:
            info.permission.CopyFrom(_ALL)
        else:
            self._apply_token(info, token, room_name)
        house = self.rooms.get(room_name)
        if house is None:
            raise JoinRefused("no such room")
        if identity in house.participants:
            self.leave(room_name, identity, reason="DUPLICATE_IDENTITY")
        if house.info.max_participants and len(house.participants) >= house.info.max_participants:
            raise JoinRefused("room is full")
        now_ms = int(time.time() * 1000)
        info.sid, info.joined_at, info.joined_at_ms = f"PA_{secrets.token_hex(6)}", now_ms // 1000, now_ms
        info.state = models.ParticipantInfo.ACTIVE if active else models.ParticipantInfo.JOINED
        house.participants[identity] = Participant(info)
        house.empty_since, house.ever_joined = None, True
        if active:
            self._tell("participant_joined", house, info)
        return info.sid

    def leave(self, room_name: str, identity: str, *, reason: str = "CLIENT_INITIATED") -> None:
        house = self.rooms[room_name]
        info = house.participants.pop(identity).info
        was_active = info.state == models.ParticipantInfo.ACTIVE
        for track in list(info.tracks):
            self._tell_track("track_unpublished", house, info, track)
        info.state = models.ParticipantInfo.DISCONNECTED
        info.MergeFrom(models.ParticipantInfo(disconnect_reason=reason))
        self._tell("participant_left" if was_active else "participant_connection_aborted", house, info)
        if not house.participants:
            house.empty_since = asyncio.get_running_loop().time()

    def publish(self, room_name: str, identity: str, source: str = "microphone", *, muted: bool = False) -> str:
        """The new track's sid. Raises Refusal for a source that is not granted."""
        house = self.rooms[room_name]
        info = house.participants[identity].info
        if not may_publish(info.permission, models.TrackSource.Value(source.upper())):
            raise Refusal("permission_denied", f"{source} is not granted")
        track = models.TrackInfo(
            sid=f"TR_{secrets.token_hex(6)}",
            source=source.upper(),
            type=models.AUDIO if source in ("microphone", "screen_share_audio") else models.VIDEO,
            muted=muted,
        )
        info.tracks.append(track)
        self._tell_track("track_published", house, info, track)
        return track.sid

    def unpublish(self, room_name: str, identity: str, track_sid: str) -> None:
        house = self.rooms[room_name]
        info = house.participants[identity].info
        track = next(track for track in info.tracks if track.sid == track_sid)
        info.tracks.remove(track)
        self._tell_track("track_unpublished", house, info, track)

    def received(self, room_name: str, identity: str) -> list[bytes]:
        """What data messages this participant got."""
        return [data.data for data in self.rooms[room_name].participants[identity].received]

    # What the API's methods and the clock do

    def open_room(self, info: models.Room) -> Room:
        # A full room in a webhook carries this password; nobody may keep it.
        info.turn_password = secrets.token_hex(12)
        house = Room(info, empty_since=asyncio.get_running_loop().time())
        self.rooms[info.name] = house
        self._tell("room_started", house)
        return house

    def close_room(self, room_name: str, reason: str) -> None:
        house = self.rooms[room_name]
        for identity in list(house.participants):
            self.leave(room_name, identity, reason=reason)
        del self.rooms[room_name]
        self._tell("room_finished", house)

    def _apply_token(self, info: models.ParticipantInfo, token: str, room_name: str) -> None:
        try:
            claims = TokenVerifier(self.api_key, self.api_secret).verify(token)
        except Exception as error:
            raise JoinRefused(str(error)) from error
        video = claims.video
        if video is None or not video.room_join or video.room != room_name or claims.identity != info.identity:
            raise JoinRefused("the token is for another room or person")
        info.name, info.metadata = claims.name, claims.metadata
        info.attributes.update(claims.attributes or {})
        info.permission.CopyFrom(
            models.ParticipantPermission(
                can_publish=video.can_publish,
                can_subscribe=video.can_subscribe,
                can_publish_data=video.can_publish_data,
                can_publish_sources=[source.upper() for source in video.can_publish_sources or []],
                can_update_metadata=bool(video.can_update_own_metadata),
                hidden=bool(video.hidden),
            )
        )

    def _tell(self, event: str, house: Room, info: models.ParticipantInfo | None = None) -> None:
        message = webhook.WebhookEvent(event=event)
        message.room.CopyFrom(house.info)
        if info is not None:
            message.participant.CopyFrom(info)
        self.sender.notify(message)

    def _tell_track(self, event: str, house: Room, info: models.ParticipantInfo, track: models.TrackInfo) -> None:
        """LiveKit sends only ids of room and person here."""
        message = webhook.WebhookEvent(event=event, track=track)
        message.room.CopyFrom(models.Room(sid=house.info.sid, name=house.info.name))
        message.participant.CopyFrom(models.ParticipantInfo(sid=info.sid, identity=info.identity))
        self.sender.notify(message)

    async def _reap(self) -> None:
        """Close rooms that stayed empty for too long, as LiveKit does once a second."""
        while True:
            await asyncio.sleep(max(0.01, self.time_scale))
            now = asyncio.get_running_loop().time()
            for name, house in list(self.rooms.items()):
                limit_s = house.info.departure_timeout if house.ever_joined else house.info.empty_timeout
                if house.empty_since is not None and now - house.empty_since > limit_s * self.time_scale:
                    self.close_room(name, "ROOM_CLOSED")

    # HTTP

    async def _listen(self, port: int) -> None:
        self._ended = asyncio.Event()
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_get("/", _health)
        app.router.add_post("/twirp/livekit.RoomService/{method}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        await self.sender.start()
        self._reaper = asyncio.create_task(self._reap(), name="fake livekit")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["method"]
        if name not in METHODS:
            return _twirp_error(Refusal("bad_route", f"no handler for {name}"))
        method = METHODS[name]
        message = method.request.FromString(await request.read())
        grants: VideoGrants | None = None
        try:
            if (early := await self._misbehave(request, name)) is not None:
                self.calls.append(Call(name, message, None, "fault"))
                return early
            grants = verified(self.api_key, self.api_secret, request.headers.get("Authorization", ""), method, message)
            if (code := self.faults.planned(name)) is not None:
                raise Refusal(code, "as the test asked for")
            answer = await method.run(self, message)
        except Refusal as refusal:
            self.calls.append(Call(name, message, grants, refusal.code))
            return _twirp_error(refusal)
        self.calls.append(Call(name, message, grants, ""))
        if self.faults.lose_answer & {name, "*"}:
            return _cut(request)
        return web.Response(body=answer.SerializeToString(), content_type="application/protobuf")

    async def _misbehave(self, request: web.Request, method: str) -> web.StreamResponse | None:
        if self.faults.slow_s:
            await asyncio.sleep(self.faults.slow_s)
        if self.faults.hangs(method):
            await self._ended.wait()
            return _cut(request)
        if self.faults.cut:
            return _cut(request)
        if self.faults.html_502:
            return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")
        return None


_ALL = models.ParticipantPermission(can_publish=True, can_subscribe=True, can_publish_data=True)


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="OK")


def _twirp_error(refusal: Refusal) -> web.Response:
    return web.json_response({"code": refusal.code, "msg": refusal.message}, status=refusal.status)


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
