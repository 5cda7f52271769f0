"""LiveKit's facts about a call, and the derived states written from them. All of it under the lock of the call's row.

Rows travel as tuples in the order of the columns named here; what they mean is known to whoever derives the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import msgspec

if TYPE_CHECKING:
    from db.pool import Transaction

Row = tuple[Any, ...]


class Loaded(msgspec.Struct, frozen=True):
    """Everything known about one call, as the tables hold it."""

    call: asyncpg.Record
    participants: list[asyncpg.Record]
    incarnations: list[asyncpg.Record]
    sessions: list[asyncpg.Record]
    tracks: list[asyncpg.Record]


# NO KEY UPDATE: enough against another settling, and children of the call can still be inserted meanwhile.
LOCK_CALL = """
SELECT id, livekit_room_name, livekit_room_sid, status, created_at, started_at, ended_at, end_reason, empty_since,
       due_at, waiting_expires_at, room_absent_since, media_silent_since, missed_at
FROM calls WHERE id = $1 FOR NO KEY UPDATE
"""
PARTICIPANTS = """
SELECT id, identity, token_issued_at, token_expires_at, hub_joined_at, hub_left_at, hub_left_reason, attachments,
       leave_requested_at, kick_requested_at, kick_reason, readmitted_at,
       reported_at, reported_microphone, reported_camera, reported_screen_share,
       status, joined_at, left_at, left_reason, duration_seconds,
       is_audio_enabled, is_video_enabled, is_screen_sharing
FROM call_participants WHERE call_id = $1 ORDER BY id
"""
INCARNATIONS = """
SELECT room_sid, first_seen, known_at, finished_at, finished_by, finish_reason, miss
FROM call_room_incarnations WHERE call_id = $1
"""
SESSIONS = """
SELECT part_sid, room_sid, identity, known_at, joined, joined_at, countable, left_at, left_by, reason, miss
FROM participant_sessions WHERE call_id = $1
"""
TRACKS = """
SELECT track_sid, part_sid, source, known_at, unpublished_by, muted, muted_at, miss
FROM session_tracks WHERE call_id = $1
"""


async def load(tx: Transaction, call_id: UUID) -> Loaded | None:
    """All facts of the call, its row locked until the transaction ends; None: there is no such call for this tenant."""
    call = await tx.fetchrow(LOCK_CALL, call_id)
    if call is None:
        return None
    return Loaded(
        call=call,
        participants=await tx.fetch(PARTICIPANTS, call_id),
        incarnations=await tx.fetch(INCARNATIONS, call_id),
        sessions=await tx.fetch(SESSIONS, call_id),
        tracks=await tx.fetch(TRACKS, call_id),
    )


SAVE_INCARNATIONS = """
INSERT INTO call_room_incarnations
    (call_id, room_sid, first_seen, known_at, finished_at, finished_by, finish_reason, miss)
SELECT $1, n.* FROM unnest(
    $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[], $8::smallint[]) n
ON CONFLICT (tenant_id, call_id, room_sid) DO UPDATE
SET first_seen = excluded.first_seen, known_at = excluded.known_at, finished_at = excluded.finished_at,
    finished_by = excluded.finished_by, finish_reason = excluded.finish_reason, miss = excluded.miss
"""


async def save_incarnations(tx: Transaction, call_id: UUID, rows: Sequence[Row]) -> None:
    """(room_sid, first_seen, known_at, finished_at, finished_by, finish_reason, miss)"""
    if rows:
        await tx.execute(SAVE_INCARNATIONS, call_id, *_columns(rows))


# The participant is looked up here: a session may be known before the hub knows whose it is.
SAVE_SESSIONS = """
INSERT INTO participant_sessions
    (call_id, part_sid, room_sid, identity, known_at, joined, joined_at, countable, left_at, left_by, reason, miss,
     participant_id)
SELECT $1, n.*, p.id
FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::boolean[], $7::timestamptz[], $8::boolean[],
            $9::timestamptz[], $10::text[], $11::text[], $12::smallint[])
     n (part_sid, room_sid, identity, known_at, joined, joined_at, countable, left_at, left_by, reason, miss)
LEFT JOIN call_participants p ON p.call_id = $1 AND p.identity = n.identity
ON CONFLICT (tenant_id, call_id, part_sid) DO UPDATE
SET room_sid = excluded.room_sid, known_at = excluded.known_at, joined = excluded.joined,
    joined_at = excluded.joined_at, countable = excluded.countable, left_at = excluded.left_at,
    left_by = excluded.left_by, reason = excluded.reason, miss = excluded.miss,
    participant_id = excluded.participant_id
"""


async def save_sessions(tx: Transaction, call_id: UUID, rows: Sequence[Row]) -> None:
    """(part_sid, room_sid, identity, known_at, joined, joined_at, countable, left_at, left_by, reason, miss)"""
    if rows:
        await tx.execute(SAVE_SESSIONS, call_id, *_columns(rows))


SAVE_TRACKS = """
INSERT INTO session_tracks (call_id, track_sid, part_sid, source, known_at, unpublished_by, muted, muted_at, miss)
SELECT $1, n.* FROM unnest(
    $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::boolean[], $8::timestamptz[],
    $9::smallint[]) n
ON CONFLICT (tenant_id, call_id, track_sid) DO UPDATE
SET source = excluded.source, known_at = excluded.known_at, unpublished_by = excluded.unpublished_by,
    muted = excluded.muted, muted_at = excluded.muted_at, miss = excluded.miss
"""


async def save_tracks(tx: Transaction, call_id: UUID, rows: Sequence[Row]) -> None:
    """(track_sid, part_sid, source, known_at, unpublished_by, muted, muted_at, miss)"""
    if rows:
        await tx.execute(SAVE_TRACKS, call_id, *_columns(rows))


SAVE_PARTICIPANTS = """
UPDATE call_participants p
SET hub_left_at = n.hub_left_at, hub_left_reason = n.hub_left_reason, attachments = n.attachments::jsonb,
    reported_at = n.reported_at, reported_microphone = n.microphone, reported_camera = n.camera,
    reported_screen_share = n.screen_share
FROM unnest($2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::timestamptz[], $7::boolean[], $8::boolean[],
            $9::boolean[])
     n (id, hub_left_at, hub_left_reason, attachments, reported_at, microphone, camera, screen_share)
WHERE p.call_id = $1 AND p.id = n.id
"""


async def save_participants(tx: Transaction, call_id: UUID, rows: Sequence[Row]) -> None:
    """(id, hub_left_at, hub_left_reason, attachments as JSON text, reported_at, microphone, camera, screen_share)"""
    if rows:
        await tx.execute(SAVE_PARTICIPANTS, call_id, *_columns(rows))


WRITE_CALL = """
UPDATE calls
SET status = $2, livekit_room_sid = $3, started_at = $4, ended_at = $5, end_reason = $6, empty_since = $7, due_at = $8,
    room_absent_since = $9, media_silent_since = $10, missed_at = $11
WHERE id = $1
"""


async def write_call(
    tx: Transaction,
    call_id: UUID,
    *,
    status: str,
    room_sid: str | None,
    started_at: datetime | None,
    ended_at: datetime | None,
    end_reason: str | None,
    empty_since: datetime | None,
    due_at: datetime | None,
    room_absent_since: datetime | None,
    media_silent_since: datetime | None,
    missed_at: datetime | None,
) -> None:
    await tx.execute(
        WRITE_CALL,
        call_id,
        status,
        room_sid,
        started_at,
        ended_at,
        end_reason,
        empty_since,
        due_at,
        room_absent_since,
        media_silent_since,
        missed_at,
    )


WRITE_PARTICIPANTS = """
UPDATE call_participants p
SET status = n.status, joined_at = n.joined_at, left_at = n.left_at, left_reason = n.left_reason,
    duration_seconds = n.duration_seconds, is_audio_enabled = n.audio, is_video_enabled = n.video,
    is_screen_sharing = n.screen,
    hand_raised_at = CASE WHEN n.status IN ('joined', 'reconnecting') THEN p.hand_raised_at END
FROM unnest($2::uuid[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::double precision[],
            $8::boolean[], $9::boolean[], $10::boolean[])
     n (id, status, joined_at, left_at, left_reason, duration_seconds, audio, video, screen)
WHERE p.call_id = $1 AND p.id = n.id
"""


async def write_participants(tx: Transaction, call_id: UUID, rows: Sequence[Row]) -> None:
    """(id, status, joined_at, left_at, left_reason, duration_seconds, audio, video, screen); a gone hand is lowered."""
    if rows:
        await tx.execute(WRITE_PARTICIPANTS, call_id, *_columns(rows))


ATTACHED = """
SELECT call_id, id FROM call_participants
WHERE call_id = ANY ($1::uuid[]) AND status IN ('joined', 'reconnecting') AND hub_joined_at < $2 AND hub_left_at IS NULL
"""


async def attached(tx: Transaction, call_ids: Sequence[UUID], before: datetime) -> list[tuple[UUID, UUID]]:
    """(call, participant) of those whom a socket attached before then and none has detached."""
    return [(row["call_id"], row["id"]) for row in await tx.fetch(ATTACHED, list(call_ids), before)]


def _columns(rows: Sequence[Row]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
