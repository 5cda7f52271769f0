"""check-config, config-doc, spec, version: what the hub is and how it is set up."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from hub import __version__, settings
from hub.cli import environment
from hub.cli.output import FAILURE, OK, emit_json, note, say


def version_text() -> str:
    return __version__


def add_to(app: cyclopts.App) -> None:
    app.command(check_config, name="check-config")
    app.command(config_doc, name="config-doc")
    app.command(spec)
    app.command(version)


def check_config(*, json: bool = False) -> int:
    """Read all settings as `serve` would and show them, secrets hidden; exit 1 and the reason where one is bad.

    Parameters
    ----------
    json
        Print a JSON object.
    """
    try:
        loaded = settings.load(environment.environ())
    except settings.SettingError as error:
        if json:
            emit_json({"ok": False, "error": str(error)})
        else:
            note(f"auralink-hub: {error}")
        return FAILURE
    shown = loaded.redacted()
    if json:
        emit_json({"ok": True, "settings": shown})
        return OK
    width = max(map(len, shown))
    for name, value in shown.items():
        say(f"{name.ljust(width)}  {'–' if value in (None, '', {}) else value}")
    return OK


def config_doc(*, json: bool = False) -> int:
    """Print every setting with its default and meaning, as a Markdown table.

    Parameters
    ----------
    json
        Print a JSON list.
    """
    if json:
        emit_json(settings.described())
    else:
        print(settings.document(), end="")
    return OK


def spec(
    document: Literal["openapi", "asyncapi"],
    *,
    output: Annotated[Path | None, cyclopts.Parameter(name=["--output", "-o"])] = None,
    json: bool = False,
) -> int:
    """Print the generated contract: OpenAPI 3.1 of the REST routes or AsyncAPI 3.0 of the sockets.

    Parameters
    ----------
    document
        Which of the two.
    output
        Write it to this file.
    json
        For the habit: it is JSON in any case.
    """
    from hub import contract
    from hub.actions import all_commands

    make = contract.openapi if document == "openapi" else contract.asyncapi
    text = contract.text(make(all_commands()))
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")
    return OK


def version(*, json: bool = False) -> int:
    """Print the version, and what it runs on."""
    packages = ("aiohttp", "python-socketio", "python-engineio", "redis", "asyncpg", "livekit-api")
    facts = {
        "version": version_text(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
    if json:
        emit_json(facts)
    else:
        say(f"auralink-hub {facts.pop('version')}")
        say("  ".join(f"{name} {found}" for name, found in facts.items()))
    return OK
