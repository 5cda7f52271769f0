"""Child processes that die with us, ports nobody holds, and the lock that keeps two hubs off one data directory."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

LOG_LIMIT_BYTES = 10 * 1024 * 1024
STOP_S = 10.0
_PR_SET_PDEATHSIG = 1
# Linux hands out 32768 and up for outgoing connections; a server port from there collides with them sooner or later.
_PORTS = range(20_000, 32_000)
_handed_out: set[int] = set()

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class EmbeddedError(RuntimeError):
    """An embedded server could not be had or did not come up; the text is for the person at the terminal."""


def free_port(*, udp: bool = False) -> int:
    """A port below the ephemeral range that nobody listens on now, and that this process has not handed out before.

    Another process may still take it before you do.
    """
    for _ in range(200):
        port = random.choice(_PORTS)
        if port not in _handed_out and port_is_free(port, udp=udp):
            _handed_out.add(port)
            return port
    raise EmbeddedError("no free port between 20000 and 32000")


def port_is_free(port: int, *, udp: bool = False) -> bool:
    kinds = [socket.SOCK_STREAM, *([socket.SOCK_DGRAM] if udp else [])]
    for kind in kinds:
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                # What a server does too: a port in TIME_WAIT is free to it.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                # All interfaces: LiveKit's ICE/TCP listens on all of them whatever its bind address.
                probe.bind(("0.0.0.0", port))  # noqa: S104 - bound, never listened on
            except OSError:
                return False
    return True


def remembered_port(file: Path) -> int:
    """The port of the last run if it is still free, so that a URL somebody noted keeps working; else a new one."""
    try:
        port = int(file.read_text())
    except (OSError, ValueError):
        port = 0
    return port if port in _PORTS and port_is_free(port) else free_port()


def write_private(file: Path, text: str) -> None:
    """Write a file only its owner may read, whole or not at all."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as stream:
        stream.write(text)
    part.replace(file)


class DirectoryLock:
    """An exclusive flock that says who holds it. The kernel lets go of it when we die, however we die."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "lock"
        self._stream: IO[str] | None = None

    def take(self) -> None:
        stream = self._file.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read(400).strip() or "another process"
            stream.close()
            raise EmbeddedError(f"{self._file.parent} is in use by {holder}") from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} ({shlex.join(sys.argv)[:200]})")
        stream.flush()
        self._stream = stream

    def release(self) -> None:
        if self._stream is not None:
            self._stream.truncate(0)
            self._stream.close()
            self._stream = None


class Child:
    """One server process with its log file. `death_signal` reaches it when the thread that started it ends.

    Start it from the main thread: Linux sends the parent-death signal when the starting *thread* ends, so a server
    started through a worker thread stops with that worker.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        stop_signal: signal.Signals,
        death_signal: signal.Signals | None = None,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self._stop_signal = stop_signal
        if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
            log.replace(log.with_name(log.name + ".1"))
        self._log_from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=clean_environment(env),
                cwd=cwd,
                # Ctrl-C in the terminal is for the hub, which then stops its servers in order.
                start_new_session=True,
                preexec_fn=die_with_parent(death_signal or stop_signal),
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it where it stands; on return no thread of it runs any more."""
        self.signal(signal.SIGSTOP)
        give_up = time.monotonic() + STOP_S
        # WNOWAIT: it stays to be told by others who wait for it.
        while os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > give_up:
                raise EmbeddedError(f"{self.argv[0]} does not stop")
            time.sleep(0.002)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def ended_within(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ask it to stop; after `timeout_s` it is killed."""
        if self.exit_code is not None:
            return
        # A frozen process does not hear anything else.
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(self._stop_signal)
        if not self.ended_within(timeout_s):
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(STOP_S)

    def log_tail(self, lines: int = 8) -> str:
        """The last lines that this run wrote."""
        with self.log.open("rb") as stream:
            stream.seek(self._log_from)
            text = stream.read(LOG_LIMIT_BYTES).decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        """Poll `ready` until it holds; stops the child and raises if it dies or `timeout_s` passes."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            code = self.exit_code
            if code is None and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            why = f"did not come up within {timeout_s:g} s" if code is None else f"ended with {code}"
            self.stop()
            raise EmbeddedError(f"{what} {why}; its last words ({self.log}):\n{self.log_tail()}")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a server needs and nothing of ours: secrets in our environment are none of its business."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {"LC_ALL": "C", "TZ": "UTC", **keep, **(extra or {})}


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For `preexec_fn`: the kernel sends the child `number` when we are gone, even by SIGKILL."""
    if _libc is None:
        return None
    prctl, parent = _libc.prctl, os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
