"""What operators ask and get."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.protocol.fields import CallId, CallStatus, Cursor, Limit, Reason
from hub.protocol.notices import AnnouncementLevel
from hub.protocol.views import CallView

SessionId = Annotated[str, Meta(min_length=1, max_length=128, description="As in the list of sessions.")]


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `lost`: it went without a goodbye in the last ten minutes; the rest is as it last was."""

    node_id: str
    incarnation: str
    status: Literal["ready", "draining", "lost"]
    region: str
    version: str
    started_at: datetime
    # What the node shows of itself: sockets, rooms and so on.
    load: dict[str, int]


class NodeList(msgspec.Struct, frozen=True):
    items: list[NodeView]


class SteerNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node_id: Annotated[str, Meta(min_length=1, max_length=64, description="As in the list of nodes.")]
    reason: Reason | None = None


class NodeAnswer(msgspec.Struct, frozen=True):
    node: NodeView


class Announce(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: Annotated[
        str,
        Meta(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)", description="One line, for people."),
    ]
    level: AnnouncementLevel = "info"


class Announced(msgspec.Struct, frozen=True):
    """Which nodes pass it on, and which could not be reached."""

    nodes: list[str]
    unreached: list[str]


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant's calls by status, its people in calls, and how many nodes there are by status."""

    calls: dict[str, int]
    participants: int
    sessions: int
    inbox: dict[str, int]
    nodes: dict[str, int]
    server_time: datetime


class ListAllRooms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every call of the tenant, newest first."""

    status: Annotated[CallStatus | None, Meta(description="Only these.")] = None
    q: Annotated[str, Meta(min_length=1, max_length=200, description="Part of the name.")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class RoomList(msgspec.Struct, frozen=True):
    items: list[CallView]
    next_cursor: str | None


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    user_id: str
    node_id: str
    client: str
    device_id: str | None
    connected_at: datetime


class ListSessions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit = 100


class SessionList(msgspec.Struct, frozen=True):
    items: list[SessionView]
    total: int


class CloseSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    session_id: SessionId
    reason: Reason | None = None


class ListInbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    status: Annotated[Literal["pending", "done", "dead"] | None, Meta(description="Only these.")] = None
    limit: Limit = 50
    cursor: Cursor | None = None


class InboxEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A stored webhook. `status` is pending, done or dead; `error` is what the last try said."""

    id: str
    event: str
    room_name: str
    status: str
    attempts: int
    error: str | None
    received_at: datetime


class InboxPage(msgspec.Struct, frozen=True):
    items: list[InboxEntry]
    next_cursor: str | None


class RetryInbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(min_length=1, max_length=128, description="As in the list of the inbox.")]


class ListAudit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    actor: Annotated[str, Meta(min_length=1, max_length=128, description="Only what this user did.")] | None = None
    target_id: Annotated[str, Meta(min_length=1, max_length=257, description="Only what was done to this.")] | None = (
        None
    )
    limit: Limit = 50
    cursor: Cursor | None = None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    at: datetime
    actor: str
    action: str
    target_type: str
    target_id: str | None
    reason: str | None
    details: dict[str, Any]


class AuditPage(msgspec.Struct, frozen=True):
    items: list[AuditEntry]
    next_cursor: str | None


class ExportAudit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit = 100
    cursor: Cursor | None = None


class AuditLink(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as it is sealed into the tenant's chain, with all that its hash is made of.

    `hash` is the SHA-256 of the 32 bytes of `prev_hash` and the fields `seq`, `id`, `tenant_id`, the microseconds of
    `at` since 1970, `actor`, `action`, `target_type`, `target_id`, `reason`, `details_json`: each as its length in
    bytes, a colon and its UTF-8 text, `-` for null, with commas between.
    """

    seq: Annotated[int, Meta(description="1, 2, 3 … without a hole, in the order of the commits.")]
    id: str
    tenant_id: UUID
    at: datetime
    actor: str
    action: str
    target_type: str
    target_id: str | None
    reason: str | None
    details_json: Annotated[str, Meta(description="The details as the JSON text that was hashed.")]
    prev_hash: Annotated[str, Meta(description="Of the link before, in hex; zeros before the first.")]
    hash: Annotated[str, Meta(description="In hex.")]


class AuditHead(msgspec.Struct, frozen=True):
    """How far the chain goes. Kept elsewhere, it proves later that nothing up to it was cut off."""

    seq: int
    hash: str


class AuditExport(msgspec.Struct, frozen=True):
    items: list[AuditLink]
    head: AuditHead
    next_cursor: str | None


class ConfigAnswer(msgspec.Struct, frozen=True):
    """Every setting as it is in force, secrets as `***`."""

    settings: dict[str, Any]


class EndAnyRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    reason: Reason | None = None


class Reconcile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dry_run: Annotated[bool, Meta(description="Only say what would be mended.")] = False


class Reconciled(msgspec.Struct, frozen=True):
    """What was compared, and how many of what were set right, or would be."""

    dry_run: bool
    calls: int
    rooms: int
    skipped: Annotated[int, Meta(description="Calls that could not be compared this time.")]
    unreachable_regions: Annotated[int, Meta(description="Regions whose LiveKit did not answer.")]
    corrections: dict[str, int]
