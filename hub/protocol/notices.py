"""What a node says to one session about the session and about itself: no facts of the past, never recorded. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

from hub.commands import Event


class You(msgspec.Struct, frozen=True):
    """Whom the token speaks for."""

    id: str
    role: str
    display_name: str


class Server(msgspec.Struct, frozen=True):
    """The node at the other end."""

    version: str
    node_id: str
    region: str


class UserPosition(msgspec.Struct, frozen=True):
    """A place in the log of what is meant for a user."""

    epoch: str
    offset: int


class Recovery(msgspec.Struct, frozen=True):
    """How what happened during a break can be had again.

    `window_s`: for how long. `user`: up to where the events for you as a person have been heard; null where that is not
    known. After a break connect with `user_since: "epoch:offset"` of the last one you heard in `auth`: `recovered` then
    says whether the missed ones follow, all of them and in order; if not, ask for what you need anew.
    """

    window_s: int
    user: UserPosition | None
    recovered: bool | msgspec.UnsetType = msgspec.UNSET


class SessionReady(Event, frozen=True):
    """The first event after CONNECT: who you are, where you are, and what holds here."""

    name: ClassVar[str] = "session:ready"
    recorded: ClassVar[bool] = False

    session_id: str
    user: You
    protocol: Literal["1"]
    features: list[str]
    limits: dict[str, Any]
    server: Server
    token_expires_at: datetime
    server_time: datetime
    recovery: Recovery


class SessionExpiring(Event, frozen=True):
    """The token ends in 60 s: send `session:refresh` with a new one."""

    name: ClassVar[str] = "session:expiring"
    recorded: ClassVar[bool] = False

    expires_at: datetime


class SessionResynced(Event, frozen=True):
    """Events for you as a person were missed for good: ask for what you need anew. `position`: go on from here."""

    name: ClassVar[str] = "session:resynced"
    recorded: ClassVar[bool] = False

    position: UserPosition | None


class SessionClosing(Event, frozen=True):
    """The server ends the session now; `reconnect` says whether to come back."""

    name: ClassVar[str] = "session:closing"
    recorded: ClassVar[bool] = False

    code: str
    message: str
    reconnect: bool
    retry_after_ms: int | msgspec.UnsetType = msgspec.UNSET


class ServerDraining(Event, frozen=True):
    """This node goes down: come back after a moment, another one answers."""

    name: ClassVar[str] = "server:draining"
    recorded: ClassVar[bool] = False

    reconnect_after_ms: int


AnnouncementLevel = Literal["info", "warning", "critical"]


class ServerAnnounced(Event, frozen=True):
    """An operator has something to say to everybody."""

    name: ClassVar[str] = "server:announced"
    recorded: ClassVar[bool] = False

    message: str
    level: AnnouncementLevel
    at: datetime


class ServerDegraded(Event, frozen=True):
    """What the node does without for now; an empty list says that all is back."""

    name: ClassVar[str] = "server:degraded"
    recorded: ClassVar[bool] = False

    dependencies: list[str]
