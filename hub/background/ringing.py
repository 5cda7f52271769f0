"""Ringing and the passing of time: it ends by itself, and whoever comes while it rings is told.

Every node looks for what is over; the database gives each to one of them. Who comes is told by the node they came to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import structlog

from db import invites
from db.errors import DatabaseUnavailable
from hub.actions.invites import concerned, ended
from hub.commands import Event
from hub.protocol.invites import Caller, InvitedTo, InviteReceived
from hub.sealed import sealed

if TYPE_CHECKING:
    from db.invites import Ringing as Rings
    from db.pool import Transaction

log = structlog.get_logger("hub.ringing")

_EVERY_S = 1.0
_BATCH = 100
# Those who come in this time are looked up together.
_GATHER_S = 0.1
_TOGETHER = 500
# Who came while the database was away, and is to be told when it is back. The oldest are forgotten first: a client
# can ask for its call log.
_WAITING = 20_000


class Systems(Protocol):
    def system(self) -> AbstractAsyncContextManager[Transaction]: ...


class Voice(Protocol):
    async def to_user(self, tenant_id: UUID, user_id: str, name: str, payload: Any) -> object: ...


class RingingDesk(Protocol):
    @property
    def db(self) -> Systems: ...
    @property
    def bus(self) -> Voice: ...
    @property
    def clock(self) -> Callable[[], datetime]: ...


class Ringing:
    """Ends what has rung long enough. `run()` until cancelled."""

    def __init__(self, desk: RingingDesk) -> None:
        self._desk = desk

    async def run(self) -> None:
        while True:
            wait_s = _EVERY_S
            try:
                # A full batch says that there is more.
                wait_s = 0.0 if await self.once() == _BATCH else _EVERY_S
            except DatabaseUnavailable as error:
                log.warning("ringing_waits", error=str(error)[:200])
            except Exception:
                log.exception("ringing_crashed")
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))

    async def once(self) -> int:
        """How many were ended, and told of. Raises DatabaseUnavailable."""
        return await sealed(self._end())

    async def _end(self) -> int:
        async with self._desk.db.system() as tx:
            over = await invites.end_ringing(tx, self._desk.clock(), _BATCH)
        told = [(each.tenant_id, user_id, ended(each)) for each in over for user_id in concerned(each)]
        await asyncio.gather(
            *(self._desk.bus.to_user(tenant_id, user_id, event.name, event) for tenant_id, user_id, event in told)
        )
        return len(over)


class Latecomers:
    """Tells sessions what rings for their users when they come. `run()` until cancelled.

    `tell`: say it to that session of this node, if it is still there.
    """

    def __init__(self, db: Systems, tell: Callable[[str, Event], None]) -> None:
        self._db, self._tell = db, tell
        # By session, in the order they came.
        self._come: dict[str, tuple[UUID, str]] = {}
        self._news = asyncio.Event()

    def came(self, session_id: str, tenant_id: UUID, user_id: str) -> None:
        """From here on the session hears what is said to its user; what was said before it is told by `run`."""
        if len(self._come) >= _WAITING:
            del self._come[next(iter(self._come))]
        self._come[session_id] = (tenant_id, user_id)
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(_GATHER_S)
            try:
                await self.once()
            except DatabaseUnavailable as error:
                log.warning("latecomers_wait", error=str(error)[:200])
                await asyncio.sleep(_EVERY_S)
            except Exception:
                log.exception("latecomers_crashed")
                await asyncio.sleep(_EVERY_S)

    async def once(self) -> int:
        """How many were told of something. Raises DatabaseUnavailable: then they are told the next time."""
        some = dict(list(self._come.items())[:_TOGETHER])
        people = list(set(some.values()))
        async with self._db.system() as tx:
            found = await invites.ringing(tx, people, _TOGETHER) if people else []
        for session_id in some:
            self._come.pop(session_id, None)
        if not self._come:
            self._news.clear()
        return self._say(some, found)

    def _say(self, come: Mapping[str, tuple[UUID, str]], found: list[Rings]) -> int:
        sessions: dict[tuple[UUID, str], list[str]] = {}
        for session_id, user in come.items():
            sessions.setdefault(user, []).append(session_id)
        told = 0
        for each in found:
            for session_id in sessions[(each.tenant_id, each.callee_id)]:
                self._tell(session_id, _received(each))
                told += 1
        return told


def _received(rings: Rings) -> InviteReceived:
    return InviteReceived(
        invite_id=rings.invite_id,
        call=InvitedTo(rings.call_id, rings.call_name, rings.call_type),
        caller=Caller(rings.caller_id, rings.caller_name or "", rings.avatar_url or ""),
        created_at=rings.created_at,
        expires_at=rings.expires_at,
    )
