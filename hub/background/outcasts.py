"""Putting out of their rooms those who were kicked while their node could not be told.

A kick stands in the database before anybody hears of it, and the order to put somebody out goes to their node by Redis,
once. Where Redis was away, or that node deaf, they would go on hearing the room.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from db import participants
from db.errors import DatabaseUnavailable
from db.pool import Database
from hub.protocol.rooms import RoomLeft

log = structlog.get_logger("hub.outcasts")

# Beside the time a kick takes by the straight way: how long at most somebody may go on hearing what they must not.
_EVERY_S = 4.0
_AT_ONCE = 1000


class HereSession(Protocol):
    """A session of this node."""

    @property
    def id(self) -> str: ...
    @property
    def user(self) -> tuple[UUID, str]: ...
    @property
    def rooms(self) -> Mapping[UUID, UUID]: ...


class Outcasts:
    """`run()` until cancelled. `obey` is who takes the order to evict a session of this node."""

    def __init__(
        self, db: Database, sessions: Callable[[], Iterable[HereSession]], obey: Callable[[dict[str, Any]], None]
    ) -> None:
        self._db, self._sessions, self._obey = db, sessions, obey

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S * random.uniform(0.8, 1.2))
            try:
                await self.once()
            except DatabaseUnavailable as error:
                log.warning("outcasts_wait", error=str(error)[:200])
            except Exception:
                log.exception("outcasts_crashed")

    async def once(self) -> int:
        """How many were put out. Raises DatabaseUnavailable."""
        # tenant → (call, participant, session): looked at now, so that who is let in again meanwhile is not meant.
        here: dict[UUID, list[tuple[UUID, UUID, str]]] = {}
        for session in self._sessions():
            places = here.setdefault(session.user[0], []) if session.rooms else []
            places += [(call_id, participant_id, session.id) for call_id, participant_id in session.rooms.items()]
        put_out = 0
        for tenant_id, places in here.items():
            for start in range(0, len(places), _AT_ONCE):
                put_out += await self._look_at(tenant_id, places[start : start + _AT_ONCE])
        return put_out

    async def _look_at(self, tenant_id: UUID, places: list[tuple[UUID, UUID, str]]) -> int:
        async with self._db.tenant(tenant_id) as tx:
            kicked = await participants.kicked_among(tx, {(call_id, who) for call_id, who, _ in places})
        found = [place for place in places if place[1] in kicked]
        for call_id, participant_id, session_id in found:
            log.warning("outcast_put_out", call_id=str(call_id), session_id=session_id)
            why = RoomLeft("kicked", kicked[participant_id])
            self._obey(
                {
                    "kind": "evict",
                    "call_id": str(call_id),
                    "session_id": session_id,
                    "event": why.name,
                    "data": msgspec.to_builtins(why),
                }
            )
        return len(found)
