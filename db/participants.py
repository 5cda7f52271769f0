"""SQL about participants: what the hub knows and what was asked of somebody in a call.

Status, joined_at, left_at and the media flags follow from these facts and LiveKit's; they are settled elsewhere.
"""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from db.pool import Transaction


class Participant(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS."""

    id: UUID
    tenant_id: UUID
    call_id: UUID
    user_id: str
    identity: str
    device_id: str | None
    role: str
    status: str
    display_name: str | None
    metadata: dict[str, Any]
    client_info: dict[str, Any]
    via_link_id: UUID | None
    token_issued_at: datetime | None
    token_expires_at: datetime | None
    hub_joined_at: datetime | None
    hub_left_at: datetime | None
    hub_left_reason: str | None
    leave_requested_at: datetime | None
    kick_requested_at: datetime | None
    kick_reason: str | None
    kicked_by: str | None
    readmitted_at: datetime | None
    hand_raised_at: datetime | None
    joined_at: datetime | None
    left_at: datetime | None
    left_reason: str | None
    duration_seconds: float | None
    is_audio_enabled: bool
    is_video_enabled: bool
    is_screen_sharing: bool
    quality_score: float | None
    created_at: datetime

    @property
    def attached(self) -> bool:
        """A socket of theirs is in the room."""
        return self.hub_joined_at is not None and self.hub_left_at is None

    @property
    def kicked(self) -> bool:
        """Kicked and not let in again since."""
        if self.kick_requested_at is None:
            return False
        return self.readmitted_at is None or self.readmitted_at < self.kick_requested_at


COLUMNS = """
id, tenant_id, call_id, user_id, identity, device_id, role, status, display_name, metadata, client_info, via_link_id,
token_issued_at, token_expires_at, hub_joined_at, hub_left_at, hub_left_reason, leave_requested_at, kick_requested_at,
kick_reason, kicked_by, readmitted_at, hand_raised_at, joined_at, left_at, left_reason, duration_seconds,
is_audio_enabled, is_video_enabled, is_screen_sharing, quality_score, created_at
"""

# -------------------------------------------------------------------------------------------------------------- finding

GET = f"SELECT {COLUMNS} FROM call_participants WHERE call_id = $1 AND id = $2"


async def get(tx: Transaction, call_id: UUID, participant_id: UUID) -> Participant | None:
    row = await tx.fetchrow(GET, call_id, participant_id)
    return Participant(*row) if row else None


HOLD = f"SELECT {COLUMNS} FROM call_participants WHERE call_id = $1 AND id = $2 FOR NO KEY UPDATE"


async def hold(tx: Transaction, call_id: UUID, participant_id: UUID) -> Participant | None:
    """The row as it stands, held until the transaction ends."""
    row = await tx.fetchrow(HOLD, call_id, participant_id)
    return Participant(*row) if row else None


BY_IDENTITY = f"SELECT {COLUMNS} FROM call_participants WHERE call_id = $1 AND identity = $2"


async def by_identity(tx: Transaction, call_id: UUID, identity: str) -> Participant | None:
    row = await tx.fetchrow(BY_IDENTITY, call_id, identity)
    return Participant(*row) if row else None


BY_IDS = f"SELECT {COLUMNS} FROM call_participants WHERE id = ANY ($1::uuid[]) ORDER BY created_at, id"


async def by_ids(tx: Transaction, participant_ids: Collection[UUID]) -> list[Participant]:
    """Those of them that exist."""
    return [Participant(*row) for row in await tx.fetch(BY_IDS, list(participant_ids))]


OF_USER = f"SELECT {COLUMNS} FROM call_participants WHERE call_id = $1 AND user_id = $2 ORDER BY created_at, id"


async def of_user(tx: Transaction, call_id: UUID, user_id: str) -> list[Participant]:
    """One person in one call, once for each device they came with."""
    return [Participant(*row) for row in await tx.fetch(OF_USER, call_id, user_id)]


OF_CALL = f"SELECT {COLUMNS} FROM call_participants WHERE call_id = $1 ORDER BY created_at, id"


async def of_call(tx: Transaction, call_id: UUID) -> list[Participant]:
    """Everybody, whatever became of them, in the order in which they first came."""
    return [Participant(*row) for row in await tx.fetch(OF_CALL, call_id)]


IN_CALL = f"""
SELECT {COLUMNS} FROM call_participants
WHERE call_id = $1 AND status IN ('joined', 'reconnecting') ORDER BY created_at, id
"""


async def in_call(tx: Transaction, call_id: UUID) -> list[Participant]:
    """Those who are there now."""
    return [Participant(*row) for row in await tx.fetch(IN_CALL, call_id)]


BY_LINK = f"""
SELECT {COLUMNS} FROM call_participants
WHERE via_link_id = $1 AND status IN ('joining', 'joined', 'reconnecting') ORDER BY created_at, id
"""


async def by_link(tx: Transaction, link_id: UUID) -> list[Participant]:
    """Those who came by that link and are there, or about to be."""
    return [Participant(*row) for row in await tx.fetch(BY_LINK, link_id)]


PAGE = f"""
SELECT {COLUMNS} FROM call_participants
WHERE call_id = $1
  AND (created_at, id)
      < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
  AND ($4::text IS NULL OR status = $4)
ORDER BY created_at DESC, id DESC LIMIT $5
"""


async def page(
    tx: Transaction,
    call_id: UUID,
    *,
    status: str | None = None,
    after: tuple[datetime, str | UUID] | None = None,
    limit: int,
) -> list[Participant]:
    """Newest first, older than `after`, the (created_at, id) of the last one of the page before."""
    at, last = after or (None, None)
    if isinstance(last, str):
        last = UUID(last)
    return [Participant(*row) for row in await tx.fetch(PAGE, call_id, at, last, status, limit)]


# ---------------------------------------------------------------------------------------------------------------- seats

# A token that was given out holds a seat until nobody can come in by it any more; 120 s are LiveKit's leeway for the
# clock and its time for the media to come up.
SEATS_TAKEN = """
SELECT count(*) FROM call_participants
WHERE call_id = $1
  AND (status IN ('joined', 'reconnecting')
       OR (status = 'joining' AND token_expires_at + interval '120 seconds' > $2))
"""


async def seats_taken(tx: Transaction, call_id: UUID, now: datetime) -> int:
    """Exact only while the caller holds the call (`calls.lock`)."""
    return int(await tx.fetchval(SEATS_TAKEN, call_id, now))


SEATS_OF = """
SELECT count(*) FROM call_participants
WHERE call_id = $1 AND user_id = $3
  AND (status IN ('joined', 'reconnecting')
       OR (status = 'joining' AND token_expires_at + interval '120 seconds' > $2))
"""


async def seats_of(tx: Transaction, call_id: UUID, user_id: str, now: datetime) -> int:
    """How many of `seats_taken` are one person's devices."""
    return int(await tx.fetchval(SEATS_OF, call_id, now, user_id))


SEATED = """
SELECT status IN ('joined', 'reconnecting')
       OR (status = 'joining' AND coalesce(token_expires_at + interval '120 seconds' > $2, false))
FROM call_participants WHERE id = $1
"""


async def seated(tx: Transaction, participant_id: UUID, now: datetime) -> bool:
    """Whether they are one of `seats_taken`."""
    return bool(await tx.fetchval(SEATED, participant_id, now))


# -------------------------------------------------------------------------------------------------------- coming, going

# What is not said stays as it was. Being let in takes back a kick.
ADMIT = f"""
INSERT INTO call_participants AS known
    (call_id, user_id, identity, device_id, role, display_name, metadata, via_link_id)
VALUES ($1, $2, $3, $4, $5, $6, coalesce($7, '{{}}'::jsonb), $8)
ON CONFLICT (tenant_id, call_id, identity) DO UPDATE
SET role = excluded.role,
    display_name = coalesce(excluded.display_name, known.display_name),
    metadata = coalesce($7, known.metadata),
    via_link_id = coalesce(excluded.via_link_id, known.via_link_id),
    readmitted_at = CASE WHEN known.kick_requested_at IS NOT NULL
                          AND (known.readmitted_at IS NULL OR known.readmitted_at < known.kick_requested_at)
                         THEN greatest($9, known.kick_requested_at) ELSE known.readmitted_at END
RETURNING {COLUMNS}
"""


async def admit(
    tx: Transaction,
    call_id: UUID,
    *,
    user_id: str,
    identity: str,
    device_id: str | None,
    role: str,
    display_name: str | None,
    metadata: Mapping[str, Any] | None,
    via_link_id: UUID | None,
    now: datetime,
) -> Participant:
    """The row of somebody who may come in, made or renewed. The user must have been seen (`users.seen`)."""
    given = None if metadata is None else dict(metadata)
    row = await tx.fetchrow(ADMIT, call_id, user_id, identity, device_id, role, display_name, given, via_link_id, now)
    assert row is not None
    return Participant(*row)


HOLD_SEAT = """
UPDATE call_participants
SET token_issued_at = $2, token_expires_at = greatest(token_expires_at, $3) WHERE id = $1
"""


async def token_issued(tx: Transaction, participant_id: UUID, now: datetime, expires_at: datetime) -> None:
    """A LiveKit token for them is out; an older one that lives longer still counts."""
    await tx.execute(HOLD_SEAT, participant_id, now, expires_at)


# Attached twice is attached since the first time.
ATTACH = f"""
UPDATE call_participants
SET hub_joined_at = CASE WHEN hub_joined_at IS NOT NULL AND hub_left_at IS NULL THEN hub_joined_at ELSE $2 END,
    hub_left_at = NULL, hub_left_reason = NULL, client_info = coalesce($3, client_info)
WHERE id = $1
RETURNING {COLUMNS}
"""


async def attach(
    tx: Transaction, participant_id: UUID, now: datetime, *, client_info: Mapping[str, Any] | None = None
) -> Participant | None:
    """A socket of theirs is in the room. None: no such participant."""
    row = await tx.fetchrow(ATTACH, participant_id, now, None if client_info is None else dict(client_info))
    return Participant(*row) if row else None


DETACH = """
UPDATE call_participants
SET hub_left_at = greatest($2, hub_joined_at), hub_left_reason = $3,
    leave_requested_at = CASE WHEN $4 THEN $2 ELSE leave_requested_at END, hand_raised_at = NULL
WHERE id = ANY ($1::uuid[]) AND hub_joined_at IS NOT NULL AND hub_left_at IS NULL
RETURNING id
"""


async def detach(
    tx: Transaction, participant_ids: list[UUID], now: datetime, reason: str, *, asked: bool = False
) -> list[UUID]:
    """Their last sockets left the room (`asked`: they said so); whom it was true of."""
    return [row["id"] for row in await tx.fetch(DETACH, participant_ids, now, reason, asked)]


REQUEST_LEAVE = f"""
UPDATE call_participants
SET leave_requested_at = $2, hand_raised_at = NULL,
    hub_left_reason = CASE WHEN hub_joined_at IS NOT NULL AND hub_left_at IS NULL THEN $3 ELSE hub_left_reason END,
    hub_left_at = CASE WHEN hub_joined_at IS NOT NULL AND hub_left_at IS NULL
                       THEN greatest($2, hub_joined_at) ELSE hub_left_at END
WHERE id = $1
RETURNING {COLUMNS}
"""


async def request_leave(
    tx: Transaction, participant_id: UUID, now: datetime, reason: str = "left"
) -> Participant | None:
    """They asked to leave: for the hub at once, for LiveKit as soon as it hears. None: no such participant."""
    row = await tx.fetchrow(REQUEST_LEAVE, participant_id, now, reason)
    return Participant(*row) if row else None


REQUEST_KICK = f"""
UPDATE call_participants
SET kick_requested_at = $2, kick_reason = left($3, 500), kicked_by = $4, readmitted_at = NULL, hand_raised_at = NULL,
    hub_left_reason = CASE WHEN hub_joined_at IS NOT NULL AND hub_left_at IS NULL
                           THEN 'kicked' ELSE hub_left_reason END,
    hub_left_at = CASE WHEN hub_joined_at IS NOT NULL AND hub_left_at IS NULL
                       THEN greatest($2, hub_joined_at) ELSE hub_left_at END
WHERE call_id = $1 AND user_id = $5
RETURNING {COLUMNS}
"""


async def request_kick(
    tx: Transaction, call_id: UUID, user_id: str, now: datetime, *, by: str, reason: str | None
) -> list[Participant]:
    """A person has to go, with every device. Holds until they are readmitted; LiveKit is told after the commit."""
    return [Participant(*row) for row in await tx.fetch(REQUEST_KICK, call_id, now, reason, by, user_id)]


KICKED_AMONG = """
SELECT id, coalesce(kick_reason, '') FROM call_participants
WHERE call_id = ANY($1::uuid[]) AND id = ANY($2::uuid[]) AND status = 'kicked'
"""


async def kicked_among(tx: Transaction, there: Collection[tuple[UUID, UUID]]) -> dict[UUID, str]:
    """Which of these, as (call, participant), are kicked and not let in again; with the reason that was given."""
    rows = await tx.fetch(KICKED_AMONG, list({call_id for call_id, _ in there}), [each for _, each in there])
    return {row[0]: row[1] for row in rows}


READMIT = f"""
UPDATE call_participants SET readmitted_at = greatest($3, kick_requested_at)
WHERE call_id = $1 AND user_id = $2 AND kick_requested_at IS NOT NULL
  AND (readmitted_at IS NULL OR readmitted_at < kick_requested_at)
RETURNING {COLUMNS}
"""


async def readmit(tx: Transaction, call_id: UUID, user_id: str, now: datetime) -> list[Participant]:
    """Kicked no more; those of their rows that were."""
    return [Participant(*row) for row in await tx.fetch(READMIT, call_id, user_id, now)]


# ----------------------------------------------------------------------------------------------------------- about them

SET_ROLE = f"""
UPDATE call_participants SET role = $3 WHERE call_id = $1 AND user_id = $2 AND role <> $3 RETURNING {COLUMNS}
"""


async def set_role(tx: Transaction, call_id: UUID, user_id: str, role: str) -> list[Participant]:
    """A role is a person's, whatever device they use; those of their rows that had another."""
    return [Participant(*row) for row in await tx.fetch(SET_ROLE, call_id, user_id, role)]


CHANGE = f"""
UPDATE call_participants SET display_name = coalesce($3, display_name), metadata = coalesce($4, metadata)
WHERE call_id = $1 AND id = $2
RETURNING {COLUMNS}
"""


async def change(
    tx: Transaction,
    call_id: UUID,
    participant_id: UUID,
    *,
    display_name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Participant | None:
    """What is None stays. None: no such participant."""
    given = None if metadata is None else dict(metadata)
    row = await tx.fetchrow(CHANGE, call_id, participant_id, display_name, given)
    return Participant(*row) if row else None


RAISE_HAND = """
UPDATE call_participants SET hand_raised_at = $3
WHERE call_id = $1 AND id = $2 AND hand_raised_at IS NULL RETURNING true
"""


async def raise_hand(tx: Transaction, call_id: UUID, participant_id: UUID, now: datetime) -> bool:
    """False: it was up already, and keeps its place."""
    return await tx.fetchval(RAISE_HAND, call_id, participant_id, now) is not None


LOWER_HANDS = """
UPDATE call_participants SET hand_raised_at = NULL
WHERE call_id = $1 AND hand_raised_at IS NOT NULL AND ($2::uuid[] IS NULL OR id = ANY ($2)) RETURNING id
"""


async def lower_hands(tx: Transaction, call_id: UUID, participant_ids: list[UUID] | None = None) -> list[UUID]:
    """Of these people, or (None) of all: whose hand was up."""
    return [row["id"] for row in await tx.fetch(LOWER_HANDS, call_id, participant_ids)]


HANDS = f"""
SELECT {COLUMNS} FROM call_participants
WHERE call_id = $1 AND hand_raised_at IS NOT NULL ORDER BY hand_raised_at, id
"""


async def hands(tx: Transaction, call_id: UUID) -> list[Participant]:
    """The queue: who has waited longest comes first."""
    return [Participant(*row) for row in await tx.fetch(HANDS, call_id)]
