"""The contract, held by a real LiveKit and real WebRTC clients."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hub import embedded
from tests.media.contract import *  # noqa: F403
from tests.media.worlds import RealWorld, World


@pytest.fixture
async def world(livekit: embedded.LiveKit) -> AsyncIterator[World]:
    async with RealWorld(livekit) as world:
        yield world
