"""SQL about the webhook inbox: LiveKit's events from "stored" to "folded", each at least once, a room's in one hand.

Folding is idempotent and `done` stands in its transaction, so at least once is enough. All of it works without a
tenant, through functions that run as hub_system.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, Protocol
from uuid import UUID

import msgspec

from db.pool import Transaction


class _Named(Protocol):
    @property
    def sid(self) -> str: ...


class Incoming(Protocol):
    """What is read of a verified webhook."""

    @property
    def event_id(self) -> str: ...
    @property
    def event(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def room_name(self) -> str | None: ...
    @property
    def room_sid(self) -> str | None: ...
    @property
    def participant(self) -> _Named | None: ...
    @property
    def track(self) -> _Named | None: ...
    @property
    def raw(self) -> bytes: ...


class Stored(msgspec.Struct, frozen=True):
    """One row. `tenant_id` and `call_id` are those of the room's call, None where the room is none of ours."""

    event_id: str
    event: str
    room_name: str | None
    room_sid: str | None
    tenant_id: UUID | None
    call_id: UUID | None
    event_created_at: datetime | None
    received_at: datetime
    status: Literal["pending", "done", "dead"]
    # How often it was claimed, this time included.
    attempts: int
    next_attempt_at: datetime
    last_error: str | None
    finished_at: datetime | None
    payload: bytes


class Depth(msgspec.Struct, frozen=True):
    pending: int
    dead: int
    oldest_pending_at: datetime | None


STORE = "SELECT inbox_store($1, $2, $3, $4, $5, $6, $7, $8)"


async def store(tx: Transaction, event: Incoming) -> bool:
    """False: it was here already. Once the transaction has committed, LiveKit may be told 200."""
    participant, track = event.participant, event.track
    stored: bool = await tx.fetchval(
        STORE,
        event.event_id,
        event.event,
        _text(event.room_name),
        _text(event.room_sid),
        _text(participant.sid if participant else None),
        _text(track.sid if track else None),
        event.created_at,
        event.raw,
    )
    return stored


def _text(value: str | None) -> str | None:
    # A zero byte would keep the event out for ever, and LiveKit would send it for ever.
    return value.replace("\0", "") if value else None


CLAIM = """
SELECT event_id, event, room_name, room_sid, tenant_id, call_id, event_created_at, received_at, status, attempts,
       next_attempt_at, last_error, finished_at, payload
FROM inbox_claim($1, $2)
"""


async def claim(tx: Transaction, limit: int, lease_s: float) -> list[Stored]:
    """The oldest events that are due, for `lease_s` seconds; nobody else gets an event of their rooms meanwhile.

    In a short transaction of its own: claims take turns.
    """
    return [Stored(*row) for row in await tx.fetch(CLAIM, limit, timedelta(seconds=lease_s))]


FINISH = "SELECT inbox_finish($1, $2, $3)"


async def done(tx: Transaction, event_ids: Sequence[str]) -> None:
    """Folded. Belongs into the transaction of the fold."""
    await tx.fetchval(FINISH, event_ids, "done", None)


async def dead(tx: Transaction, event_ids: Sequence[str], error: str) -> None:
    """Given up; an operator decides."""
    await tx.fetchval(FINISH, event_ids, "dead", error[:2000])


POSTPONE = "SELECT inbox_postpone($1, $2, $3)"


async def failed(tx: Transaction, event_ids: Sequence[str], error: str, retry_at: datetime) -> None:
    """Not folded; again at `retry_at`."""
    await tx.fetchval(POSTPONE, event_ids, error[:2000], retry_at)


RETRY = "SELECT inbox_retry($1)"


async def retry(tx: Transaction, event_id: str) -> bool:
    """Once more from the start, whatever it was. False: no such event."""
    found: bool = await tx.fetchval(RETRY, event_id)
    return found


PAGE = """
SELECT event_id, event, room_name, room_sid, tenant_id, call_id, event_created_at, received_at, status, attempts,
       next_attempt_at, last_error, finished_at, payload
FROM inbox_list($1, $2, $3, $4)
"""


async def page(
    tx: Transaction, *, status: str | None = None, before: tuple[datetime, str] | None = None, limit: int
) -> list[Stored]:
    """Newest first, of all tenants, below (received_at, event_id)."""
    at, event_id = before or (None, None)
    return [Stored(*row) for row in await tx.fetch(PAGE, status, at, event_id, limit)]


DEPTH = "SELECT pending, dead, oldest_pending_at FROM inbox_depth()"


async def depth(tx: Transaction) -> Depth:
    row = await tx.fetchrow(DEPTH)
    assert row is not None
    return Depth(*row)


FORGET = "SELECT inbox_forget($1, $2)"


async def forget(tx: Transaction, finished_before: datetime, limit: int) -> int:
    """Delete done events; how many, at most `limit`. Keep them longer than LiveKit repeats itself (minutes)."""
    return int(await tx.fetchval(FORGET, finished_before, limit))


# These three read the table itself, where row level security shows a tenant its own calls' events only.
PAGE_OF_TENANT = """
SELECT event_id, event, room_name, room_sid, tenant_id, call_id, event_created_at, received_at, status, attempts,
       next_attempt_at, last_error, finished_at, ''::bytea
FROM livekit_webhook_inbox
WHERE ($1::text IS NULL OR status = $1)
  AND ($2::timestamptz IS NULL OR (received_at, event_id) < ($2, $3))
ORDER BY received_at DESC, event_id DESC LIMIT $4
"""


async def page_of_tenant(
    tx: Transaction, *, status: str | None = None, before: tuple[datetime, str] | None = None, limit: int
) -> list[Stored]:
    """The tenant's events, newest first, without their payloads."""
    at, event_id = before or (None, None)
    return [Stored(*row) for row in await tx.fetch(PAGE_OF_TENANT, status, at, event_id, limit)]


HAS_TENANT = "SELECT EXISTS (SELECT FROM livekit_webhook_inbox WHERE event_id = $1)"


async def is_of_tenant(tx: Transaction, event_id: str) -> bool:
    return bool(await tx.fetchval(HAS_TENANT, event_id))


COUNTS_OF_TENANT = """
SELECT count(*) FILTER (WHERE status = 'pending') AS pending, count(*) FILTER (WHERE status = 'dead') AS dead
FROM livekit_webhook_inbox WHERE status <> 'done'
"""


async def counts_of_tenant(tx: Transaction) -> dict[str, int]:
    row = await tx.fetchrow(COUNTS_OF_TENANT)
    assert row is not None
    return {"pending": row["pending"], "dead": row["dead"]}
