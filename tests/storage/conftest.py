"""The stores that the one behavioural suite runs over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.local import LocalStore
from storage.store import Store

SECRET = b"signs-the-urls-of-the-storage-tests"


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalStore]:
    async with LocalStore(tmp_path / "store", base_url="http://127.0.0.1/storage", secret=SECRET) as store:
        yield store


@pytest.fixture(params=["local"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found
