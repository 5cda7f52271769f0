"""A node that could not do its work safely does not start: one line that says why, exit code 1."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import aiohttp
import asyncpg
import pytest

from db import migrate
from hub.embedded import Postgres, Valkey, free_port
from tests.conftest import APP_PASSWORD, OWNER_PASSWORD, TestDatabase
from tests.e2e.stage import JWT_SECRET, ROOT, Stage


@pytest.fixture
def environ(database: TestDatabase, valkey: Valkey, env_name: str) -> dict[str, str]:
    """That of a node which would start."""
    listen = {
        "AURALINK_LISTEN": f"127.0.0.1:{free_port()}",
        "AURALINK_INTERNAL_LISTEN": f"127.0.0.1:{free_port()}",
    }
    return {**Stage(database, valkey.url, None, env_name).environ(), **listen}


async def refusal(environ: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hub", "serve"),
        cwd=ROOT,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(50):
            out, error = await process.communicate()
    except TimeoutError:
        process.kill()
        out, error = await process.communicate()
        raise AssertionError(f"it runs: {(out + error).decode()}") from None
    assert process.returncode == 1, (out + error).decode()
    lines = [line for line in error.decode().splitlines() if line.startswith("auralink-hub: ")]
    assert len(lines) == 1, error.decode()
    assert "Traceback" not in error.decode()
    return lines[0]


async def test_nobody_serves_as_superuser_or_as_the_owner(environ: dict[str, str], database: TestDatabase) -> None:
    """S-172: roles that row level security does not hold."""
    for dsn, word in ((database.admin_dsn, "superuser"), (database.owner_dsn, "own")):
        line = await refusal({**environ, "DATABASE_URL": dsn})
        assert "DATABASE_URL" in line
        assert word in line
        assert OWNER_PASSWORD not in line


async def test_nobody_serves_a_database_without_the_migrations(
    environ: dict[str, str], postgres: Postgres, env_name: str
) -> None:
    """An empty database: the schema is not this version's."""
    await migrate.bootstrap(postgres.dsn(), env_name, owner_password=OWNER_PASSWORD, app_password=APP_PASSWORD)
    line = await refusal({**environ, "DATABASE_URL": postgres.dsn("hub_app", env_name, password=APP_PASSWORD)})
    assert "migrat" in line


async def test_a_node_starts_on_a_database_that_is_newer(environ: dict[str, str], database: TestDatabase) -> None:
    """`migrate up` comes before the new nodes, and an old one may have to restart in between."""
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, checksum, duration_ms) VALUES (999, '999_later.sql', '', 0)"
        )
    finally:
        await connection.close()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hub", "serve"), cwd=ROOT, env=environ, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as client:
            while not await _serves(client, environ["AURALINK_LISTEN"]):
                assert process.returncode is None
                await asyncio.sleep(0.1)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serves(client: aiohttp.ClientSession, listen: str) -> bool:
    try:
        async with client.get(f"http://{listen}/livez") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


_BAD: list[tuple[str, Callable[[dict[str, str]], dict[str, str]], str]] = [
    ("a bad number", lambda it: {**it, "AURALINK_SWEEP_S": "soon"}, "AURALINK_SWEEP_S"),
    ("nothing where something must be", lambda it: {k: v for k, v in it.items() if k != "REDIS_URL"}, "REDIS_URL"),
    ("one secret for two", lambda it: {**it, "LIVEKIT_API_SECRET": JWT_SECRET}, "AURALINK_JWT_SECRET"),
]


async def test_nobody_serves_with_a_setting_that_cannot_be(environ: dict[str, str]) -> None:
    """Each is named, its value not shown where it is a secret."""
    lines = await asyncio.gather(*(refusal(change(environ)) for _, change, _ in _BAD))
    for (what, _, name), line in zip(_BAD, lines, strict=True):
        assert name in line, what
        assert JWT_SECRET not in line


async def test_nobody_serves_where_the_port_is_taken(environ: dict[str, str]) -> None:
    taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with taken:
        port = taken.sockets[0].getsockname()[1]
        assert "AURALINK_LISTEN" in await refusal({**environ, "AURALINK_LISTEN": f"127.0.0.1:{port}"})
