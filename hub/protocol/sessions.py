"""What is said about a session and whoever holds it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta


class RefreshSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, Meta(min_length=1, max_length=8192, description="A fresh token of the same `sub`.")]


class SessionRefreshed(msgspec.Struct, frozen=True):
    expires_at: datetime


class Ping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    client_time: Annotated[str | int | float | None, Meta(description="Your clock, any way you like.")] = None


class Pong(msgspec.Struct, frozen=True):
    server_time: datetime
    node_id: str


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """You, as your token says."""

    user_id: str
    tenant_id: UUID
    role: str
    hub_role: str | None
    display_name: str
    avatar_url: str
    token_expires_at: datetime
    # Guests: the one call their link leads to.
    call_id: UUID | None


class LimitsAnswer(msgspec.Struct, frozen=True):
    """`limits`: sizes and numbers; `rates`: how often each command, as times per seconds."""

    limits: dict[str, Any]
    rates: dict[str, Any]
