"""S-013: no list and no look-up reads a large table from end to end, and every foreign key can be followed back."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from db import (
    audit,
    audit_chain,
    bans,
    calls,
    chat,
    contacts,
    files,
    inbox,
    invites,
    link_visits,
    links,
    lobby,
    participants,
    system,
    tombstones,
    users,
)
from db.pool import Database, Transaction
from tests.db.people import NOW
from tests.db.test_statements import _statements

_TENANT = UUID("00000000-0000-0000-0000-000000000003")
_CALL = UUID("00000000-0000-0000-0001-000000005353")
_CALL_OPEN = UUID("00000000-0000-0000-0001-000000005303")
_PERSON = UUID("00000000-0000-0000-0002-000000005353")
_FILE = UUID("00000000-0000-0000-0003-000000000003")
_LARGE = {
    *("calls", "call_participants", "files", "shareable_links", "quality_metrics", "contacts", "users", "audit_log"),
    *("command_results", "livekit_webhook_inbox", "call_bans", "call_room_incarnations", "participant_sessions"),
    *("session_tracks", "lobby_entries", "chat_messages", "uploads", "file_tombstones", "call_file_usage"),
    *("audit_chain", "invites"),
    *("link_visitors", "link_hours", "link_sources"),
}
# Fifty tenants; 40,000 calls, 80,000 participants and metrics, 10,000 of the rest. Triggers and foreign keys are off
# while it is poured in: what matters here is the shape.
_POUR = """
SET session_replication_role = replica;
CREATE FUNCTION pg_temp.tenant(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('00000000-0000-0000-0000-' || lpad((n % 50)::text, 12, '0'))::uuid $$;
CREATE FUNCTION pg_temp.call(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('00000000-0000-0000-0001-' || lpad(n::text, 12, '0'))::uuid $$;
CREATE FUNCTION pg_temp.person(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('00000000-0000-0000-0002-' || lpad(n::text, 12, '0'))::uuid $$;
CREATE FUNCTION pg_temp.at(n bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
    $$ SELECT '2026-01-01Z'::timestamptz + n * interval '30 seconds' $$;
INSERT INTO tenants (id) SELECT pg_temp.tenant(n) FROM generate_series(0, 49) n;
INSERT INTO users (tenant_id, id) SELECT pg_temp.tenant(n), 'user' || n / 50 FROM generate_series(0, 9999) n;
INSERT INTO calls (id, tenant_id, owner_id, name, status, livekit_room_name, created_at, started_at, ended_at)
    SELECT pg_temp.call(n), pg_temp.tenant(n), 'user' || n / 50 % 20, 'call ' || n,
           CASE WHEN n % 100 = 3 THEN 'active' ELSE 'ended' END, 'room_' || n || '_1', pg_temp.at(n), pg_temp.at(n),
           CASE WHEN n % 100 <> 3 THEN pg_temp.at(n + 10) END
    FROM generate_series(0, 39999) n;
INSERT INTO call_participants (id, tenant_id, call_id, user_id, identity, status, call_created_at)
    SELECT pg_temp.person(n), pg_temp.tenant(n / 2), pg_temp.call(n / 2), 'user' || (n / 100 + n % 2) % 20,
           'user' || n, 'left', pg_temp.at(n / 2)
    FROM generate_series(0, 79999) n;
INSERT INTO quality_metrics (tenant_id, call_id, participant_id, recorded_at, quality_score)
    SELECT pg_temp.tenant(n / 2), pg_temp.call(n / 2), pg_temp.person(n), pg_temp.at(n), 4
    FROM generate_series(0, 79999) n;
INSERT INTO files (tenant_id, call_id, uploader_id, name, size_bytes, mime_type, storage_key, created_at, expires_at,
                   scan_status, preview_status, preview_storage_key, access_level, id)
    SELECT pg_temp.tenant(n), pg_temp.call(n), 'user' || n / 50 % 20, 'f', 1, 'text/plain', 'k/' || n, pg_temp.at(n),
           pg_temp.at(n + 100000000), CASE WHEN n % 100 = 3 THEN 'pending' ELSE 'clean' END,
           CASE WHEN n % 100 = 4 THEN 'pending' ELSE 'none' END, 'p/' || n, 'public',
           ('00000000-0000-0000-0003-' || lpad(n::text, 12, '0'))::uuid
    FROM generate_series(0, 9999) n;
INSERT INTO uploads (tenant_id, call_id, uploader_id, source, name, mime_type, size_bytes, access_level, storage_key,
                     expires_at)
    SELECT pg_temp.tenant(n), pg_temp.call(n), 'user' || n / 50 % 20, 'rest', 'f', 'text/plain', 1, 'public', 'u/' || n,
           pg_temp.at(n)
    FROM generate_series(0, 9999) n;
INSERT INTO file_tombstones (tenant_id, file_id, storage_key, next_attempt_at)
    SELECT pg_temp.tenant(n), pg_temp.person(n), 'g/' || n, pg_temp.at(n) FROM generate_series(0, 9999) n;
INSERT INTO call_file_usage (tenant_id, call_id)
    SELECT pg_temp.tenant(n), pg_temp.call(n) FROM generate_series(0, 9999) n;
INSERT INTO shareable_links (id, tenant_id, call_id, creator_id, short_code)
    SELECT pg_temp.person(n), pg_temp.tenant(n), pg_temp.call(n), 'user' || n / 50 % 20, lpad(n::text, 8, '0')
    FROM generate_series(0, 9999) n;
INSERT INTO link_visitors (tenant_id, link_id, day, visitor, opened)
    SELECT pg_temp.tenant(n), pg_temp.person(n), '2026-03-01', uuid_send(pg_temp.call(n)), false
    FROM generate_series(0, 9999) n;
INSERT INTO link_hours (tenant_id, link_id, hour, clicks)
    SELECT pg_temp.tenant(n), pg_temp.person(n), '2026-03-01T12:00Z', 1 FROM generate_series(0, 9999) n;
INSERT INTO link_sources (tenant_id, link_id, kind, source, clicks)
    SELECT pg_temp.tenant(n), pg_temp.person(n), 'device', 'mobile', 1 FROM generate_series(0, 9999) n;
INSERT INTO contacts (tenant_id, owner_id, contact_user_id)
    SELECT pg_temp.tenant(n), 'user' || n / 50 % 20, 'user' || n / 50 + 1000 FROM generate_series(0, 9999) n;
INSERT INTO audit_log (tenant_id, actor, action, target_type, target_id)
    SELECT pg_temp.tenant(n), 'user' || n / 50 % 20, 'a', 'call', n::text FROM generate_series(0, 9999) n;
INSERT INTO audit_chain (tenant_id, seq, audit_id, prev_hash, hash)
    SELECT tenant_id, row_number() OVER (PARTITION BY tenant_id ORDER BY id), id, sha256('a'), sha256('b')
    FROM audit_log;
INSERT INTO audit_heads (tenant_id, seq, hash) SELECT tenant_id, max(seq), sha256('b') FROM audit_chain GROUP BY 1;
INSERT INTO invites (tenant_id, invite_id, call_id, caller_id, callee_id, status, created_at, expires_at, ended_at)
    SELECT pg_temp.tenant(n), pg_temp.call(n), pg_temp.call(n), 'user' || n / 50 % 20, 'user' || (n / 50 + 7) % 20,
           CASE WHEN n % 5000 = 3 THEN 'ringing' ELSE 'missed' END, pg_temp.at(n), pg_temp.at(n) + interval '9 years',
           CASE WHEN n % 5000 <> 3 THEN pg_temp.at(n) END
    FROM generate_series(0, 9999) n;
INSERT INTO command_results (tenant_id, user_id, key, command, payload_hash, answer, leased_until, expires_at)
    SELECT pg_temp.tenant(n), 'user' || n / 50 % 20, n::text, 'c', '', '', pg_temp.at(n), pg_temp.at(n)
    FROM generate_series(0, 9999) n;
INSERT INTO call_bans (tenant_id, call_id, user_id, banned_by)
    SELECT pg_temp.tenant(n), pg_temp.call(n), 'user' || n, 'x' FROM generate_series(0, 9999) n;
INSERT INTO livekit_webhook_inbox (event_id, event, room_name, payload, tenant_id, call_id, status, received_at,
                                   finished_at)
    SELECT 'E' || n, 'e', 'room_' || n || '_1', '', pg_temp.tenant(n), pg_temp.call(n),
           CASE WHEN n % 1000 = 3 THEN 'pending' ELSE 'done' END, pg_temp.at(n),
           CASE WHEN n % 1000 <> 3 THEN pg_temp.at(n) END
    FROM generate_series(0, 9999) n;
INSERT INTO lobby_entries (tenant_id, call_id, user_id, display_name, status, expires_at)
    SELECT pg_temp.tenant(n), pg_temp.call(n), 'user' || n, 'x',
           CASE WHEN n % 100 = 3 THEN 'waiting' ELSE 'admitted' END, pg_temp.at(n)
    FROM generate_series(0, 9999) n;
INSERT INTO chat_messages (tenant_id, call_id, sender_id, display_name, text, sent_at)
    SELECT pg_temp.tenant(n % 2000), pg_temp.call(n % 2000 + 4000), 'user7', 'x', 'x', pg_temp.at(n)
    FROM generate_series(0, 19999) n;
INSERT INTO call_room_incarnations (tenant_id, call_id, room_sid, first_seen, known_at)
    SELECT pg_temp.tenant(n), pg_temp.call(n), 'RM_' || n, now(), now() FROM generate_series(0, 9999) n;
INSERT INTO participant_sessions (tenant_id, call_id, part_sid, room_sid, identity, known_at)
    SELECT pg_temp.tenant(n), pg_temp.call(n), 'PA_' || n, 'RM_' || n, 'i', now() FROM generate_series(0, 9999) n;
INSERT INTO session_tracks (tenant_id, call_id, track_sid, part_sid, source, known_at)
    SELECT pg_temp.tenant(n), pg_temp.call(n), 'TR_' || n, 'PA_' || n, 'camera', now() FROM generate_series(0, 9999) n;
"""


@pytest.fixture
async def large(database: Any) -> Any:
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        await admin.execute(_POUR)
        await admin.execute("VACUUM ANALYZE")
    finally:
        await admin.close()
    return database


async def _plan(tx: Transaction, statement: str) -> str:
    """The plan made without knowing the values: what a prepared statement runs by, sooner or later."""
    highest = max((int(number) for number in re.findall(r"\$(\d+)", statement)), default=0)
    await tx.execute(f"PREPARE looked_at AS {statement}")
    try:
        values = f"({', '.join(['NULL'] * highest)})" if highest else ""
        return "\n".join(row[0] for row in await tx.fetch(f"EXPLAIN EXECUTE looked_at{values}"))
    finally:
        await tx.execute("DEALLOCATE looked_at")


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_no_statement_reads_a_large_table_from_end_to_end(large: Any) -> None:
    """S-013: the plans of every statement of db/, then what running the lists really touched, functions included."""
    db = await Database.open(large.app_dsn, statement_timeout_s=10)
    try:
        async with db.tenant(_TENANT, "user7") as tx:
            await tx.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            looked_at = 0
            for name, statement in _statements().items():
                if not re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH)\b", statement):
                    continue
                plan = await _plan(tx, statement)
                looked_at += 1
                for table in re.findall(r"Seq Scan on (\w+)", plan):
                    assert table not in _LARGE, f"{name}\n{plan}"
            assert looked_at > 50
        for name, run in _RUNS.items():
            # Twice with different memories: with fresh plans and with those of prepared statements.
            for mode in ("force_custom_plan", "force_generic_plan"):
                async with db.tenant(_TENANT, "user7") as tx:
                    await tx.execute("SELECT set_config('plan_cache_mode', $1, true)", mode)
                    before = await _scans(tx)
                    found = await run(tx)
                    assert found, f"{name} found nothing: it proves nothing"
                    after = await _scans(tx)
                assert {table: count for table, count in after.items() if count != before[table]} == {}, name
    finally:
        await db.close()


async def _scans(tx: Transaction) -> dict[str, int]:
    rows = await tx.fetch("SELECT relname, seq_scan FROM pg_stat_xact_user_tables")
    return {row["relname"]: row["seq_scan"] for row in rows if row["relname"] in _LARGE}


# The first of user7.
_CALL_OF_LINK = UUID("00000000-0000-0000-0001-000000000353")
_OF_LINK = UUID("00000000-0000-0000-0002-000000000353")
_LATER = NOW + timedelta(days=9999)
_RUNS: dict[str, Callable[[Transaction], Awaitable[Any]]] = {
    "GET /rooms": lambda tx: calls.page(tx, user_id="user7", limit=50),
    "GET /rooms, bans": lambda tx: calls.page(tx, user_id="user7", not_banned_at=_LATER, limit=50),
    "GET /rooms?status=": lambda tx: calls.page(tx, user_id="user7", status="ended", limit=50),
    "GET /rooms?q=": lambda tx: calls.page(tx, user_id="user7", text="call", limit=50),
    "GET /rooms?cursor=": lambda tx: calls.page(tx, user_id="user7", after=(_LATER, _CALL), limit=50),
    "GET /admin/rooms": lambda tx: calls.page(tx, limit=50),
    "GET /admin/rooms?status=": lambda tx: calls.page(tx, status="active", limit=50),
    "GET /rooms/{id}": lambda tx: calls.get(tx, _CALL),
    "GET /rooms/{name}": lambda tx: calls.by_room_name(tx, "room_5353_1"),
    "GET /rooms/{id}/participants": lambda tx: participants.page(tx, _CALL, limit=50),
    "everybody in a call": lambda tx: participants.of_call(tx, _CALL),
    "somebody in a call": lambda tx: participants.by_identity(tx, _CALL, "user10706"),
    "users": lambda tx: users.by_ids(tx, ["user7"]),
    "bans": lambda tx: bans.active(tx, _CALL, "user5353", NOW),
    "GET /admin/audit": lambda tx: audit.page(tx, limit=50),
    "GET /admin/audit?actor=": lambda tx: audit.page(tx, actor="user7", limit=50),
    "GET /admin/audit/export": lambda tx: audit_chain.links(tx, after_seq=0, limit=50),
    "entries without a link": lambda tx: audit_chain.unlinked(tx, after_id=0, limit=50),
    "tenants with a log": lambda tx: audit_chain.tenants(tx),
    "GET /contacts": lambda tx: contacts.page(tx, limit=50),
    "GET /contacts?status=": lambda tx: contacts.page(tx, status="pending", limit=50),
    "how many contacts": lambda tx: contacts.count(tx),
    "GET /invites": lambda tx: invites.page(tx, limit=50),
    "GET /invites?status=": lambda tx: invites.page(tx, direction="incoming", status="missed", limit=50),
    "what rings for those who come": lambda tx: invites.ringing(tx, [(_TENANT, f"user{n}") for n in range(20)], 50),
    "what has rung long enough": lambda tx: invites.end_ringing(tx, _LATER, 1),
    "old call logs": lambda tx: invites.forget(tx, _LATER, 10),
    "GET /admin/inbox": lambda tx: inbox.page_of_tenant(tx, limit=50),
    "room name to tenant": lambda tx: system.call_by_room_name(tx, "room_77_1"),
    "moving calls": lambda tx: system.moving_calls(tx, ["room_77_1"]),
    "inbox depth": lambda tx: inbox.depth(tx),
    "inbox list": lambda tx: inbox.page(tx, limit=50),
    "inbox claim": lambda tx: inbox.claim(tx, 10, 0),
    "kept answers": lambda tx: system.forget_results(tx, _LATER, 10),
    "GET /files?call_id=": lambda tx: files.of_call(tx, _CALL, now=NOW, takes_part=False, limit=50),
    "GET /files": lambda tx: files.of_uploader(tx, "user7", now=NOW, limit=50),
    "expired uploads": lambda tx: system.expired_uploads(tx, _LATER, 10),
    "expired files": lambda tx: system.expired_files(tx, _LATER + timedelta(days=99_999), 10),
    "tombstones": lambda tx: system.due_tombstones(tx, _LATER, 10),
    "tombstones of a file": lambda tx: tombstones.of_file(tx, _PERSON, _LATER),
    "files to scan": lambda tx: system.claim_files(tx, _LATER, 10, 5),
    "files to show in small": lambda tx: system.claim_files(tx, _LATER, 10, 5, scans=False),
    "keys in use": lambda tx: system.held_keys(tx, ["k/7", "p/8", "u/9"]),
    "calls of keys of the store": lambda tx: system.known_calls(tx, [(_TENANT, _CALL), (_TENANT, _CALL_OPEN)]),
    "keys of the store": lambda tx: system.known_keys(tx, ["k/7", "p/8", "u/9", "g/10"]),
    "a public file": lambda tx: system.public_file(tx, _FILE),
    "GET /rooms/{id}/lobby": lambda tx: lobby.queue(tx, _CALL_OPEN),
    "one of those who knocked": lambda tx: lobby.of_user(tx, _CALL_OPEN, "user5303"),
    "lobbies due": lambda tx: lobby.due(tx, _LATER, 10),
    "GET /rooms/{id}/messages": lambda tx: chat.page(tx, _CALL, limit=50),
    "old messages": lambda tx: chat.forget(tx, _LATER, 10),
    "GET /links": lambda tx: links.page(tx, "user7", limit=50),
    "GET /links?call_id=": lambda tx: links.page(tx, "user7", call_id=_CALL_OF_LINK, limit=50),
    "links to a call": lambda tx: links.count_of_call(tx, _CALL_OF_LINK, "user7"),
    "code to link": lambda tx: links.live(tx, "00000303"),
    "terms of a link": lambda tx: links.terms(tx, _OF_LINK),
    "visits of a link": lambda tx: link_visits.series(tx, _OF_LINK, "day", NOW, _LATER, 50),
    "sources of a link": lambda tx: link_visits.sources(tx, _OF_LINK, "device", 50),
    "old visits": lambda tx: link_visits.forget(tx, _LATER.date(), _LATER, 10),
    "old webhooks": lambda tx: inbox.forget(tx, _LATER, 10),
}


async def test_every_foreign_key_has_an_index_on_its_columns(db: Database) -> None:
    """S-013: deleting a parent never searches its children row by row."""
    async with db.system() as tx:
        keys = await tx.fetch(
            "SELECT conname FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace"
        )
        bare = await tx.fetch(
            "SELECT c.conrelid::regclass::text AS child, c.conname FROM pg_constraint c"
            " WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace AND NOT EXISTS ("
            "   SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indpred IS NULL AND i.indisvalid"
            "   AND (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey)"
        )
    assert len(keys) >= 15
    assert [tuple(row) for row in bare] == []
