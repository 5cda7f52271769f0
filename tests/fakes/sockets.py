"""A socket edge for tests: a real aiohttp server with a tiny command table, a bus within the process, a raw client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, cast
from uuid import UUID, uuid4

import aiohttp
import msgspec
from aiohttp import web

from hub.cluster import Cluster, Direct
from hub.commands import FILES, NAMESPACES, Commands, Empty, Event, Rate
from hub.context import Actor, Context, Hub, Position, RosterEntry, Rules
from hub.dispatch import Dispatcher
from hub.protocol import errors
from hub.transport.socketio import Edge, EdgeOptions, listening

TENANT = UUID("7b0a4f6e-0000-4000-8000-000000000001")
FAST = Rate(100_000, per_s=1)


class Posted(Event, frozen=True):
    name: ClassVar[str] = "test:posted"

    text: str


class Typed(Event, frozen=True):
    name: ClassVar[str] = "test:typed"
    recorded: ClassVar[bool] = False

    text: str


class Echo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str


class Nap(msgspec.Struct, frozen=True):
    seconds: float


class Bytes(msgspec.Struct, frozen=True):
    data: bytes


class Join(msgspec.Struct, frozen=True):
    call_id: UUID
    # Events that others post while the join is running.
    meanwhile: int = 0
    fail: bool = False


class Post(msgspec.Struct, frozen=True):
    call_id: UUID
    text: str
    recorded: bool = True
    last: bool = False
    times: int = 1


class Leave(msgspec.Struct, frozen=True):
    call_id: UUID


class Joined(msgspec.Struct, frozen=True):
    position: Position


class Size(msgspec.Struct, frozen=True):
    size: int


class Whole(msgspec.Struct, frozen=True):
    data: Any = None


commands = Commands()


@commands.add("test:echo", needs="anyone", rate=FAST, mutates=False)
async def echo(ctx: Context, message: Echo) -> Echo:
    """Say it again."""
    return message


@commands.add("test:any", needs="anyone", rate=FAST, mutates=False)
async def anything(ctx: Context, message: Whole) -> Whole:
    """Say anything again."""
    return message


@commands.add("test:nap", needs="anyone", rate=FAST, mutates=False)
async def nap(ctx: Context, message: Nap) -> Empty:
    """Take some time."""
    cast(FakeHub, ctx.hub).running += 1
    cast(FakeHub, ctx.hub).most_running = max(cast(FakeHub, ctx.hub).most_running, cast(FakeHub, ctx.hub).running)
    try:
        await asyncio.sleep(message.seconds)
    finally:
        cast(FakeHub, ctx.hub).running -= 1
    return Empty()


class Decide(msgspec.Struct, frozen=True):
    call_id: UUID
    seconds: float


@commands.add("test:decide", needs="anyone", rate=FAST, mutates=False, deadline_s=0.1)
async def decide(ctx: Context, message: Decide) -> Empty:
    """Be in a room for good, and take some time to tell it."""
    assert ctx.session is not None
    ctx.decided = True
    await asyncio.sleep(message.seconds)
    await ctx.session.enter(message.call_id, uuid4())
    await ctx.tell(message.call_id, Posted("decided"))
    return Empty()


@commands.add("test:crash", needs="anyone", rate=FAST, mutates=False)
async def crash(ctx: Context, message: Empty) -> Empty:
    """Break."""
    raise RuntimeError("a bug")


@commands.add("test:bytes", needs="anyone", rate=FAST, mutates=False)
async def take_bytes(ctx: Context, message: Bytes) -> Size:
    """Take bytes."""
    return Size(len(message.data))


@commands.add("test:take", needs="anyone", rate=FAST, namespaces=(FILES,), mutates=False)
async def take_chunk(ctx: Context, message: Bytes) -> Bytes:
    """Take bytes and give them back, once the client has read what it was given before."""
    assert ctx.session is not None
    await ctx.session.drained()
    return message


@commands.add("test:who", needs="anyone", rate=FAST, namespaces=NAMESPACES, mutates=False)
async def who(ctx: Context, message: Empty) -> Echo:
    """Where it was asked."""
    return Echo(ctx.namespace)


@commands.add("test:unencodable", needs="anyone", rate=FAST, mutates=False)
async def unencodable(ctx: Context, message: Empty) -> Whole:
    """Answer with what no serializer can write."""
    return Whole(object())


@commands.add("test:huge", needs="anyone", rate=FAST, mutates=False)
async def huge(ctx: Context, message: Empty) -> Whole:
    """Answer with what only some serializers can write."""
    return Whole(2**64)


@commands.add("room:join", needs="anyone", rate=FAST, mutates=False)
async def join(ctx: Context, message: Join) -> Joined:
    """Enter a room."""
    assert ctx.session is not None
    await ctx.session.enter(message.call_id, uuid4())
    for number in range(message.meanwhile):
        await ctx.tell(message.call_id, Posted(f"meanwhile {number}"))
    position = await ctx.hub.bus.position(message.call_id)
    ctx.session.seen(message.call_id, position)
    for number in range(message.meanwhile):
        await ctx.tell(message.call_id, Posted(f"after {number}"))
    # Time for the events to arrive before the ack has left.
    await asyncio.sleep(0.02 if message.meanwhile else 0)
    if message.fail:
        raise errors.RoomFull()
    return Joined(position)


@commands.add("room:leave", needs="anyone", rate=FAST, mutates=False)
async def leave(ctx: Context, message: Leave) -> Empty:
    """Leave a room."""
    assert ctx.session is not None
    await ctx.session.exit(message.call_id)
    return Empty()


@commands.add("test:post", needs="anyone", rate=FAST, mutates=False)
async def post(ctx: Context, message: Post) -> Empty:
    """Tell a room."""
    for number in range(message.times):
        text = message.text if message.times == 1 else f"{message.text} {number}"
        tell = ctx.tell_last if message.last else ctx.tell
        await tell(message.call_id, Posted(text) if message.recorded else Typed(text))
    return Empty()


@commands.add("session:refresh", needs="anyone", rate=FAST, mutates=False)
async def refresh(ctx: Context, message: Echo) -> Empty:
    """Go on with a new token."""
    assert ctx.session is not None
    ctx.session.refresh(await ctx.hub.tokens.verify(message.text))
    return Empty()


class Close(msgspec.Struct, frozen=True):
    reconnect: bool


@commands.add("test:close", needs="anyone", rate=FAST, mutates=False)
async def close(ctx: Context, message: Close) -> Empty:
    """Have the server end this session."""
    assert ctx.session is not None
    order = {"kind": "close", "session_id": ctx.session.id, "code": "closed", "reconnect": message.reconnect}
    # After the ack.
    asyncio.get_running_loop().call_later(0.05, cast(FakeBus, ctx.hub.bus).close_soon, order)
    return Empty()


class FakeBus:
    """One node's bus, without Redis: offsets, the log, and delivery in the next turn of the loop."""

    def __init__(self) -> None:
        self.edge: Edge | None = None
        self.rooms: set[UUID] = set()
        self.users: set[tuple[UUID, str]] = set()
        self.logs: dict[UUID, list[tuple[str, bytes]]] = {}
        self.direct: dict[tuple[UUID, str], list[Direct]] = {}
        self.down = False
        self.epoch = "e1"
        # The log takes events, and says so once this is set.
        self.answers: asyncio.Event | None = None

    def listen(self, edge: Edge) -> None:
        self.edge = edge

    async def to_room(
        self,
        call_id: UUID,
        name: str,
        payload: Any,
        *,
        recorded: bool = True,
        by: Mapping[str, Any] | None = None,
        skip_session: str | None = None,
    ) -> Position | None:
        offset = None
        body: dict[str, Any] = {"call_id": call_id, "epoch": self.epoch, **msgspec.to_builtins(payload), "by": by}
        if recorded:
            log = self.logs.setdefault(call_id, [])
            offset = body["offset"] = len(log) + 1
            log.append((name, b""))
        data = msgspec.json.encode(body)
        if call_id in self.rooms and self.edge is not None:
            asyncio.get_running_loop().call_soon(
                self.edge.deliver_room, call_id, offset, self.epoch, name, data, skip_session
            )
        if offset is None:
            return None
        if self.answers is not None:
            await self.answers.wait()
        return Position(self.epoch, offset)

    async def to_user(self, tenant_id: UUID, user_id: str, name: str, payload: Any) -> Position:
        log = self.direct.setdefault((tenant_id, user_id), [])
        body = {"epoch": self.epoch, "offset": len(log) + 1, **msgspec.to_builtins(payload)}
        log.append(Direct(name, msgspec.json.encode(body)))
        if (tenant_id, user_id) in self.users and self.edge is not None:
            self.edge.deliver_user(tenant_id, user_id, name, log[-1].data)
        return Position(self.epoch, len(log))

    def position_of_room(self, call_id: UUID) -> Position | None:
        return None

    def position_of_user(self, tenant_id: UUID, user_id: str) -> Position | None:
        user = (tenant_id, user_id)
        return Position(self.epoch, len(self.direct.get(user, ()))) if user in self.users else None

    async def missed_by_user(self, tenant_id: UUID, user_id: str, since: Position) -> list[Direct] | None:
        log = self.direct.get((tenant_id, user_id), [])
        return log[since.offset :] if since.epoch == self.epoch and since.offset <= len(log) else None

    async def position(self, call_id: UUID) -> Position:
        return Position(self.epoch, len(self.logs.get(call_id, ())))

    async def since(self, call_id: UUID, position: Position) -> Sequence[Any] | None:
        return None

    async def control(self, node_id: str, message: Mapping[str, Any]) -> None:
        assert self.edge is not None
        self.edge.control(dict(message))

    def close_soon(self, message: dict[str, Any]) -> None:
        assert self.edge is not None
        self.edge.control(message)

    async def subscribe_room(self, call_id: UUID) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise errors.ClusterUnavailable()
        self.rooms.add(call_id)

    def unsubscribe_room(self, call_id: UUID) -> None:
        self.rooms.discard(call_id)

    async def subscribe_users(self, users: Sequence[tuple[UUID, str]]) -> None:
        if self.down:
            raise errors.ClusterUnavailable()
        self.users.update(users)

    def unsubscribe_user(self, tenant_id: UUID, user_id: str) -> None:
        self.users.discard((tenant_id, user_id))


class FakeRoster:
    """Who is in which room, and everything that was asked of it."""

    def __init__(self) -> None:
        self.entries: dict[tuple[UUID, str], str] = {}
        self.calls: list[tuple[str, UUID]] = []
        self.down = False

    async def _step(self, what: str, call_id: UUID) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise errors.ClusterUnavailable()
        self.calls.append((what, call_id))

    async def enter(self, call_id: UUID, entry: RosterEntry) -> None:
        await self._step("enter", call_id)
        self.entries[call_id, entry.session_id] = "live"

    async def leave(self, call_id: UUID, session_id: str) -> None:
        await self._step("leave", call_id)
        self.entries.pop((call_id, session_id), None)

    async def interrupt(self, lost: Sequence[tuple[UUID, str]]) -> None:
        for key in lost:
            await self._step("interrupt", key[0])
            if key in self.entries:
                self.entries[key] = "interrupted"

    async def sessions(self, call_id: UUID) -> Sequence[RosterEntry]:
        return []


class FakeTokens:
    """`good:<user>[:<seconds>]` verifies; the seconds are how long it lasts."""

    async def verify(self, token: str) -> Actor:
        kind, _, rest = token.partition(":")
        if kind == "expired":
            raise errors.TokenExpired()
        if kind == "hang":
            await asyncio.sleep(60)
        if kind != "good":
            raise errors.TokenInvalid()
        user, _, seconds = rest.partition(":")
        expires_at = datetime.now(UTC) + timedelta(seconds=float(seconds or 3600))
        return Actor(TENANT, user, "authenticated", expires_at, display_name=user.title())


class FakeHub:
    """With a cluster, its bus and roster are the real ones."""

    def __init__(self, cluster: Cluster | None = None) -> None:
        self.bus = cast(FakeBus, cluster.bus) if cluster else FakeBus()
        self.roster = cast(FakeRoster, cluster.roster) if cluster else FakeRoster()
        self.tokens = FakeTokens()
        self.rules = Rules()
        self.node_id = cluster.node_id if cluster else "node-1"
        self.incarnation = cluster.incarnation if cluster else "i1"
        self.running = 0
        self.most_running = 0

    def clock(self) -> datetime:
        return datetime.now(UTC)


class Node:
    """A running edge."""

    def __init__(self, hub: FakeHub, edge: Edge, port: int) -> None:
        self.hub, self.edge, self.port = hub, edge, port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def socket_url(self) -> str:
        return f"{self.url}/socket.io/?EIO=4&transport=websocket"


async def _authorize(ctx: Context, call_id: UUID, permission: str | None) -> Any:
    raise errors.NotInRoom()


@asynccontextmanager
async def node(options: EdgeOptions | None = None, hub: FakeHub | None = None) -> AsyncIterator[Node]:
    hub = hub or FakeHub()
    dispatcher = Dispatcher(commands, cast(Hub, hub), _authorize)
    edge = Edge(dispatcher=dispatcher, hub=cast(Hub, hub), subscriptions=hub.bus, options=options)
    hub.bus.listen(edge)
    app = web.Application()
    edge.attach(app)
    # As in production: a handler is cancelled when its client goes.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    running = asyncio.create_task(edge.run())
    await asyncio.sleep(0)
    try:
        async with listening(runner, edge, "127.0.0.1", 0) as port:
            yield Node(hub, edge, port)
    finally:
        await runner.cleanup()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Closed(Exception):
    """The server has closed the socket."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class Raw:
    """A client that says exactly what it is told to, one Engine.IO message at a time. Pings are answered."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket
        self.opening: dict[str, Any] = {}
        self.ready: dict[str, Any] = {}
        self.pings = 0
        self.answers_pings = True
        self._ids = itertools.count(1)
        self._early: list[Any] = []

    async def say(self, text: str) -> None:
        await self.websocket.send_str(text)

    async def hear(self, timeout_s: float = 5.0) -> str:
        """The next message that is no ping. Raises Closed."""
        async with asyncio.timeout(timeout_s):
            while True:
                message = await self.websocket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    return repr(message.data)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise Closed(self.websocket.close_code)
                if message.data != "2":
                    return str(message.data)
                self.pings += 1
                if self.answers_pings:
                    await self.say("3")

    async def closed(self, timeout_s: float = 5.0) -> int | None:
        """Wait for the end; its code."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await self.hear(timeout_s)
                except Closed as end:
                    return end.code

    async def event(self, timeout_s: float = 5.0) -> tuple[str, dict[str, Any]]:
        """The next event."""
        if self._early:
            return cast("tuple[str, dict[str, Any]]", self._early.pop(0))
        while True:
            text = await self.hear(timeout_s)
            if text.startswith("42"):
                name, payload = msgspec.json.decode(text[2:])
                return name, payload

    async def silence(self, seconds: float = 0.15) -> None:
        """Nothing comes for so long."""
        try:
            found = await self.event(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"heard {found}")

    async def command(self, name: str, payload: Any = None, timeout_s: float = 5.0) -> dict[str, Any]:
        """Emit with an ack; events that come before the ack are kept for `event`."""
        number = next(self._ids)
        await self.say(f"42{number}" + msgspec.json.encode([name, payload or {}]).decode())
        return await self.ack(number, timeout_s)

    async def ack(self, number: int, timeout_s: float = 5.0) -> dict[str, Any]:
        while True:
            text = await self.hear(timeout_s)
            if text.startswith(f"43{number}["):
                return cast("dict[str, Any]", msgspec.json.decode(text[2 + len(str(number)) :])[0])
            if text.startswith("42"):
                self._early.append(tuple(msgspec.json.decode(text[2:])))


@asynccontextmanager
async def raw(
    url: str, *, token: str | None = None, headers: Mapping[str, str] | None = None, **auth: str
) -> AsyncIterator[Raw]:
    """An open socket; with a token, authenticated and past `session:ready`."""
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(url, headers=headers, max_msg_size=0, autoclose=True) as websocket,
    ):
        client = Raw(websocket)
        client.opening = msgspec.json.decode((await client.hear())[1:])
        if token is not None:
            await connect(client, token, **auth)
        yield client


async def connect(client: Raw, token: str, **auth: str) -> None:
    auth = {"token": token, "protocol": "1", "client": "test/1", **auth}
    await client.say("40" + msgspec.json.encode(auth).decode())
    answer = await client.hear()
    assert answer.startswith('40{"sid":'), answer
    name, client.ready = await client.event()
    assert name == "session:ready"


async def until(true: Callable[[], bool], timeout_s: float = 3.0) -> None:
    """Wait for something to become true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)
