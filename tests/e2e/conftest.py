"""The stage of the end-to-end tests: fresh databases, real servers, hubs as processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hub.embedded import LiveKit, Valkey
from tests.conftest import TestDatabase
from tests.e2e.stage import Stage


@pytest.fixture
async def stage(database: TestDatabase, valkey: Valkey, livekit: LiveKit, env_name: str) -> AsyncIterator[Stage]:
    """With the shared LiveKit. No node runs yet."""
    stage = Stage(database, valkey.url, livekit, env_name)
    try:
        yield stage
    finally:
        await stage.close()
