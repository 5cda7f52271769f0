"""A pool on the migrated database as the hub has it: the app role, under row level security."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from db.pool import Database


@pytest.fixture
async def db(database: Any) -> AsyncIterator[Database]:
    pool = await Database.open(database.app_dsn, max_size=10, statement_timeout_s=5.0, acquire_timeout_s=5.0)
    yield pool
    await pool.close()
