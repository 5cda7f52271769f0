"""Applying the migrations: by one runner at a time, each in a transaction, never one that was edited since.

The server splits the statements of a file, not we: asyncpg's `execute` sends it whole. Files stay runnable by plain
`psql -f`; for that they carry their own `BEGIN;` and `COMMIT;` lines, which the runner blanks out because the entry in
`schema_migrations` must be part of the same transaction. A file whose first line is `-- migrate:no-transaction` runs
outside of one; it holds a single statement (PostgreSQL would put several into one transaction of its own).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import asyncpg
import msgspec

from db.errors import MigrationError as MigrationError
from db.pool import Transaction

FILES = Path(__file__).parent / "migrations"
_FILE_NAME = re.compile(r"(\d{3,})_[a-z0-9_]+\.sql")
_NO_TRANSACTION = "-- migrate:no-transaction"
# Whole lines only: inside a function body BEGIN has no semicolon.
_BEGIN_OR_COMMIT = re.compile(r"^(BEGIN|COMMIT);[ \t]*$", re.MULTILINE)
# Any number that nobody else in this database uses for advisory locks ("auralink" in ASCII).
_LOCK_KEY = 0x6175_7261_6C69_6E6B
_CONNECT_S = 10.0

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version     integer PRIMARY KEY,
    name        text NOT NULL,
    checksum    text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    duration_ms integer NOT NULL
);
-- Its owner reads it; for everybody else it is empty, and the function below tells what the app has to know.
ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY;
CREATE OR REPLACE FUNCTION migrations_applied() RETURNS SETOF schema_migrations
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT * FROM public.schema_migrations ORDER BY version $$;
"""
_APPLIED = "SELECT version, name, checksum, applied_at FROM migrations_applied()"
_RECORD = "INSERT INTO schema_migrations (version, name, checksum, duration_ms) VALUES ($1, $2, $3, $4)"


State = Literal["applied", "pending", "edited", "missing", "late", "newer"]
"""`newer`: applied by a later version of the code, which has files that we do not know. `missing`: a file is gone."""


class Migration(msgspec.Struct, frozen=True):
    """One file. `sql` is what is sent: as long as the file, so that positions in it are positions in the file."""

    version: int
    name: str
    sql: str
    checksum: str
    in_transaction: bool


class Applied(msgspec.Struct, frozen=True):
    version: int
    name: str
    checksum: str
    applied_at: datetime


class Status(msgspec.Struct, frozen=True):
    version: int
    name: str
    state: State
    applied_at: datetime | None


def read(directory: Path = FILES) -> list[Migration]:
    """The migrations of a directory in their order. Raises MigrationError for a strange name or a number used twice."""
    found: dict[int, Migration] = {}
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name}: a migration is named like 012_what_it_does.sql")
        version = int(match[1])
        if version in found:
            raise MigrationError(f"{path.name}: the number {version} is taken by {found[version].name}")
        text = path.read_bytes().decode().replace("\r\n", "\n")
        found[version] = Migration(
            version=version,
            name=path.name,
            sql=_BEGIN_OR_COMMIT.sub(lambda line: " " * len(line[0]), text),
            checksum=hashlib.sha256(text.encode()).hexdigest(),
            in_transaction=not text.startswith(_NO_TRANSACTION),
        )
    if not found:
        raise MigrationError(f"no migrations in {directory}")
    return [found[version] for version in sorted(found)]


async def up(
    dsn: str, *, directory: Path = FILES, lock_wait_s: float = 60.0, lock_timeout_s: float = 5.0
) -> list[Migration]:
    """Apply what is pending and return it. Needs a direct connection: a transaction pooler loses the lock.

    `lock_wait_s` is the patience for another runner, `lock_timeout_s` that for a table which somebody is using:
    waiting longer would hold up everybody behind us.
    """
    migrations = await asyncio.to_thread(read, directory)
    async with _connected(dsn) as connection:
        await _take_lock(connection, lock_wait_s)
        await connection.execute(_LEDGER)
        # Only now: whoever had the lock before may have applied some.
        applied = await _read_applied(connection)
        _refuse_a_changed_past(_compare(migrations, applied))
        await connection.execute(f"SET lock_timeout = {int(lock_timeout_s * 1000)}")
        known = {entry.version for entry in applied}
        pending = [migration for migration in migrations if migration.version not in known]
        for migration in pending:
            await _apply(connection, migration)
        # To the app role the ledger is a table like any other: readable, and empty without a policy.
        await connection.execute("GRANT SELECT ON schema_migrations TO hub_app")
        return pending


async def status(dsn: str, *, directory: Path = FILES) -> list[Status]:
    """What became of each migration, in order. Any role may ask."""
    async with _connected(dsn) as connection:
        return await _look(connection, directory)


async def check(dsn: str, *, directory: Path = FILES) -> list[str]:
    """What keeps this database from being up to date, in words; empty when nothing does."""
    async with _connected(dsn) as connection:
        return _told(await _look(connection, directory), but=("applied",))


async def problems(tx: Transaction, *, directory: Path = FILES) -> list[str]:
    """`check` on a connection that is already there, but for what a newer version applied: migrations leave the code
    before them working, and its nodes must be able to start again while they are replaced one by one."""
    return _told(await _look(tx, directory), but=("applied", "newer"))


async def newer(tx: Transaction, *, directory: Path = FILES) -> list[str]:
    """The names of what a newer version applied."""
    return [entry.name for entry in await _look(tx, directory) if entry.state == "newer"]


async def _look(tx: Transaction, directory: Path) -> list[Status]:
    return _compare(await asyncio.to_thread(read, directory), await _read_applied(tx))


def _told(found: list[Status], *, but: tuple[State, ...]) -> list[str]:
    return [f"{entry.name}: {entry.state}" for entry in found if entry.state not in but]


def _compare(migrations: list[Migration], applied: list[Applied]) -> list[Status]:
    by_version = {entry.version: entry for entry in applied}
    newest, newest_file = max(by_version, default=0), migrations[-1].version
    found: list[Status] = []
    for migration in migrations:
        entry = by_version.pop(migration.version, None)
        if entry is None:
            state: State = "late" if migration.version < newest else "pending"
            found.append(Status(migration.version, migration.name, state, None))
        else:
            same = entry.checksum == migration.checksum and entry.name == migration.name
            found.append(Status(migration.version, migration.name, "applied" if same else "edited", entry.applied_at))
    for entry in by_version.values():
        state = "newer" if entry.version > newest_file else "missing"
        found.append(Status(entry.version, entry.name, state, entry.applied_at))
    return sorted(found, key=lambda entry: entry.version)


_REFUSALS = {
    "edited": "was edited (or renamed) after it had been applied; put it back and write a new migration",
    "missing": "was applied and its file is gone; put it back",
    "newer": "was applied by a newer version; this code is older than the database",
    "late": "has a lower number than one that is applied already; give it the next free number",
}


def _refuse_a_changed_past(found: list[Status]) -> None:
    wrong = [f"{entry.name} {_REFUSALS[entry.state]}" for entry in found if entry.state in _REFUSALS]
    if wrong:
        raise MigrationError("; ".join(wrong))


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    started = time.monotonic()

    async def record() -> None:
        took_ms = int((time.monotonic() - started) * 1000)
        await connection.execute(_RECORD, migration.version, migration.name, migration.checksum, took_ms)

    try:
        if not migration.in_transaction:
            await connection.execute(migration.sql)
            await record()
            return
        async with connection.transaction():
            ours = await connection.fetchval("SELECT pg_current_xact_id()::text")
            await connection.execute(migration.sql)
            if await connection.fetchval("SELECT pg_current_xact_id_if_assigned()::text") != ours:
                raise MigrationError(
                    f"{migration.name}: ends its transaction half-way; BEGIN; and COMMIT; stand on lines of their own"
                )
            await record()
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{_place(migration, error)}: {error}") from error


def _place(migration: Migration, error: asyncpg.PostgresError) -> str:
    """`file:line` where the server says where; errors met at run time (a duplicate key) have no place, only a name."""
    position = getattr(error, "position", None)
    if position is None:
        return migration.name
    # The server counts characters from 1.
    return f"{migration.name}:{migration.sql.count(chr(10), 0, int(position) - 1) + 1}"


async def _read_applied(connection: Transaction) -> list[Applied]:
    try:
        rows = await connection.fetch(_APPLIED)
    except asyncpg.UndefinedFunctionError:
        return []
    return [Applied(*row) for row in rows]


async def _take_lock(connection: asyncpg.Connection[asyncpg.Record], wait_s: float) -> None:
    # Asking again and again instead of waiting in the server: a waiting statement holds a snapshot, and the
    # CREATE INDEX CONCURRENTLY of whoever has the lock waits for all snapshots.
    deadline = time.monotonic() + wait_s
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK_KEY):
        if time.monotonic() > deadline:
            raise MigrationError(f"another migration run has held the lock for {wait_s:.0f} s")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def _connected(dsn: str, database: str | None = None) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection of its own; `database` wins over the one that the DSN names."""
    settings = {"application_name": "auralink-hub migrate"}
    try:
        connection = await asyncpg.connect(dsn, database=database, timeout=_CONNECT_S, server_settings=settings)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise MigrationError(f"cannot reach the database: {str(error) or type(error).__name__}") from error
    try:
        yield connection
    finally:
        # The advisory lock goes with the connection.
        if not connection.is_closed():
            await connection.close(timeout=5)


# ------------------------------------------------------------------------------------------------------- new databases

_ROLES = {
    # NOINHERIT: the owner may become hub_system to make its functions, but does not see with its eyes.
    "hub_owner": "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT",
    "hub_app": "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS",
    "hub_system": "NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS",
}


async def bootstrap(superuser_dsn: str, database: str, *, owner_password: str, app_password: str) -> None:
    """Make the roles and the database, or bring them to what they should be. May be run at every start."""
    async with _connected(superuser_dsn) as connection:
        await _take_lock(connection, 60.0)
        await _make_roles(connection, {"hub_owner": owner_password, "hub_app": app_password})
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", database):
            await _run(connection, "CREATE DATABASE %I OWNER hub_owner", database)
        await _run(connection, "ALTER DATABASE %I OWNER TO hub_owner", database)
        await _run(connection, "GRANT CONNECT ON DATABASE %I TO hub_app", database)
    async with _connected(superuser_dsn, database) as connection:
        # In name, too: through pg_database_owner a role that inherits nothing would own nothing on PostgreSQL 15.
        await connection.execute("ALTER SCHEMA public OWNER TO hub_owner")
        await connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


async def _make_roles(connection: asyncpg.Connection[asyncpg.Record], passwords: dict[str, str]) -> None:
    for role, attributes in _ROLES.items():
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role}")
        await connection.execute(f"ALTER ROLE {role} {attributes}")
    for role, password in passwords.items():
        await _run(connection, f"ALTER ROLE {role} PASSWORD %L", password)
    await connection.execute("GRANT hub_system TO hub_owner")


async def _run(connection: asyncpg.Connection[asyncpg.Record], template: str, value: str) -> None:
    """A statement that takes no parameters, with the server doing the quoting."""
    await connection.execute(await connection.fetchval("SELECT format($1, $2::text)", template, value))
