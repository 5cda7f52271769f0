"""Quality reports on their way into the database: gathered, and written a few times a second, off the hot path."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from itertools import islice
from uuid import UUID

import structlog

from db import quality
from db.errors import DatabaseUnavailable
from db.pool import Database
from db.quality import Report
from hub import metrics
from hub.state.quality import Watch

log = structlog.get_logger("hub.quality")

REPORTS = metrics.counter("quality_reports", "Quality reports by what became of them: kept, dropped, lost", "outcome")

# A report is about 400 bytes; at 200 a second this is a hundred seconds without a database.
_WAITING = 20_000
_EVERY_S = 0.5
_BATCH = 1_000
_WATCHES = 50_000
# Somebody who says nothing for so long begins anew.
_FORGOTTEN_S = 120.0


class Reports:
    """`take` from actions, `run()` until cancelled."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: deque[tuple[UUID, Report]] = deque()
        self._watches: OrderedDict[UUID, tuple[Watch, float]] = OrderedDict()

    def take(self, tenant_id: UUID, reports: Sequence[Report]) -> bool:
        """False, and none of them taken, where too many wait for the database."""
        if len(self._waiting) + len(reports) > _WAITING:
            REPORTS.labels("dropped").inc(len(reports))
            return False
        self._waiting.extend((tenant_id, report) for report in reports)
        return True

    def watch(self, participant_id: UUID) -> Watch:
        """What this node knows of somebody's connection."""
        now = time.monotonic()
        watch, seen_s = self._watches.pop(participant_id, (Watch(), now))
        if now - seen_s > _FORGOTTEN_S:
            watch = Watch()
        self._watches[participant_id] = watch, now
        if len(self._watches) > _WATCHES:
            self._watches.popitem(last=False)
        return watch

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.flush()
            except DatabaseUnavailable as error:
                log.warning("quality_reports_wait", waiting=len(self._waiting), error=str(error)[:200])
            except Exception:
                log.exception("quality_reports_crashed")

    async def flush(self) -> None:
        """Write what waits. Raises DatabaseUnavailable, and then it still waits."""
        while self._waiting:
            some = list(islice(self._waiting, _BATCH))
            by_tenant: dict[UUID, list[Report]] = defaultdict(list)
            for tenant_id, report in some:
                by_tenant[tenant_id].append(report)
            for tenant_id, reports in by_tenant.items():
                await self._write(tenant_id, reports)

    async def _write(self, tenant_id: UUID, reports: Sequence[Report]) -> None:
        """And take them out of the queue, once it is known what became of them."""
        try:
            async with self._db.tenant(tenant_id) as tx:
                kept = await quality.add(tx, reports)
            REPORTS.labels("kept").inc(kept)
            REPORTS.labels("lost").inc(len(reports) - kept)
        except DatabaseUnavailable:
            raise
        except Exception:
            # What cannot be written now never can, and must not keep the others out.
            REPORTS.labels("lost").inc(len(reports))
            log.exception("quality_reports_refused", reports=len(reports))
        done = {id(report) for report in reports}
        self._waiting = deque(each for each in self._waiting if id(each[1]) not in done)
