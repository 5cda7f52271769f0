"""Whole hubs as processes of their own, on real servers, and the people who use them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import aiohttp
import asyncpg
import socketio

from hub.embedded import LiveKit, Valkey, free_port
from hub.transport.auth import TokenRules, Tokens
from tests.conftest import TestDatabase
from tests.rtc import RtcClient

ROOT = Path(__file__).resolve().parents[2]
JWT_SECRET = "the-secret-of-the-tests-" + "x" * 16
READY_S = 30.0
STEP_S = 20.0


class NodeProcess:
    """`auralink-hub serve` with some environment. Ready when `start` returns."""

    def __init__(
        self, environ: Mapping[str, str], port: int, internal_port: int, arguments: tuple[str, ...] = ()
    ) -> None:
        self._environ = dict(environ)
        self._arguments = arguments
        self.url = f"http://127.0.0.1:{port}"
        self.internal_url = f"http://127.0.0.1:{internal_port}"
        self._log = Path(tempfile.mkstemp(prefix="auralink-node-", suffix=".log")[1])
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *, until_ready: bool = True) -> Self:
        with self._log.open("ab") as log:
            words = (sys.executable, "-m", "hub", "serve", *self._arguments)
            self._process = await asyncio.create_subprocess_exec(
                *words, cwd=ROOT, env=self._environ, stdout=log, stderr=log
            )
        if until_ready:
            await self.until_ready()
        return self

    async def until_ready(self, timeout_s: float = READY_S) -> None:
        deadline = time.monotonic() + timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while True:
                try:
                    async with http.get(f"{self.url}/readyz") as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                assert self._process is None or self._process.returncode is None, f"the node ended:\n{self.log()}"
                assert time.monotonic() < deadline, f"the node is not ready:\n{self.log()[-4000:]}"
                await asyncio.sleep(0.1)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ended(self, timeout_s: float) -> int:
        """Wait for its own end; the exit code."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), timeout_s)

    async def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and wait; the exit code."""
        return await self._end(signal.SIGTERM, timeout_s)

    async def kill(self) -> None:
        """SIGKILL: no goodbye."""
        await self._end(signal.SIGKILL, 10.0)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def _end(self, with_signal: signal.Signals, timeout_s: float) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(with_signal)
        return await asyncio.wait_for(process.wait(), timeout_s)

    async def close(self) -> None:
        await self.kill()
        self._log.unlink(missing_ok=True)


class Stage:
    """One environment of its own (database, key prefix) with as many nodes as a test starts."""

    def __init__(self, database: TestDatabase, valkey_url: str, livekit: LiveKit | None, env: str) -> None:
        self.database = database
        self.livekit = livekit
        self.valkey_url = valkey_url
        self._env = env
        self._files = tempfile.TemporaryDirectory(prefix="auralink-files-")
        self.nodes: list[NodeProcess] = []
        self.people: list[Person] = []
        self.tokens = Tokens(TokenRules(secrets=(JWT_SECRET,)))

    def environ(self, **over: str) -> dict[str, str]:
        livekit = {
            "LIVEKIT_URL": self.livekit.ws_url if self.livekit else "ws://127.0.0.1:9",
            "LIVEKIT_API_KEY": self.livekit.api_key if self.livekit else "testkey",
            "LIVEKIT_API_SECRET": self.livekit.api_secret if self.livekit else "s" * 32,
        }
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(Path.home()),
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": self.database.app_dsn,
            "AURALINK_DATABASE_OWNER_URL": self.database.owner_dsn,
            "REDIS_URL": self.valkey_url,
            **livekit,
            "AURALINK_ENV": self._env,
            "AURALINK_STORAGE": f"file://{self._files.name}",
            "AURALINK_JWT_SECRET": JWT_SECRET,
            "AURALINK_SWEEP_S": "2",
            "AURALINK_DRAIN_S": "2",
            **over,
        }

    async def node(
        self, *, port: int | None = None, until_ready: bool = True, arguments: tuple[str, ...] = (), **over: str
    ) -> NodeProcess:
        """Start a node. The first one listens where LiveKit reports to."""
        if port is None:
            port = self.livekit.webhook_port if self.livekit and not self.nodes else free_port()
        internal = free_port()
        environ = self.environ(
            AURALINK_LISTEN=f"127.0.0.1:{port}",
            AURALINK_INTERNAL_LISTEN=f"127.0.0.1:{internal}",
            AURALINK_PUBLIC_URL=f"http://127.0.0.1:{port}",
            AURALINK_NODE_ID=f"node-{len(self.nodes)}",
        )
        node = NodeProcess({**environ, **over}, port, internal, arguments)
        self.nodes.append(node)
        return await node.start(until_ready=until_ready)

    def person(
        self,
        user_id: str,
        *,
        node: NodeProcess | None = None,
        tenant: str | None = None,
        admin: bool = False,
        operator: bool = False,
    ) -> Person:
        token = self.tokens.issue(
            user_id,
            tenant=tenant,
            role="service_role" if operator else "authenticated",
            display_name=user_id.title(),
            hub_role="admin" if admin else None,
        ).token
        person = Person(user_id, (node or self.nodes[0]).url, token)
        self.people.append(person)
        return person

    async def rows(self, query: str, *values: object) -> list[asyncpg.Record]:
        """Past the hub and its policies: what is really there."""
        admin = await asyncpg.connect(self.database.admin_dsn)
        try:
            found: list[asyncpg.Record] = await admin.fetch(query, *values)
            return found
        finally:
            await admin.close()

    async def call(self, call_id: str) -> asyncpg.Record:
        (row,) = await self.rows("SELECT * FROM calls WHERE id = $1::uuid", call_id)
        return row

    async def statuses(self, call_id: str) -> dict[str, str]:
        """Of everybody in the call's book, by identity."""
        found = await self.rows("SELECT identity, status FROM call_participants WHERE call_id = $1::uuid", call_id)
        return {row["identity"]: row["status"] for row in found}

    async def send_home(self) -> None:
        """The people go; the nodes stay, for the next test."""
        people, self.people = self.people, []
        for person in people:
            await person.close()

    async def close(self) -> None:
        await self.send_home()
        for node in self.nodes:
            await node.close()
        self._files.cleanup()


class Answer:
    """A REST answer, read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: Any) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"{self.status} {self.body}"


class Person:
    """One user: REST calls, one socket, and a WebRTC client in a process of its own."""

    def __init__(self, user_id: str, url: str, token: str) -> None:
        self.user_id = user_id
        self.url = url
        self.token = token
        self.socket = socketio.AsyncClient(reconnection=False, handle_sigint=False)
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Condition()
        self._http: aiohttp.ClientSession | None = None
        self.rtc: RtcClient | None = None
        self.socket.on("*", self._hear)

    async def _hear(self, event: str, payload: dict[str, Any]) -> None:
        async with self._news:
            self.heard.append((event, payload))
            self._news.notify_all()

    async def rest(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`path` below /api/v1, or absolute where it begins with a double slash."""
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15))
        url = self.url + (path[1:] if path.startswith("//") else f"/api/v1{path}")
        headers = {
            "Authorization": f"Bearer {self.token}",
            **{name.replace("_", "-"): v for name, v in headers.items()},
        }
        kind = "data" if isinstance(body, aiohttp.FormData) else "json"
        options: dict[str, Any] = {} if body is None else {kind: body}
        async with self._http.request(method, url, headers=headers, **options) as response:
            text = await response.read()
            return Answer(response.status, response.headers, await response.json(content_type=None) if text else None)

    async def create(self, **fields: Any) -> dict[str, Any]:
        """POST /rooms, or fail."""
        answer = await self.rest("POST", "/rooms", {"name": "Standup", "call_type": "group", **fields})
        assert answer.status == 201, answer
        body: dict[str, Any] = answer.body
        return body

    async def connect(self, url: str | None = None) -> Self:
        auth = {"token": self.token, "protocol": "1", "client": "test/1.0"}
        await self.socket.connect(url or self.url, auth=auth, transports=["websocket"], wait_timeout=10)
        return self

    async def ack(self, command: str, **payload: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self.socket.call(command, payload, timeout=10)
        return answer

    async def ask(self, command: str, **payload: Any) -> dict[str, Any]:
        """The ack's data, or fail."""
        answer = await self.ack(command, **payload)
        assert answer["ok"], f"{command}: {answer}"
        data: dict[str, Any] = answer["data"]
        return data

    async def join(self, call_id: str, *, media: bool = False, **fields: Any) -> dict[str, Any]:
        """`room:join`; with `media` also connect a WebRTC client that publishes audio and video."""
        joined = await self.ask("room:join", call_id=call_id, media=media, **fields)
        if media:
            await self.connect_media(joined["media"])
        return joined

    async def ticket(self, call_id: str) -> dict[str, Any]:
        """A LiveKit token by REST, or fail."""
        answer = await self.rest("POST", f"/rooms/{call_id}/token", {})
        assert answer.status == 200, answer
        body: dict[str, Any] = answer.body
        return body

    async def connect_media(self, media: Mapping[str, Any], *, video: bool = True) -> RtcClient:
        self.rtc = await RtcClient.start(media["url"], media["token"], audio=True, video=video, seconds=240)
        await self.rtc.wait_for("connected", timeout_s=STEP_S)
        return self.rtc

    async def wait_for(
        self, event: str, where: Callable[[dict[str, Any]], bool] = lambda _: True, *, timeout_s: float = STEP_S
    ) -> dict[str, Any]:
        """The first such event, past or to come."""

        def found() -> dict[str, Any] | None:
            return next((payload for name, payload in self.heard if name == event and where(payload)), None)

        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: found() is not None)
        except TimeoutError:
            raise AssertionError(f"{self.user_id} did not hear {event}; heard {self.heard}") from None
        payload = found()
        assert payload is not None
        return payload

    def left(self, participant_id: str) -> list[dict[str, Any]]:
        """How often this person was told that somebody left, and with what words."""
        return [
            each
            for name, payload in self.heard
            if name == "participant:left"
            for each in payload["participants"]
            if each["participant_id"] == participant_id
        ]

    async def wait_for_left(self, participant_id: str, *, timeout_s: float) -> dict[str, Any]:
        await self.wait_for("participant:left", lambda _: bool(self.left(participant_id)), timeout_s=timeout_s)
        return self.left(participant_id)[0]

    def cut_socket(self) -> None:
        """As if the process were killed: the kernel closes the connection, nobody says goodbye."""
        transport = self.socket.eio.ws.get_extra_info("socket")
        transport.shutdown(socket.SHUT_RDWR)

    def names(self) -> list[str]:
        return [name for name, _ in self.heard]

    async def close(self) -> None:
        if self.rtc is not None:
            await self.rtc.kill()
        if self.socket.connected:
            await self.socket.disconnect()
        if self._http is not None:
            await self._http.close()


def op_id() -> str:
    return str(uuid4())


def stage_of(database: TestDatabase, valkey: Valkey, livekit: LiveKit | None, env: str) -> Stage:
    return Stage(database, valkey.url, livekit, env)


async def eventually(check: Callable[[], Any], *, timeout_s: float = STEP_S, every_s: float = 0.2) -> Any:
    """The first true value of `await check()`. Fails with the last value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = await check()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {value!r}"
        await asyncio.sleep(every_s)
