"""What is said about media: the way into the SFU, and what is switched on."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId
from hub.protocol.views import MediaView


class AuthorizeMedia(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for the way into the SFU."""

    call_id: CallId


class MediaAccess(msgspec.Struct, frozen=True):
    """How to connect. The token is good for joining until `expires_at`; a running connection outlives it."""

    provider: Literal["livekit", "mesh"]
    url: str
    token: str
    identity: str
    expires_at: datetime
    ice_servers: list[dict[str, Any]]


class SetMedia(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client switched on or off. The media server's own word wins."""

    call_id: CallId
    microphone: Annotated[bool, Meta(description="The microphone is published and not muted.")]
    camera: Annotated[bool, Meta(description="The camera is published and not muted.")]
    screen_share: Annotated[bool, Meta(description="A screen is shared.")]


class MediaAnswer(msgspec.Struct, frozen=True):
    media: MediaView


class MediaChanged(Event, frozen=True):
    """Somebody's tracks came, went, or were muted."""

    name: ClassVar[str] = "media:changed"

    participant_id: UUID
    media: MediaView


class MediaRevoked(Event, frozen=True):
    """Somebody may not publish these sources any more; what they published of them was taken down."""

    name: ClassVar[str] = "media:revoked"

    participant_id: UUID
    sources: list[str]
