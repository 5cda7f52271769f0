"""The servers under test: each a process of its own, on a core of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import msgspec

from hub.embedded import Valkey
from hub.embedded.process import Child, free_port
from tests.bench import build
from tests.bench.machine import Machine, on_core, prefer

HUB, NODE, STOCK, BARE, CENTRIFUGE = "hub", "node", "stock", "bare", "centrifuge"
SERVERS = (HUB, NODE, STOCK, BARE, CENTRIFUGE)
TITLES = {
    HUB: "AuraLink Hub",
    NODE: "Node Socket.IO",
    STOCK: "python-socketio",
    BARE: "bare C writer",
    CENTRIFUGE: "Centrifugo's library",
}
_START_S = 30.0
_SETTLE_S = 0.3
_TOKENS = 10_100
_TOKEN_S = 24 * 3600
_ROOT = build.HERE.parent.parent


class Running(msgspec.Struct, frozen=True):
    """One server, or two nodes of it: what the load client needs to know."""

    ports: tuple[int, ...]
    pids: tuple[int, ...]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """How a measurement wants its servers."""

    nodes: int = 1
    recorded: bool = False
    # The server watches how long its own loop stalls. It costs a little, so only where that is what is measured.
    stall: bool = False


class Lab:
    """What all runs share: built programs, tokens, a working directory. A server that cannot be had is in `missing`."""

    def __init__(
        self,
        machine: Machine,
        wanted: tuple[str, ...],
        *,
        say: Callable[[str], None],
        preferred: bool = False,
    ) -> None:
        self.machine = machine
        # Servers and client come before whatever else runs on this machine.
        self.preferred = preferred
        self.work = Path(tempfile.mkdtemp(prefix="auralink-bench-"))
        self.load_client = build.load_client(say)
        self.missing: dict[str, str] = {}
        self._secret = secrets.token_urlsafe(32)
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        for name in wanted:
            try:
                self._commands[name] = _command(name, say)
            except build.Missing as reason:
                self.missing[name] = str(reason)
        self.tokens = self.work / "tokens"
        self.tokens.write_text("".join(f"{token}\n" for token in self._make_tokens()))

    def close(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    @contextmanager
    def running(self, name: str, setting: Setting) -> Iterator[Running]:
        """Started and listening; stopped at the end. With two nodes, the first is where the publisher is."""
        with ExitStack() as stack:
            pids: list[int] = []
            env = {"BENCH_SECRET": self._secret, "PYTHONPATH": str(_ROOT)}
            if setting.stall:
                env["BENCH_STALL"] = "1"
            if _needs_redis(name, setting):
                # A node shares its core with what it needs. Of two nodes, the first and Redis have the client's core.
                core = self.machine.server_core if setting.nodes == 1 else self.machine.client_core
                with on_core(core):
                    valkey = stack.enter_context(Valkey(Path(tempfile.mkdtemp(prefix="valkey-", dir=self.work))))
                env |= _redis(name, valkey.url, recorded=setting.recorded)
                self._prefer(valkey.pid)
                pids.append(valkey.pid)
            ports = []
            for number in range(setting.nodes):
                first_of_two = setting.nodes == 2 and number == 0
                core = self.machine.client_core if first_of_two else self.machine.server_core
                port = free_port()
                child = self._start(name, port, core, {**env, "NODE_ID": "ab"[number]})
                stack.callback(child.stop, 5.0)
                self._prefer(child.pid)
                child.wait_until(partial(_listens, port), what=TITLES[name], timeout_s=_START_S)
                ports.append(port)
                pids.append(child.pid)
            time.sleep(_SETTLE_S)
            yield Running(tuple(ports), tuple(pids))

    def _prefer(self, pid: int) -> None:
        if self.preferred:
            prefer(pid)

    def _start(self, name: str, port: int, core: int, env: Mapping[str, str]) -> Child:
        command, own = self._commands[name]
        with on_core(core):
            return Child(
                [str(port) if word == "PORT" else word for word in command],
                log=self.work / f"{name}-{port}.log",
                stop_signal=signal.SIGTERM,
                env={**env, **own, "PORT": str(port)},
                cwd=_ROOT,
            )

    def _make_tokens(self) -> Iterator[str]:
        """One user a connection, and at the end one who may speak in every room."""
        ends = int(time.time()) + _TOKEN_S
        for number in range(_TOKENS):
            claims = {"sub": f"user-{number}", "aud": "authenticated", "role": "authenticated", "exp": ends}
            if number == _TOKENS - 1:
                claims["app_metadata"] = {"hub_role": "admin"}
            yield jwt.encode(claims, self._secret, algorithm="HS256")


def _command(name: str, say: Callable[[str], None]) -> tuple[list[str], dict[str, str]]:
    peers = build.HERE / "peers"
    match name:
        case "hub":
            return [sys.executable, "-m", "tests.bench.hub_app"], {}
        case "stock":
            return [sys.executable, "-m", "tests.bench.peers.stock"], {}
        case "node":
            modules = build.node_modules(say)
            return ["node", str(peers / "node" / "server.js")], {"NODE_PATH": str(modules), "NODE_ENV": "production"}
        case "bare":
            return [str(build.bare_writer(say)), "PORT"], {}
        case "centrifuge":
            # One core: Go would else start a thread for each, and they would wait for each other.
            return [str(build.centrifuge(say))], {"GOMAXPROCS": "1"}
    raise ValueError(name)


def _needs_redis(name: str, setting: Setting) -> bool:
    """The hub always does; the others where there are two nodes, or events are kept."""
    if name == BARE:
        return False
    return name == HUB or setting.nodes == 2 or (setting.recorded and name == NODE)


def _redis(name: str, url: str, *, recorded: bool) -> dict[str, str]:
    parts = urlsplit(url)
    env = {
        "REDIS_URL": url,
        "REDIS_ADDRESS": f"{parts.hostname}:{parts.port}",
        "REDIS_PASSWORD": parts.password or "",
    }
    if name == NODE:
        env["ADAPTER"] = "streams" if recorded else "sharded"
    return env | ({"HISTORY": "1"} if recorded else {})


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def client_environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
