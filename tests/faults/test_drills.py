"""A few drills, small and short: the whole set at full size is `scripts/faults`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.drill.figures import table
from tests.faults.drill.ground import Servers, prepare, servers
from tests.faults.drill.plan import Plan
from tests.faults.drill.run import play
from tests.faults.scenarios import SCENARIOS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grounds() -> AsyncIterator[Servers]:
    with servers() as running:
        await prepare(running)
        yield running


# Where the time goes: a node starts in two seconds, and on a machine that many share in ten.
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["killed", "redis_emptied", "half_open", "forged", "soak"])
async def test_the_promises_are_kept_when_it_breaks(grounds: Servers, name: str) -> None:
    """S-184, S-196, S-128: with few people, and over in seconds."""
    outcome = await play(grounds, SCENARIOS[name], Plan(clients=12, seed=1, short=True))
    assert outcome.kept, table(outcome)
