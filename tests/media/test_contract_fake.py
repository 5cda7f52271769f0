"""The contract, held by the fake LiveKit."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.media.contract import *  # noqa: F403
from tests.media.worlds import FakeWorld, World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with FakeWorld() as world:
        yield world
