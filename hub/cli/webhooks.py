"""webhook: send a LiveKit webhook to a running hub, or have it work on stored ones again."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import aiohttp
import cyclopts
import msgspec

from hub.cli import environment
from hub.cli.client import Client
from hub.cli.output import FAILURE, OK, Failed, emit_json, fail, say
from hub.settings import Settings

EventName = Literal[
    "room_started", "room_finished", "participant_joined", "participant_left", "track_published", "track_unpublished"
]


def add_to(app: cyclopts.App) -> None:
    group = cyclopts.App(name="webhook", help="Simulate LiveKit's webhooks, or replay stored ones.")
    group.command(simulate)
    group.command(replay)
    app.command(group)


def simulate(
    event: EventName,
    room_name: str,
    *,
    room_sid: str | None = None,
    identity: str | None = None,
    participant_sid: str = "PA_simulated",
    source: Literal["MICROPHONE", "CAMERA", "SCREEN_SHARE"] = "MICROPHONE",
    body: Annotated[Path | None, cyclopts.Parameter(help="Send this JSON instead.")] = None,
    url: Annotated[str | None, cyclopts.Parameter(help="The hub's URL; AURALINK_PUBLIC_URL if not given.")] = None,
    json: bool = False,
) -> int:
    """Sign a webhook with LIVEKIT_API_KEY and LIVEKIT_API_SECRET and send it, as LiveKit would.

    Parameters
    ----------
    event
        What happened.
    room_name
        The LiveKit room.
    room_sid
        Its sid; LiveKit is asked for it if not given.
    identity
        The participant, for participant and track events.
    participant_sid
        Their sid.
    source
        The track's source, for track events.
    json
        Print the answer as JSON.
    """
    from hub.media.webhooks import sign

    loaded = environment.load("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET")
    raw = (
        _read(body)
        if body
        else msgspec.json.encode(_payload(event, _room(loaded, room_name, room_sid), identity, participant_sid, source))
    )
    headers = {
        "Authorization": sign(raw, loaded.livekit_api_key, loaded.livekit_api_secret),
        "Content-Type": "application/webhook+json",
    }
    status = asyncio.run(_send(f"{url or loaded.public_url}/webhooks/livekit", raw, headers))
    if json:
        emit_json({"status": status, "stored": status == 200})
    else:
        say(f"{status}: {'stored' if status == 200 else 'not stored'}")
    return OK if status == 200 else FAILURE


def replay(inbox_id: str, *, url: str | None = None, token: str | None = None, json: bool = False) -> int:
    """Have a stored webhook worked on again, as one that failed for good.

    Parameters
    ----------
    inbox_id
        The event id, as `GET /api/v1/admin/inbox` shows it.
    """

    async def call() -> Any:
        async with Client(url, token) as hub:
            return await hub.post(f"/api/v1/admin/inbox/{inbox_id}/retry")

    answer = asyncio.run(call())
    if json:
        emit_json(answer)
    else:
        say(f"queued {inbox_id}")
    return OK


def _read(body: Path) -> bytes:
    try:
        return body.read_bytes()
    except OSError as error:
        fail(f"cannot read {body}: {error.strerror}")


async def _send(url: str, raw: bytes, headers: dict[str, str]) -> int:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.post(url, data=raw, headers=headers) as response,
        ):
            return response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Failed(f"{url} does not answer: {error or type(error).__name__}") from None


def _room(loaded: Settings, name: str, sid: str | None) -> dict[str, str]:
    """As LiveKit has it; a sid that it does not know would pass for a newer life of the room."""

    from hub.app import make_media
    from hub.media.values import RoomInfo
    from hub.protocol.errors import HubError

    async def ask() -> RoomInfo | None:
        async with make_media(loaded) as livekit:
            return next(iter(await livekit.list_rooms([name])), None)

    try:
        known = asyncio.run(ask()) if sid is None and loaded.livekit_url else None
    except HubError:
        # It may be away; what is simulated may be just that.
        known = None
    if known is None:
        return {"sid": sid or "RM_simulated", "name": name}
    return {"sid": known.sid, "name": name, "creationTime": str(int(known.created_at.timestamp()))}


def _payload(
    event: str, room: dict[str, str], identity: str | None, participant_sid: str, source: str
) -> dict[str, Any]:
    """The protojson LiveKit sends: lowerCamelCase, 64-bit integers as strings, defaults left out."""
    now = str(int(time.time()))
    payload: dict[str, Any] = {
        "event": event,
        "id": f"EV_{secrets.token_hex(8)}",
        "createdAt": now,
        "room": room,
    }
    if not event.startswith("room_"):
        if identity is None:
            fail(f"{event} needs --identity")
        payload["participant"] = {"sid": participant_sid, "identity": identity}
        if event.startswith("participant_"):
            payload["participant"] |= {"state": "ACTIVE", "joinedAt": now}
        if event == "participant_left":
            payload["participant"]["disconnectReason"] = "CLIENT_INITIATED"
    if event.startswith("track_"):
        payload["track"] = {
            "sid": f"TR_{source.lower()}",
            "source": source,
            "type": "AUDIO" if source == "MICROPHONE" else "VIDEO",
        }
    return payload
