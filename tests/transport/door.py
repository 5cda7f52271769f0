"""A hub with a few commands of its own, served as the real one is: what the tests of the HTTP doors talk to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast
from uuid import UUID, uuid4

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from msgspec import UNSET, Meta, UnsetType

from db.pool import Database
from hub import contract
from hub.commands import Commands, Http, Rate
from hub.context import Context, Hub, Member
from hub.dispatch import Dispatcher
from hub.policy import Permission
from hub.protocol import errors
from hub.transport import docs, middleware, rest
from hub.transport.auth import TokenRules, Tokens
from hub.transport.runner import Runner

SECRET = "the-secret-of-these-tests-is-long-enough"
ORIGIN = "https://app.example.com"
commands = Commands()
# Nobody is refused for asking often, but where a test is about that.
_OFTEN = Rate(1_000_000, per_s=1)


class MakeThing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=40)]
    count: Annotated[int, Meta(ge=0, le=1000)] = 1
    tags: Annotated[list[Annotated[str, Meta(max_length=20)]], Meta(max_length=5)] = []
    at: Annotated[datetime, Meta(tz=True)] | None = None
    size: Literal["small", "large"] = "small"
    metadata: dict[str, Any] = {}


class Thing(msgspec.Struct, frozen=True):
    thing_id: UUID
    name: str
    count: int
    made: int

    @property
    def etag(self) -> str:
        return f'"{self.name.encode().hex()}-{self.count}"'


class NameThing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    thing_id: UUID


class UpdateThing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    thing_id: UUID
    name: Annotated[str, Meta(min_length=1, max_length=40)] | UnsetType = UNSET
    count: Annotated[int, Meta(ge=0, le=1000)] | UnsetType = UNSET


class ListThings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    from_: Annotated[datetime, Meta(tz=True)] | None = msgspec.field(default=None, name="from")
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    sizes: Annotated[list[Literal["small", "large"]], Meta(max_length=4)] = []
    big: bool | None = None
    q: Annotated[str, Meta(min_length=1, max_length=50)] | None = None


class Asked(msgspec.Struct, frozen=True):
    asked: ListThings


class Refuse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class NameCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: UUID


@dataclass
class World:
    """What the commands did."""

    things: dict[UUID, Thing] = field(default_factory=dict)
    made: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[Context] = field(default_factory=list)


def _world(ctx: Context) -> World:
    world = cast("TinyHub", ctx.hub).world
    world.seen.append(ctx)
    return world


@commands.add("thing:make", needs="user", http=Http("POST", "/things", 201, location="/things/{thing_id}"), rate=_OFTEN)
async def make(ctx: Context, message: MakeThing) -> Thing:
    """Make a thing."""
    world = _world(ctx)
    world.made += 1
    thing = Thing(uuid4(), message.name, message.count, world.made)
    world.things[thing.thing_id] = thing
    return thing


@commands.add("thing:list", needs="user", http=Http("GET", "/things"), mutates=False, rate=_OFTEN)
async def find(ctx: Context, message: ListThings) -> Asked:
    """Say what was asked for."""
    _world(ctx)
    return Asked(message)


@commands.add("thing:get", needs="user", http=Http("GET", "/things/{thing_id}"), mutates=False, rate=_OFTEN)
async def get(ctx: Context, message: NameThing) -> Thing:
    """Show a thing."""
    thing = _world(ctx).things.get(message.thing_id)
    if thing is None:
        raise errors.NotFound("no such thing here, or not for you")
    return thing


@commands.add("thing:update", needs="user", http=Http("PATCH", "/things/{thing_id}"), rate=_OFTEN)
async def update(ctx: Context, message: UpdateThing) -> Thing:
    """Change a thing."""
    world = _world(ctx)
    thing = world.things.get(message.thing_id)
    if thing is None:
        raise errors.NotFound()
    if ctx.if_match is not None and ctx.if_match != thing.etag:
        raise errors.PreconditionFailed()
    name = thing.name if message.name is UNSET else message.name
    count = thing.count if message.count is UNSET else message.count
    world.things[thing.thing_id] = changed = msgspec.structs.replace(thing, name=name, count=count)
    return changed


@commands.add("thing:remove", needs="user", http=Http("DELETE", "/things/{thing_id}", 204), rate=_OFTEN)
async def remove(ctx: Context, message: NameThing) -> None:
    """Throw a thing away."""
    if _world(ctx).things.pop(message.thing_id, None) is None:
        raise errors.NotFound()


@commands.add("thing:slow", needs="user", http=Http("POST", "/slow"), deadline_s=0.3, rate=_OFTEN)
async def slow(ctx: Context, message: Nothing) -> None:
    """Take longer than the deadline."""
    world = _world(ctx)
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        world.cancelled.set()
        raise


@commands.add("thing:long", needs="user", http=Http("POST", "/long"), deadline_s=30, rate=_OFTEN)
async def long(ctx: Context, message: Nothing) -> None:
    """Take as long as the deadline allows."""
    await slow(ctx, message)


@commands.add("thing:decide", needs="user", http=Http("POST", "/decisions"), rate=_OFTEN)
async def decide(ctx: Context, message: Nothing) -> Nothing:
    """Commit to something, and take a while to tell everybody."""
    world = _world(ctx)
    async with ctx.transaction() as tx:
        await ctx.keep(tx, message)
    world.decided.set()
    await asyncio.sleep(0.3)
    world.told.set()
    return message


@commands.add("thing:decide_late", needs="user", http=Http("POST", "/late"), deadline_s=0.1, rate=_OFTEN)
async def decide_late(ctx: Context, message: Nothing) -> Nothing:
    """Be longer about the telling than the caller waits."""
    await decide(ctx, message)
    return message


@commands.add("thing:crash", needs="user", http=Http("POST", "/crash"), rate=_OFTEN)
async def crash(ctx: Context, message: Nothing) -> None:
    """Have a bug."""
    raise LookupError("a secret detail")


@commands.add("thing:refuse", needs="user", http=Http("POST", "/refusals/{code}"), rate=_OFTEN)
async def refuse(ctx: Context, message: Refuse) -> None:
    """Refuse with the code."""
    known = errors.TABLE.get(message.code)
    if known is None:
        raise errors.NotFound()
    raise known("because", details={"a": 1})


@commands.add("thing:rare", needs="user", http=Http("POST", "/rare"), rate=Rate(1, per_s=60))
async def rare(ctx: Context, message: Nothing) -> None:
    """Once a minute."""


@commands.add("thing:rule", needs="admin", http=Http("GET", "/admin/things"), mutates=False, rate=_OFTEN)
async def rule(ctx: Context, message: Nothing) -> Nothing:
    """For operators."""
    return Nothing()


@commands.add("thing:call", needs="user", http=Http("GET", "/calls/{call_id}"), mutates=False, rate=_OFTEN)
async def of_call(ctx: Context, message: NameCall) -> NameCall:
    """Say which call was meant."""
    return message


@dataclass
class TinyHub:
    """As much of a `Hub` as these commands and the dispatcher touch."""

    db: Database
    tokens: Tokens
    world: World = field(default_factory=World)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)


async def _authorize(ctx: Context, call_id: UUID, permission: Permission | None) -> Member:
    raise errors.NotFound()


@dataclass
class Door:
    """The served hub and a client of it, with a token of an ordinary user."""

    hub: TinyHub
    client: TestClient[web.Request, web.Application]
    token: str

    @property
    def world(self) -> World:
        return self.hub.world

    @property
    def url(self) -> str:
        return str(self.client.make_url("/"))

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = "",
        headers: Mapping[str, str] | None = None,
        **how: Any,
    ) -> aiohttp.ClientResponse:
        """`token`: "" the user's own, None none at all."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.token}"
        response = await self.client.request(method, path, headers=sent, **how)
        await response.read()
        return response


# Made once: a second's work for every test would be minutes.
_DOCUMENTS = (contract.openapi(commands), contract.asyncapi(commands))


class _Server(TestServer):
    async def _make_runner(self, **how: Any) -> Runner:
        return Runner(self.app, **how)


@asynccontextmanager
async def opened(
    db: Database | None = None, *, rules: TokenRules | None = None, https: bool = False
) -> AsyncIterator[Door]:
    """`db` None: for tests that never get as far as a database."""
    hub = TinyHub(cast("Database", db), Tokens(rules or TokenRules(secrets=(SECRET,))))
    app = web.Application()
    middleware.setup(app, origins=frozenset({ORIGIN}), https=https)
    rest.setup(app, Dispatcher(commands, cast("Hub", hub), _authorize), cast("Hub", hub))
    docs.setup(app, *_DOCUMENTS)
    server = _Server(app)
    async with TestClient(server) as client:
        token = Tokens(TokenRules(secrets=(SECRET,))).issue("ada", display_name="Ada").token
        yield Door(hub, client, token)
