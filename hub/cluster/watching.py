"""Who of this node watches whom, and telling them: what changed, together, four times a second at most.

A bell says that somebody may look different, never how: the node looks itself, so a bell that rings late, twice or
falsely does no harm, and one that was not heard is made up for by looking at everybody once the line is back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import msgspec
import structlog

from hub.cluster.bus import Bus
from hub.cluster.keys import Keys
from hub.cluster.presence import Presences, User
from hub.protocol.errors import ClusterUnavailable, Conflict
from hub.state.presence import UNKNOWN, Known, Presence, seen_by

log = structlog.get_logger(__name__)

# Most people one session may watch.
WATCHED = 1000
TOGETHER_S = 0.25
_RETRY_S = 0.5
# Everybody who is watched, once in this time, whatever the bells say.
_AGAIN_S = 30.0
_LOOK_AT_ONCE = 200
# Questions to the database about who may see whom, a second.
_ASK_PER_S = 50

Hidden = Mapping[str, datetime | None]
"""Whom somebody may see; with since when they hide from them."""


class _List(msgspec.Struct, eq=False):
    """What one session watches: with the ones who hide, and without those it may not see."""

    session_id: str
    tenant_id: UUID
    user_id: str
    shown: dict[str, datetime | None]


class _Rung(msgspec.Struct, frozen=True):
    contacts: list[str]


class Watching:
    """`tell` and `may_see` are given by whoever has the sockets and the database, before the first watch."""

    def __init__(self, bus: Bus, keys: Keys, presences: Presences) -> None:
        self._bus, self._keys, self._presences = bus, keys, presences
        self.tell: Callable[[str, list[tuple[str, Presence]]], None] = lambda session_id, news: None
        self.may_see: Callable[[UUID, str, Sequence[str]], Awaitable[Hidden]] = _nobody
        self._lists: dict[str, _List] = {}
        self._watchers: dict[User, dict[str, _List]] = {}
        self._of_tenant: dict[UUID, dict[str, _List]] = {}
        # Tenants whose bell is subscribed.
        self._heard: set[UUID] = set()
        # How those who are watched were when somebody here was last told.
        self._last: dict[User, Known] = {}
        self._rung: dict[User, None] = {}
        self._doubtful: dict[str, None] = {}
        self._wake, self._doubt = asyncio.Event(), asyncio.Event()
        self._subscribing = asyncio.Lock()
        bus.when_back(self._look_at_all)

    async def watch(self, session_id: str, tenant_id: UUID, user_id: str, shown: Hidden) -> dict[str, Presence]:
        """Watch those as well; how they are now. Raises ClusterUnavailable, Conflict."""
        held = self._lists.get(session_id)
        if len({*(held.shown if held else ()), *shown}) > WATCHED:
            raise Conflict(f"a session can watch {WATCHED} people")
        users = list(shown)
        watcher = self._lists.setdefault(session_id, _List(session_id, tenant_id, user_id, {}))
        self._of_tenant.setdefault(tenant_id, {})[session_id] = watcher
        try:
            # First the bell, then the look: what changes between the two is heard.
            await self._hear(tenant_id)
            known = await self._presences.look(tenant_id, users)
        except BaseException:
            if not watcher.shown:
                self.forget(session_id)
            raise
        for one, now in zip(users, known, strict=True):
            watcher.shown[one] = shown[one]
            self._watchers.setdefault((tenant_id, one), {})[session_id] = watcher
            # Others may be waiting to be told of an older change.
            if self._last.setdefault((tenant_id, one), now) != now:
                self._mark((tenant_id, one))
        return {one: self._view(watcher, one) for one in users}

    def unwatch(self, session_id: str, user_ids: Sequence[str]) -> None:
        watcher = self._lists.get(session_id)
        if watcher is None:
            return
        for one in user_ids:
            if watcher.shown.pop(one, _ABSENT) is not _ABSENT:
                self._drop((watcher.tenant_id, one), session_id)
        if not watcher.shown:
            self.forget(session_id)

    def forget(self, session_id: str) -> None:
        """The session has ended."""
        watcher = self._lists.pop(session_id, None)
        if watcher is None:
            return
        for one in watcher.shown:
            self._drop((watcher.tenant_id, one), session_id)
        mates = self._of_tenant[watcher.tenant_id]
        del mates[session_id]
        if not mates:
            del self._of_tenant[watcher.tenant_id]
            self._heard.discard(watcher.tenant_id)
            self._bus.unsubscribe_bell(self._keys.bell(watcher.tenant_id))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_news(), name="presence news")
            tasks.create_task(self._run_doubts(), name="presence rights")

    async def _hear(self, tenant_id: UUID) -> None:
        # One at a time: the first must not fail, and unsubscribe, while the second relies on it.
        async with self._subscribing:
            if tenant_id not in self._heard:
                await self._bus.subscribe_bell(self._keys.bell(tenant_id), lambda wire: self._ring(tenant_id, wire))
                self._heard.add(tenant_id)

    def _drop(self, user: User, session_id: str) -> None:
        watchers = self._watchers[user]
        del watchers[session_id]
        if not watchers:
            del self._watchers[user]
            self._last.pop(user, None)
            self._rung.pop(user, None)

    def _view(self, watcher: _List, user_id: str) -> Presence:
        known = self._last[(watcher.tenant_id, user_id)]
        return _seen(watcher, user_id, known)

    # Bells

    def _ring(self, tenant_id: UUID, wire: bytes) -> None:
        try:
            rung: list[str] | _Rung = msgspec.json.decode(wire, type=list[str] | _Rung)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if isinstance(rung, list):
            for user_id in rung:
                self._mark((tenant_id, user_id))
            return
        concerned = set(rung.contacts)
        for session_id, watcher in self._of_tenant.get(tenant_id, {}).items():
            if watcher.user_id in concerned or not concerned.isdisjoint(watcher.shown):
                self._doubtful[session_id] = None
        self._doubt.set()

    def _mark(self, user: User) -> None:
        if user in self._watchers:
            self._rung[user] = None
            self._wake.set()

    def _look_at_all(self) -> None:
        self._rung.update(dict.fromkeys(self._watchers))
        self._doubtful.update(dict.fromkeys(self._lists))
        self._wake.set()
        self._doubt.set()

    # News

    async def _run_news(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_AGAIN_S * random.uniform(0.8, 1.2)):
                    await self._wake.wait()
            except TimeoutError:
                self._rung.update(dict.fromkeys(self._watchers))
            self._wake.clear()
            await asyncio.sleep(TOGETHER_S)
            rung, self._rung = self._rung, {}
            try:
                await self._tell_about(list(rung))
            except ClusterUnavailable:
                self._rung = {**rung, **self._rung}
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def _tell_about(self, users: Sequence[User]) -> None:
        by_tenant: dict[UUID, list[str]] = {}
        for tenant_id, user_id in users:
            by_tenant.setdefault(tenant_id, []).append(user_id)
        news: dict[str, list[tuple[str, Presence]]] = {}
        try:
            for tenant_id, user_ids in by_tenant.items():
                for start in range(0, len(user_ids), _LOOK_AT_ONCE):
                    some = user_ids[start : start + _LOOK_AT_ONCE]
                    for one, now in zip(some, await self._presences.look(tenant_id, some), strict=True):
                        self._compare((tenant_id, one), now, news)
        finally:
            # What was compared is not looked at again.
            for session_id, changed in news.items():
                self._tell(session_id, changed)

    def _compare(self, user: User, now: Known, news: dict[str, list[tuple[str, Presence]]]) -> None:
        before = self._last.get(user)
        if before is None or before == now:
            return
        self._last[user] = now
        for session_id, watcher in self._watchers[user].items():
            seen = _seen(watcher, user[1], now)
            if seen != _seen(watcher, user[1], before):
                news.setdefault(session_id, []).append((user[1], seen))

    def _tell(self, session_id: str, news: list[tuple[str, Presence]]) -> None:
        try:
            self.tell(session_id, news)
        except Exception:
            log.exception("presence_not_told")

    # Who may see whom

    async def _run_doubts(self) -> None:
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            while self._doubtful:
                session_id = next(iter(self._doubtful))
                del self._doubtful[session_id]
                watcher = self._lists.get(session_id)
                if watcher is not None:
                    try:
                        await self._ask(watcher)
                    except Exception as error:
                        # The database is away: until it is back, what was so holds.
                        log.warning("presence_rights_not_asked", error=type(error).__name__)
                        self._doubtful[session_id] = None
                        await asyncio.sleep(_RETRY_S)
                await asyncio.sleep(1 / _ASK_PER_S)

    async def _ask(self, watcher: _List) -> None:
        users = list(watcher.shown)
        shown = await self.may_see(watcher.tenant_id, watcher.user_id, users)
        if self._lists.get(watcher.session_id) is not watcher:
            return
        changed: list[tuple[str, Presence]] = []
        for one in users:
            if one not in watcher.shown or (one in shown and shown[one] == watcher.shown[one]):
                continue
            before = self._view(watcher, one)
            if one in shown:
                watcher.shown[one] = shown[one]
                now = self._view(watcher, one)
            else:
                now = UNKNOWN
                self.unwatch(watcher.session_id, [one])
            if now != before:
                changed.append((one, now))
        if changed:
            self._tell(watcher.session_id, changed)


_ABSENT = object()


def _seen(watcher: _List, user_id: str, known: Known) -> Presence:
    return seen_by(known, themselves=user_id == watcher.user_id, hidden_since=watcher.shown.get(user_id))


async def _nobody(tenant_id: UUID, user_id: str, user_ids: Sequence[str]) -> Hidden:
    return {}
