"""Where a drill is played: real servers, real nodes as processes, and a LiveKit of which only the API is there."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import aiohttp
import asyncpg
from redis.asyncio import Redis

from db import migrate
from hub.cluster import Cluster
from hub.embedded import Postgres, Valkey, free_port
from hub.transport.auth import TokenRules, Tokens
from tests.conftest import APP_PASSWORD, CARELESS, OWNER_PASSWORD, TestDatabase, copied_database
from tests.e2e.stage import JWT_SECRET, ROOT, NodeProcess
from tests.fakes.livekit import FakeLiveKit
from tests.fakes.proxy import Proxy
from tests.faults.drill.checks import Violation
from tests.faults.drill.client import Client
from tests.faults.drill.history import Fault, Final, Healed, History
from tests.faults.drill.view import View

TEMPLATE = "hub_drill_template"
CLUSTER_SECRET = "the-cluster-secret-of-the-drills-" + "x" * 8
# Connects at a time; more only queue in front of a node.
_AT_ONCE = 25
# On a machine that everything here shares.
_READY_S = 90.0


@dataclass(frozen=True)
class Servers:
    """May be stopped and killed; whoever does starts them again."""

    postgres: Postgres
    valkey: Valkey
    valkey_dir: Path


@contextmanager
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:

        def directory(name: str) -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"auralink-{name}-")))

        postgres = stack.enter_context(Postgres(directory("pg"), settings=CARELESS))
        # What was written is there again after a kill: every write reaches the kernel before its answer leaves.
        place = directory("valkey")
        valkey = stack.enter_context(Valkey(place, settings={"appendonly": "yes"}))
        yield Servers(postgres, valkey, place)


async def prepare(servers: Servers) -> None:
    """Once: the database that every drill gets a copy of."""
    await migrate.bootstrap(servers.postgres.dsn(), TEMPLATE, owner_password=OWNER_PASSWORD, app_password=APP_PASSWORD)
    await migrate.up(servers.postgres.dsn("hub_owner", TEMPLATE, password=OWNER_PASSWORD))


class Ground:
    """The nodes and clients of one drill, and what they did."""

    def __init__(
        self, servers: Servers, database: TestDatabase, livekit: FakeLiveKit, http: aiohttp.ClientSession
    ) -> None:
        self.servers, self.database, self.livekit, self.http = servers, database, livekit, http
        self.env = f"d{secrets.token_hex(5)}"
        self.history = History()
        # What broke a promise, for people to read.
        self.found: list[Violation] = []
        # Faults, by name.
        self.struck: Counter[str] = Counter()
        self.nodes: list[NodeProcess] = []
        self.clients: list[Client] = []
        # What clients know of; grows with the nodes.
        self.urls: list[str] = []
        self.owner_token = ""
        self._tokens = Tokens(TokenRules(secrets=(JWT_SECRET,)))
        self._watcher: Cluster | None = None

    # Nodes

    async def node(self, *, redis_url: str | None = None, **over: str) -> NodeProcess:
        port, internal = free_port(), free_port()
        environ = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(Path.home()),
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": self.database.app_dsn,
            "REDIS_URL": redis_url or self.servers.valkey.url,
            "LIVEKIT_URL": self.livekit.url,
            "LIVEKIT_API_KEY": self.livekit.api_key,
            "LIVEKIT_API_SECRET": self.livekit.api_secret,
            "AURALINK_ENV": self.env,
            "AURALINK_JWT_SECRET": JWT_SECRET,
            "AURALINK_CLUSTER_SECRET": CLUSTER_SECRET,
            "AURALINK_LISTEN": f"127.0.0.1:{port}",
            "AURALINK_INTERNAL_LISTEN": f"127.0.0.1:{internal}",
            "AURALINK_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "AURALINK_NODE_ID": f"node-{len(self.nodes)}",
            # Everybody comes from one address here.
            "AURALINK_MAX_CONNECTIONS_PER_ADDRESS": "20000",
            "AURALINK_LOG_LEVEL": "warning",
            **over,
        }
        node = NodeProcess(environ, port, internal)
        self.nodes.append(node)
        self.urls.append(node.url)
        await self.start(node)
        return node

    async def several(self, count: int, **over: str) -> None:
        """Nodes, started side by side."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(self.node(**over))

    @staticmethod
    async def start(node: NodeProcess) -> None:
        """For the first time or again. Ready when this returns."""
        await node.start(until_ready=False)
        await node.until_ready(_READY_S)

    async def bus_count(self, node: NodeProcess, kind: str) -> float:
        """How often the bus of a node did that since its start. Raises LookupError."""
        return await self.metric(node, f'bus_events_total{{kind="{kind}"}}')

    async def metric(self, node: NodeProcess, name: str) -> float:
        """Of a node, by its metrics. Raises LookupError."""
        start = f"auralink_hub_{name}"
        async with self.http.get(f"{node.internal_url}/metrics") as response:
            lines = (await response.text()).splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)]
        if not found:
            raise LookupError(f"no metric {start}")
        return sum(found)

    # Clients

    def client(self, user: str, *, first: int = 0, nodes: list[str] | None = None, patient: bool = False) -> Client:
        """It connects to the `first` of the nodes, and to the others when that one fails."""
        token = self._tokens.issue(user, display_name=user).token
        client = Client(
            user, token, self.urls if nodes is None else nodes, self.http, self.history, first=first, patient=patient
        )
        self.clients.append(client)
        return client

    async def crowd(self, count: int, *, prefix: str = "u", nodes: int | None = None) -> list[Client]:
        """Connected, spread evenly over the nodes."""
        made = [self.client(f"{prefix}{i}", first=i % (nodes or len(self.urls))) for i in range(count)]
        await self.each(made, lambda client: client.start())
        return made

    async def each(self, clients: Sequence[Client], do: Callable[[Client], Awaitable[object]]) -> None:
        """Run `do(client)` for all of them, some at a time."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(client: Client) -> None:
            async with gate:
                await do(client)

        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(one(client))

    def token(self, user: str) -> str:
        return self._tokens.issue(user, display_name=user).token

    async def room(self, *, seats: int = 100, owner: str = "owner", node: int = 0) -> str:
        """The id of a fresh call."""
        token = self.token(owner)
        body = {"name": "Drill", "call_type": "group", "max_participants": seats}
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.post(f"{self.urls[node]}/api/v1/rooms", json=body, headers=headers) as response:
            answer = await response.json()
            if response.status != 201:
                raise RuntimeError(f"no room: {response.status} {answer}")
            return str(answer["call_id"])

    async def rooms(self, clients: list[Client], size: int) -> list[str]:
        """Rooms of about `size`, each with clients of every node, everybody in one."""
        count = max(1, round(len(clients) / size))
        calls = [await self.room(seats=max(100, 2 * size)) for _ in range(count)]
        where = {client.user: calls[i * count // len(clients)] for i, client in enumerate(clients)}

        async def enter(client: Client) -> None:
            code = await client.join(where[client.user])
            if code != "ok":
                raise RuntimeError(f"{client.user} could not join: {code}")

        await self.each(clients, enter)
        return calls

    def speakers(self, clients: Sequence[Client], every: int) -> list[Client]:
        """One in so many, of every node and in every room."""
        nodes = len(self.urls)
        return [client for i, client in enumerate(clients) if i // nodes % every == 0]

    # What the hub shows

    @property
    def watcher(self) -> Cluster:
        """The hub's own view of Redis, without being a node."""
        if self._watcher is None:
            self._watcher = Cluster(
                self.servers.valkey.url, env=self.env, secret=CLUSTER_SECRET.encode(), node_id="watcher"
            )
        return self._watcher

    async def live_sessions(self, calls: list[str]) -> set[str]:
        """Who is shown as connected, in any of the rooms. Raises ClusterUnavailable."""
        found = await self.sessions_by_call(calls)
        return {session for sessions in found.values() for session in sessions}

    async def sessions_by_call(self, calls: list[str]) -> dict[str, set[str]]:
        found = await asyncio.gather(*(self.watcher.roster.sessions(UUID(call)) for call in calls))
        return {
            call: {entry.session_id for entry in entries if entry.state == "live"}
            for call, entries in zip(calls, found, strict=True)
        }

    async def finish(self) -> None:
        """With nothing under way any more: write down what everybody sees, beside what a newcomer would."""

        async def one(client: Client) -> None:
            for call, room in list(client.rooms.items()):
                answer = await client.picture(call)
                if answer is None or client.rooms.get(call) is not room:
                    continue
                fresh = View()
                fresh.picture(answer)
                at = (room.view.epoch, room.view.offset)
                self.history.add(
                    Final(time.monotonic(), client.user, room.stay, call, *at, room.view.summary(), fresh.summary())
                )

        await self.each(self.clients, one)

    async def keys_for_ever(self) -> int:
        """How many keys of the hub in Redis would never end by themselves."""
        async with Redis.from_url(self.servers.valkey.url, driver_info=None) as redis:
            keys = [key async for key in redis.scan_iter(f"aura:{self.env}:*", count=1000)]
            return sum([await redis.pttl(key) == -1 for key in keys])

    async def statuses(self, call: str) -> dict[str, str]:
        """By user, past the hub."""
        admin = await asyncpg.connect(self.database.admin_dsn)
        try:
            query = "SELECT user_id, status FROM call_participants WHERE call_id = $1::uuid"
            return {row["user_id"]: row["status"] for row in await admin.fetch(query, call)}
        finally:
            await admin.close()

    # Faults

    def fault(self, what: str) -> float:
        now = time.monotonic()
        self.history.add(Fault(now, what))
        return now

    def lose_redis_data(self) -> None:
        """While it is down."""
        shutil.rmtree(self.servers.valkey_dir / "appendonlydir", ignore_errors=True)

    def healed(self) -> float:
        now = time.monotonic()
        self.history.add(Healed(now))
        return now

    @asynccontextmanager
    async def proxied_redis(self) -> AsyncIterator[tuple[Proxy, str]]:
        """A way to Redis that can be broken, and its URL."""
        parts = urlsplit(self.servers.valkey.url)
        assert parts.hostname is not None and parts.port is not None
        async with Proxy(parts.hostname, parts.port) as proxy:
            netloc = parts.netloc.replace(f":{parts.port}", f":{proxy.port}")
            yield proxy, urlunsplit(parts._replace(netloc=netloc))

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self.clients))
        await asyncio.gather(*(node.close() for node in self.nodes))
        if self._watcher is not None:
            await self._watcher.stop()


@asynccontextmanager
async def ground(servers: Servers) -> AsyncIterator[Ground]:
    """A fresh database, key prefix and LiveKit. No node runs yet."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(copied_database(servers.postgres, TEMPLATE))
        livekit = await stack.enter_async_context(FakeLiveKit())
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        made = Ground(servers, database, livekit, http)
        try:
            yield made
        finally:
            await made.close()


async def until(true: Callable[[], Awaitable[bool]], *, timeout_s: float, every_s: float = 0.1) -> float | None:
    """Seconds until `await true()` says so; None where it never did."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if await true():
            return time.monotonic() - started
        await asyncio.sleep(every_s)
    return None
