"""A node without its doors: real database, real cluster over Valkey, the fake LiveKit behind the real client.

`hub` is the node. People come from `hub.person(…)`; they `do` commands through the dispatcher, as the doors would run
them, from a `socket()` of theirs or by REST.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from db.pool import Database
from hub.actions import all_commands
from hub.actions.members import authorize
from hub.actions.orders import learn
from hub.background.quality import Reports
from hub.background.readings import Readings
from hub.background.transfers import Transfers
from hub.cluster import Cluster
from hub.commands import APPS, FILES
from hub.context import (
    NOBODY,
    Actor,
    Context,
    GuestPass,
    IssuedToken,
    Position,
    Reconciliation,
    RosterEntry,
    Rules,
    Visitor,
)
from hub.dispatch import Ack, Dispatcher
from hub.embedded import Valkey
from hub.media.livekit import LiveKit
from hub.passwords import Passwords
from hub.policy import Permission, Role
from hub.protocol.errors import HubError, TokenInvalid
from hub.state.facts import FactEvent, ParticipantJoined, Source, TrackPublished
from hub.transport.auth import TokenRules, Tokens
from storage.local import LocalStore
from storage.pour import Pours
from storage.signing import UrlSigner
from tests.conftest import TestDatabase
from tests.fakes.livekit import FakeLiveKit

TENANT = UUID("11111111-1111-4111-8111-111111111111")
SIGNER = UrlSigner("http://hub.test/storage", b"a secret of the tests that signs URLs")
OTHER_TENANT = UUID("22222222-2222-4222-8222-222222222222")


@dataclass
class Socket:
    """The `Session` port, hearing the real bus. `heard` is what a client would get, in order."""

    hub: Node
    actor: Actor
    id: str = field(default_factory=lambda: uuid4().hex)
    device_id: str | None = None
    namespace: str = APPS
    joined: dict[UUID, UUID] = field(default_factory=dict)
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    positions: dict[UUID, Position] = field(default_factory=dict)
    # What `enter` fails with, once.
    fails: BaseException | None = None

    @property
    def rooms(self) -> Mapping[UUID, UUID]:
        return self.joined

    async def enter(self, call_id: UUID, participant_id: UUID) -> None:
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        await self.hub.cluster.bus.subscribe_room(call_id)
        self.hub.offsets.setdefault(call_id, (await self.hub.bus.position(call_id)).offset)
        self.joined[call_id] = participant_id
        entry = RosterEntry(
            self.id, participant_id, self.actor.user_id, self.actor.tenant_id, self.hub.node_id, self.hub.incarnation
        )
        await self.hub.roster.enter(call_id, entry)

    def seen(self, call_id: UUID, position: Position) -> None:
        self.positions[call_id] = position

    async def exit(self, call_id: UUID) -> None:
        if self.joined.pop(call_id, None) is not None:
            await self.hub.roster.leave(call_id, self.id)

    async def drained(self) -> None:
        pass

    def refresh(self, actor: Actor) -> None:
        self.actor = actor

    def names(self) -> list[str]:
        return [name for name, _ in self.heard]

    async def do(self, name: str, /, **fields: Any) -> Any:
        return await self.hub.do(self.actor, name, fields, socket=self)

    async def ack(self, name: str, /, **fields: Any) -> Ack:
        ack = await self.hub.dispatcher.ack(self.hub.context(self.actor, self), name, _plain(fields))
        await self.hub.delivered()
        return ack

    async def join(self, call_id: UUID, **fields: Any) -> Any:
        return await self.do("room:join", call_id=call_id, **fields)

    def told(self, name: str) -> list[dict[str, Any]]:
        return [event for heard, event in self.heard if heard == name]

    async def hears(self, name: str, times: int = 1) -> dict[str, Any]:
        """The last event of that name, once there were so many."""
        await eventually(lambda: len(self.told(name)) >= times)
        return self.told(name)[-1]


@dataclass
class Person:
    hub: Node
    actor: Actor
    visitor: Visitor = field(default_factory=Visitor)

    @property
    def id(self) -> str:
        return self.actor.user_id

    def socket(self, device_id: str | None = None) -> Socket:
        socket = Socket(self.hub, self.actor, device_id=device_id)
        self.hub.sockets.append(socket)
        return socket

    def files(self) -> Socket:
        """A connection for chunk frames."""
        return Socket(self.hub, self.actor, namespace=FILES)

    async def listening(self) -> Socket:
        """A socket that also hears what is meant for its user, as every real one does."""
        await self.hub.bus.subscribe_users([(self.actor.tenant_id, self.id)])
        return self.socket()

    async def do(self, name: str, /, **fields: Any) -> Any:
        """By REST."""
        return await self.hub.do(self.actor, name, fields, visitor=self.visitor)

    async def refused(self, name: str, /, **fields: Any) -> str:
        """The code of the refusal, or `ok`."""
        try:
            await self.do(name, **fields)
        except HubError as error:
            return error.code
        return "ok"

    async def room(self, **fields: Any) -> UUID:
        created = await self.do("room:create", **{"name": "Team Standup", **fields})
        call_id: UUID = created.call_id
        return call_id


class _Reconciler:
    def __init__(self) -> None:
        self.asked: list[bool] = []

    async def now(self, *, dry_run: bool = False) -> Reconciliation:
        self.asked.append(dry_run)
        return Reconciliation(calls=3, rooms=2, skipped=0, unreachable_regions=0, corrections={"participant:left": 2})


class _Tokens:
    """Tokens that are what they say: `<user>` is somebody, all else is refused. Those of guests are real."""

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}
        self.real = Tokens(TokenRules(secrets=("the-secret-of-these-tests-is-long-enough",)))

    def issue_guest(
        self, *, tenant: UUID, guest: GuestPass, display_name: str = "", user_id: str | None = None
    ) -> IssuedToken:
        return self.real.issue_guest(tenant=tenant, guest=guest, display_name=display_name, user_id=user_id)

    async def verify(self, token: str) -> Actor:
        if token not in self.actors:
            raise TokenInvalid()
        return self.actors[token]


class Node:
    """`hub.context.Hub`, and the bus' listener."""

    def __init__(
        self,
        db: Database,
        cluster: Cluster,
        media: LiveKit,
        livekit: FakeLiveKit,
        store: LocalStore,
        pours: Pours,
        admin_dsn: str,
    ) -> None:
        self.db, self.cluster, self.media, self.livekit = db, cluster, media, livekit
        self.store, self.pours = store, pours
        self.bus, self.roster, self.limits = cluster.bus, cluster.roster, cluster.limits
        self.nodes, self.sessions = cluster.nodes, cluster.sessions
        self.presence, self.watching = cluster.presence, cluster.watching
        self.reconcile, self.tokens = _Reconciler(), _Tokens()
        self.passwords = Passwords(cost=4)
        self.quality = Reports(db)
        self.transfers = Transfers(self, store, most=16, spool_directory=None)
        self.readings = Readings(store)
        self.rules = Rules()
        self.ahead = timedelta()
        # A clock that stands still, for tests that a slow machine must not age.
        self.still: datetime | None = None
        self.sockets: list[Socket] = []
        self.controls: list[dict[str, Any]] = []
        # By call, how far its log has been delivered here.
        self.offsets: dict[UUID, int] = {}
        self.admin_dsn = admin_dsn
        self.dispatcher = Dispatcher(all_commands(), self, authorize)

    @property
    def node_id(self) -> str:
        return self.cluster.node_id

    @property
    def incarnation(self) -> str:
        return self.cluster.incarnation

    @property
    def clock(self) -> Callable[[], datetime]:
        return lambda: (self.still or datetime.now(UTC)) + self.ahead

    @property
    def config(self) -> Callable[[], Mapping[str, Any]]:
        return lambda: {"AURALINK_JWT_SECRET": "***", "AURALINK_REGION": "default"}

    # The bus' listener

    def deliver_room(
        self, call_id: UUID, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        if offset is not None:
            self.offsets[call_id] = offset
        for socket in self.sockets:
            if call_id in socket.joined and socket.id != skip_session:
                socket.heard.append((name, msgspec.json.decode(body)))

    def deliver_user(self, tenant_id: UUID, user_id: str, name: str, body: bytes) -> None:
        for socket in self.sockets:
            if (socket.actor.tenant_id, socket.actor.user_id) == (tenant_id, user_id):
                socket.heard.append((name, msgspec.json.decode(body)))

    def control(self, message: dict[str, Any]) -> None:
        self.controls.append(message)
        if message["kind"] == "evict":
            for socket in self.sockets:
                if socket.id == message["session_id"]:
                    socket.heard.append((message["event"], message["data"]))
                    socket.joined.pop(UUID(message["call_id"]), None)

    def resynced(self, call_id: UUID) -> None: ...

    def resynced_user(self, tenant_id: UUID, user_id: str) -> None: ...

    def degraded(self, on: bool) -> None: ...

    # What tests do

    def person(
        self,
        user_id: str,
        *,
        tenant: UUID = TENANT,
        admin: bool = False,
        operator: bool = False,
        guest_of: UUID | None = None,
        role: Role = "participant",
        denied: Sequence[Permission] = (),
        approval: bool = False,
    ) -> Person:
        actor = Actor(
            tenant_id=tenant,
            user_id=user_id,
            role="guest" if guest_of else "service_role" if operator else "authenticated",
            expires_at=datetime.now(UTC) + timedelta(hours=1),
            display_name=user_id.title(),
            hub_role="admin" if admin else None,
            guest=GuestPass(guest_of, role, tuple(denied), approval=approval) if guest_of else None,
        )
        return Person(self, actor)

    def passerby(self, network: str = "192.0.2.1", agent: str = "Mozilla/5.0 (X11; Linux x86_64)") -> Person:
        """Somebody of the public, without a token."""
        return Person(self, NOBODY, Visitor(network, agent))

    def context(self, actor: Actor, socket: Socket | None = None) -> Context:
        return Context(
            hub=self,
            actor=actor,
            request_id=uuid4().hex,
            session=socket,
            device_id=socket.device_id if socket else None,
            namespace=socket.namespace if socket else APPS,
        )

    async def do(
        self,
        actor: Actor,
        name: str,
        fields: Mapping[str, Any],
        *,
        socket: Socket | None = None,
        if_match: str | None = None,
        visitor: Visitor | None = None,
    ) -> Any:
        command = self.dispatcher.commands.get(name)
        assert command is not None, name
        ctx = self.context(actor, socket)
        ctx.if_match = if_match
        ctx.visitor = visitor or ctx.visitor
        try:
            answer = await self.dispatcher.run(ctx, command, _plain(fields), door="socket" if socket else "rest")
        finally:
            await self.delivered()
        return answer.data

    async def delivered(self) -> None:
        """Until every socket has heard what was told: an event arrives a moment after it was published."""
        for call_id in {call_id for socket in self.sockets for call_id in socket.joined}:
            position = await self.bus.position(call_id)
            await eventually(lambda at=position, of=call_id: self.offsets.get(of, 0) >= at.offset)  # type: ignore[misc]

    async def news(self, call_id: UUID, *news: FactEvent, tenant: UUID = TENANT) -> None:
        """What a webhook would have told."""
        await learn(self, tenant, call_id, news)
        await self.delivered()

    async def connects(self, call_id: UUID, identity: str, *, tenant: UUID = TENANT, token: str | None = None) -> str:
        """That client's media comes up; its sid in LiveKit."""
        room_name = await self.value("SELECT livekit_room_name FROM calls WHERE id = $1", call_id)
        part_sid = self.livekit.join(room_name, identity, token=token)
        now = self.clock()
        await self.news(
            call_id,
            ParticipantJoined(
                at=now,
                known_at=now,
                room_sid=self.livekit.rooms[room_name].info.sid,
                part_sid=part_sid,
                identity=identity,
                joined_at=now,
                countable=True,
            ),
            tenant=tenant,
        )
        return part_sid

    async def publishes(self, call_id: UUID, identity: str, source: Source, *, tenant: UUID = TENANT) -> str:
        """That client, connected before, publishes; the sid of the track."""
        room_name = await self.value("SELECT livekit_room_name FROM calls WHERE id = $1", call_id)
        track_sid = self.livekit.publish(room_name, identity, source)
        room, now = self.livekit.rooms[room_name], self.clock()
        await self.news(
            call_id,
            TrackPublished(
                at=now,
                known_at=now,
                room_sid=room.info.sid,
                part_sid=room.participants[identity].info.sid,
                identity=identity,
                track_sid=track_sid,
                source=source,
            ),
            tenant=tenant,
        )
        return track_sid

    async def rows(self, sql: str, *values: Any) -> list[Any]:
        """Straight from the database, past row level security."""
        connection = await asyncpg.connect(self.admin_dsn)
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()

    async def value(self, sql: str, *values: Any) -> Any:
        rows = await self.rows(sql, *values)
        return rows[0][0] if rows else None


async def eventually(claim: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Until it is so; fails when it never is."""
    async with asyncio.timeout(timeout_s):
        while not claim():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes off the wire."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(fields))
    return plain


@pytest.fixture
async def livekit() -> AsyncIterator[FakeLiveKit]:
    async with FakeLiveKit() as fake:
        yield fake


@asynccontextmanager
async def going(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def hub(
    database: TestDatabase, valkey: Valkey, env_name: str, livekit: FakeLiveKit, tmp_path: Path
) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        db = await Database.open(database.app_dsn, max_size=12)
        stack.push_async_callback(db.close)
        cluster = await stack.enter_async_context(
            Cluster.open(valkey.url, env=env_name, secret=b"a secret of the tests, long enough to be one")
        )
        media = await stack.enter_async_context(LiveKit({"default": livekit.server}))
        store = await stack.enter_async_context(LocalStore(tmp_path / "store", SIGNER))
        pours = Pours(store, directory=str(tmp_path))
        stack.callback(pours.close)
        node = Node(db, cluster, media, livekit, store, pours, database.admin_dsn)
        await stack.enter_async_context(going(node.transfers.run(), node.readings.run()))
        stack.callback(node.passwords.close)
        cluster.bus.listen(node)
        yield node
