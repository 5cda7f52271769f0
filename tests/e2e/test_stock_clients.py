"""The stock JavaScript and Python clients of Socket.IO against the edge: the same checks for both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import platformdirs
import pytest
import pytest_asyncio
import socketio

from hub.transport.socketio import EdgeOptions
from tests.fakes.sockets import Node, node, until

_PACKAGES = ("socket.io-client@4.8.4", "socket.io-msgpack-parser@3.0.2")
_OPTIONS = EdgeOptions(events_burst=1000, ping_ticks=3, pong_ticks=2, tick_s=0.8, max_connections_per_user=50)


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[Node]:
    async with node(_OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The official client, installed once into the user's cache."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on PATH: the JavaScript client is not tested")
    home = Path(platformdirs.user_cache_dir("auralink-hub")) / "npm" / "-".join(_PACKAGES).replace("@", "-")
    if not (home / "complete").exists():
        home.mkdir(parents=True, exist_ok=True)
        code, output = asyncio.run(
            _run("npm", "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(home), *_PACKAGES)
        )
        if code:
            pytest.skip(f"the JavaScript client cannot be installed: {output[-300:]}")
        (home / "complete").touch()
    return home / "node_modules"


async def _run(*command: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(50):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 1, f"{command[0]} took longer than 50 s"
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_official_javascript_client_works(node_modules: Path, edge: Node) -> None:
    script = Path(__file__).with_name("conformance.js")
    env = {**os.environ, "NODE_PATH": str(node_modules)}
    code, output = await _run("node", str(script), edge.url, env=env)
    assert code == 0, output
    assert output.count("ok ") == 11, output


class Client:
    """The Python client, with everything it heard."""

    def __init__(self, packed: bool) -> None:
        self.packed = packed
        options = {"serializer": "msgpack"} if packed else {}
        self.sio = socketio.AsyncClient(reconnection_delay=0.05, reconnection_delay_max=0.1, **options)
        self.heard: list[tuple[str, Any]] = []
        self.disconnects: list[str] = []
        self.refusals: list[Any] = []
        self.sio.on("*", self._hear)
        self.sio.on("connect", lambda: self.heard.append(("connect", None)))
        self.sio.on("disconnect", self.disconnects.append)
        self.sio.on("connect_error", self.refusals.append)

    async def _hear(self, name: str, payload: Any) -> None:
        self.heard.append((name, payload))

    async def connect(self, edge: Node, token: str = "good:ada") -> None:
        await self.sio.connect(
            edge.url + ("?parser=msgpack" if self.packed else ""),
            auth={"token": token, "protocol": "1", "client": "conformance/1"},
            transports=["websocket"],
        )

    async def call(self, name: str, payload: Any) -> Any:
        return await self.sio.call(name, payload, timeout=5)

    def of(self, name: str) -> list[Any]:
        return [payload for heard, payload in self.heard if heard == name]


@contextlib.asynccontextmanager
async def client(edge: Node, *, packed: bool = False, token: str = "good:ada") -> AsyncIterator[Client]:
    one = Client(packed)
    await one.connect(edge, token)
    try:
        await until(lambda: bool(one.of("session:ready")))
        yield one
    finally:
        await one.sio.disconnect()


both = pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])


@both
async def test_python_session_ready_is_the_first_event_after_connect(edge: Node, packed: bool) -> None:
    async with client(edge, packed=packed) as one:
        assert [name for name, _ in one.heard[:2]] == ["connect", "session:ready"]
        assert one.of("session:ready")[0]["user"]["id"] == "ada"


@both
async def test_python_acks_carry_answers_and_refusals(edge: Node, packed: bool) -> None:
    async with client(edge, packed=packed) as one:
        assert await one.call("test:echo", {"text": "hällo"}) == {"ok": True, "data": {"text": "hällo"}}
        assert (await one.call("no:such", {}))["error"]["code"] == "unknown_event"
        assert (await one.call("test:echo", {"text": 5}))["error"]["code"] == "validation_failed"
        assert (await one.call("test:echo", "text"))["error"]["code"] == "validation_failed"
        assert (await one.call("test:crash", {}))["error"]["code"] == "internal"
        assert await one.call("test:bytes", {"data": b"12345"}) == {"ok": True, "data": {"size": 5}}


@both
async def test_python_a_refused_connect_says_why(edge: Node, packed: bool) -> None:
    one = Client(packed)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await one.connect(edge, "bad")
    assert one.refusals[0]["data"] == {"code": "token_invalid", "retryable": False}


async def test_python_200_messages_keep_their_order_in_both_parsers_at_once(edge: Node) -> None:
    call_id = str(uuid4())
    async with client(edge) as plain, client(edge, packed=True, token="good:bob") as packed:
        for member in (plain, packed):
            assert (await member.call("room:join", {"call_id": call_id}))["ok"]
        acks: list[int] = []
        for number in range(200):
            sender = (plain, packed)[number % 2]

            def acked(answer: Any, number: int = number) -> None:
                assert answer["ok"]
                acks.append(number)

            await sender.sio.emit("test:post", {"call_id": call_id, "text": str(number)}, callback=acked)
        await until(lambda: all(len(member.of("test:posted")) == 200 for member in (plain, packed)), 10)
        heard = [
            [(event["offset"], int(event["text"])) for event in member.of("test:posted")] for member in (plain, packed)
        ]
        assert heard[0] == heard[1] and [offset for offset, _ in heard[0]] == list(range(1, 201))
        for side in (0, 1):
            assert [number for _, number in heard[0] if number % 2 == side] == list(range(side, 200, 2))
            assert [number for number in acks if number % 2 == side] == list(range(side, 200, 2))


@both
async def test_python_a_session_closed_with_1012_comes_back_by_itself(edge: Node, packed: bool) -> None:
    async with client(edge, packed=packed) as one:
        await one.call("test:close", {"reconnect": True})
        await until(lambda: len(one.of("session:ready")) == 2, 5)
        assert one.of("session:closing")[0]["reconnect"] is True
        first, second = one.of("session:ready")
        assert first["session_id"] != second["session_id"]


@both
async def test_python_a_session_closed_for_good_stays_away(edge: Node, packed: bool) -> None:
    async with client(edge, packed=packed) as one:
        await one.call("test:close", {"reconnect": False})
        await until(lambda: bool(one.disconnects))
        await asyncio.sleep(0.5)
        assert not one.sio.connected and len(one.of("session:ready")) == 1


async def test_python_heartbeats_keep_a_quiet_client_connected(edge: Node) -> None:
    async with client(edge) as one:
        await asyncio.sleep(3.5)
        assert one.sio.connected and not one.disconnects
