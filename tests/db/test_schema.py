"""What the schema itself guarantees, whoever writes to it: counts, durations, cascades, views, keys."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from db import calls, users
from db.pool import Database, Transaction
from tests.db.people import NOW, after, let_in, make_call, set_status, tenant_id


async def test_a_call_row_holds_what_it_was_made_of(db: Database) -> None:
    """S-002: every field of a call is kept as given; screen sharing is on unless switched off."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(
            tx,
            max_participants=10,
            livekit_room_sid="RM_1",
            region="eu",
            file_sharing_enabled=False,
            metadata={"project": "AuraLink", "team": "Engineering"},
        )
    async with db.tenant(mine) as tx:
        again = await calls.get(tx, call.id)
    assert again == call
    assert (call.tenant_id, call.owner_id, call.status, call.call_type) == (mine, "olga", "waiting", "group")
    assert (call.max_participants, call.livekit_room_sid, call.region) == (10, "RM_1", "eu")
    assert (call.screen_sharing_enabled, call.file_sharing_enabled, call.recording_enabled) == (True, False, False)
    assert call.metadata == {"project": "AuraLink", "team": "Engineering"}
    assert (call.started_at, call.ended_at, call.duration_seconds, call.participant_count) == (None, None, None, 0)


async def test_a_participant_row_goes_from_joined_to_left_with_its_duration(db: Database) -> None:
    """S-003: status, times, duration and media flags of somebody who came and went."""
    async with db.tenant(tenant_id(), "olga") as tx:
        person = await let_in(tx, await make_call(tx), "bob")
        row = await tx.fetchrow(
            "UPDATE call_participants SET status = 'joined', joined_at = $2, is_audio_enabled = true WHERE id = $1"
            " RETURNING *",
            person.id,
            NOW,
        )
        assert row is not None
        assert (row["status"], row["is_audio_enabled"], row["is_video_enabled"]) == ("joined", True, False)
        row = await tx.fetchrow(
            "UPDATE call_participants SET status = 'left', left_at = $2 WHERE id = $1 RETURNING *",
            person.id,
            after(75),
        )
        assert row is not None
        assert (row["status"], row["joined_at"], row["left_at"]) == ("left", NOW, after(75))
        assert row["duration_seconds"] == 75


# --------------------------------------------------------------------------------------------------------------- counts


async def _counts(tx: Transaction, call_id: object) -> tuple[int, int]:
    kept = await tx.fetchval("SELECT participant_count FROM calls WHERE id = $1", call_id)
    true = await tx.fetchval(
        "SELECT count(*) FROM call_participants WHERE call_id = $1 AND status IN ('joined', 'reconnecting')", call_id
    )
    return kept, true


async def test_the_count_follows_every_insert_update_and_delete(db: Database) -> None:
    """S-009: the kept count equals the rows that are there, and the peak is the highest it was."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call, other = await make_call(tx), await make_call(tx)
        people = [await let_in(tx, call, name) for name in ("ann", "bob", "cid")]
        assert await _counts(tx, call.id) == (0, 0)
        await tx.execute("UPDATE call_participants SET status = 'joined' WHERE call_id = $1", call.id)
        assert await _counts(tx, call.id) == (3, 3)
        await set_status(tx, people[0], "reconnecting")
        assert await _counts(tx, call.id) == (3, 3)
        await set_status(tx, people[1], "left")
        assert await _counts(tx, call.id) == (2, 2)
        await tx.execute("UPDATE call_participants SET call_id = $2 WHERE id = $1", people[0].id, other.id)
        assert (await _counts(tx, call.id), await _counts(tx, other.id)) == ((1, 1), (1, 1))
        await tx.execute("DELETE FROM call_participants WHERE call_id = $1", call.id)
        assert await _counts(tx, call.id) == (0, 0)
        await tx.execute(
            "INSERT INTO call_participants (call_id, user_id, identity, status) VALUES ($1, 'ann', 'ann', 'joined')",
            call.id,
        )
        assert await _counts(tx, call.id) == (1, 1)
        assert await tx.fetchval("SELECT peak_participant_count FROM calls WHERE id = $1", call.id) == 3


async def test_fifty_people_who_join_at_once_are_fifty(db: Database) -> None:
    """S-009: the count is exact under concurrent joins, each in a transaction of its own."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)

    async def join(number: int) -> None:
        async with db.tenant(mine, f"user{number}") as tx:
            await set_status(tx, await let_in(tx, call, f"user{number}"), "joined")

    await asyncio.gather(*(join(number) for number in range(50)))
    async with db.tenant(mine) as tx:
        assert await _counts(tx, call.id) == (50, 50)


# ------------------------------------------------------------------------------------------------------------ durations


async def _set(tx: Transaction, call_id: object, assignment: str, *values: object) -> asyncpg.Record:
    row = await tx.fetchrow(f"UPDATE calls SET {assignment} WHERE id = $1 RETURNING *", call_id, *values)
    assert row is not None
    return row


async def test_a_call_lasts_from_its_start_to_its_first_end(db: Database) -> None:
    """S-010: the duration is the difference, and ending twice changes neither it nor the end."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        await _set(tx, call.id, "status = 'active', started_at = $2", NOW)
        row = await _set(tx, call.id, "ended_at = $2", after(300))
        assert (row["status"], row["duration_seconds"]) == ("ended", 300)
        row = await _set(tx, call.id, "ended_at = $2, status = 'ended'", after(900))
        assert (row["ended_at"], row["duration_seconds"]) == (after(300), 300)
        row = await _set(tx, call.id, "duration_seconds = 1")
        assert row["duration_seconds"] == 300


async def test_a_duration_is_never_negative(db: Database) -> None:
    """S-010: an end before the start (clocks differ) lasts 0 s, as does a call in which nobody ever was."""
    async with db.tenant(tenant_id(), "olga") as tx:
        early, unused = await make_call(tx), await make_call(tx)
        await _set(tx, early.id, "status = 'active', started_at = $2", NOW)
        assert (await _set(tx, early.id, "ended_at = $2", after(-5)))["duration_seconds"] == 0
        assert (await _set(tx, unused.id, "status = 'ended'"))["duration_seconds"] == 0
        person = await let_in(tx, early, "bob")
        await tx.execute(
            "UPDATE call_participants SET joined_at = $2, left_at = $3 WHERE id = $1", person.id, NOW, after(-1)
        )
        assert await tx.fetchval("SELECT duration_seconds FROM call_participants WHERE id = $1", person.id) == 0


async def test_a_late_write_does_not_bring_an_ended_call_back(db: Database) -> None:
    """S-040: no backward move on late events; only taking the end away opens a call again."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        await _set(tx, call.id, "status = 'ended', started_at = $2, ended_at = $3", NOW, after(10))
        assert (await _set(tx, call.id, "status = 'active'"))["status"] == "ended"
        row = await _set(tx, call.id, "status = 'active', ended_at = NULL")
        assert (row["status"], row["duration_seconds"]) == ("active", None)


async def test_a_second_leave_keeps_the_duration_and_a_written_one_stays(db: Database) -> None:
    """S-010, S-041: the trigger sets a duration once; the sum over several stays is written and respected."""
    async with db.tenant(tenant_id(), "olga") as tx:
        person = await let_in(tx, await make_call(tx), "bob")

        async def write(assignment: str, *values: object) -> Any:
            return await tx.fetchval(
                f"UPDATE call_participants SET {assignment} WHERE id = $1 RETURNING duration_seconds",
                person.id,
                *values,
            )

        assert await write("joined_at = $2, left_at = $3", NOW, after(10)) == 10
        assert await write("left_at = $2", after(500)) == 10
        assert await write("left_at = NULL") == 10
        assert await write("left_at = $2, duration_seconds = 25", after(600)) == 25


async def test_the_version_counts_decisions_and_not_measurements(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        await set_status(tx, await let_in(tx, call, "bob"), "joined")
        await _set(tx, call.id, "quality_score = 4.5, due_at = now()")
        same = await calls.change(tx, call.id, name=call.name)
        assert same.version == call.version
        assert (same.participant_count, same.quality_score) == (1, 4.5)
        changed = await calls.change(tx, call.id, locked=True)
        assert (changed.version, changed.locked) == (call.version + 1, True)
        assert (await _set(tx, call.id, "status = 'active'"))["version"] == call.version + 2


# ---------------------------------------------------------------------------------------------------------------- views


async def test_the_view_of_active_calls_lists_the_live_ones_of_the_tenant(db: Database) -> None:
    """S-011: two calls started, one ended: exactly the live one, with its count, to its tenant only."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        live, over, _waiting = await make_call(tx), await make_call(tx), await make_call(tx)
        for call in (live, over):
            await _set(tx, call.id, "status = 'active', started_at = now() - interval '1 minute'")
        await set_status(tx, await let_in(tx, live, "bob"), "joined")
        await _set(tx, over.id, "status = 'ended'")
        rows = await tx.fetch("SELECT * FROM active_calls")
    assert [(row["call_id"], row["participant_count"]) for row in rows] == [(live.id, 1)]
    assert rows[0]["duration_seconds"] >= 60
    async with db.tenant(tenant_id(), "olga") as tx:
        assert await tx.fetch("SELECT * FROM active_calls") == []
    async with db.system() as tx:
        assert await tx.fetch("SELECT * FROM active_calls") == []


async def test_the_history_is_seen_by_those_who_were_part_of_it(db: Database) -> None:
    """S-012: an ended call with duration, people and quality; nothing for a stranger or another tenant."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)
        await let_in(tx, call, "invited")
        person = await let_in(tx, call, "bob")
        await tx.execute("UPDATE call_participants SET joined_at = $2 WHERE id = $1", person.id, NOW)
        await _set(tx, call.id, "started_at = $2, ended_at = $3, quality_score = 4.2", NOW, after(60))
        await make_call(tx)
    for user_id in ("olga", "bob", "invited"):
        async with db.tenant(mine, user_id) as tx:
            rows = await tx.fetch("SELECT * FROM call_history")
        assert [row["call_id"] for row in rows] == [call.id]
        found = (rows[0]["duration_seconds"], rows[0]["total_participants"], rows[0]["quality_score"])
        assert found == (60, 1, 4.2)
    for tenant, stranger in ((mine, "mallory"), (mine, None), (tenant_id(), "olga")):
        async with db.tenant(tenant, stranger) as tx:
            assert await tx.fetch("SELECT * FROM call_history") == []


# ----------------------------------------------------------------------------------------------------------------- keys

_LINK = (
    "INSERT INTO shareable_links (call_id, creator_id, short_code) VALUES ($1, 'olga', $2) RETURNING id",
    "abcd_-12",
)
_FILE = (
    "INSERT INTO files (call_id, uploader_id, name, size_bytes, mime_type, storage_key, access_level)"
    " VALUES ($1, $2, 'notes.txt', 5, 'text/plain', $3, $4) RETURNING id"
)
_METRIC = (
    "INSERT INTO quality_metrics (call_id, participant_id, packet_loss_pct, quality_score) VALUES ($1, $2, $3, $4)"
)


async def test_deleting_a_call_takes_what_hangs_on_it_and_leaves_the_bytes_findable(db: Database) -> None:
    """S-014, S-056: participants, metrics, links, bans go; every file, a private one too, leaves a tombstone."""
    mine = tenant_id()
    async with db.tenant(mine, "bob") as tx:
        await users.seen(tx, "olga")
        call = await make_call(tx)
        person = await let_in(tx, call, "bob")
        hidden = await tx.fetchval(_FILE, call.id, "bob", "t/c/1", "private")
    async with db.tenant(mine, "olga") as tx:
        link = await tx.fetchval(_LINK[0], call.id, _LINK[1])
        await tx.execute("UPDATE call_participants SET via_link_id = $2 WHERE id = $1", person.id, link)
        shared = await tx.fetchval(_FILE, call.id, "olga", "t/c/2", "call_participants")
        await tx.execute(_METRIC, call.id, person.id, 1.0, 4.0)
        await tx.execute("INSERT INTO call_bans (call_id, user_id, banned_by) VALUES ($1, 'mallory', 'olga')", call.id)
        assert await calls.delete(tx, call.id)
        assert not await calls.delete(tx, call.id)
        graves = await tx.fetch("SELECT file_id, storage_key, tenant_id FROM file_tombstones ORDER BY storage_key")
        assert [tuple(grave) for grave in graves] == [(hidden, "t/c/1", mine), (shared, "t/c/2", mine)]
        for table in ("call_participants", "quality_metrics", "shareable_links", "files", "call_bans"):
            assert await tx.fetchval(f"SELECT count(*) FROM {table}") == 0
    async with db.tenant(mine, "bob") as tx:
        assert await tx.fetchval("SELECT count(*) FROM files") == 0


async def test_a_revoked_link_leaves_those_who_came_by_it(db: Database) -> None:
    """S-014: deleting a link keeps the participant and forgets the way in."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        link = await tx.fetchval(_LINK[0], call.id, _LINK[1])
        person = await let_in(tx, call, "bob", via_link_id=link)
        await tx.execute("DELETE FROM shareable_links")
        assert await tx.fetchval("SELECT via_link_id FROM call_participants WHERE id = $1", person.id) is None


async def test_an_orphan_is_refused(db: Database) -> None:
    """S-014: no row without its call, its user or its tenant, and none that reaches into another tenant."""
    async with db.tenant(tenant_id(), "olga") as tx:
        foreign = await make_call(tx)
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        for statement, values in (
            ("INSERT INTO call_participants (call_id, user_id, identity) VALUES ($1, 'olga', 'olga')", (tenant_id(),)),
            ("INSERT INTO call_participants (call_id, user_id, identity) VALUES ($1, 'olga', 'olga')", (foreign.id,)),
            ("INSERT INTO call_participants (call_id, user_id, identity) VALUES ($1, 'ghost', 'ghost')", (call.id,)),
            (_LINK[0], (foreign.id, _LINK[1])),
            (_FILE, (foreign.id, "olga", "k", "public")),
            (_METRIC, (call.id, tenant_id(), 1.0, 4.0)),
        ):
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                async with tx.transaction():
                    await tx.execute(statement, *values)


async def test_a_user_whom_others_need_cannot_be_deleted(db: Database) -> None:
    """S-014: a deleted user takes their own contacts along; where others' data hangs on them it fails."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        await let_in(tx, call, "bob")
        await users.seen(tx, "carol")
        await tx.execute("INSERT INTO contacts (owner_id, contact_user_id) VALUES ('olga', 'carol')")
        for user_id in ("olga", "bob", "carol"):
            # PostgreSQL 18 has a code of its own for RESTRICT.
            with pytest.raises((asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError)):
                async with tx.transaction():
                    await tx.execute("DELETE FROM users WHERE id = $1", user_id)
        await tx.execute("UPDATE calls SET owner_id = 'carol'")
        await tx.execute("DELETE FROM users WHERE id = 'olga'")
        assert await tx.fetchval("SELECT count(*) FROM contacts") == 0
        assert await tx.fetchval("SELECT count(*) FROM calls") == 1


async def test_the_same_names_in_two_tenants_do_not_meet(db: Database) -> None:
    """S-008: unique keys hold the tenant, so they tell nothing about another one."""
    for _ in range(2):
        async with db.tenant(tenant_id(), "olga") as tx:
            call = await make_call(tx)
            await let_in(tx, call, "bob")
            await tx.execute(_FILE, call.id, "olga", "same/key", "public")
            await tx.execute("INSERT INTO contacts (owner_id, contact_user_id) VALUES ('olga', 'bob')")
            with pytest.raises(asyncpg.UniqueViolationError):
                async with tx.transaction():
                    await tx.execute("INSERT INTO contacts (owner_id, contact_user_id) VALUES ('olga', 'bob')")


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("packet_loss_pct", 0.0, 140.0),
        ("packet_loss_pct", 100.0, -0.1),
        ("packet_loss_pct", 1.0, float("nan")),
        ("jitter_ms", 12.5, -1.0),
        ("latency_ms", 80.0, float("nan")),
        ("bandwidth_kbps", 2500.0, -1.0),
        ("video_fps", 30.0, float("inf")),
        ("video_width", 1280, -1),
        ("audio_bitrate_kbps", 48.0, -2.0),
        ("video_bitrate_kbps", 1500.0, float("nan")),
        ("connection_type", "relay", "carrier pigeon"),
        ("ice_state", "completed", "fine"),
        ("quality_score", 5.0, 5.1),
        ("quality_score", 0.0, float("nan")),
    ],
)
async def test_a_metric_out_of_its_bounds_is_refused(db: Database, column: str, good: object, bad: object) -> None:
    """S-006, S-087, S-088, S-089, S-090, S-093, S-094, S-095: what a quality report may hold, by the table itself."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        person = await let_in(tx, call, "bob")
        columns = "call_id, participant_id, quality_score" if column != "quality_score" else "call_id, participant_id"
        values = "$1, $2, 4" if column != "quality_score" else "$1, $2"
        statement = f"INSERT INTO quality_metrics ({columns}, {column}) VALUES ({values}, $3) RETURNING {column}"
        assert await tx.fetchval(statement, call.id, person.id, good) == good
        with pytest.raises(asyncpg.CheckViolationError):
            await tx.fetchval(statement, call.id, person.id, bad)


async def test_a_plain_password_cannot_be_stored_in_a_link(db: Database) -> None:
    """S-005: only the shape of a bcrypt hash fits, a password link needs one, and uses never pass their limit."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        insert = (
            "INSERT INTO shareable_links (call_id, creator_id, short_code, access_type, password_hash, max_uses)"
            " VALUES ($1, 'olga', 'abcd1234', 'password', $2, 3)"
        )
        for password_hash in (None, "secret123"):
            with pytest.raises(asyncpg.CheckViolationError):
                async with tx.transaction():
                    await tx.execute(insert, call.id, password_hash)
        await tx.execute(insert, call.id, "$2b$12$" + "a" * 53)
        await tx.execute("UPDATE shareable_links SET use_count = 3, click_count = 9, unique_visitors = 2")
        with pytest.raises(asyncpg.CheckViolationError):
            await tx.execute("UPDATE shareable_links SET use_count = 4")


async def test_a_file_row_holds_what_scanning_and_expiry_need(db: Database) -> None:
    """S-004: uploader, call, name, size, types, hash, key, access level, scan and expiry; a ready file has its hash."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        file_id = await tx.fetchval(_FILE, call.id, "olga", "t/c/f", "call_participants")
        with pytest.raises(asyncpg.CheckViolationError):
            async with tx.transaction():
                await tx.execute("UPDATE files SET status = 'ready'")
        await tx.execute(
            "UPDATE files SET status = 'ready', sha256 = $2, scan_status = 'clean', expires_at = $3 WHERE id = $1",
            file_id,
            "ab" * 32,
            NOW,
        )
        row = await tx.fetchrow("SELECT * FROM files")
        assert row is not None
        assert (row["uploader_id"], row["call_id"], row["name"], row["size_bytes"]) == ("olga", call.id, "notes.txt", 5)
        assert (row["scan_status"], row["access_level"], row["expires_at"]) == ("clean", "call_participants", NOW)
