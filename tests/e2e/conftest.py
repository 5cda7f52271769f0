"""The stage of the end-to-end tests: fresh databases, real servers, hubs as processes."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hub.embedded import LiveKit, Postgres, Valkey
from tests.conftest import TestDatabase, copied_database
from tests.e2e.stage import Stage


@pytest.fixture
async def stage(database: TestDatabase, valkey: Valkey, livekit: LiveKit, env_name: str) -> AsyncIterator[Stage]:
    """With the shared LiveKit. No node runs yet."""
    stage = Stage(database, valkey.url, livekit, env_name)
    try:
        yield stage
    finally:
        await stage.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_stage(postgres: Postgres, template: str, valkey: Valkey, livekit: LiveKit) -> AsyncIterator[Stage]:
    """One stage for all tests of a module that run on its loop (`loop_scope="module"`). No node runs yet."""
    async with copied_database(postgres, template) as database:
        stage = Stage(database, valkey.url, livekit, f"m{secrets.token_hex(5)}")
        try:
            yield stage
        finally:
            await stage.close()


@pytest_asyncio.fixture(loop_scope="module")
async def hub(module_stage: Stage) -> AsyncIterator[Stage]:
    """The module's stage with one node; its people go home after each test."""
    if not module_stage.nodes:
        await module_stage.node()
    yield module_stage
    await module_stage.send_home()
