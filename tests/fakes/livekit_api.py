"""The Twirp methods of the fake LiveKit: what each needs to be allowed, and what it does to the rooms."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from google.protobuf.message import Message
from livekit.api import TokenVerifier
from livekit.api.access_token import VideoGrants
from livekit.protocol import models, room

if TYPE_CHECKING:
    from tests.fakes.livekit import FakeLiveKit, Participant, Room

_STATUS = {
    "invalid_argument": 400,
    "malformed": 400,
    "failed_precondition": 412,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "bad_route": 404,
    "already_exists": 409,
    "deadline_exceeded": 408,
    "resource_exhausted": 429,
    "unavailable": 503,
    "internal": 500,
    "unimplemented": 501,
}
# After so long LiveKit gives up on a room that no node answers for.
NOBODY_ANSWERS_S = 3.0


class Refusal(Exception):
    """A Twirp error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message
        self.status = _STATUS.get(code, 500)


@dataclass(frozen=True)
class Method:
    request: Any
    # The grant it takes: room_create, room_list or room_admin (of that very room).
    needs: str
    run: Callable[[FakeLiveKit, Any], Awaitable[Message]]


METHODS: dict[str, Method] = {}
Run = Callable[["FakeLiveKit", Any], Awaitable[Message]]


def verified(key: str, secret: str, authorization: str, method: Method, message: Any) -> VideoGrants:
    """The grants of the caller. Like LiveKit, says `unauthenticated` to whatever is missing, and repeats the token."""
    token = authorization.removeprefix("Bearer ")
    try:
        grants = TokenVerifier(key, secret).verify(token).video
    except Exception as error:
        raise Refusal("unauthenticated", f"invalid token: {token}, error: {error}") from error
    if grants is None or not getattr(grants, method.needs):
        raise Refusal("unauthenticated", "permissions denied")
    if method.needs == "room_admin" and grants.room != message.room:
        raise Refusal("unauthenticated", "permissions denied")
    return grants


def may_publish(permission: models.ParticipantPermission, source: int) -> bool:
    # An empty list means all sources, as in LiveKit.
    return permission.can_publish and (
        not permission.can_publish_sources or source in list(permission.can_publish_sources)
    )


def _method(name: str, request: Any, needs: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        METHODS[name] = Method(request, needs, run)
        return run

    return add


@_method("CreateRoom", room.CreateRoomRequest, "room_create")
async def _create_room(fake: FakeLiveKit, message: room.CreateRoomRequest) -> models.Room:
    _check_metadata(fake, message.metadata)
    if not message.name:
        raise Refusal("invalid_argument", "room name is required")
    if (house := fake.rooms.get(message.name)) is not None:
        return house.info
    now_ms = int(time.time() * 1000)
    info = models.Room(
        sid=f"RM_{secrets.token_hex(6)}",
        name=message.name,
        max_participants=message.max_participants,
        empty_timeout=message.empty_timeout or 300,
        departure_timeout=message.departure_timeout or 20,
        metadata=message.metadata,
        creation_time=now_ms // 1000,
        creation_time_ms=now_ms,
    )
    return fake.open_room(info).info


@_method("ListRooms", room.ListRoomsRequest, "room_list")
async def _list_rooms(fake: FakeLiveKit, message: room.ListRoomsRequest) -> room.ListRoomsResponse:
    wanted = set(message.names)
    return room.ListRoomsResponse(
        rooms=[house.info for name, house in fake.rooms.items() if not wanted or name in wanted]
    )


@_method("DeleteRoom", room.DeleteRoomRequest, "room_create")
async def _delete_room(fake: FakeLiveKit, message: room.DeleteRoomRequest) -> room.DeleteRoomResponse:
    _room(fake, message.room)
    fake.close_room(message.room, "ROOM_DELETED")
    return room.DeleteRoomResponse()


@_method("UpdateRoomMetadata", room.UpdateRoomMetadataRequest, "room_admin")
async def _update_room_metadata(fake: FakeLiveKit, message: room.UpdateRoomMetadataRequest) -> models.Room:
    _check_metadata(fake, message.metadata)
    house = _room(fake, message.room)
    house.info.metadata = message.metadata
    return house.info


@_method("ListParticipants", room.ListParticipantsRequest, "room_admin")
async def _list_participants(fake: FakeLiveKit, message: room.ListParticipantsRequest) -> room.ListParticipantsResponse:
    house = await _room_with_a_node(fake, message.room)
    return room.ListParticipantsResponse(participants=[who.info for who in house.participants.values()])


@_method("GetParticipant", room.RoomParticipantIdentity, "room_admin")
async def _get_participant(fake: FakeLiveKit, message: room.RoomParticipantIdentity) -> models.ParticipantInfo:
    await _room_with_a_node(fake, message.room)
    return _participant(fake, message.room, message.identity).info


@_method("RemoveParticipant", room.RoomParticipantIdentity, "room_admin")
async def _remove_participant(
    fake: FakeLiveKit, message: room.RoomParticipantIdentity
) -> room.RemoveParticipantResponse:
    _participant(fake, message.room, message.identity)
    fake.leave(message.room, message.identity, reason="PARTICIPANT_REMOVED")
    return room.RemoveParticipantResponse()


@_method("MutePublishedTrack", room.MuteRoomTrackRequest, "room_admin")
async def _mute(fake: FakeLiveKit, message: room.MuteRoomTrackRequest) -> room.MuteRoomTrackResponse:
    who = await _participant_with_a_node(fake, message.room, message.identity)
    if not message.muted and not fake.remote_unmute:
        raise Refusal("failed_precondition", "remote unmute not enabled")
    for track in who.info.tracks:
        if track.sid == message.track_sid:
            track.muted = message.muted
            return room.MuteRoomTrackResponse(track=track)
    # LiveKit says yes to a track it does not know.
    return room.MuteRoomTrackResponse()


@_method("UpdateParticipant", room.UpdateParticipantRequest, "room_admin")
async def _update_participant(fake: FakeLiveKit, message: room.UpdateParticipantRequest) -> models.ParticipantInfo:
    _check_metadata(fake, message.metadata)
    info = _participant(fake, message.room, message.identity).info
    # Empty means "leave it".
    info.name = message.name or info.name
    info.metadata = message.metadata or info.metadata
    for key, value in message.attributes.items():
        if value:
            info.attributes[key] = value
        else:
            info.attributes.pop(key, None)
    if message.HasField("permission"):
        info.permission.CopyFrom(message.permission)
        _unpublish_what_is_not_granted(fake, message.room, info)
    return info


@_method("UpdateSubscriptions", room.UpdateSubscriptionsRequest, "room_admin")
async def _update_subscriptions(
    fake: FakeLiveKit, message: room.UpdateSubscriptionsRequest
) -> room.UpdateSubscriptionsResponse:
    who = await _participant_with_a_node(fake, message.room, message.identity)
    if message.subscribe:
        who.unsubscribed -= set(message.track_sids)
    else:
        who.unsubscribed |= set(message.track_sids)
    return room.UpdateSubscriptionsResponse()


@_method("SendData", room.SendDataRequest, "room_admin")
async def _send_data(fake: FakeLiveKit, message: room.SendDataRequest) -> room.SendDataResponse:
    house = await _room_with_a_node(fake, message.room)
    wanted = set(message.destination_identities)
    for identity, who in house.participants.items():
        if not wanted or identity in wanted:
            who.received.append(message)
    return room.SendDataResponse()


def _room(fake: FakeLiveKit, name: str) -> Room:
    if name not in fake.rooms:
        raise Refusal("not_found", "requested room does not exist")
    return fake.rooms[name]


async def _room_with_a_node(fake: FakeLiveKit, name: str) -> Room:
    """These ask the room's node, and where there is none LiveKit waits for it."""
    if name not in fake.rooms:
        await _nobody_answers(fake)
    return fake.rooms[name]


async def _participant_with_a_node(fake: FakeLiveKit, room_name: str, identity: str) -> Participant:
    """These ask the node that holds the person's connection."""
    house = fake.rooms.get(room_name)
    if house is None or identity not in house.participants:
        await _nobody_answers(fake)
    return fake.rooms[room_name].participants[identity]


async def _nobody_answers(fake: FakeLiveKit) -> NoReturn:
    await asyncio.sleep(NOBODY_ANSWERS_S * fake.time_scale)
    raise Refusal("unavailable", "no response from servers")


def _participant(fake: FakeLiveKit, room_name: str, identity: str) -> Participant:
    house = fake.rooms.get(room_name)
    if house is None or identity not in house.participants:
        raise Refusal("not_found", "participant does not exist")
    return house.participants[identity]


def _check_metadata(fake: FakeLiveKit, metadata: str) -> None:
    if len(metadata.encode()) > fake.max_metadata_bytes:
        raise Refusal("invalid_argument", f"metadata size exceeds limits: {fake.max_metadata_bytes}")


def _unpublish_what_is_not_granted(fake: FakeLiveKit, room_name: str, info: models.ParticipantInfo) -> None:
    for track in list(info.tracks):
        if not may_publish(info.permission, track.source):
            fake.unpublish(room_name, info.identity, track.sid)
