"""One at a time, before a connection is taken: for transactions that would only wait for the same row.

A hundred people who enter a call at once hold its row one after the other. If they waited inside PostgreSQL, each would
have a connection of the pool in hand, and everybody else on the node would wait with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID


class Turns:
    """The queues of one node, by what is waited for; an empty one is forgotten. The caller's deadline ends a wait."""

    def __init__(self) -> None:
        self._queues: dict[UUID, asyncio.Lock] = {}
        self._inside: dict[UUID, int] = {}

    @asynccontextmanager
    async def of(self, key: UUID) -> AsyncIterator[None]:
        queue = self._queues.setdefault(key, asyncio.Lock())
        self._inside[key] = self._inside.get(key, 0) + 1
        try:
            async with queue:
                yield
        finally:
            self._inside[key] -= 1
            if not self._inside[key]:
                del self._inside[key], self._queues[key]
