"""Forgetting what nobody asks for any more: kept answers and visitors of links after a day, webhooks after a week,
call logs after a year, chat and quality reports after as long as the operator says.

Every node does it now and then; in small bites, so that no lock is held long.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from db import chat, inbox, invites, link_visits, quality, system
from db.errors import DatabaseUnavailable
from db.pool import Database

log = structlog.get_logger("hub.tidy")

_EVERY_S = 600.0
_BITE = 500
_WEBHOOKS_FOR = timedelta(days=7)
_CALL_LOG_FOR = timedelta(days=365)
# A visitor of today is told from one of yesterday by the day alone: the hashes are good for nothing afterwards.
_VISITORS_FOR = timedelta(days=1)
_HOURS_FOR = timedelta(days=800)


class Tidy:
    """`run()` until cancelled."""

    def __init__(
        self, db: Database, clock: Callable[[], datetime], *, chat_for: timedelta, quality_for: timedelta
    ) -> None:
        self._db = db
        self._clock = clock
        self._chat_for = chat_for
        self._quality_for = quality_for

    async def run(self) -> None:
        while True:
            # Nodes that started together do not tidy together.
            await asyncio.sleep(_EVERY_S * random.uniform(0.5, 1.5))
            try:
                await self.once()
            except DatabaseUnavailable as error:
                log.warning("tidy_postponed", error=str(error)[:200])
            except Exception:
                log.exception("tidy_crashed")

    async def once(self) -> int:
        """Forget what is over; how many rows. Raises DatabaseUnavailable."""
        forgotten = 0
        while True:
            async with self._db.system() as tx:
                now = self._clock()
                bite = await system.forget_results(tx, now, _BITE)
                bite += await inbox.forget(tx, now - _WEBHOOKS_FOR, _BITE)
                bite += await chat.forget(tx, now - self._chat_for, _BITE)
                bite += await quality.forget(tx, now - self._quality_for, _BITE)
                bite += await invites.forget(tx, now - _CALL_LOG_FOR, _BITE)
                bite += await link_visits.forget(tx, (now - _VISITORS_FOR).date(), now - _HOURS_FOR, _BITE)
            forgotten += bite
            if bite < _BITE:
                return forgotten
