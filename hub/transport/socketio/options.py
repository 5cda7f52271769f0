"""The numbers of the edge, and what it says of itself. All of them are published at `/limits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class EdgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    origins: frozenset[str] = frozenset()
    trusted_proxies: tuple[str, ...] = ()
    region: str = "default"
    version: str = "0"
    features: tuple[str, ...] = ()
    # Told to clients in `session:ready`, beside the edge's own.
    limits: Mapping[str, Any] = {}
    max_connections: int = 20_000
    max_connections_per_user: int = 10
    max_connections_per_address: int = 1_000
    # Tokens that did not verify, from one address: so many at once, then one a second.
    bad_tokens_burst: int = 20
    auth_s: float = 5.0
    expiring_s: float = 60.0
    event_bytes: int = 65_536
    nesting: int = 32
    attachments: int = 4
    # On `/files`: one chunk of 256 KiB with what stands around it.
    frame_bytes: int = 262_144 + 4_096
    frames_per_s: int = 5_000
    events_per_s: int = 50
    events_burst: int = 100
    ping_ticks: int = 15
    pong_ticks: int = 8
    tick_s: float = 1.0
    # A reader that lets more than this pile up is cut off; it may come back and resume.
    queued_bytes: int = 1 << 20
    queued_frames: int = 512
    # How long a peer that was told to go may take to hang up.
    hangup_s: float = 2.0
    drain_s: float = 10.0

    def published(self) -> dict[str, Any]:
        return {
            "event_bytes": self.event_bytes,
            "event_nesting": self.nesting,
            "event_attachments": self.attachments,
            "file_frame_bytes": self.frame_bytes,
            "file_frames_per_s": self.frames_per_s,
            "events_per_s": self.events_per_s,
            "events_burst": self.events_burst,
            "connections_per_user": self.max_connections_per_user,
            "connections_per_address": self.max_connections_per_address,
            "queued_bytes": self.queued_bytes,
            "queued_frames": self.queued_frames,
            "authentication_s": self.auth_s,
            "ping_interval_s": self.ping_ticks * self.tick_s,
            "ping_timeout_s": self.pong_ticks * self.tick_s,
            **self.limits,
        }
