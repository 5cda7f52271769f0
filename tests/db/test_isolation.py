"""S-008: one tenant never sees, changes or makes rows of another, by any table."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from db import audit, bans, chat, idempotency, invites, link_visits, lobby, posture
from db.pool import Database
from tests.db.people import NOW, let_in, make_call, tenant_id
from tests.db.test_schema import _FILE, _LINK, _METRIC

_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1
"""
# Filled by the inbox's own functions or by LiveKit's facts; their isolation is in the catalog test below.
_ELSEWHERE = {"livekit_webhook_inbox", "call_room_incarnations", "participant_sessions", "session_tracks"}
_UPLOAD = """
INSERT INTO uploads (call_id, uploader_id, source, name, mime_type, size_bytes, access_level, storage_key, expires_at)
VALUES ($1, 'olga', 'frames', 'f', 'text/plain', 1, 'public', 'a/u', now())
"""

# What the app role does not even try to change or take away.
_KEPT = {"audit_log", "audit_chain", "audit_heads", "invites"}


async def _fill(db: Database, tenant: UUID) -> None:
    async with db.tenant(tenant, "olga") as tx:
        call = await make_call(tx)
        person = await let_in(tx, call, "bob")
        link = await tx.fetchval(_LINK[0], call.id, uuid4().hex[:8])
        await link_visits.visit(tx, link, NOW.date(), b"v" * 16, opened=True)
        await link_visits.click(tx, link, NOW, new=True, referrer="direct", device="mobile")
        await tx.execute(_FILE, call.id, "olga", "a/b", "public")
        await tx.execute(_FILE, call.id, "olga", "a/c", "private")
        await tx.execute("DELETE FROM files WHERE storage_key = 'a/b'")
        await tx.execute(_UPLOAD, call.id)
        await tx.execute(_METRIC, call.id, person.id, 0.0, 5.0)
        await tx.execute("INSERT INTO contacts (owner_id, contact_user_id) VALUES ('olga', 'bob')")
        await invites.add(tx, uuid4(), call.id, ["bob"], silent=["bob"], admits=False, now=NOW, expires_at=NOW)
        await bans.add(tx, call.id, "mallory", banned_by="olga", reason=None, expires_at=None)
        await chat.add(
            tx,
            call.id,
            sender_id="olga",
            participant_id=None,
            display_name="Olga",
            recipient_id="bob",
            recipient_participant_id=person.id,
            text="psst",
            reply_to=None,
            file_ids=[],
        )
        await lobby.knock(tx, call.id, "eve", display_name="Eve", by_link=False, via_link_id=None, expires_at=NOW)
        await audit.add(tx, actor="olga", action="room:end", target_type="call", target_id=str(call.id))
        await idempotency.claim(tx, "olga", "key", "room:end", b"hash", 5)


async def test_another_tenants_rows_can_be_neither_read_nor_changed_nor_made(db: Database, database: Any) -> None:
    """S-008, S-172: SELECT, UPDATE and DELETE reach 0 rows of the other tenant; INSERT with its id fails."""
    ours, theirs = tenant_id(), tenant_id()
    await _fill(db, ours)
    await _fill(db, theirs)
    async with db.system() as tx:
        tables = [row[0] for row in await tx.fetch(_TABLES)]
    assert len(tables) >= 15
    for table in set(tables) - _ELSEWHERE:
        async with db.tenant(ours, "olga") as tx:
            seen = {row[0] for row in await tx.fetch(f"SELECT tenant_id FROM {table}")}
            assert seen == {ours}, table
            for statement in (
                f"UPDATE {table} SET tenant_id = tenant_id WHERE tenant_id = $1",
                f"DELETE FROM {table} WHERE tenant_id = $1",
            ):
                try:
                    async with tx.transaction():
                        assert (await tx.execute(statement, theirs)).endswith(" 0"), table
                except asyncpg.InsufficientPrivilegeError:
                    # Nobody may at all.
                    assert table in _KEPT or (table, statement[:6]) == ("chat_messages", "UPDATE")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with tx.transaction():
                    await _insert(tx, table, theirs)


async def _insert(tx: Any, table: str, tenant: UUID) -> None:
    """One of our own rows again, under the other tenant's id."""
    columns = [
        row[0]
        for row in await tx.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attgenerated = '' AND attidentity = '' AND attname NOT IN ('id', 'tenant_id')",
            table,
        )
    ]
    names = ", ".join(columns)
    # users have their name as id, everything else makes a new one.
    if table == "users":
        names += ", id"
    await tx.execute(f"INSERT INTO {table} (tenant_id, {names}) SELECT $1, {names} FROM {table} LIMIT 1", tenant)


async def test_without_a_tenant_every_table_is_empty(db: Database) -> None:
    """S-008: no tenant, no rows, on every table the app role can name, the runner's ledger included."""
    await _fill(db, tenant_id())
    async with db.system() as tx:
        tables = await tx.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')"
        )
        assert len(tables) >= 18
        for row in tables:
            assert await tx.fetchval(f"SELECT count(*) FROM {row[0]}") == 0, row[0]


async def test_the_owner_of_the_tables_is_held_by_the_policies_too(db: Database, database: Any) -> None:
    """S-008: FORCE row level security: the migrating role without a tenant sees nothing either."""
    await _fill(db, tenant_id())
    owner = await asyncpg.connect(database.owner_dsn)
    try:
        for table in ("calls", "call_participants", "users", "tenants", "shareable_links", "livekit_webhook_inbox"):
            assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table
    finally:
        await owner.close()


async def test_private_things_are_seen_by_their_owner_only(db: Database) -> None:
    """S-007, S-052: contacts, links, private files and direct messages within one tenant."""
    mine = tenant_id()
    await _fill(db, mine)
    for user_id, expected in (("olga", 1), ("bob", 0), (None, 0)):
        async with db.tenant(mine, user_id) as tx:
            for table in ("contacts", "shareable_links", "files", "uploads", "command_results", "invites"):
                assert await tx.fetchval(f"SELECT count(*) FROM {table}") == expected, (table, user_id)
            # Written by the one to the other.
            assert await tx.fetchval("SELECT count(*) FROM chat_messages") == (user_id is not None)


async def test_what_a_link_takes_away_is_known_to_the_tenant_only(db: Database) -> None:
    from db import links

    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)
        link = await tx.fetchval(_LINK[0], call.id, _LINK[1])
        await tx.execute("UPDATE shareable_links SET enable_chat = false, enable_recording = false")
    async with db.tenant(mine, "bob") as tx:
        assert await links.features_off(tx, link) == {"chat", "recording"}
    async with db.tenant(tenant_id(), "olga") as tx:
        assert await links.features_off(tx, link) == frozenset()


async def test_the_app_role_passes_the_posture_check(db: Database) -> None:
    """S-008, S-172: not a superuser, not an owner, no BYPASSRLS; every table forces its policies."""
    async with db.system() as tx:
        assert await posture.check(tx) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("ALTER TABLE calls NO FORCE ROW LEVEL SECURITY", "table calls does not force row level security"),
        ("ALTER TABLE contacts DISABLE ROW LEVEL SECURITY", "table contacts does not force row level security"),
        ("CREATE VIEW peek AS SELECT * FROM calls", "view peek is not security_invoker"),
        ("CREATE MATERIALIZED VIEW all_calls AS SELECT * FROM calls", "materialized view all_calls shows every tenant"),
        (
            "CREATE FUNCTION peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM calls'",
            "function peek() runs as its owner without a fixed search_path",
        ),
        ("ALTER TABLE users OWNER TO hub_app", "role hub_app owns table users"),
    ],
)
async def test_the_posture_check_finds_a_way_around_the_policies(
    db: Database, database: Any, change: str, found: str
) -> None:
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        await admin.execute(change)
    finally:
        await admin.close()
    async with db.system() as tx:
        assert await posture.check(tx) == [found]


async def test_a_superuser_and_the_owner_do_not_pass(database: Any) -> None:
    for dsn, words in ((database.admin_dsn, "is a superuser"), (database.owner_dsn, "owns table calls")):
        connection = await asyncpg.connect(dsn)
        try:
            problems = await posture.check(connection)
        finally:
            await connection.close()
        assert any(words in problem for problem in problems), problems


async def test_functions_that_run_as_hub_system_are_for_the_app_role_alone(database: Any) -> None:
    """S-008: SECURITY DEFINER functions belong to a role that cannot log in, and PUBLIC may not call them."""
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        rows = await admin.fetch(
            "SELECT proname, pg_get_userbyid(proowner) AS owner,"
            " has_function_privilege('hub_app', oid, 'EXECUTE') AS app,"
            " coalesce(proacl::text LIKE '{=X%' OR proacl::text LIKE '%,=X%', true) AS everybody FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace AND prosecdef AND proname <> 'migrations_applied'"
        )
        assert len(rows) >= 15
        for row in rows:
            assert (row["owner"], row["app"], row["everybody"]) == ("hub_system", True, False), row["proname"]
        assert not await admin.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'hub_system'")
    finally:
        await admin.close()
