"""Servers of its own for whoever breaks them."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from db import migrate
from hub.embedded import LiveKit, Postgres, Valkey, free_port
from tests.conftest import APP_PASSWORD, CARELESS, OWNER_PASSWORD, TestDatabase, copied_database, database_of
from tests.e2e.stage import Stage

DATABASE = "hub_faults"


@dataclass(frozen=True)
class Servers:
    """To be frozen, stopped and killed."""

    postgres: Postgres
    valkey: Valkey
    livekit: LiveKit


@pytest.fixture(scope="module")
def servers(livekit_path: Path) -> Iterator[Servers]:
    with ExitStack() as stack:

        def directory(name: str) -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"auralink-{name}-")))

        postgres = stack.enter_context(Postgres(directory("pg"), settings=CARELESS))
        valkey = stack.enter_context(Valkey(directory("valkey"), settings={"appendonly": "no"}))
        url = f"http://127.0.0.1:{free_port()}/webhooks/livekit"
        livekit = stack.enter_context(LiveKit(directory("livekit"), binary=livekit_path, webhook_url=url))
        yield Servers(postgres, valkey, livekit)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own_database(servers: Servers) -> TestDatabase:
    """In the server that may be broken."""
    postgres = servers.postgres
    await migrate.bootstrap(postgres.dsn(), DATABASE, owner_password=OWNER_PASSWORD, app_password=APP_PASSWORD)
    await migrate.up(postgres.dsn("hub_owner", DATABASE, password=OWNER_PASSWORD))
    return database_of(postgres, DATABASE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def breakable(servers: Servers, own_database: TestDatabase) -> AsyncIterator[Stage]:
    """A stage on servers of its own. No node runs yet."""
    stage = Stage(own_database, servers.valkey.url, servers.livekit, f"f{secrets.token_hex(5)}")
    try:
        yield stage
    finally:
        await stage.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deaf(postgres: Postgres, template: str, valkey: Valkey, livekit: LiveKit) -> AsyncIterator[Stage]:
    """A stage whose nodes never hear a webhook: nobody listens where LiveKit reports to. No node runs yet."""
    async with copied_database(postgres, template) as database:
        stage = Stage(database, valkey.url, livekit, f"d{secrets.token_hex(5)}")
        try:
            yield stage
        finally:
            await stage.close()
