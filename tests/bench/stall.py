"""The longest that an event loop kept a timer of one millisecond waiting; the Node peer measures itself likewise."""

from __future__ import annotations

import asyncio


class Stall:
    def __init__(self) -> None:
        self._worst_s = 0.0

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            self._worst_s = max(self._worst_s, loop.time() - due)

    def worst_ms(self) -> float:
        """Since it was last asked for."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s * 1000
