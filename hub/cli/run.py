"""serve and dev: running a hub."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import cyclopts
import cyclopts.validators

from hub import logs
from hub.cli import environment
from hub.cli.output import OK, Failed


def add_to(app: cyclopts.App) -> None:
    app.command(serve)
    app.command(dev)


def serve(
    *,
    workers: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=64))] = 1,
    leash: Annotated[int | None, cyclopts.Parameter(show=False)] = None,
) -> int:
    """Run a node with the settings of the environment until SIGTERM; see `config-doc` for them.

    Parameters
    ----------
    workers
        Run so many nodes in processes of their own on the one port, to use more than one core. They are called
        AURALINK_NODE_ID with -1, -2 and so on; their metrics are at the port of AURALINK_INTERNAL_LISTEN and those
        after it. One that dies is started again; SIGHUP restarts them one after the other. What is set for "this node"
        and AURALINK_DATABASE_POOL hold for each.
    leash
        The file descriptor by which a worker and its parent hold each other.
    """
    loaded = environment.load_all()
    logs.configure(log_format=loaded.log_format, level=loaded.log_level, node_id=loaded.node_id)
    if workers > 1:
        from hub.cli.workers import Workers

        return asyncio.run(Workers(loaded, environment.environ(), workers).run())
    from hub import app

    try:
        app.run(app.serve(loaded, leash=leash))
    except app.CannotServe as error:
        raise Failed(str(error)) from None
    return OK


def dev(*, data_dir: Path | None = None, fresh: bool = False) -> int:
    """Run everything on this machine: the hub with an embedded PostgreSQL, Valkey and LiveKit, on loopback only.

    What names a server of yours (DATABASE_URL, REDIS_URL, LIVEKIT_URL) is used instead of the embedded one.

    Parameters
    ----------
    data_dir
        Where the embedded servers keep their data; AURALINK_DATA_DIR, else the user's data directory.
    fresh
        Forget what an earlier run left there.
    """
    from hub.cli import laptop

    return laptop.run(data_dir, fresh=fresh)
