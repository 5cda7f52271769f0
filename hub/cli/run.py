"""serve and dev: running a hub."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from hub import logs
from hub.cli import environment
from hub.cli.output import OK, Failed


def add_to(app: cyclopts.App) -> None:
    app.command(serve)
    app.command(dev)


def serve() -> int:
    """Run a node with the settings of the environment until SIGTERM; see `config-doc` for them."""
    from hub import app

    loaded = environment.load_all()
    logs.configure(log_format=loaded.log_format, level=loaded.log_level, node_id=loaded.node_id)
    try:
        app.run(app.serve(loaded))
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
