"""The one door to PostgreSQL: a bounded pool, tenant transactions, and every failure of the way there under one name.

A transaction belongs to one tenant and (mostly) one user; both are set with `set_config(…, true)` and end with it, so a
connection carries nothing from one request to the next. See db/tenant.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Self, TypeAlias
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.connection import LoggedQuery
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction as DriverTransaction

from db import queries, tenant
from db.errors import DatabaseUnavailable
from db.turns import Turns

Transaction: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""What a function of db/ takes: a connection on which a transaction is open."""

Observe = Callable[[str, str, float], None]
"""Hears of every statement: its name (db/queries.py), `ok` or `failed`, seconds. It must not block."""

# The server did not do what was asked, and asking again later may help. Everything else that PostgreSQL says is an
# answer (a refused row) or a mistake of ours.
_UNAVAILABLE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # closed connection, closing pool
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, still starting, statement_timeout
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # failed over to a standby
    asyncpg.PostgresIOError,
)
# Of those, the ones where the server did answer: no reason to stop asking it.
_ANSWERED: tuple[type[BaseException], ...] = (
    asyncpg.QueryCanceledError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)
# While connecting, everything the server says is a refusal: password, database, limits.
_REFUSED: tuple[type[BaseException], ...] = (*_UNAVAILABLE, asyncpg.PostgresError)
# Client-side waits are this much longer than the server's, which gives the better error and keeps the connection.
_SLACK_S = 0.3
_ROLLBACK_S = 0.3


class Breaker:
    """Stops asking a database that has failed several times in a row; lets one try through now and then."""

    def __init__(self, *, failures: int = 3, retry_s: float = 1.0) -> None:
        self._limit = failures
        self._retry_s = retry_s
        self._failures = 0
        self._next_try = 0.0

    @property
    def open(self) -> bool:
        return self._failures >= self._limit

    def admit(self, now: float) -> None:
        """Raise DatabaseUnavailable while open, but for one caller every `retry_s`."""
        if not self.open:
            return
        if now < self._next_try:
            raise DatabaseUnavailable("the database failed several times in a row; not asked again yet")
        self._next_try = now + self._retry_s

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, now: float) -> None:
        self._failures += 1
        # Not later than a try that is on its way has set it: one failing try must not lock the next one out.
        if self._failures == self._limit:
            self._next_try = now + self._retry_s


class Database:
    """The pool and its transactions. Made by `open`, ended by `close`; safe for any number of tasks of one loop."""

    def __init__(
        self, pool: asyncpg.Pool[asyncpg.Record], *, statement_timeout_s: float, acquire_timeout_s: float
    ) -> None:
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s
        self._step_s = statement_timeout_s + _SLACK_S
        self._turns = Turns()
        self.breaker = Breaker()

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        min_size: int = 1,
        max_size: int = 10,
        statement_timeout_s: float = 1.0,
        acquire_timeout_s: float = 0.5,
        statement_cache_size: int = 100,
        application_name: str = "auralink-hub",
        observe: Observe | None = None,
    ) -> Self:
        """Connect `min_size` times. Raises DatabaseUnavailable where not even that goes.

        Behind a pooler that hands out a server connection per transaction, `statement_cache_size` must be 0.
        """
        milliseconds = str(int(statement_timeout_s * 1000))
        settings = {
            "application_name": application_name,
            "timezone": "UTC",
            "statement_timeout": milliseconds,
            # Shorter than a statement's time, so that a row that is locked is told from a server that is slow.
            "lock_timeout": str(int(statement_timeout_s * 900)),
            # Whoever forgets a transaction must not hold its locks for ever.
            "idle_in_transaction_session_timeout": "10000",
        }
        # A transaction pooler refuses start-up settings it does not know; there they belong to the role or the pooler.
        pooled = statement_cache_size == 0
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                timeout=2.0,
                command_timeout=statement_timeout_s + _SLACK_S,
                statement_cache_size=statement_cache_size,
                max_inactive_connection_lifetime=300.0,
                server_settings={"application_name": application_name} if pooled else settings,
                init=_prepared(observe),
                reset=_check_clean,
            )
        except _REFUSED as error:
            raise DatabaseUnavailable(f"cannot connect: {str(error) or type(error).__name__}") from error
        return cls(pool, statement_timeout_s=statement_timeout_s, acquire_timeout_s=acquire_timeout_s)

    async def close(self, *, within_s: float = 5.0) -> None:
        """Wait for the transactions in flight, then cut off what is left."""
        try:
            async with asyncio.timeout(within_s):
                await self._pool.close()
        except _UNAVAILABLE:
            self._pool.terminate()

    async def ping(self) -> None:
        """One round trip through the pool. Raises DatabaseUnavailable."""
        async with self.system() as tx:
            await tx.fetchval("SELECT 1")

    @property
    def in_use(self) -> int:
        return self._pool.get_size() - self._pool.get_idle_size()

    @property
    def max_size(self) -> int:
        return self._pool.get_max_size()

    @asynccontextmanager
    async def tenant(
        self,
        tenant_id: UUID,
        user_id: str | None = None,
        *,
        turn: UUID | None = None,
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Transaction]:
        """A transaction that sees one tenant, and of private things those of `user_id`.

        Commits at the end, rolls back on any exception. Raises DatabaseUnavailable, for its statements too. Those with
        the same `turn` wait for each other before they take a connection: for what begins by locking the same row.
        After the commit `then` runs, while the turn is still held: so what it tells is told in the order of the
        commits.
        """
        async with self._turns.of(turn) if turn else nullcontext():
            async with self._transaction() as tx:
                await tenant.enter(tx, tenant_id, user_id)
                yield tx
            if then is not None:
                await then()

    @asynccontextmanager
    async def system(self) -> AsyncIterator[Transaction]:
        """A transaction without a tenant: tables are empty to it. For the functions of db/system.py and db/inbox.py."""
        async with self._transaction() as tx:
            yield tx

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[PoolConnectionProxy[asyncpg.Record]]:
        connection = await self._acquire()
        transaction = connection.transaction()
        try:
            await transaction.start()
            yield connection
            await transaction.commit()
        except BaseException as error:
            # On a connection that is well, the driver complains of us: a wrong type, two statements at once.
            lost = isinstance(error, _UNAVAILABLE) and not (
                isinstance(error, asyncpg.InterfaceError) and _alive(connection)
            )
            await _abandon(connection, transaction, cut=lost and not isinstance(error, _ANSWERED))
            if lost:
                self._note(error)
                raise DatabaseUnavailable(str(error) or type(error).__name__) from error
            raise
        else:
            self.breaker.succeeded()
        finally:
            await self._release(connection)

    async def _acquire(self) -> PoolConnectionProxy[asyncpg.Record]:
        self.breaker.admit(time.monotonic())
        saturated = self._pool.get_size() >= self.max_size and self._pool.get_idle_size() == 0
        try:
            return await self._pool.acquire(timeout=self._acquire_timeout_s)
        except TimeoutError as error:
            # A full pool says that we are busy, not that the database is gone.
            if not saturated:
                self._note(error)
            raise DatabaseUnavailable(f"no connection within {self._acquire_timeout_s} s") from error
        except _REFUSED as error:
            self._note(error)
            raise DatabaseUnavailable(f"cannot connect: {str(error) or type(error).__name__}") from error

    async def _release(self, connection: PoolConnectionProxy[asyncpg.Record]) -> None:
        try:
            await self._pool.release(connection, timeout=_ROLLBACK_S)
        except _UNAVAILABLE:
            # The pool has cut it off and will make another one when it is wanted.
            return

    def _note(self, error: BaseException) -> None:
        if isinstance(error, _ANSWERED):
            self.breaker.succeeded()
        else:
            self.breaker.failed(time.monotonic())


async def _abandon(
    connection: PoolConnectionProxy[asyncpg.Record], transaction: DriverTransaction, *, cut: bool
) -> None:
    """Roll back, or cut a connection that is no longer good for it: a silent server must not hold us twice."""
    if not _alive(connection) or not connection.is_in_transaction():
        return
    try:
        if cut:
            connection.terminate()
            return
        async with asyncio.timeout(_ROLLBACK_S):
            await transaction.rollback()
    except BaseException as failure:
        connection.terminate()
        if not isinstance(failure, Exception):
            raise


def _alive(connection: PoolConnectionProxy[asyncpg.Record]) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        # The pool takes back by itself what has lost its server.
        return False


async def _check_clean(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    # Instead of the driver's RESET ALL: nothing here outlives a transaction, and a round trip a request is dear.
    if connection.is_in_transaction():
        raise asyncpg.InterfaceError("a connection came back with its transaction open")


def _prepared(observe: Observe | None) -> Callable[[asyncpg.Connection[asyncpg.Record]], Coroutine[Any, Any, None]]:
    if observe is None:
        return _set_codecs
    known, tell = queries.names(), observe

    def note(record: LoggedQuery) -> None:
        outcome = "ok" if record.exception is None else "failed"
        tell(queries.name_of(record.query, known), outcome, record.elapsed)

    async def prepare(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        await _set_codecs(connection)
        connection.add_query_logger(note)

    return prepare


async def _set_codecs(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", format="binary", encoder=_encode_jsonb, decoder=_decode_jsonb
    )


def _encode_jsonb(value: Any) -> bytes:
    # jsonb on the wire is a version byte and the text.
    return b"\x01" + msgspec.json.encode(value)


def _decode_jsonb(value: bytes) -> Any:
    return msgspec.json.decode(memoryview(value)[1:])
