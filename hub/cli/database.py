"""migrate: bring the database's schema to this version, or say how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import cyclopts

from hub.cli import environment
from hub.cli.output import FAILURE, OK, Failed, emit_json, fail, good, say, table

T = TypeVar("T")


def add_to(app: cyclopts.App) -> None:
    group = cyclopts.App(name="migrate", help="Apply the database migrations, or say which are missing.")
    group.command(up)
    group.command(status)
    group.command(check)
    group.command(bootstrap)
    app.command(group)


def up(*, json: bool = False) -> int:
    """Apply every migration that is missing, each in a transaction, under a lock (as AURALINK_DATABASE_OWNER_URL)."""
    from db import migrate

    applied = _run(migrate.up(_owner_url()))
    if json:
        emit_json([{"version": one.version, "name": one.name} for one in applied])
    elif not applied:
        say("nothing to do: the database is up to date")
    else:
        for one in applied:
            say(f"{good('applied')} {one.name}")
    return OK


def status(*, json: bool = False) -> int:
    """List the migrations, applied and missing."""
    from db import migrate

    rows = [
        {"version": one.version, "name": one.name, "applied_at": one.applied_at}
        for one in _run(migrate.status(_owner_url()))
    ]
    if json:
        emit_json(rows)
    else:
        table(rows, {"name": "MIGRATION", "applied_at": "APPLIED AT"}, empty="there are no migrations")
    return OK


def check(*, json: bool = False) -> int:
    """Exit 1 where a migration is missing, edited or unknown."""
    from db import migrate

    problems = _run(migrate.check(_owner_url()))
    if json:
        emit_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            say(problem)
        if not problems:
            say("the database is up to date")
    return FAILURE if problems else OK


def bootstrap(superuser_url: str, database: str, *, owner_password: str, app_password: str) -> int:
    """Create the database and the roles hub_owner, hub_app and hub_system, where they are missing.

    Parameters
    ----------
    superuser_url
        A role that may create roles and databases.
    database
        The name of the hub's database.
    owner_password
        For hub_owner, which migrates.
    app_password
        For hub_app, which the hub runs as.
    """
    from db import migrate

    _run(migrate.bootstrap(superuser_url, database, owner_password=owner_password, app_password=app_password))
    say(f"database {database} and its roles are there; now: auralink-hub migrate up")
    return OK


def _owner_url() -> str:
    loaded = environment.load()
    return loaded.database_owner_url or loaded.database_url or fail("AURALINK_DATABASE_OWNER_URL is not set")


def _run(work: Coroutine[Any, Any, T]) -> T:
    from db.errors import DatabaseUnavailable, MigrationError

    try:
        return asyncio.run(work)
    except (MigrationError, DatabaseUnavailable, OSError) as error:
        raise Failed(str(error) or type(error).__name__) from None
