"""What the media door hands out and takes: frozen values of our own, so that LiveKit's types stop here. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec

Source = Literal["microphone", "camera", "screen_share", "screen_share_audio", "unknown"]
State = Literal["joining", "joined", "active", "disconnected", "unknown"]
Kind = Literal["standard", "ingress", "egress", "sip", "agent", "connector", "bridge", "unknown"]

SOURCES: frozenset[str] = frozenset({"microphone", "camera", "screen_share", "screen_share_audio"})
# Recorders and bots produce participant events too; they hold no seat and make no call active.
_COUNTABLE: frozenset[Kind] = frozenset({"standard", "sip", "ingress", "connector"})
_SCHEMES = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One LiveKit: `url` is where the hub calls it, `public_url` where browsers find it ("": the same)."""

    url: str
    api_key: str
    api_secret: str
    public_url: str = ""

    def __post_init__(self) -> None:
        for url in filter(None, (self.url, self.public_url)):
            parts = urlsplit(url)
            if parts.scheme not in _SCHEMES or not parts.hostname:
                raise ValueError(f"a LiveKit URL begins with ws, wss, http or https and names a host, unlike {url!r}")
        if not self.url:
            raise ValueError("a LiveKit server needs a URL")
        if not self.api_key or not self.api_secret:
            raise ValueError("a LiveKit server needs an API key and its secret")

    def __repr__(self) -> str:
        # The generated one would put the secret into logs and tracebacks.
        return f"Server(url={self.url!r}, public_url={self.public_url!r}, api_key={self.api_key!r})"

    @property
    def client_url(self) -> str:
        """What a client's `connect` gets: always ws or wss."""
        parts = urlsplit(self.public_url or self.url)
        return urlunsplit(parts._replace(scheme="wss" if parts.scheme in ("wss", "https") else "ws"))


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody may do in a room. No source means no publishing, where LiveKit would read an empty list as all."""

    can_publish_sources: frozenset[str] = frozenset()
    can_subscribe: bool = True
    can_publish_data: bool = True
    hidden: bool = False

    def __post_init__(self) -> None:
        if unknown := self.can_publish_sources - SOURCES:
            raise ValueError(f"no such track sources: {sorted(unknown)}")

    @property
    def can_publish(self) -> bool:
        return bool(self.can_publish_sources)


class RoomInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A room as LiveKit has it. The number of people is left out on purpose: LiveKit's is stale for seconds."""

    sid: str
    name: str
    created_at: datetime
    max_participants: int = 0
    empty_timeout_s: int = 0
    departure_timeout_s: int = 0
    metadata: str = ""


class TrackInfo(msgspec.Struct, frozen=True, kw_only=True):
    sid: str
    source: Source = "unknown"
    muted: bool = False


class ParticipantInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One LiveKit session of one identity: `sid` (PA_…) names the session, and a reconnect makes a new one.

    `hidden` is also true of recorders and agents. `disconnect_reason` is LiveKit's word in capitals
    (`CLIENT_INITIATED`), "" where there is none. `track_*` webhooks carry `sid` and `identity` only.
    """

    sid: str
    identity: str
    name: str = ""
    state: State = "joining"
    kind: Kind = "standard"
    joined_at: datetime | None = None
    hidden: bool = False
    tracks: tuple[TrackInfo, ...] = ()
    metadata: str = ""
    attributes: Mapping[str, str] = {}
    # None where LiveKit did not say.
    grant: Grant | None = None
    disconnect_reason: str = ""

    @property
    def countable(self) -> bool:
        """Whether this is somebody who takes a seat."""
        return self.kind in _COUNTABLE and not self.hidden


class WebhookEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One verified webhook. `event` may be a name we do not know yet; `event_id` is the key to find duplicates by.

    `created_at` has whole seconds, by the media node's clock. `raw` is the body as JSON without its secrets, fit to
    be kept; it does not match the signature any more. `num_dropped`: how many events LiveKit says it gave up before.
    """

    event_id: str
    event: str
    created_at: datetime
    room_sid: str = ""
    room_name: str = ""
    participant: ParticipantInfo | None = None
    track: TrackInfo | None = None
    egress: dict[str, Any] | None = None
    room_end_reason: str = ""
    num_dropped: int = 0
    raw: bytes = b""
