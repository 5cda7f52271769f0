"""The inbox worker: LiveKit's kept webhooks, room by room, become states and events.

An event is done in the transaction of its effect, so a worker that dies loses no effect and has none twice. One that is
killed between that commit and telling the room of it, a millisecond later, tells nobody: docs/decisions/0007. Several
nodes may work side by side: a room is in one claimer's hands at a time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import structlog

from db import inbox, system
from db.errors import DatabaseUnavailable
from db.inbox import Stored
from hub import metrics
from hub.actions.orders import Desk, RoomMedia, Tenants, carry_out, deciding
from hub.actions.rights import Granting, align
from hub.actions.settle import Settled, grace_of, settle
from hub.background.webhooks import news_of
from hub.media.values import WebhookEvent
from hub.protocol.errors import NotFound
from hub.sealed import sealed

if TYPE_CHECKING:
    from db.pool import Transaction

log = structlog.get_logger("hub.inbox")

PROCESSED = metrics.counter("webhooks_processed", "LiveKit's webhooks by event and result", "event", "result")
LAG = metrics.histogram("webhook_effect", "Time from storing a webhook to its effect")

_BATCH = 200
# A worker that dies holds up its rooms for this long.
_LEASE_S = 15.0
_ROOMS_AT_ONCE = 4
# 1, 2, 4 … 64 s: two minutes in all before an event is given up and kept for an operator.
_ATTEMPTS = 8
_MAX_WAIT_S = 64.0
# A webhook may be here before the row of its call is committed.
_CALL_MAY_COME = timedelta(seconds=5)


class Systems(Tenants, Protocol):
    def system(self) -> AbstractAsyncContextManager[Transaction]: ...


class InboxMedia(RoomMedia, Granting, Protocol):
    """What the inbox asks of LiveKit."""


class InboxDesk(Desk, Protocol):
    @property
    def db(self) -> Systems: ...
    @property
    def media(self) -> InboxMedia: ...


class Inbox:
    """`run()` until cancelled. `wake` is set by whoever stores an event; without it the worker looks once a second."""

    def __init__(
        self,
        desk: InboxDesk,
        parse: Callable[[bytes], WebhookEvent],
        *,
        wake: asyncio.Event | None = None,
        poll_s: float = 1.0,
    ) -> None:
        self._desk = desk
        self._parse = parse
        self._poll_s = poll_s
        self.wake = wake or asyncio.Event()

    async def run(self) -> None:
        while True:
            self.wake.clear()
            try:
                claimed = await self.once()
            except DatabaseUnavailable as error:
                log.warning("inbox_waits", error=str(error))
                claimed = 0
            except Exception:
                # The events are kept: a restart would only bring the same again.
                log.exception("inbox_crashed")
                claimed = 0
            if not claimed:
                try:
                    async with asyncio.timeout(self._poll_s * random.uniform(0.8, 1.2)):
                        await self.wake.wait()
                except TimeoutError:
                    continue

    async def once(self) -> int:
        """Work off one claim; how many events it had. Raises DatabaseUnavailable where nothing could be claimed."""
        async with self._desk.db.system() as tx:
            claimed = await inbox.claim(tx, _BATCH, _LEASE_S)
        rooms: dict[str, list[Stored]] = {}
        for event in claimed:
            # Events without a room stand alone.
            rooms.setdefault(event.room_name or f"\0{event.event_id}", []).append(event)
        gate = asyncio.Semaphore(_ROOMS_AT_ONCE)

        async def work(events: list[Stored]) -> None:
            async with gate:
                await self._room(events)

        async with asyncio.TaskGroup() as tasks:
            for events in rooms.values():
                tasks.create_task(work(events))
        return len(claimed)

    async def _room(self, events: list[Stored]) -> None:
        """All events of one room in one settling; where that fails, one by one, so that a bad one fails alone."""
        try:
            try:
                # Done is what is told, too: no stop comes between the two.
                await sealed(self._fold(events))
            except DatabaseUnavailable:
                raise
            except Exception:
                if len(events) == 1:
                    raise
                log.exception("inbox_batch_failed", room_name=events[0].room_name)
                for event in events:
                    await self._room([event])
        except DatabaseUnavailable as error:
            await self._again(events, str(error), self._desk.clock() + timedelta(seconds=1))
        except Exception as error:
            await self._failed(events[0], error)

    async def _fold(self, events: Sequence[Stored]) -> None:
        news, connected = [], []
        for event in events:
            parsed = self._parse(event.payload)
            told = news_of(parsed, event.received_at)
            if told is not None:
                news.append(told)
            if parsed.event == "participant_joined" and parsed.participant is not None:
                connected.append(parsed.participant)
        ids = [event.event_id for event in events]
        if not news:
            await self._done(events, ids, "ignored")
            return
        owner = await self._call_of(events[0])
        if owner is None:
            await self._strangers(events, ids)
            return
        tenant_id, call_id = owner
        settled: Settled | None = None
        async with deciding(self._desk, tenant_id, call_id) as (tx, due):
            try:
                rules = self._desk.rules
                settled = await settle(tx, call_id, self._desk.clock(), fold=news, grace=grace_of(rules))
                due += settled.events
            except NotFound:
                # Deleted since the look-up; there is nothing left to be right about.
                pass
            await inbox.done(tx, ids)
        self._count(events, "folded" if settled else "ignored")
        if settled is not None:
            await carry_out(self._desk, settled.call, settled.orders)
            await align(self._desk, tenant_id, call_id, connected)

    async def _call_of(self, event: Stored) -> tuple[UUID, UUID] | None:
        if event.tenant_id is not None and event.call_id is not None:
            return event.tenant_id, event.call_id
        if event.room_name is None:
            return None
        async with self._desk.db.system() as tx:
            return await system.call_by_room_name(tx, event.room_name)

    async def _strangers(self, events: Sequence[Stored], ids: Sequence[str]) -> None:
        """A room without a call: soon there may be one; later it is none of ours."""
        now = self._desk.clock()
        if max(event.received_at for event in events) + _CALL_MAY_COME > now:
            await self._again(events, "no call has this room yet", now + timedelta(seconds=1))
        else:
            await self._done(events, ids, "ignored")

    async def _done(self, events: Sequence[Stored], ids: Sequence[str], result: str) -> None:
        async with self._desk.db.system() as tx:
            await inbox.done(tx, ids)
        self._count(events, result)

    async def _failed(self, event: Stored, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        log.error(
            "webhook_failed", event_id=event.event_id, event_name=event.event, attempts=event.attempts, exc_info=error
        )
        if event.attempts < _ATTEMPTS:
            wait_s = min(_MAX_WAIT_S, 2.0 ** (event.attempts - 1))
            await self._again([event], text, self._desk.clock() + timedelta(seconds=wait_s))
            return
        try:
            async with self._desk.db.system() as tx:
                await inbox.dead(tx, [event.event_id], text)
        except DatabaseUnavailable:
            return
        self._count([event], "dead")

    async def _again(self, events: Sequence[Stored], error: str, at: datetime) -> None:
        try:
            async with self._desk.db.system() as tx:
                await inbox.failed(tx, [event.event_id for event in events], error, at)
        except DatabaseUnavailable:
            # Their lease ends by itself.
            return
        self._count(events, "retried")

    def _count(self, events: Sequence[Stored], result: str) -> None:
        now = self._desk.clock()
        for event in events:
            PROCESSED.labels(event.event if event.event in _KNOWN else "other", result).inc()
            if result == "folded":
                LAG.observe(max(0.0, (now - event.received_at).total_seconds()))


# Whatever else a newer LiveKit sends counts as one, so that labels stay few.
_KNOWN = frozenset(
    {
        "room_started",
        "room_finished",
        "participant_joined",
        "participant_left",
        "participant_connection_aborted",
        "track_published",
        "track_unpublished",
        "egress_started",
        "egress_updated",
        "egress_ended",
        "ingress_started",
        "ingress_ended",
    }
)
