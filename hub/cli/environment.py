"""The environment a command works with: the process's own, else what a running `dev` left for its neighbours."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hub import settings
from hub.cli.output import Failed

ENV_FILE = "hub.env"


def data_dir(environ: Mapping[str, str]) -> Path:
    """Where `dev` keeps its servers' data."""
    if given := environ.get("AURALINK_DATA_DIR"):
        return Path(given).expanduser()
    base = environ.get("XDG_DATA_HOME") or str(
        Path.home() / (".local/share" if sys.platform != "darwin" else "Library")
    )
    return Path(base) / "auralink-hub"


def environ() -> dict[str, str]:
    """os.environ, with what `dev` wrote filled in where nothing names a database."""
    own = dict(os.environ)
    file = data_dir(own) / ENV_FILE
    if "DATABASE_URL" in own or not file.is_file():
        return own
    pairs = (line.partition("=") for line in file.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {**{name: value for name, _, value in pairs}, **own}


def load(*needed: str) -> settings.Settings:
    """The settings, of which `needed` must be set. Ends the command with the reason where they are not."""
    try:
        return settings.load(environ(), needed=frozenset(needed))
    except settings.SettingError as error:
        raise Failed(str(error)) from None


def load_all() -> settings.Settings:
    """The settings a serving hub needs."""
    try:
        return settings.load(environ())
    except settings.SettingError as error:
        raise Failed(str(error)) from None
