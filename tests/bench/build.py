"""What has to be made before anything is measured: the load client, the bare writer, the Node and the Go peer.

All of it goes into the user's cache, under a name that changes with its sources. Peers whose tools are not here are
left out, and the run says so.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

HERE = Path(__file__).parent
_MINUTES = 15
Say = Callable[[str], None]


class Missing(Exception):
    """It cannot be made here; the text says why, for the person at the terminal."""


def load_client(say: Say) -> Path:
    return _compiled("loadgen", sorted((HERE / "loadgen").glob("*.[ch]")), say)


def bare_writer(say: Say) -> Path:
    return _compiled("bare", [HERE / "peers" / "bare.c"], say)


def node_modules(say: Say) -> Path:
    """The folder for NODE_PATH."""
    source = HERE / "peers" / "node"
    wanted = [source / "package.json", source / "package-lock.json"]
    home = _cache() / f"node-{_digest(wanted)}"
    if (home / "installed").exists():
        return home / "node_modules"
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Missing(f"there is no {program}")
    say("installing socket.io for Node")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for file in wanted:
        shutil.copy(file, home)
    # Without the packages' own install scripts: bufferutil ships its binaries.
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], home)
    (home / "installed").touch()
    return home / "node_modules"


def centrifuge(say: Say) -> Path:
    source = HERE / "peers" / "centrifuge"
    made = _cache() / f"centrifuge-{_digest(sorted(source.iterdir()))}"
    if made.exists():
        return made
    if shutil.which("go") is None:
        raise Missing("there is no Go")
    say("building the Go peer (the first time this takes minutes)")
    part = made.with_suffix(".part")
    _run(["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", str(part), "."], source)
    part.replace(made)
    return made


def _compiled(name: str, sources: Sequence[Path], say: Say) -> Path:
    made = _cache() / f"{name}-{_digest(sources)}"
    if made.exists():
        return made
    compiler = next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)
    if compiler is None:
        raise Missing("there is no C compiler (cc, gcc or clang)")
    say(f"compiling {name}")
    part = made.with_suffix(".part")
    files = [str(source) for source in sources if source.suffix == ".c"]
    _run([compiler, "-O2", "-Wall", "-Wextra", "-std=gnu11", "-o", str(part), *files, "-lm"], HERE)
    part.replace(made)
    return made


def _cache() -> Path:
    home = platformdirs.user_cache_path("auralink-hub") / "bench"
    home.mkdir(parents=True, exist_ok=True)
    return home


def _digest(files: Sequence[Path]) -> str:
    content = hashlib.sha256()
    for file in files:
        content.update(file.name.encode() + b"\0" + file.read_bytes())
    return content.hexdigest()[:12]


def _run(command: Sequence[str], where: Path) -> None:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=60 * _MINUTES, check=False)
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} took longer than {_MINUTES} minutes") from None
    if done.returncode:
        raise Missing(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
