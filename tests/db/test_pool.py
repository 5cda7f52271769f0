"""The pool under use, abuse and outage: bounded, clean between tenants, quick to say no, and back by itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from db.errors import DatabaseUnavailable
from db.pool import Breaker, Database
from tests.db.people import make_call, tenant_id
from tests.db.wire import wire_to


async def test_two_tenants_interleaved_on_one_connection_never_meet(database: Any) -> None:
    """S-250: 200 requests of two tenants on a pool of size 1: each sees its own rows and nothing else."""
    db = await Database.open(database.app_dsn, max_size=1, acquire_timeout_s=20, statement_timeout_s=5)
    tenants = [tenant_id(), tenant_id()]
    try:
        for tenant in tenants:
            async with db.tenant(tenant, "olga") as tx:
                await make_call(tx, name=str(tenant))

        async def look(number: int) -> set[str]:
            if number % 10 == 9:
                # A transaction that fails must leave nothing behind either.
                with pytest.raises(asyncpg.DivisionByZeroError):
                    async with db.tenant(tenants[number % 2], "olga") as tx:
                        await tx.execute("SELECT 1 / 0")
            async with db.tenant(tenants[number % 2], "olga") as tx:
                names = {row["name"] for row in await tx.fetch("SELECT name FROM calls")}
            if number % 7 == 6:
                async with db.system() as tx:
                    assert await tx.fetchval("SELECT count(*) FROM calls") == 0
                    assert await tx.fetchval("SELECT app_tenant_id() IS NULL AND app_user_id() IS NULL")
            return names

        seen = await asyncio.gather(*(look(number) for number in range(200)))
        assert db.max_size == 1
    finally:
        await db.close()
    for number, names in enumerate(seen):
        assert names == {str(tenants[number % 2])}


async def test_the_pool_never_opens_more_connections_than_its_size(database: Any) -> None:
    """S-197: 40 transactions at once over 3 connections all succeed, one after the other."""
    db = await Database.open(database.app_dsn, max_size=3, acquire_timeout_s=10, application_name="bounded")
    most = 0

    async def work() -> None:
        nonlocal most
        async with db.system() as tx:
            most = max(most, db.in_use)
            await tx.execute("SELECT pg_sleep(0.01)")
            count = await tx.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bounded' AND usename = 'hub_app'"
            )
            assert count <= 3

    try:
        await asyncio.gather(*(work() for _ in range(40)))
        assert most == 3
        assert db.in_use == 0
    finally:
        await db.close()


async def test_waiting_for_a_connection_has_an_end(database: Any) -> None:
    """S-197: when all connections are in use, who comes is told so in time; a busy pool is no broken database."""
    db = await Database.open(database.app_dsn, max_size=1, acquire_timeout_s=0.1)
    try:
        async with db.system():
            started = time.monotonic()
            for _ in range(5):
                with pytest.raises(DatabaseUnavailable, match="no connection within"):
                    await db.ping()
            assert time.monotonic() - started < 2
        assert not db.breaker.open
        await db.ping()
    finally:
        await db.close()


async def test_a_broken_connection_is_replaced(db: Database, database: Any) -> None:
    """S-197: the server ends a connection: that transaction fails, the next one gets a new one."""
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        with pytest.raises(DatabaseUnavailable):
            async with db.system() as tx:
                victim = await tx.fetchval("SELECT pg_backend_pid()")
                await admin.execute("SELECT pg_terminate_backend($1)", victim)
                await tx.fetchval("SELECT 1")
        async with db.system() as tx:
            victim = await tx.fetchval("SELECT pg_backend_pid()")
        # Idle in the pool this time, so nobody notices before it is taken out.
        await admin.execute("SELECT pg_terminate_backend($1)", victim)
        await asyncio.sleep(0.1)
        await db.ping()
    finally:
        await admin.close()


async def test_a_slow_statement_is_ended_by_the_server(database: Any) -> None:
    db = await Database.open(database.app_dsn, max_size=1, statement_timeout_s=0.2)
    try:
        for _ in range(4):
            with pytest.raises(DatabaseUnavailable, match="statement timeout"):
                async with db.system() as tx:
                    await tx.execute("SELECT pg_sleep(5)")
        # The server answered, so it is asked again, on the same connection.
        await db.ping()
    finally:
        await db.close()


async def test_a_row_that_is_locked_is_not_waited_for_for_ever(database: Any) -> None:
    db = await Database.open(database.app_dsn, max_size=2, statement_timeout_s=0.3)
    mine = tenant_id()
    try:
        async with db.tenant(mine, "olga") as tx:
            call = await make_call(tx)
        async with db.tenant(mine) as holder:
            await holder.execute("SELECT 1 FROM calls WHERE id = $1 FOR UPDATE", call.id)
            with pytest.raises(DatabaseUnavailable, match="lock timeout"):
                async with db.tenant(mine) as tx:
                    await tx.execute("UPDATE calls SET name = 'other' WHERE id = $1", call.id)
    finally:
        await db.close()


async def test_what_the_body_raises_rolls_back_and_passes_through(db: Database) -> None:
    mine = tenant_id()
    with pytest.raises(KeyError):
        async with db.tenant(mine, "olga") as tx:
            await make_call(tx)
            raise KeyError("a refusal of the caller's")
    async with db.tenant(mine) as tx:
        assert await tx.fetchval("SELECT count(*) FROM calls") == 0


async def test_a_cancelled_transaction_leaves_a_clean_pool(database: Any) -> None:
    """A deadline that strikes in the middle of a statement: rolled back, the one connection usable at once."""
    db = await Database.open(database.app_dsn, max_size=1, statement_timeout_s=5)
    mine = tenant_id()
    try:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    async with db.tenant(mine, "olga") as tx:
                        await make_call(tx)
                        await tx.execute("SELECT pg_sleep(5)")
            async with db.tenant(mine, "olga") as tx:
                assert await tx.fetchval("SELECT count(*) FROM calls") == 0
        assert db.in_use == 0
    finally:
        await db.close()


async def test_a_silent_server_costs_two_seconds_at_most_and_then_nothing(database: Any) -> None:
    """S-197: no answer and no error from the network: each command ends in time, then the breaker answers at once."""
    async with wire_to(database.app_dsn) as (wire, dsn):
        db = await Database.open(dsn, max_size=4)
        try:
            await db.ping()
            wire.silence()

            async def refused() -> float:
                started = time.monotonic()
                with pytest.raises(DatabaseUnavailable):
                    await db.ping()
                return time.monotonic() - started

            assert max(await asyncio.gather(*(refused() for _ in range(8)))) < 2.5
            assert db.breaker.open
            assert sorted(await asyncio.gather(*(refused() for _ in range(20))))[-2] < 0.1
            wire.restore()
            started = time.monotonic()
            while time.monotonic() - started < 5:
                try:
                    await db.ping()
                    break
                except DatabaseUnavailable:
                    await asyncio.sleep(0.1)
            assert not db.breaker.open
        finally:
            await db.close(within_s=1)


async def test_cut_connections_fail_once_and_the_pool_heals(database: Any) -> None:
    """S-197: a reset in the middle of a transaction is DatabaseUnavailable, and the next command works."""
    async with wire_to(database.app_dsn) as (wire, dsn):
        db = await Database.open(dsn, min_size=3, max_size=3)
        try:
            with pytest.raises(DatabaseUnavailable):
                async with db.system() as tx:
                    await tx.fetchval("SELECT 1")
                    wire.cut()
                    await tx.fetchval("SELECT pg_sleep(1)")
            await asyncio.sleep(0.05)
            for _ in range(5):
                await db.ping()
            assert wire.connections <= 6
        finally:
            await db.close(within_s=1)


async def test_no_database_at_the_start_is_one_error() -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot connect"):
        await Database.open("postgresql://nobody:x@127.0.0.1:1/nothing")


async def test_a_wrong_password_is_unavailable_too(database: Any) -> None:
    with pytest.raises(DatabaseUnavailable, match="password"):
        await Database.open(database.app_dsn.replace("hub_app:", "hub_app:wrong"))


async def test_a_mistake_of_ours_is_not_an_outage(db: Database) -> None:
    """A value of the wrong type is a bug to be seen, not a reason to try again later."""
    with pytest.raises(asyncpg.DataError):
        async with db.system() as tx:
            await tx.fetchval("SELECT $1::integer", "four")
    assert not db.breaker.open
    await db.ping()


async def test_json_columns_are_plain_objects(db: Database) -> None:
    mine = tenant_id()
    given = {"ü": [1, 2.5, None, True], "nested": {"id": "x"}, "quote": "'\"\\"}
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx, metadata=given)
        assert call.metadata == given
        assert isinstance(call.id, UUID)
        assert await tx.fetchval("SELECT metadata->'nested'->>'id' FROM calls") == "x"


async def test_it_works_without_prepared_statements(database: Any) -> None:
    """S-197: behind a pooler that hands out connections by transaction, statements have no names."""
    db = await Database.open(database.app_dsn, statement_cache_size=0)
    mine = tenant_id()
    try:
        for _ in range(2):
            async with db.tenant(mine, "olga") as tx:
                await make_call(tx)
                assert await tx.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
    finally:
        await db.close()


def test_the_breaker_opens_after_three_failures_and_lets_one_try_a_second() -> None:
    breaker = Breaker(failures=3, retry_s=1.0)
    for now in (0.0, 0.1):
        breaker.failed(now)
        breaker.admit(now)
    breaker.failed(0.2)
    with pytest.raises(DatabaseUnavailable):
        breaker.admit(1.1)
    breaker.admit(1.3)
    with pytest.raises(DatabaseUnavailable):
        breaker.admit(1.3)
    breaker.failed(1.4)
    with pytest.raises(DatabaseUnavailable):
        breaker.admit(2.2)
    breaker.admit(2.4)
    breaker.succeeded()
    for _ in range(3):
        breaker.admit(2.5)
    breaker.failed(2.6)
    breaker.succeeded()
    breaker.failed(2.7)
    breaker.failed(2.8)
    assert not breaker.open
