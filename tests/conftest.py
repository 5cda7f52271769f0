"""What every test may lean on: a real PostgreSQL with a migrated database of its own, a real Valkey, a real LiveKit.

Servers start once per pytest process (so once per xdist worker) and only when a test asks for them.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
import structlog
from blockbuster import blockbuster_ctx

from hub.embedded import EmbeddedError, LiveKit, Postgres, Valkey, free_port, livekit_binary

OWNER_PASSWORD = "owner-of-the-tests"
APP_PASSWORD = "app-of-the-tests"
TEMPLATE = "hub_template"
# Tests lose nothing that anybody needs when the machine dies.
CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
_serial = itertools.count(1)
# The path of the server, or the reason why there is none.
_livekit = pytest.StashKey[Path | str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have LiveKit before the first test runs: a build takes minutes, and a test's time limit counts its fixtures."""
    wanted = any("livekit_path" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    try:
        # With several workers only the first one tries where there is no way to build.
        session.config.stash[_livekit] = livekit_binary(lambda line: print(f"LiveKit: {line}"), spare_failure_s=300)
    except EmbeddedError as error:
        session.config.stash[_livekit] = str(error)


@dataclass(frozen=True)
class TestDatabase:
    """A migrated database that only this test sees: the owner migrates, the app runs the hub, the admin may all."""

    __test__ = False

    name: str
    owner_dsn: str
    app_dsn: str
    admin_dsn: str


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """The default draws them with every local variable, which takes up to a second of the loop's time."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call of the hub's own on the event loop is an error; tests, their servers and the command line, which
    has its loop for itself, may block it."""
    with blockbuster_ctx(["hub", "db", "storage"], excluded_modules=["hub.embedded", "hub.cli"]) as blockers:
        for blocker in blockers.functions.values():
            # For every new connection the driver looks for certificates in the home directory, which nothing prevents.
            blocker.can_block_in("asyncpg/connect_utils.py", "_parse_connect_dsn_and_args")
            # A node opens its store before its doors.
            blocker.can_block_in("storage/s3.py", "__aenter__")
            # The traceback of a bug reads the source it shows.
            blocker.can_block_in("structlog/_base.py", "_process_event")
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server itself, for tests that make their own databases; most want `database`. Never stop or kill this one."""
    # Not under pytest's own directory: that is closed to the user PostgreSQL becomes where root has no namespaces.
    with (
        tempfile.TemporaryDirectory(prefix="auralink-pg-") as directory,
        Postgres(Path(directory), settings=CARELESS) as server,
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


@pytest.fixture(scope="session")
def livekit_path(pytestconfig: pytest.Config) -> Path:
    """The LiveKit binary; a test that wants it is skipped, with the reason, where none can be had."""
    found = pytestconfig.stash[_livekit]
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def livekit(livekit_path: Path) -> Iterator[LiveKit]:
    """A shared LiveKit. It reports to `livekit.webhook_url`: start the hub under test on `livekit.webhook_port`.

    Rooms of several tests live in it side by side; to kill, freeze or configure one take `start_livekit`.
    """
    with _livekit_server(livekit_path) as server:
        yield server


@pytest.fixture
def start_livekit(livekit_path: Path) -> Iterator[Callable[..., LiveKit]]:
    """`start_livekit(webhook_url=None, redis=None, **settings)`: a LiveKit for this test alone, stopped after it."""
    with contextlib.ExitStack() as servers:

        def start(webhook_url: str | None = None, redis: str | None = None, **settings: object) -> LiveKit:
            return servers.enter_context(_livekit_server(livekit_path, webhook_url, redis, settings))

        yield start


@contextlib.contextmanager
def _livekit_server(
    binary: Path,
    webhook_url: str | None = None,
    redis: str | None = None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[LiveKit]:
    url = webhook_url or f"http://127.0.0.1:{free_port()}/webhooks/livekit"
    with (
        tempfile.TemporaryDirectory(prefix="auralink-livekit-") as directory,
        LiveKit(Path(directory), binary=binary, webhook_url=url, redis=redis, settings=settings) as server,
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
    async with copied_database(postgres, template) as copy:
        yield copy


@contextlib.asynccontextmanager
async def copied_database(postgres: Postgres, template: str) -> AsyncIterator[TestDatabase]:
    """The same for whom a test's life is too short."""
    name = f"hub_test_{next(_serial)}"
    admin = await asyncpg.connect(postgres.dsn())
    try:
        # wal_log copies block by block; the other strategy would make a checkpoint each time.
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER hub_owner STRATEGY wal_log')
        yield database_of(postgres, name)
        await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await admin.close()


def database_of(postgres: Postgres, name: str) -> TestDatabase:
    return TestDatabase(
        name=name,
        owner_dsn=postgres.dsn("hub_owner", name, password=OWNER_PASSWORD),
        app_dsn=postgres.dsn("hub_app", name, password=APP_PASSWORD),
        admin_dsn=postgres.dsn(database=name),
    )
