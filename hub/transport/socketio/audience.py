"""The sessions of each user on this node, and the subscription that brings here what is meant for the user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol
from uuid import UUID

from hub.protocol.errors import HubError
from hub.transport.socketio.chores import Chores
from hub.transport.socketio.session import Session

User = tuple[UUID, str]


class UserSubscriptions(Protocol):
    """Subscribing raises ClusterUnavailable."""

    async def subscribe_users(self, users: Sequence[User]) -> None: ...
    def unsubscribe_user(self, tenant_id: UUID, user_id: str) -> None: ...


class Audience:
    """`expect` a user before its session is told that it is in, `forget` it once for each time it was expected."""

    def __init__(self, subscriptions: UserSubscriptions, chores: Chores, made_up: Callable[[UUID, str], None]) -> None:
        """`made_up` hears of users who are heard only now: what was said to them before may be lost to them."""
        self._subscriptions = subscriptions
        self._made_up = made_up
        self._chores = chores
        self._expected: dict[User, int] = {}
        # One future for those who are subscribed together.
        self._opening: dict[User, asyncio.Future[None]] = {}
        self._sessions: dict[User, dict[Session, None]] = {}

    def of(self, user: User) -> Iterable[Session]:
        return tuple(self._sessions.get(user, ()))

    async def expect(self, users: Iterable[User]) -> None:
        """From the return on, what is said to these users is heard; without the cluster, as soon as it is back."""
        opening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        others: set[asyncio.Future[None]] = set()
        new: list[User] = []
        for user in users:
            expected = self._expected[user] = self._expected.get(user, 0) + 1
            if expected == 1:
                self._opening[user] = opening
                new.append(user)
            elif user in self._opening:
                others.add(self._opening[user])
        others.discard(opening)
        try:
            if new:
                await self._subscriptions.subscribe_users(new)
        except HubError:
            for user in new:
                self._chores.add(partial(self._make_up, user))
        finally:
            for user in new:
                del self._opening[user]
            opening.set_result(None)
        if others:
            await asyncio.wait(others)

    def forget(self, user: User) -> None:
        self._expected[user] -= 1
        if not self._expected[user]:
            del self._expected[user]
            self._subscriptions.unsubscribe_user(*user)

    def add(self, session: Session) -> None:
        self._sessions.setdefault(session.user, {})[session] = None

    def remove(self, session: Session) -> None:
        mates = self._sessions[session.user]
        del mates[session]
        if not mates:
            del self._sessions[session.user]
        self.forget(session.user)

    async def _make_up(self, user: User) -> None:
        if user in self._expected:
            await self._subscriptions.subscribe_users([user])
            if user in self._expected:
                self._made_up(*user)
            else:
                self._subscriptions.unsubscribe_user(*user)
