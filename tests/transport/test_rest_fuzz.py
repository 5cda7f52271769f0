"""The REST door against requests that somebody made up out of its own OpenAPI document."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.pool import Database
from tests.conftest import TestDatabase
from tests.transport.door import opened
from tests.transport.fuzzing import fuzz


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_no_request_made_of_the_document_breaks_anything(database: TestDatabase, tmp_path: Path) -> None:
    """S-179, S-193: never a 5xx, bad data refused, good data taken, every answer as documented."""
    db = await Database.open(database.app_dsn)
    try:
        async with opened(db) as door:
            token = door.hub.tokens.issue("ada", hub_role="admin").token
            # The other routes take their time, or break, or refuse on purpose.
            await fuzz(door.url, token, tmp_path, paths="^/api/v1/(things|calls|admin)")
    finally:
        await db.close()
