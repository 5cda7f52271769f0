"""The passing of time: calls whose state changes without news, and participants whose socket stayed away.

Every node does it. Settling is idempotent under the call's row lock, so whoever comes second finds nothing to do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import structlog

from db import calls, facts, participants, system
from db.errors import DatabaseUnavailable
from hub.actions.orders import carry_out, deciding, learn
from hub.actions.settle import grace_of, settle
from hub.background.inbox import InboxDesk
from hub.context import RosterEntry
from hub.protocol.errors import ClusterUnavailable, NotFound
from hub.sealed import sealed

log = structlog.get_logger("hub.due")

_BATCH = 100
_LONGEST_S = 1.0
# Between two looks for lost sockets; their grace is 25 s.
_LOST_EVERY_S = 1.0
_STRAYS_EVERY_S = 60.0


class Lost(Protocol):
    """The last session of a participant in a room, its grace over; it ended at `since`."""

    @property
    def call_id(self) -> UUID: ...
    @property
    def entry(self) -> RosterEntry: ...
    @property
    def since(self) -> datetime: ...


L = TypeVar("L", bound=Lost)


class LostRoster(Protocol[L]):
    async def lost(self, grace_s: float) -> Sequence[L]: ...
    async def confirm(self, lost: L) -> None: ...
    async def sessions(self, call_id: UUID) -> Sequence[RosterEntry]: ...


class Due:
    """`run()` until cancelled."""

    def __init__(self, desk: InboxDesk) -> None:
        self._desk = desk
        # A call that cannot be settled waits, so that it does not hold up the others.
        self._not_before: dict[UUID, datetime] = {}

    async def run(self) -> None:
        while True:
            wait_s = _LONGEST_S
            try:
                await self.once()
                wait_s = await self._until_next()
            except DatabaseUnavailable as error:
                log.warning("due_calls_wait", error=str(error))
            except Exception:
                log.exception("due_crashed")
            # Nodes that look at the same moment would queue for the same rows.
            await asyncio.sleep(wait_s * random.uniform(0.9, 1.1))

    async def once(self) -> int:
        """Settle what is due; how many calls. Raises DatabaseUnavailable."""
        now = self._desk.clock()
        self._not_before = {call_id: at for call_id, at in self._not_before.items() if at > now}
        async with self._desk.db.system() as tx:
            due = await system.due_calls(tx, now, _BATCH + len(self._not_before))
        settled = 0
        for call in due:
            if call.call_id in self._not_before:
                continue
            try:
                await sealed(learn(self._desk, call.tenant_id, call.call_id))
                settled += 1
            except NotFound:
                continue
            except Exception as error:
                self._not_before[call.call_id] = now + timedelta(seconds=5)
                log.warning("call_not_settled", call_id=str(call.call_id), error=repr(error))
        return settled

    async def _until_next(self) -> float:
        async with self._desk.db.system() as tx:
            next_at = await system.next_due(tx)
        if next_at is None:
            return _LONGEST_S
        return min(_LONGEST_S, max(0.05, (next_at - self._desk.clock()).total_seconds()))


class LostSockets(Generic[L]):
    """Detaches participants whose last socket stayed away for the grace. `run()` until cancelled."""

    def __init__(self, desk: InboxDesk, roster: LostRoster[L]) -> None:
        self._desk = desk
        self._roster = roster
        # Attached by the database and unknown to the roster: since when.
        self._strays: dict[UUID, datetime] = {}

    async def run(self) -> None:
        strays_at = time.monotonic() + _STRAYS_EVERY_S * random.uniform(0.5, 1.0)
        while True:
            try:
                await self.once()
                if time.monotonic() >= strays_at:
                    strays_at = time.monotonic() + _STRAYS_EVERY_S
                    await self.strays()
            except (DatabaseUnavailable, ClusterUnavailable) as error:
                log.warning("lost_sockets_wait", error=str(error))
            except Exception:
                log.exception("lost_sockets_crashed")
            await asyncio.sleep(_LOST_EVERY_S * random.uniform(0.8, 1.2))

    async def once(self) -> int:
        """How many were settled. What is not confirmed comes again. Raises ClusterUnavailable."""
        settled = 0
        for each in await self._roster.lost(self._desk.rules.socket_grace_s):
            who = {"call_id": str(each.call_id), "participant_id": str(each.entry.participant_id)}
            try:
                # They left when they were last seen, not when we stopped waiting.
                await sealed(self._detach(each.entry.tenant_id, each.call_id, each.entry.participant_id, each.since))
                await self._roster.confirm(each)
                settled += 1
            except (DatabaseUnavailable, ClusterUnavailable) as error:
                log.warning("lost_socket_waits", error=str(error), **who)
            except Exception:
                # It is handed out again in half a minute; the others need not wait for it.
                log.exception("lost_socket_failed", **who)
        return settled

    async def strays(self) -> int:
        """Detach those whom no roster knows any more: their node and the roster's data died together.

        Only who is missed twice, a grace apart: a roster that lost its data is told again within seconds.
        """
        now = self._desk.clock()
        grace = timedelta(seconds=self._desk.rules.socket_grace_s)
        missed: dict[UUID, datetime] = {}
        detached = 0
        for tenant_id, call_id, participant_id in await self._unknown(now - grace):
            missed[participant_id] = since = self._strays.get(participant_id, now)
            if now - since >= grace:
                await sealed(self._detach(tenant_id, call_id, participant_id, since))
                detached += 1
        self._strays = missed
        return detached

    async def _unknown(self, before: datetime) -> list[tuple[UUID, UUID, UUID]]:
        """(tenant, call, participant) attached since before then, without a session in the roster."""
        async with self._desk.db.system() as tx:
            moving = await system.moving_calls(tx)
        of_tenant: dict[UUID, list[UUID]] = {}
        for call in moving:
            of_tenant.setdefault(call.tenant_id, []).append(call.call_id)
        unknown = []
        for tenant_id, call_ids in of_tenant.items():
            async with self._desk.db.tenant(tenant_id) as tx:
                attached = await facts.attached(tx, call_ids, before)
            for call_id in {call_id for call_id, _ in attached}:
                known = {entry.participant_id for entry in await self._roster.sessions(call_id)}
                unknown += [
                    (tenant_id, call_id, who) for where, who in attached if where == call_id and who not in known
                ]
        return unknown

    async def _detach(self, tenant_id: UUID, call_id: UUID, participant_id: UUID, since: datetime) -> None:
        desk = self._desk
        if await self._is_back(call_id, participant_id):
            return
        async with deciding(desk, tenant_id, call_id) as (tx, due):
            if await calls.lock(tx, call_id) is None:
                return
            person = await participants.get(tx, call_id, participant_id)
            if person is None or person.hub_joined_at is None or person.hub_joined_at > since:
                return
            # Whoever comes in holds the row once more when the roster knows them: either we see them here, or they see
            # that they were detached.
            await participants.hold(tx, call_id, participant_id)
            if await self._is_back(call_id, participant_id):
                return
            await participants.detach(tx, [participant_id], since, "connection_lost")
            settled = await settle(tx, call_id, desk.clock(), grace=grace_of(desk.rules))
            due += settled.events
        await carry_out(desk, settled.call, settled.orders)

    async def _is_back(self, call_id: UUID, participant_id: UUID) -> bool:
        """On whatever node, at the last moment."""
        return any(entry.participant_id == participant_id for entry in await self._roster.sessions(call_id))
