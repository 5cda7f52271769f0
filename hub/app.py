"""The composition root: settings in, a running node out. The only file that knows every concrete class."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog
from aiohttp import web

from db import migrate, posture
from db.errors import DatabaseUnavailable
from db.pool import Database
from hub import __version__, contract, memory, metrics, vitals
from hub.actions import all_commands, presence
from hub.actions.members import authorize
from hub.background.due import Due, LostSockets
from hub.background.expiry import Expiry
from hub.background.inbox import Inbox
from hub.background.lobbies import Lobbies
from hub.background.outcasts import Outcasts
from hub.background.quality import Reports
from hub.background.readings import Readings
from hub.background.ringing import Latecomers, Ringing
from hub.background.scan import Scan
from hub.background.sweep import Sweep
from hub.background.tidy import Tidy
from hub.background.transfers import Transfers
from hub.cluster import Cluster
from hub.cluster.lock import Leadership
from hub.cluster.sessions import SessionInfo
from hub.commands import APPS, Commands
from hub.context import Reconciliation, Rules
from hub.dispatch import Dispatcher
from hub.media.livekit import LiveKit
from hub.media.values import Server
from hub.media.webhooks import parse
from hub.passwords import Passwords
from hub.protocol.presence import PresenceChanged
from hub.settings import Address, Settings
from hub.state.presence import Presence
from hub.stores import PATH as STORAGE_PATH
from hub.stores import make_scanner, make_signer, make_store
from hub.transport import blobs, docs, forms, health, join, middleware, rest, webhook
from hub.transport.auth import TokenRules, Tokens, tenant_id
from hub.transport.control import Control
from hub.transport.door import Door
from hub.transport.runner import Runner
from hub.transport.socketio import Edge, EdgeOptions
from hub.transport.socketio.session import Session
from storage.errors import StorageError
from storage.pour import Pours
from storage.preview import Previewer
from storage.signing import UrlSigner
from storage.store import Store

log = structlog.get_logger("hub.app")

# PostgreSQL and the hub are often started together; a hub that waits spares the restart loop.
_START_S = 30.0
# What a stop may take after the sockets have gone.
_CLOSE_S = 3.0
_STATEMENT_S = 1.0


class CannotServe(Exception):
    """The node refuses to start; the text is one line that says why."""


@dataclass(frozen=True)
class Documents:
    """The generated contract, ready to be served."""

    openapi: dict[str, Any]
    asyncapi: dict[str, Any]


class Node:
    """The ports an action sees (`hub.context.Hub`), and the parts behind them."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        cluster: Cluster,
        media: LiveKit,
        store: Store,
        signer: UrlSigner,
        tokens: Tokens,
        pours: Pours,
    ) -> None:
        self.settings = settings
        self.db = db
        self.cluster = cluster
        self.media = media
        self.store = store
        self.signer = signer
        self.pours = pours
        self.tokens = tokens
        self.passwords = Passwords()
        self.quality = Reports(db)
        self.bus = cluster.bus
        self.roster = cluster.roster
        self.limits = cluster.limits
        self.nodes = cluster.nodes
        self.sessions = cluster.sessions
        self.presence = cluster.presence
        self.watching = cluster.watching
        self.rules = make_rules(settings)
        self.transfers = Transfers(self, store, most=settings.transfers, spool_directory=settings.spool_dir)
        self.readings = Readings(store)
        self.sweeper = _Leader(cluster, "sweep")
        self.sweep = Sweep(self, self.sweeper, regions=self.rules.regions, every_s=settings.sweep_s)
        self.reconcile = _Reconciler(self.sweep)
        self.undertaker = _Leader(cluster, "files")

    def config(self) -> dict[str, Any]:
        """Every setting as it is in force, secrets hidden."""
        return self.settings.redacted()

    @property
    def node_id(self) -> str:
        return self.cluster.node_id

    @property
    def incarnation(self) -> str:
        return self.cluster.incarnation

    @staticmethod
    def clock() -> datetime:
        return datetime.now(UTC)


class _Leader:
    """Whether this node is the one that does a thing, for the sweep's question."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._led: Leadership | None = None

    async def resign(self) -> None:
        """Let another node begin at once."""
        if self._led is not None:
            await self._cluster.lock.release(self._led)

    async def leads(self) -> bool:
        """Raises ClusterUnavailable."""
        if self._led is None or not self._led.held:
            self._led = await self._cluster.lock.acquire(self._name)
        return self._led is not None


class _Reconciler:
    """The sweep as operators ask for it: now, and what it set right as numbers."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    async def now(self, *, dry_run: bool = False) -> Reconciliation:
        report = await self._sweep.once(dry_run=dry_run)
        return Reconciliation(
            calls=report.calls,
            rooms=report.rooms,
            skipped=report.skipped,
            unreachable_regions=len(report.unreachable),
            corrections=Counter(correction.kind for correction in report.corrections),
        )


class _SessionRegister:
    """The sessions of this node in the list that operators see, and as the devices of their users."""

    def __init__(self, node: Node, latecomers: Latecomers) -> None:
        self._sessions = node.cluster.sessions
        self._presence = node.presence
        self._watching = node.watching
        self._transfers = node.transfers
        self._readings = node.readings
        self._latecomers = latecomers

    def opened(self, session: Session) -> None:
        actor = session.actor
        if actor.role != "guest" and session.namespace == APPS:
            self._presence.opened(session.id, actor.tenant_id, actor.user_id)
            self._latecomers.came(session.id, actor.tenant_id, actor.user_id)
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
        if session.namespace != APPS:
            self._transfers.left(session.id)
            self._readings.left(session.id)
            return
        self._presence.closed(session.id, goodbye=session.goodbye)
        self._watching.forget(session.id)


class _Watched:
    """What watching needs of the sockets and of the database."""

    def __init__(self, edge: Edge, db: Database) -> None:
        self._edge = edge
        self._db = db

    def tell(self, session_id: str, news: list[tuple[str, Presence]]) -> None:
        self._edge.tell(session_id, PresenceChanged([presence.view(user_id, seen) for user_id, seen in news]))

    async def may_see(self, tenant_id: UUID, user_id: str, user_ids: Sequence[str]) -> Mapping[str, datetime | None]:
        return await presence.may_see(self._db, tenant_id, user_id, user_ids)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a node's coroutine on the fastest loop there is."""
    try:
        import uvloop
    except ImportError:  # no wheel for this platform
        asyncio.run(work)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)


async def serve(settings: Settings, *, on_ready: Callable[[], None] = lambda: None, leash: int | None = None) -> None:
    """Run a node until SIGTERM or SIGINT, then drain it. Raises CannotServe.

    `leash`: a socket's file descriptor. The node is one of several on its port, says there when it serves, and ends
    when whoever holds the other end does.
    """
    stop, serving = asyncio.Event(), asyncio.Event()
    loop, starting = asyncio.get_running_loop(), asyncio.current_task()
    assert starting is not None

    def end() -> None:
        # A node that waits for its database has nobody to send away.
        if not serving.is_set() and not stop.is_set():
            starting.cancel()
        stop.set()
        if leash is not None:
            loop.remove_reader(leash)

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, end)
    if leash is not None:
        # Whoever holds the other end never says anything.
        loop.add_reader(leash, end)
    try:
        # Half a second of computing: before there are connections whose deadlines it would pass.
        commands = all_commands()
        documents = Documents(contract.openapi(commands), contract.asyncapi(commands))
        memory.tune()
        async with (
            open_node(settings) as node,
            _serving(node, commands, documents, shared_port=leash is not None),
        ):
            serving.set()
            on_ready()
            if leash is not None:
                os.write(leash, b"\n")
            log.info("serving", listen=str(settings.listen), region=settings.region)
            await stop.wait()
            log.info("stopping")
    except asyncio.CancelledError:
        if not stop.is_set() or serving.is_set():
            raise
        starting.uncancel()
        log.info("stopped_while_starting")
    except BaseExceptionGroup as failed:
        # The task group of the loops wraps also what only its body has to say.
        refused: BaseException | None = failed.subgroup(CannotServe)
        while isinstance(refused, BaseExceptionGroup):
            refused = refused.exceptions[0]
        if refused is None:
            raise
        raise refused from None


@asynccontextmanager
async def open_node(settings: Settings) -> AsyncIterator[Node]:
    """The node's parts, connected and checked, its doors still closed. Raises CannotServe."""
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(open_database(settings, wait_s=_START_S))
        await _check_database(db)
        media = await stack.enter_async_context(make_media(settings))
        store = await stack.enter_async_context(open_store(settings))
        cluster = make_cluster(settings)
        await cluster.start()
        stack.push_async_callback(cluster.stop)
        signer = make_signer(settings, _storage_secret(settings))
        pours = Pours(store, directory=settings.spool_dir)
        stack.callback(pours.close)
        node = Node(settings, db, cluster, media, store, signer, make_tokens(settings), pours)
        stack.callback(node.passwords.close)
        yield node


@asynccontextmanager
async def _serving(
    node: Node, commands: Commands, documents: Documents, *, shared_port: bool = False
) -> AsyncIterator[None]:
    """Open the doors and run the loops; on the way out, drain."""
    settings = node.settings
    dispatcher = Dispatcher(commands, node, authorize)
    latecomers = Latecomers(node.db, lambda session_id, event: edge.tell(session_id, event))
    edge = Edge(
        dispatcher=dispatcher,
        hub=node,
        subscriptions=node.bus,
        register=_SessionRegister(node, latecomers),
        options=msgspec.structs.replace(make_edge_options(settings), limits=node.rules.published()),
    )
    node.bus.listen(edge)
    node.roster.when_gone(edge.seen_as_lost)
    watched = _Watched(edge, node.db)
    node.watching.tell, node.watching.may_see = watched.tell, watched.may_see
    node.nodes.load = lambda: {
        **edge.load(),
        "database_used": node.db.in_use,
        "database_most": settings.database_pool,
    }
    inbox = Inbox(node, parse)
    scanner = make_scanner(settings)
    checks = health.Checks(
        required={
            "database": node.db.ping,
            "migrations": lambda: _demand_migrations(node.db),
            "redis": node.cluster.ping,
            "bus": node.cluster.hears,
        },
        optional={
            "livekit": node.media.ping,
            **({"storage": node.store.ping} if settings.stores_files else {}),
            **({"scanner": scanner.ping} if scanner else {}),
        },
        draining=lambda: control.draining,
    )
    public = web.Application()
    middleware.setup(public, origins=settings.origins, https=settings.public_url.startswith("https"))
    rest.setup(public, dispatcher, node, proxies=settings.trusted_proxies)
    join.setup(public, dispatcher, node, proxies=settings.trusted_proxies)
    forms.setup(public, dispatcher, node, node.pours)
    webhook.setup(public, verify=node.media.verify_webhook, db=node.db, wake=inbox.wake.set)
    blobs.setup(public, store=node.store, pours=node.pours, signer=node.signer, path=STORAGE_PATH)
    health.setup(public, checks)
    docs.setup(public, documents.openapi, documents.asyncapi)
    edge.attach(public)
    inside = _site(_runner(health.internal_app(checks)), settings.internal_listen)
    door = Door(_runner(public), edge, settings.listen, shared=shared_port)
    control = Control(node.nodes, door, node.bus)
    works = [
        node.cluster.ended(),
        edge.run(),
        control.run(),
        node.transfers.run(),
        node.readings.run(),
        inbox.run(),
        node.sweep.run(),
        Due(node).run(),
        LostSockets(node, node.roster).run(),
        Lobbies(node).run(),
        Ringing(node).run(),
        latecomers.run(),
        Outcasts(node.db, edge.sessions, edge.control).run(),
        # As long as their place in a call is kept, people are there.
        node.presence.run_sweep(node.rules.socket_grace_s),
        node.quality.run(),
        Tidy(
            node.db,
            node.clock,
            chat_for=timedelta(days=settings.chat_retention_days),
            quality_for=timedelta(days=settings.quality_retention_days),
        ).run(),
        checks.run(),
        vitals.watch(
            bus=node.bus, pool=node.db, nodes=node.nodes, sessions=edge.sessions, draining=lambda: control.draining
        ),
    ]
    if settings.stores_files:
        works += [Scan(node, scanner, Previewer()).run(), Expiry(node, node.undertaker).run()]
    if node.tokens.keys is not None:
        works.append(node.tokens.keys.run())
    # A loop that fails ends the node: half a hub is worse than a restart. What a loop or a command has committed it
    # tells before its end.
    async with asyncio.TaskGroup() as group:
        loops = [group.create_task(work) for work in works]
        try:
            async with (
                _listening("AURALINK_LISTEN", settings.listen, door),
                _listening("AURALINK_INTERNAL_LISTEN", settings.internal_listen, inside),
            ):
                try:
                    yield
                finally:
                    await control.stop()
            await dispatcher.finish()
            await node.transfers.finish()
        finally:
            for loop in loops:
                loop.cancel()
    await node.sweeper.resign()
    await node.undertaker.resign()


@asynccontextmanager
async def _listening(setting: str, address: Address, door: AbstractAsyncContextManager[object]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(door)
        except (OSError, socket.gaierror) as error:
            raise CannotServe(f"{setting}: cannot listen on {address}: {error.strerror or error}") from None
        yield


@asynccontextmanager
async def _site(runner: web.AppRunner, address: Address) -> AsyncIterator[None]:
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port).start()
        yield
    finally:
        await runner.cleanup()


def _runner(application: web.Application) -> web.AppRunner:
    return Runner(application, shutdown_timeout=_CLOSE_S, **middleware.RUNNER)


@asynccontextmanager
async def open_database(settings: Settings, *, wait_s: float = 0.0) -> AsyncIterator[Database]:
    """The pool. Raises CannotServe where the database does not answer within `wait_s`."""
    give_up = time.monotonic() + wait_s
    said = False
    while True:
        try:
            db = await Database.open(
                settings.database_url,
                max_size=settings.database_pool,
                statement_timeout_s=_STATEMENT_S,
                statement_cache_size=settings.database_statement_cache,
                observe=_observe_statement,
            )
            break
        except DatabaseUnavailable as error:
            if time.monotonic() >= give_up:
                raise CannotServe(f"DATABASE_URL: {error}") from None
            if not said:
                said = True
                log.warning("waiting_for_database", seconds=wait_s, error=str(error)[:200])
            await asyncio.sleep(0.5)
    try:
        yield db
    finally:
        await db.close()


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The object store; whether it is there shows only when it is used. Raises CannotServe."""
    async with AsyncExitStack() as stack:
        try:
            store = make_store(settings, make_signer(settings, _storage_secret(settings)))
            opened = await stack.enter_async_context(store)
        except StorageError as error:
            raise CannotServe(f"AURALINK_STORAGE: {error}") from None
        yield opened


async def _check_database(db: Database) -> None:
    """A hub that row level security does not hold, or whose schema is not there yet, must not serve."""
    try:
        async with db.system() as tx:
            problems = await posture.check(tx) or await migrate.problems(tx)
            newer = await migrate.newer(tx)
    except DatabaseUnavailable as error:
        raise CannotServe(f"DATABASE_URL: {error}") from None
    if problems:
        raise CannotServe(f"DATABASE_URL: {'; '.join(problems[:3])}")
    if newer:
        log.warning("database_is_newer", migrations=newer)


async def _demand_migrations(db: Database) -> None:
    """Raises LookupError where one that this code needs is not applied, or not as it is here."""
    async with db.system() as tx:
        problems = await migrate.problems(tx)
    if problems:
        raise LookupError("; ".join(problems[:3]))


def make_tokens(settings: Settings) -> Tokens:
    """Raises ValueError where neither a secret nor a key set is given."""
    if not settings.jwt_secret and not settings.jwks_url:
        raise ValueError("AURALINK_JWT_SECRET is not set, nor AURALINK_JWKS_URL")
    secrets = tuple(secret for secret in (settings.jwt_secret, settings.jwt_secret_previous) if secret)
    return Tokens(
        TokenRules(
            secrets=secrets,
            jwks=settings.jwks_url,
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            default_tenant=tenant_id(settings.default_tenant),
            guest_secret=settings.cluster_secret or settings.livekit_api_secret,
        )
    )


def make_media(settings: Settings) -> LiveKit:
    key, secret = settings.livekit_api_key, settings.livekit_api_secret
    servers = {
        "default": Server(
            url=settings.livekit_url, public_url=settings.livekit_public_url or "", api_key=key, api_secret=secret
        ),
        **{region: Server(url=url, api_key=key, api_secret=secret) for region, url in settings.livekit_regions.items()},
    }
    return LiveKit(
        servers,
        timeout_s=settings.livekit_timeout_s,
        webhook_keys=settings.livekit_webhook_keys,
        observe=_observe_media,
    )


def make_cluster(settings: Settings) -> Cluster:
    return Cluster(
        settings.redis_url,
        env=settings.env,
        secret=_cluster_secret(settings),
        node_id=settings.node_id,
        region=settings.region,
        version=__version__,
        recovery_window_s=settings.recovery_window_s,
    )


async def ping_redis(settings: Settings) -> float:
    """One round trip through the bus's own door, in milliseconds. Raises ClusterUnavailable."""
    async with Cluster.open(
        settings.redis_url, env=settings.env, secret=_cluster_secret(settings), node_id="doctor"
    ) as cluster:
        started = time.perf_counter()
        await cluster.ping()
        return (time.perf_counter() - started) * 1000


def _cluster_secret(settings: Settings) -> bytes:
    """What nodes sign with: the setting, else derived from a secret all nodes share. Never that secret itself."""
    if settings.cluster_secret:
        return settings.cluster_secret.encode()
    base = settings.jwt_secret or settings.livekit_api_secret
    return hmac.digest(base.encode(), b"auralink cluster 1", hashlib.sha256)


def _storage_secret(settings: Settings) -> bytes:
    """What signs the hub's own URLs to files; the same on all nodes."""
    return hmac.digest(_cluster_secret(settings), f"storage urls {settings.env}".encode(), hashlib.sha256)


def make_rules(settings: Settings) -> Rules:
    return Rules(
        max_participants=settings.max_participants,
        token_ttl_s=settings.token_ttl_s,
        waiting_expires_s=settings.waiting_expires_s,
        reconnect_grace_s=settings.reconnect_grace_s,
        socket_grace_s=settings.socket_grace_s,
        absent_room_grace_s=settings.absent_room_grace_s,
        regions=("default", *settings.livekit_regions),
        room_mark=_room_mark(settings),
        recovery_window_s=settings.recovery_window_s,
        lobby_timeout_s=settings.lobby_timeout_s,
        lobby_cooldown_s=settings.lobby_cooldown_s,
        public_url=settings.public_url,
        file_bytes=settings.file_max_bytes,
        stores_files=settings.stores_files,
        files_per_call=settings.files_per_call,
        call_file_bytes=settings.call_quota_bytes,
        tenant_file_bytes=settings.tenant_quota_bytes,
        file_url_s=settings.file_url_s,
        upload_ttl_s=settings.upload_ttl_s,
        scanner=settings.clamav_url is not None,
        serve_unscanned=settings.scan_fail_open,
        chat_retention_days=settings.chat_retention_days,
        sockets=make_edge_options(settings).published(),
    )


def _room_mark(settings: Settings) -> str:
    """Four letters that only the nodes of this hub come to: of the environment's name and what they sign with."""
    digest = hmac.digest(_cluster_secret(settings), f"room mark {settings.env}".encode(), hashlib.sha256)
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(alphabet[byte % len(alphabet)] for byte in digest[:4])


def make_edge_options(settings: Settings) -> EdgeOptions:
    return EdgeOptions(
        origins=settings.origins,
        trusted_proxies=settings.trusted_proxies,
        region=settings.region,
        version=__version__,
        max_connections=settings.max_connections,
        max_connections_per_user=settings.max_connections_per_user,
        max_connections_per_address=settings.max_connections_per_address,
        drain_s=settings.drain_s,
    )


MEDIA_CALLS = metrics.counter("livekit_calls", "Calls to LiveKit by method and outcome", "method", "outcome")
MEDIA_SECONDS = metrics.histogram("livekit_call", "Time of a call to LiveKit", "method")
STATEMENTS = metrics.Outcomes(
    "database_statement", "Statements by name and outcome", "Time of a statement", "statement", "outcome"
)


def _observe_media(method: str, outcome: str, seconds: float) -> None:
    MEDIA_CALLS.labels(method, outcome).inc()
    MEDIA_SECONDS.labels(method).observe(seconds)


def _observe_statement(name: str, outcome: str, seconds: float) -> None:
    STATEMENTS.add(seconds, (name, outcome))
