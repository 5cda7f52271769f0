"""Nodes of a cluster over a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from hub.cluster import Cluster
from hub.embedded import Valkey
from tests.cluster.hearing import SECRET, Ear

OpenNode = Callable[..., Awaitable[tuple[Cluster, Ear]]]


@pytest.fixture
async def open_node(valkey: Valkey, env_name: str) -> AsyncIterator[OpenNode]:
    """`await open_node("a")` → a node of this test's environment, and what it hears. `url` for another way to Redis."""
    async with AsyncExitStack() as stack:

        async def open_one(
            node_id: str, *, url: str | None = None, secret: bytes = SECRET, recovery_window_s: float = 120.0
        ) -> tuple[Cluster, Ear]:
            ear = Ear()
            cluster = await stack.enter_async_context(
                Cluster.open(
                    url or valkey.url,
                    env=env_name,
                    secret=secret,
                    node_id=node_id,
                    recovery_window_s=recovery_window_s,
                )
            )
            cluster.bus.listen(ear)
            return cluster, ear

        yield open_one


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that this test may stop, freeze and lose the data of."""
    with Valkey(tmp_path / "valkey", settings={"appendfsync": "always"}) as server:
        yield server
