"""A real clamd with two signatures of our own, on a loopback port and a unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hub.embedded import free_port
from hub.embedded.process import Child

# In two pieces, so that no scanner stops at this file.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR" + rb"-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
LIMIT_BYTES = 8 * 1024 * 1024


def clamd_path() -> str | None:
    return shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class ClamAV:
    """`with ClamAV(directory) as server`: answers when that returns."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self.port = free_port()
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.socket_url = f"unix://{directory / 'clamd.sock'}"
        self._child: Child | None = None

    def __enter__(self) -> Self:
        found = clamd_path()
        assert found is not None
        signatures = self._dir / "signatures"
        signatures.mkdir()
        # Anywhere in any file.
        (signatures / "test.ndb").write_text(f"Test.EICAR.NDB:0:*:{EICAR.hex()}\n")
        config = self._dir / "clamd.conf"
        config.write_text(
            f"""
DatabaseDirectory {signatures}
TCPAddr 127.0.0.1
TCPSocket {self.port}
LocalSocket {self._dir / "clamd.sock"}
Foreground yes
{"User root" if os.geteuid() == 0 else ""}
StreamMaxLength {LIMIT_BYTES}
MaxFileSize {LIMIT_BYTES}
MaxScanSize {LIMIT_BYTES}
AlertExceedsMax yes
MaxThreads 4
SelfCheck 3600
"""
        )
        self._child = Child(
            [found, f"--config-file={config}"], log=self._dir / "clamd.log", stop_signal=signal.SIGKILL, cwd=self._dir
        )
        # A port that is taken is only logged, and the unix socket is served all the same.
        self._child.wait_until(self._answers, what="clamd", timeout_s=30.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()

    def freeze(self) -> None:
        assert self._child is not None
        self._child.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._child is not None
        self._child.signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"zPING\0")
            return connection.recv(16).startswith(b"PONG")
        return False
