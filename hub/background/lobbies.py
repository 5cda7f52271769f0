"""Lobbies and the passing of time: a knock that nobody answers ends, and so does waiting for a call that is over; and
what was decided by a node that died before it told anybody is told.

Every node looks. The queue changes under the call's row lock, so whoever comes second finds nobody to send away.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import structlog

from db import calls, lobby
from db.errors import DatabaseUnavailable
from db.lobby import Entry
from hub.actions import waiting
from hub.sealed import sealed

if TYPE_CHECKING:
    from db.pool import Transaction
    from hub.context import Rules

log = structlog.get_logger("hub.lobbies")

_EVERY_S = 1.0
_BATCH = 100


class Systems(Protocol):
    def system(self) -> AbstractAsyncContextManager[Transaction]: ...
    def tenant(
        self,
        tenant_id: UUID,
        user_id: str | None = None,
        *,
        turn: UUID | None = None,
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> AbstractAsyncContextManager[Transaction]: ...


class Voice(Protocol):
    async def to_user(self, tenant_id: UUID, user_id: str, name: str, payload: Any) -> object: ...


class LobbyDesk(Protocol):
    @property
    def db(self) -> Systems: ...
    @property
    def bus(self) -> Voice: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def clock(self) -> Callable[[], datetime]: ...


class Lobbies:
    """`run()` until cancelled."""

    def __init__(self, desk: LobbyDesk) -> None:
        self._desk = desk

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S * random.uniform(0.8, 1.2))
            try:
                await self.once()
            except DatabaseUnavailable as error:
                log.warning("lobbies_wait", error=str(error)[:200])
            except Exception:
                log.exception("lobbies_crashed")

    async def once(self) -> int:
        """In how many calls somebody was told something; one that fails comes again. Raises DatabaseUnavailable."""
        async with self._desk.db.system() as tx:
            due = await lobby.due(tx, self._desk.clock(), _BATCH)
        done = 0
        for tenant_id, call_id in due:
            try:
                await sealed(self._look_at(tenant_id, call_id))
                done += 1
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("lobby_failed", call_id=str(call_id))
        return done

    async def _look_at(self, tenant_id: UUID, call_id: UUID) -> None:
        late: list[Entry] = []
        news: waiting.News = []

        async def tell() -> None:
            await asyncio.gather(
                *(self._desk.bus.to_user(tenant_id, user_id, event.name, event) for user_id, event in news)
            )
            if late:
                async with self._desk.db.tenant(tenant_id) as tx:
                    await lobby.told(tx, call_id, [entry.ticket for entry in late], self._desk.clock())

        async with self._desk.db.tenant(tenant_id, turn=call_id, then=tell) as tx:
            call, now = await calls.lock(tx, call_id), self._desk.clock()
            if call is None:
                return
            over = call.status == "ended"
            late, news = await (waiting.turn_away(tx, call, now) if over else waiting.expire(tx, call, now))
            untold, again = await waiting.retell(tx, call, now, cooldown_s=self._desk.rules.lobby_cooldown_s)
            late += untold
            news += again
