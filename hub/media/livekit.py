"""LiveKit as the hub uses it: rooms, the people and tracks in them, data, tokens, webhooks.

Every call ends within one deadline and raises nothing but NotFound, MediaError and MediaUnavailable. After a
MediaUnavailable nobody knows whether it took effect: whoever wanted a room made then deletes it, which never hurts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from livekit import api
from livekit.api import LiveKitAPI, ServerError, ServerErrorCode
from livekit.protocol import models

from hub.media import tokens, translate, webhooks
from hub.media.regions import TIMEOUT_S, Observe, Region, Regions
from hub.media.values import Grant, ParticipantInfo, RoomInfo, Server, WebhookEvent
from hub.protocol.errors import NotFound, PayloadTooLarge, ValidationFailed

# Far below the 65,535 of one SCTP message, so that the envelope around it always fits.
DATA_BYTES = 15_360
# LiveKit knows somebody from their webhook on, but for some milliseconds not yet by its API.
_JUST_JOINED_TRIES, _JUST_JOINED_WAIT_S = 3, 0.2


class LiveKit:
    """All media servers, by region. Make it inside a running loop and `aclose()` it, or use it as a context.

    `webhook_keys`: API keys with their secrets that sign webhooks beside those of the servers, as while keys rotate.
    """

    def __init__(
        self,
        servers: Mapping[str, Server],
        default_region: str = "default",
        *,
        timeout_s: float = TIMEOUT_S,
        webhook_keys: Mapping[str, str] | None = None,
        observe: Observe | None = None,
    ) -> None:
        if default_region not in servers:
            raise ValueError(f"no LiveKit server for the default region {default_region!r}")
        # `total=None`: the deadline is ours. No cookies: LiveKit sets none, and a proxy's would be one node's only.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar()
        )
        regions = {name: Region(server, self._session, timeout_s, observe) for name, server in servers.items()}
        self._regions = Regions(regions, default_region)
        self._webhook_keys = {server.api_key: server.api_secret for server in servers.values()} | dict(
            webhook_keys or {}
        )

    async def aclose(self) -> None:
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # Regions

    def has_region(self, region: str) -> bool:
        return region in self._regions

    def public_url(self, region: str | None = None) -> str:
        """Where clients connect to, as ws or wss."""
        return self._regions[region].server.client_url

    async def ping(self, region: str | None = None) -> None:
        """Ask something small with the hub's key: what is raised says what is wrong."""
        request = api.ListRoomsRequest(names=["room_ping_0"])
        await self._regions[region].call("ping", lambda lk: lk.room.list_rooms(request))

    # Rooms

    async def create_room(
        self,
        name: str,
        *,
        region: str | None = None,
        max_participants: int = 0,
        empty_timeout_s: int = 300,
        departure_timeout_s: int = 20,
        metadata: Mapping[str, Any] | None = None,
    ) -> RoomInfo:
        """Make the room, or find it: one that lives already keeps the limits and the metadata it was made with."""
        request = api.CreateRoomRequest(
            name=name,
            max_participants=max_participants,
            empty_timeout=empty_timeout_s,
            departure_timeout=departure_timeout_s,
            metadata=_json(metadata) if metadata else "",
        )
        room = await self._regions[region].call("create_room", lambda lk: lk.room.create_room(request))
        return translate.room(room)

    async def delete_room(self, name: str, *, region: str | None = None) -> None:
        """Close the room and everybody's connection to it. A room that is gone is fine."""
        request = api.DeleteRoomRequest(room=name)
        try:
            await self._regions[region].call("delete_room", lambda lk: lk.room.delete_room(request), room=name)
        except NotFound:
            return

    async def list_rooms(
        self, names: Sequence[str] | None = None, *, region: str | None = None
    ) -> tuple[RoomInfo, ...]:
        """The rooms of that region, or those of `names` that are there. A crashed node leaves dead ones among them."""
        if names is not None and not names:
            # LiveKit takes an empty list for "all".
            return ()
        request = api.ListRoomsRequest(names=names)
        answer = await self._regions[region].call("list_rooms", lambda lk: lk.room.list_rooms(request))
        return tuple(translate.room(room) for room in answer.rooms)

    async def update_room_metadata(self, room: str, metadata: Mapping[str, Any], *, region: str | None = None) -> None:
        """Replace the metadata as a whole; everybody in the room hears it."""
        request = api.UpdateRoomMetadataRequest(room=room, metadata=_json(metadata))
        await self._regions[region].call(
            "update_room_metadata", lambda lk: lk.room.update_room_metadata(request), room=room
        )

    # Participants

    async def list_participants(self, room: str, *, region: str | None = None) -> tuple[ParticipantInfo, ...]:
        """Everybody LiveKit holds for the room: in the call are only those whose `state` is "active".

        For a room that LiveKit does not know it stays silent as if its node were dead: ask `list_rooms` first.
        """
        request = api.ListParticipantsRequest(room=room)
        answer = await self._regions[region].call(
            "list_participants", lambda lk: lk.room.list_participants(request), room=room
        )
        return tuple(translate.participant(participant) for participant in answer.participants)

    async def get_participant(self, room: str, identity: str, *, region: str | None = None) -> ParticipantInfo:
        """Raises NotFound."""
        answer = await self._regions[region].call("get_participant", lambda lk: _find(lk, room, identity), room=room)
        return translate.participant(answer)

    async def remove_participant(
        self, room: str, identity: str, *, region: str | None = None, just_joined: bool = False
    ) -> None:
        """Close their connection. Their token, and those LiveKit gave them, still let them in again. Raises NotFound.

        `just_joined`: wait up to 0.6 s for LiveKit to know somebody whose joining it has only now told.
        """
        request = api.RoomParticipantIdentity(room=room, identity=identity)

        async def remove(lk: LiveKitAPI) -> None:
            for left in reversed(range(_JUST_JOINED_TRIES + 1) if just_joined else range(1)):
                try:
                    await lk.room.remove_participant(request)
                    return
                except ServerError as error:
                    if error.code != ServerErrorCode.NOT_FOUND or not left:
                        raise
                await asyncio.sleep(_JUST_JOINED_WAIT_S)

        await self._regions[region].call("remove_participant", remove, room=room)

    async def update_participant(
        self,
        room: str,
        identity: str,
        *,
        region: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Change what is given and nothing else. `attributes` are merged, and one with an empty value is deleted.

        Raises NotFound.
        """
        if name is not None and not name:
            # To LiveKit an empty name means "leave it as it is": it would say yes and do nothing.
            raise ValidationFailed("a name cannot be taken away, only changed")
        if name is None and metadata is None and not attributes:
            return
        request = api.UpdateParticipantRequest(
            room=room,
            identity=identity,
            name=name or "",
            # An empty mapping travels as "{}"; an empty string would mean "leave it".
            metadata="" if metadata is None else _json(metadata),
            attributes=attributes or {},
        )
        await self._regions[region].call(
            "update_participant", lambda lk: lk.room.update_participant(request), room=room
        )

    async def set_permissions(self, room: str, identity: str, grant: Grant, *, region: str | None = None) -> None:
        """Give exactly `grant`; what it does not speak of stays. Tracks that are not allowed any more are unpublished.

        Reads, then writes: two at once for one person must not be, so call it under the call's lock. Raises NotFound.
        """

        async def change(lk: LiveKitAPI) -> models.ParticipantInfo:
            wanted = translate.permission(grant, (await _find(lk, room, identity)).permission)
            request = api.UpdateParticipantRequest(room=room, identity=identity, permission=wanted)
            return await lk.room.update_participant(request)

        await self._regions[region].call("set_permissions", change, room=room)

    # Tracks and data

    async def mute(self, room: str, identity: str, track_sid: str, muted: bool, *, region: str | None = None) -> None:
        """Mute or unmute one track. Its owner may undo it; unmuting raises MediaError where the server forbids it.

        Raises NotFound, also for an unknown track, where LiveKit says yes.
        """
        request = api.MuteRoomTrackRequest(room=room, identity=identity, track_sid=track_sid, muted=muted)

        async def change(lk: LiveKitAPI) -> api.MuteRoomTrackResponse:
            await _find(lk, room, identity)
            return await lk.room.mute_published_track(request)

        answer = await self._regions[region].call("mute", change, room=room)
        if not answer.track.sid:
            raise NotFound("no such track")

    async def update_subscriptions(
        self, room: str, identity: str, track_sids: Sequence[str], subscribe: bool, *, region: str | None = None
    ) -> None:
        """Let `identity` receive these tracks, or not. They may subscribe again themselves. Raises NotFound."""
        request = api.UpdateSubscriptionsRequest(
            room=room, identity=identity, track_sids=track_sids, subscribe=subscribe
        )

        async def change(lk: LiveKitAPI) -> None:
            await _find(lk, room, identity)
            await lk.room.update_subscriptions(request)

        await self._regions[region].call("update_subscriptions", change, room=room)

    async def send_data(
        self,
        room: str,
        data: bytes,
        *,
        topic: str,
        identities: Sequence[str] | None = None,
        reliable: bool = True,
        region: str | None = None,
    ) -> None:
        """Send to whoever is connected now: everybody, or `identities`. No receipt, no history, no sender shown.

        Raises NotFound for an unknown room; an unknown identity is passed over.
        """
        if len(data) > DATA_BYTES:
            raise PayloadTooLarge(f"{len(data)} bytes where {DATA_BYTES} are allowed", details={"limit": DATA_BYTES})
        if identities is not None and not identities:
            # LiveKit takes an empty list for "everybody".
            return
        request = api.SendDataRequest(
            room=room,
            data=data,
            kind=models.DataPacket.RELIABLE if reliable else models.DataPacket.LOSSY,
            destination_identities=identities,
            topic=topic,
        )

        async def send(lk: LiveKitAPI) -> None:
            await _find_room(lk, room)
            await lk.room.send_data(request)

        await self._regions[region].call("send_data", send, room=room, twice=False)

    # Tokens and webhooks: no network

    def mint_token(
        self,
        *,
        room_name: str,
        identity: str,
        name: str,
        metadata: Mapping[str, Any],
        attributes: Mapping[str, str],
        grant: Grant,
        ttl_s: int = tokens.TTL_S,
        region: str | None = None,
    ) -> tuple[str, datetime]:
        """The token and when it expires."""
        return tokens.mint(
            self._regions[region].server,
            room_name=room_name,
            identity=identity,
            name=name,
            metadata=metadata,
            attributes=attributes,
            grant=grant,
            ttl_s=ttl_s,
        )

    def verify_webhook(self, raw: bytes, authorization: str) -> WebhookEvent:
        """`raw`: the body as it came, not a byte changed. Raises WebhookRefused."""
        return webhooks.verify(raw, authorization, self._webhook_keys)


def _json(metadata: Mapping[str, Any]) -> str:
    return msgspec.json.encode(metadata).decode()


async def _find_room(lk: LiveKitAPI, room: str) -> None:
    """Raises LiveKit's not_found. For what goes to the room's own node: without one, LiveKit just waits for 3 s."""
    found = await lk.room.list_rooms(api.ListRoomsRequest(names=[room]))
    if not found.rooms:
        raise ServerError(ServerErrorCode.NOT_FOUND, "requested room does not exist", status=404)


async def _find(lk: LiveKitAPI, room: str, identity: str) -> models.ParticipantInfo:
    """Raises LiveKit's not_found, within milliseconds: what goes to somebody's connection waits where there is none."""
    await _find_room(lk, room)
    return await lk.room.get_participant(api.RoomParticipantIdentity(room=room, identity=identity))
