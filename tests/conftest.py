"""What every test may lean on: a real PostgreSQL with a migrated database of its own, a real Valkey, a real LiveKit.

Servers start once per pytest process (so once per xdist worker) and only when a test asks for them.
"""

from __future__ import annotations

import itertools
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from hub.embedded import Postgres, Valkey

OWNER_PASSWORD = "owner-of-the-tests"
APP_PASSWORD = "app-of-the-tests"
TEMPLATE = "hub_template"
# Tests lose nothing that anybody needs when the machine dies.
_CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
_serial = itertools.count(1)


@dataclass(frozen=True)
class TestDatabase:
    """A migrated database that only this test sees: the owner migrates, the app runs the hub, the admin may all."""

    __test__ = False

    name: str
    owner_dsn: str
    app_dsn: str
    admin_dsn: str


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server itself, for tests that make their own databases; most want `database`. Never stop or kill this one."""
    # Not under pytest's own directory: that is closed to the user PostgreSQL becomes where root has no namespaces.
    with (
        tempfile.TemporaryDirectory(prefix="auralink-pg-") as directory,
        Postgres(Path(directory), settings=_CARELESS) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A shared Valkey: never flush it, take `env_name` as the prefix. To kill one, start a `Valkey(dir)`."""
    with (
        tempfile.TemporaryDirectory(prefix="auralink-valkey-") as directory,
        Valkey(Path(directory), settings={"appendonly": "no"}) as server,
    ):
        yield server


@pytest.fixture
def env_name() -> str:
    """An environment name nobody else has: keys and channels of this test begin `aura:<env_name>:`."""
    return f"t{secrets.token_hex(5)}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(postgres: Postgres) -> str:
    """The name of a database with every migration applied, to be copied."""
    # Late, so that tests without a database do not need the migrations to be sound.
    from db import migrate

    await migrate.bootstrap(postgres.dsn(), TEMPLATE, owner_password=OWNER_PASSWORD, app_password=APP_PASSWORD)
    await migrate.up(postgres.dsn("hub_owner", TEMPLATE, password=OWNER_PASSWORD))
    return TEMPLATE


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[TestDatabase]:
    """A copy of the migrated template (about 40 ms), dropped after the test."""
    name = f"hub_test_{next(_serial)}"
    admin = await asyncpg.connect(postgres.dsn())
    try:
        # wal_log copies block by block; the other strategy would make a checkpoint each time.
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER hub_owner STRATEGY wal_log')
        yield TestDatabase(
            name=name,
            owner_dsn=postgres.dsn("hub_owner", name, password=OWNER_PASSWORD),
            app_dsn=postgres.dsn("hub_app", name, password=APP_PASSWORD),
            admin_dsn=postgres.dsn(database=name),
        )
        await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await admin.close()
