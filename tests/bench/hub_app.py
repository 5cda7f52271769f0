"""The hub under test: the real edge, dispatcher, tokens and cluster, with a table of commands that needs no PostgreSQL.

Everything between the socket and the action is what a node of the hub runs: authentication, validation, permission,
rate limits (raised, but counted), metrics, log lines, and for events the same `ctx.tell` as any action's. Logs are at
`warning`, as an operator would have them under such a load.

Environment: PORT, BENCH_SECRET, REDIS_URL, NODE_ID, BENCH_STALL=1 (watch the event loop)
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, cast
from uuid import UUID, uuid4

import msgspec
from aiohttp import web
from msgspec import Meta

from hub import __version__, app, logs, memory
from hub.cluster import Cluster, SessionInfo
from hub.commands import Commands, Empty, Event, Rate
from hub.context import Context, Hub, Member, Position, Rules
from hub.dispatch import Dispatcher
from hub.policy import Permission
from hub.protocol import errors
from hub.protocol.fields import CallId
from hub.transport import middleware
from hub.transport.auth import TokenRules, Tokens
from hub.transport.socketio import Edge, EdgeOptions, listening
from hub.transport.socketio.codec import Codec
from hub.transport.socketio.session import Session
from tests.bench.stall import Stall

# The load comes from one address and a few thousand users; what a limit costs is that it is counted.
_OFTEN = Rate(1_000_000, per_s=1)
_OPTIONS = EdgeOptions(
    max_connections=100_000,
    max_connections_per_address=100_000,
    max_connections_per_user=100_000,
    events_per_s=1_000_000,
    events_burst=1_000_000,
)


class Said(Event, frozen=True):
    name: ClassVar[str] = "bench:said"
    recorded: ClassVar[bool] = False

    m: str
    p: str


class Recorded(Said, frozen=True):
    recorded: ClassVar[bool] = True


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId


class Say(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    m: Annotated[str, Meta(max_length=100)]
    p: Annotated[str, Meta(max_length=65_536)] = ""


class Carry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    m: Annotated[str, Meta(max_length=100)]
    data: Annotated[bytes, Meta(max_length=65_536)]


class Joined(msgspec.Struct, frozen=True):
    position: Position


class Size(msgspec.Struct, frozen=True):
    size: int


class Stalled(msgspec.Struct, frozen=True):
    stall_ms: float


commands = Commands()


@commands.add("bench:join", needs="anyone", rate=_OFTEN, mutates=False)
async def join(ctx: Context, message: Join) -> Joined:
    """Come into a room, as of a position in its log."""
    assert ctx.session is not None
    await ctx.session.enter(message.call_id, uuid4())
    position = await ctx.hub.bus.position(message.call_id)
    ctx.session.seen(message.call_id, position)
    return Joined(position)


@commands.add("bench:say", needs="anyone", rate=_OFTEN, emits=(Said,))
async def say(ctx: Context, message: Say) -> Empty:
    """Tell the room, once."""
    _demand_in_room(ctx, message.call_id)
    await ctx.tell(message.call_id, Said(message.m, message.p))
    return Empty()


@commands.add("bench:record", needs="anyone", rate=_OFTEN, emits=(Recorded,))
async def record(ctx: Context, message: Say) -> Empty:
    """Tell the room, with a place in its log."""
    _demand_in_room(ctx, message.call_id)
    await ctx.tell_last(message.call_id, Recorded(message.m, message.p))
    return Empty()


@commands.add("bench:echo", needs="anyone", rate=_OFTEN, mutates=False)
async def echo(ctx: Context, message: Say) -> Say:
    """Say it again."""
    return message


@commands.add("bench:relay", needs="anyone", rate=_OFTEN)
async def relay(ctx: Context, message: Carry) -> Empty:
    """Hand bytes to everybody who is in the room on this node."""
    _demand_in_room(ctx, message.call_id)
    carried = {"call_id": str(message.call_id), "m": message.m, "data": message.data}
    cast(BenchHub, ctx.hub).hand_out(message.call_id, carried)
    return Empty()


@commands.add("bench:upload", needs="anyone", rate=_OFTEN)
async def upload(ctx: Context, message: Carry) -> Size:
    """Take bytes."""
    return Size(len(message.data))


@commands.add("bench:stall", needs="anyone", rate=_OFTEN, mutates=False)
async def ask_stall(ctx: Context, message: Empty) -> Stalled:
    """The longest stall of the loop since the last question."""
    return Stalled(cast(BenchHub, ctx.hub).stall.worst_ms())


def _demand_in_room(ctx: Context, call_id: UUID) -> None:
    """As in a call: whoever is in it, and admins from outside."""
    if not ctx.actor.admin and (ctx.session is None or call_id not in ctx.session.rooms):
        raise errors.NotInRoom()


async def _nobody(ctx: Context, call_id: UUID, permission: Permission | None) -> Member:
    raise errors.NotFound()


class BenchHub:
    """The ports that the edge and these commands use."""

    clock: Callable[[], datetime] = staticmethod(lambda: datetime.now(UTC))

    def __init__(self, cluster: Cluster, tokens: Tokens) -> None:
        self.bus = cluster.bus
        self.roster = cluster.roster
        self.limits = cluster.limits
        self.nodes = cluster.nodes
        self.sessions = cluster.sessions
        self.node_id = cluster.node_id
        self.incarnation = cluster.incarnation
        self.tokens = tokens
        self.rules = Rules()
        self.stall = Stall()
        self.edge: Edge | None = None

    def hand_out(self, call_id: UUID, payload: Mapping[str, Any]) -> None:
        """Bytes go straight to the sockets of this node, encoded once: the bus carries none."""
        assert self.edge is not None
        frames: dict[Codec, tuple[bytes, int]] = {}
        for session in self.edge.rooms.sessions(call_id):
            codec = session.socket.codec
            if codec not in frames:
                frames[codec] = codec.binary_event("bench:relayed", payload)
            session.socket.write(*frames[codec])


class _Register:
    """What a node keeps of its sessions in Redis: the list that operators see, and the devices of their users."""

    def __init__(self, cluster: Cluster) -> None:
        self._sessions, self._presence, self._watching = cluster.sessions, cluster.presence, cluster.watching

    def opened(self, session: Session) -> None:
        actor = session.actor
        self._presence.opened(session.id, actor.tenant_id, actor.user_id)
        self._sessions.opened(
            SessionInfo(
                session_id=session.id,
                tenant_id=actor.tenant_id,
                user_id=actor.user_id,
                connected_at=session.connected_at,
                client=session.client,
                device_id=session.device_id,
            )
        )

    def closed(self, session: Session) -> None:
        self._sessions.closed(session.id)
        self._presence.closed(session.id, goodbye=session.goodbye)
        self._watching.forget(session.id)


async def serve(port: int, secret: str, redis_url: str, node_id: str, *, watch: bool) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Cluster.open(
        redis_url, env="bench", secret=secret.encode(), node_id=node_id, version=__version__
    ) as cluster:
        hub = BenchHub(cluster, Tokens(TokenRules(secrets=(secret,))))
        seen = cast(Hub, hub)
        edge = Edge(
            dispatcher=Dispatcher(commands, seen, _nobody),
            hub=seen,
            subscriptions=hub.bus,
            register=_Register(cluster),
            options=_OPTIONS,
        )
        hub.edge = edge
        hub.bus.listen(edge)
        hub.roster.when_gone(edge.seen_as_lost)
        hub.nodes.load = edge.load
        public = web.Application()
        middleware.setup(public, origins=frozenset(), https=False)
        edge.attach(public)
        runner = web.AppRunner(public, **middleware.RUNNER)
        await runner.setup()
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(edge.run())]
            if watch:
                loops.append(tasks.create_task(hub.stall.watch()))
            async with listening(runner, edge, "127.0.0.1", port):
                memory.tune()
                await stop.wait()
            for loop in loops:
                loop.cancel()
        await runner.cleanup()


if __name__ == "__main__":
    logs.configure(log_format="json", level="warning", node_id=os.environ.get("NODE_ID", ""))
    app.run(
        serve(
            int(os.environ["PORT"]),
            os.environ["BENCH_SECRET"],
            os.environ["REDIS_URL"],
            os.environ.get("NODE_ID", "a"),
            watch=bool(os.environ.get("BENCH_STALL")),
        )
    )
