"""Tokens that let somebody into one room. Minted locally: no media server is asked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import msgspec
from livekit.api import AccessToken, VideoGrants

from hub.media.values import Grant, Server

# A token only opens the door: LiveKit renews it for whoever is inside, so a short one is enough.
TTL_S = 600


def mint(
    server: Server,
    *,
    room_name: str,
    identity: str,
    name: str,
    grant: Grant,
    metadata: Mapping[str, Any] | None = None,
    attributes: Mapping[str, str] | None = None,
    ttl_s: int = TTL_S,
) -> tuple[str, datetime]:
    """The token and when it expires. Valid from now on, for this room and identity; never an admin's."""
    if not room_name or not identity or ttl_s <= 0:
        raise ValueError("a token names a room and an identity, and lives for a while")
    token = (
        AccessToken(server.api_key, server.api_secret)
        .with_identity(identity)
        .with_name(name)
        .with_ttl(timedelta(seconds=ttl_s))
        .with_grants(_video(room_name, grant))
    )
    if metadata:
        token = token.with_metadata(msgspec.json.encode(metadata).decode())
    if attributes:
        token = token.with_attributes(dict(attributes))
    encoded = token.to_jwt()
    # Read back rather than reckoned: the library reads the clock itself, and the two must not differ by a second.
    expires_at = jwt.decode(encoded, options={"verify_signature": False})["exp"]
    return encoded, datetime.fromtimestamp(expires_at, UTC)


def _video(room_name: str, grant: Grant) -> VideoGrants:
    """Every right is spelled out: the library's defaults for publish, subscribe and data are all "yes"."""
    return VideoGrants(
        room_join=True,
        room=room_name,
        can_publish=grant.can_publish,
        # Left out when empty: LiveKit reads an empty list as "all sources"; can_publish says no already.
        can_publish_sources=sorted(grant.can_publish_sources) or None,
        can_subscribe=grant.can_subscribe,
        can_publish_data=grant.can_publish_data,
        # Role and raised hand live in metadata and attributes, and the hub alone writes them.
        can_update_own_metadata=False,
        hidden=grant.hidden or None,
    )
