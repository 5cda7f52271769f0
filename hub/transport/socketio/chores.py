"""What is owed to the roster and the bus when somebody goes: done in the background, again until it succeeds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from hub import metrics
from hub.protocol.errors import HubError

log = structlog.get_logger("hub.edge")

DROPPED = metrics.counter("edge_chores_dropped", "Roster changes given up because too many were waiting")

Chore = Callable[[], Awaitable[None]]

_MOST = 100_000
_AT_ONCE = 64
_EACH_S = 2.0
_AGAIN_S = 1.0


class Chores:
    """A bounded queue with one worker. Chores must bear being done twice."""

    def __init__(self) -> None:
        self._waiting: deque[Chore] = deque()
        self._wake = asyncio.Event()
        self._running = 0

    def add(self, chore: Chore) -> None:
        if len(self._waiting) >= _MOST:
            self._waiting.popleft()
            DROPPED.inc()
        self._waiting.append(chore)
        self._wake.set()

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._some()

    async def _some(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
        self._running = len(batch)
        failed = [
            chore for chore, done in zip(batch, await asyncio.gather(*map(_done, batch)), strict=True) if not done
        ]
        self._running = 0
        if failed:
            self._waiting.extendleft(reversed(failed))
            await asyncio.sleep(_AGAIN_S)


async def _done(chore: Chore) -> bool:
    try:
        async with asyncio.timeout(_EACH_S):
            await chore()
    except (HubError, TimeoutError) as error:
        log.warning("edge_chore_failed", reason=type(error).__name__)
        return False
    except Exception:
        # A bug: once more would not help.
        log.exception("edge_chore_crashed")
    return True
