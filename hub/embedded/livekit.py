"""A LiveKit server of our own on loopback: real media, real webhooks, nothing that leaves the machine."""

from __future__ import annotations

import http.client
import json
import secrets
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from hub.embedded.process import Child, DirectoryLock, EmbeddedError, free_port, port_is_free, write_private

START_S = 20.0
# At the first SIGTERM it waits for its people to go; at the second it tells them and goes.
PATIENCE_S = 0.3


class LiveKit:
    """One LiveKit server whose state and log lie in `data_dir`. Keys and ports stay the same over restarts.

    It keeps no rooms: after a restart they are gone. `binary` may come later, as long as it is there at `start()`.
    `webhook_url` is where it reports, `settings` go over our configuration, nested mappings merged; `redis`
    ("host:port", without a password) makes it one node of several.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: Path | None = None,
        webhook_url: str,
        redis: str | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._dir = data_dir.absolute()
        self.binary = binary
        self.webhook_url = webhook_url
        self._redis = redis
        self._settings = settings or {}
        self._lock = DirectoryLock(self._dir)
        self.api_key = self.api_secret = ""
        self._ports: tuple[int, int, int] | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """For the API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """For clients."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        if self._ports is None:
            raise EmbeddedError("LiveKit was not started yet")
        return self._ports[0]

    @property
    def webhook_port(self) -> int:
        """The loopback port on which the hub has to listen to hear the webhooks."""
        return urlsplit(self.webhook_url).port or 80

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; LiveKit says 0 even when it could not start."""
        return self._running().exit_code

    def prepare(self) -> Self:
        """Choose keys and ports, so that they can be told to others before there is a server."""
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.api_key, self.api_secret = _keys(self._dir / "keys")
        self._ports = self._ports or _remembered_ports(self._dir / "ports")
        return self

    def start(self) -> Self:
        """Up and healthy when this returns, in 50 to 250 ms. Raises EmbeddedError."""
        if self._child is not None and self._child.exit_code is None:
            return self
        if self.binary is None:
            raise EmbeddedError("there is no LiveKit binary to start")
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.take()
        try:
            self._start()
        except BaseException:
            self._lock.release()
            raise
        return self

    def stop(self) -> None:
        """Everybody is told to leave, and the webhooks of that are sent."""
        if self._child is not None:
            if self._child.exit_code is None:
                self._child.signal(signal.SIGCONT)
                self._child.signal(signal.SIGTERM)
                self._child.ended_within(PATIENCE_S)
                self._child.stop()
            self._forget()

    def kill(self) -> None:
        """SIGKILL: no goodbye, no webhooks; `start()` brings an empty server back on the same ports."""
        self._running().kill()
        self._forget()

    def freeze(self) -> None:
        """It accepts connections and answers nothing: the hanging server of tests."""
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
        self.api_key, self.api_secret = _keys(self._dir / "keys")
        first, file, log = self._ports is None, self._dir / "livekit.json", self._dir / "livekit.log"
        for attempt in (1, 2, 3):
            self._ports = self._ports or _remembered_ports(self._dir / "ports")
            # JSON is YAML, and needs no library to be written.
            write_private(file, json.dumps(_merged(self._config(*self._ports), self._settings), indent=1))
            # If we die, nobody is left to be told: it goes at once rather than waiting for its people.
            child = Child(
                [str(self.binary), "--config", str(file)],
                log=log,
                stop_signal=signal.SIGTERM,
                death_signal=signal.SIGKILL,
                cwd=self._dir,
            )
            try:
                child.wait_until(self._healthy, what="LiveKit", timeout_s=START_S)
            except EmbeddedError as error:
                if attempt == 3 or not first or "in use" not in str(error):
                    raise
                self._ports = None
            else:
                write_private(self._dir / "ports", json.dumps(self._ports))
                self._child = child
                return

    def _config(self, port: int, tcp_port: int, udp_port: int) -> dict[str, object]:
        config: dict[str, object] = {
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "keys": {self.api_key: self.api_secret},
            "rtc": {
                # Named, so that the server does not ask a STUN server on the internet who it is.
                "node_ip": "127.0.0.1",
                "use_external_ip": False,
                "enable_loopback_candidate": True,
                "interfaces": {"includes": ["lo0" if sys.platform == "darwin" else "lo"]},
                "udp_port": udp_port,
                "tcp_port": tcp_port,
                # Without one of ours clients are told to use public ones; nobody answers here, and nobody has to.
                "stun_servers": ["127.0.0.1:3478"],
            },
            "room": {"auto_create": False, "empty_timeout": 300, "departure_timeout": 20, "enable_remote_unmute": True},
            "limit": {"max_metadata_size": 16384},
            # Else they read stored lists, which keep the ghosts of dead nodes.
            "api": {"enable_psrpc_for_get_list_participants": True},
            "webhook": {"api_key": self.api_key, "urls": [self.webhook_url]},
            "logging": {"level": "info", "json": True},
        }
        if self._redis is not None:
            config["redis"] = {"address": self._redis}
        return config

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _running(self) -> Child:
        if self._child is None:
            raise EmbeddedError("LiveKit is not running")
        return self._child

    def _forget(self) -> None:
        self._child = None
        self._lock.release()


def _keys(file: Path) -> tuple[str, str]:
    if not file.exists():
        write_private(file, f"API{secrets.token_hex(6)} {secrets.token_hex(32)}")
    key, secret = file.read_text().split()
    return key, secret


def _remembered_ports(file: Path) -> tuple[int, int, int]:
    """HTTP, ICE over TCP, ICE over UDP: those of the last run if all are free, else new ones."""
    try:
        http_port, tcp_port, udp_port = json.loads(file.read_text())
        if all(port_is_free(port, udp=True) for port in (http_port, tcp_port, udp_port)):
            return http_port, tcp_port, udp_port
    except (OSError, ValueError, TypeError):
        pass
    return free_port(), free_port(), free_port(udp=True)


def _merged(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        result[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
