"""`auralink-hub dev`: a whole hub on a laptop, its servers included, from nothing.

The hub is up in seconds. LiveKit is not a package that can be installed, so where none is found it is built once, in
the background, while the hub runs and says how far that is; until it is there, what needs media answers
`media_unavailable`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from db.errors import MigrationError
from hub import app, logs, settings
from hub.cli import environment, invitation
from hub.cli.output import OK, Failed, dim, good, note, say
from hub.embedded import EmbeddedError, Postgres, Valkey, free_port
from hub.embedded.livekit import LiveKit
from hub.embedded.livekit_build import livekit_binary_in_background
from hub.embedded.process import port_is_free, write_private

DATABASE = "auralink"
_LISTEN, _INTERNAL = 8080, 9090


class Secrets(msgspec.Struct, frozen=True):
    """Made once per data directory, so that tokens and passwords stay good over restarts."""

    jwt: str
    owner_password: str
    app_password: str


def run(data_dir: Path | None, *, fresh: bool) -> int:
    own = {**os.environ, **({"AURALINK_DATA_DIR": str(data_dir)} if data_dir else {})}
    directory = environment.data_dir(own).absolute()
    try:
        if fresh:
            _forget(directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as stack:
            return _run(own, directory, stack)
    except (EmbeddedError, MigrationError, app.CannotServe, settings.SettingError, OSError) as error:
        raise Failed(str(error)) from None


def _run(own: Mapping[str, str], directory: Path, stack: ExitStack) -> int:
    kept = _secrets(directory / "secrets.json")
    wanted: dict[str, str] = {
        "AURALINK_JWT_SECRET": kept.jwt,
        "AURALINK_STORAGE": (directory / "files").as_uri(),
        "AURALINK_LOG_FORMAT": "console",
        "AURALINK_LOG_LEVEL": "warning",
        **_addresses(own),
    }
    if not settings.given("DATABASE_URL", own):
        say("starting PostgreSQL …")
        postgres = stack.enter_context(Postgres(directory / "postgres"))
        wanted |= asyncio.run(_prepare_database(postgres, kept))
    if not settings.given("REDIS_URL", own):
        say("starting Valkey …")
        wanted["REDIS_URL"] = stack.enter_context(Valkey(directory / "valkey")).url
    environ = {**{name: value for name, value in wanted.items() if not settings.given(name, own)}, **own}
    environ["AURALINK_LISTEN"] = wanted["AURALINK_LISTEN"]
    livekit: LiveKit | None = None
    if not settings.given("LIVEKIT_URL", own):
        port = environ["AURALINK_LISTEN"].rpartition(":")[2]
        livekit = LiveKit(directory / "livekit", webhook_url=f"http://127.0.0.1:{port}/webhooks/livekit")
        livekit.prepare()
        stack.callback(livekit.stop)
        # Over what was given: keys of another LiveKit are not those of ours.
        environ |= {
            "LIVEKIT_URL": livekit.ws_url,
            "LIVEKIT_API_KEY": livekit.api_key,
            "LIVEKIT_API_SECRET": livekit.api_secret,
        }
    loaded = settings.load(environ)
    logs.configure(log_format=loaded.log_format, level=loaded.log_level)
    file = directory / environment.ENV_FILE
    write_private(file, "".join(f"{name}={value}\n" for name, value in sorted(settings.only_settings(environ).items())))
    stack.callback(file.unlink, missing_ok=True)
    app.run(_serve(loaded, livekit))
    return OK


async def _serve(loaded: settings.Settings, livekit: LiveKit | None) -> None:
    # No task group: it would wrap the one line that says why the hub cannot serve.
    beside = [asyncio.create_task(_bring_up(livekit))] if livekit else []

    def ready() -> None:
        ada = _welcome(loaded)
        if ada is not None:
            beside.append(asyncio.create_task(invitation.offer(loaded.public_url, ada)))

    try:
        await app.serve(loaded, on_ready=ready)
    finally:
        for each in beside:
            each.cancel()
        if beside:
            await asyncio.wait(beside)


async def _bring_up(livekit: LiveKit) -> None:
    """Find or build LiveKit, and start it where the hub expects it. Runs beside the hub; cancelled with it."""
    try:
        livekit.binary = await livekit_binary_in_background(lambda text: note(dim(f"LiveKit: {text}")))
        # On the loop's own thread: a server started by a worker thread ends with that thread.
        livekit.start()
        note(f"{good('LiveKit is up')} at {livekit.ws_url}")
    except EmbeddedError as error:
        note(f"no LiveKit, so calls have no media: {error}")


async def _prepare_database(postgres: Postgres, kept: Secrets) -> dict[str, str]:
    from db import migrate

    await migrate.bootstrap(
        postgres.dsn(), DATABASE, owner_password=kept.owner_password, app_password=kept.app_password
    )
    owner = postgres.dsn("hub_owner", DATABASE, password=kept.owner_password)
    await migrate.up(owner)
    return {
        "DATABASE_URL": postgres.dsn("hub_app", DATABASE, password=kept.app_password),
        "AURALINK_DATABASE_OWNER_URL": owner,
    }


def _welcome(loaded: settings.Settings) -> str | None:
    """Ada's token, where there is a secret to make one with."""
    ada = None
    tokens = app.make_tokens(loaded)
    say(good("AuraLink Hub is running") + f" at {loaded.public_url}")
    say(f"  sockets   {loaded.public_url.replace('http', 'ws', 1)}/socket.io/")
    say(f"  REST      {loaded.public_url}/api/v1      contract: {loaded.public_url}/docs")
    say(f"  metrics   http://{loaded.internal_listen}/metrics")
    say(f"  LiveKit   {loaded.livekit_url}")
    if loaded.jwt_secret:
        ada = tokens.issue("ada", display_name="Ada", hub_role="admin", ttl_s=86_400).token
        ben = tokens.issue("ben", display_name="Ben", ttl_s=86_400).token
        say("\nTwo people to try it with, for a day (Ada is an admin):")
        say(f"  ADA={ada}")
        say(f"  BEN={ben}")
        say("\nWhat to try next:")
        say(f"""  curl -s {loaded.public_url}/api/v1/rooms -H "Authorization: Bearer $ADA" \\
       -H 'Content-Type: application/json' -d '{{"name": "Team Standup", "call_type": "group"}}'""")
        say("  scripts/dev demo   two people in a real call, with audio and video")
        say(f"  {_command()} room list   what goes on (in another terminal)")
        say(f"  {_command()} doctor      is everything well?")
    say(dim("\nStop it with Ctrl-C; its data stays."))
    return ada


def _addresses(own: Mapping[str, str]) -> dict[str, str]:
    """Loopback, on the usual ports where they are free. Port 0 is chosen here, since others have to know it."""
    host, _, port = own.get("AURALINK_LISTEN", f"127.0.0.1:{_LISTEN if port_is_free(_LISTEN) else 0}").rpartition(":")
    listen = f"{host}:{free_port() if port == '0' else port}"
    return {
        "AURALINK_LISTEN": listen,
        "AURALINK_INTERNAL_LISTEN": f"127.0.0.1:{_INTERNAL if port_is_free(_INTERNAL) else free_port()}",
        "AURALINK_PUBLIC_URL": f"http://127.0.0.1:{listen.rpartition(':')[2]}",
    }


def _command() -> str:
    """How this person calls the command line."""
    if shutil.which("auralink-hub"):
        return "auralink-hub"
    beside = Path(sys.executable).with_name("auralink-hub")
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)


def _secrets(file: Path) -> Secrets:
    if not file.exists():
        made = Secrets(*(secrets.token_hex(32) for _ in range(3)))
        write_private(file, msgspec.json.encode(made).decode())
    return msgspec.json.decode(file.read_bytes(), type=Secrets)


def _forget(directory: Path) -> None:
    """Remove what `dev` made there, and nothing else."""
    for name in ("postgres", "valkey", "livekit", "files"):
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    (directory / "secrets.json").unlink(missing_ok=True)
