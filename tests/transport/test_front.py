"""One port for HTTP and WebSockets, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from aiohttp import web

from hub.transport.socketio import front
from tests.fakes.sockets import Node, node, until

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def upgrade(**changed: str | None) -> bytes:
    """A handshake as browsers send it; None leaves a field out."""
    fields = {
        "Host": "hub", "Connection": "keep-alive, Upgrade", "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
    }  # fmt: skip
    target = changed.pop("target", "/socket.io/?EIO=4&transport=websocket")
    method = changed.pop("method", "GET")
    given = {**fields, **{name.replace("_", "-"): value for name, value in changed.items()}}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Line:
    """A plain TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)

    async def frame(self) -> bytes:
        first, size = await asyncio.wait_for(self.reader.readexactly(2), 5)
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2), "big")
        return bytes((first,)) + await asyncio.wait_for(self.reader.readexactly(size), 5)

    async def ended(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 5) == b""


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[Node]:
    async with node() as running:
        yield running


async def dial(edge: Node) -> Line:
    return Line(*await asyncio.open_connection("127.0.0.1", edge.port))


async def test_a_handshake_in_any_pieces_opens_and_agrees_to_no_extension(edge: Node) -> None:
    for cuts in ([], [1], [20, 40, 41, 90], list(range(1, 60))):
        line, whole, at = await dial(edge), upgrade(), 0
        for cut in [*cuts, len(whole)]:
            line.writer.write(whole[at:cut])
            await line.writer.drain()
            await asyncio.sleep(0)
            at = cut
        answer = await line.head()
        assert answer.startswith(b"HTTP/1.1 101 ") and ACCEPT in answer and b"xtension" not in answer
        assert (await line.frame()).startswith(b'\x810{"sid":')
        line.writer.close()
    await until(lambda: not edge.edge.server.eio.sockets)


async def test_a_handshake_on_a_connection_that_served_http_before_opens_too(edge: Node) -> None:
    """As a reverse proxy does that keeps its connections."""
    line = await dial(edge)
    line.writer.write(b"GET /nothing HTTP/1.1\r\nHost: hub\r\n\r\n")
    head = await line.head()
    await line.reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    line.writer.write(upgrade())
    answer = await line.head()
    assert answer.startswith(b"HTTP/1.1 101 ") and ACCEPT in answer and b"xtension" not in answer
    assert (await line.frame()).startswith(b'\x810{"sid":')
    # An Engine.IO close, masked with zeros.
    line.writer.write(b"\x81\x81\0\0\0\x001")
    assert await line.frame() == b"\x88\x03\xe8"
    line.writer.write(b"\x88\x80\0\0\0\0")
    assert await line.ended()
    await until(lambda: not edge.edge.server.eio.sockets and not edge.edge._taken_over and not edge.edge._serving)
    assert not edge.edge._admission._connections


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (upgrade(target="/socket.io/?EIO=4&transport=polling"), 400),
        (upgrade(target="/socket.io/?EIO=3&transport=websocket"), 400),
        (upgrade(target="/socket.iox/?EIO=4&transport=websocket"), 404),
        (upgrade(target="/elsewhere"), 404),
        (upgrade(method="POST"), 400),
        (upgrade(Upgrade="h2c"), 400),
        (upgrade(Connection="close"), 400),
        (upgrade(Sec_WebSocket_Version="8"), 400),
        (upgrade(Sec_WebSocket_Key="short"), 400),
        (upgrade(Sec_WebSocket_Key=None), 400),
        (upgrade(Content_Length="0"), 400),
        (upgrade(Origin="https://evil.example"), 403),
        (upgrade(**{"Bad name": "x"}), 400),
        (b"GET /socket.io/ nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01" + bytes(60), 400),
        (b"GET /socket.io/?" + b"x" * 20_000, 400),
    ],
)
async def test_everything_else_is_answered_by_http(edge: Node, request_: bytes, status: int) -> None:
    line = await dial(edge)
    line.writer.write(request_)
    assert int((await line.head()).split(b" ")[1]) == status
    line.writer.close()
    assert not edge.edge.server.eio.sockets


async def test_a_request_and_the_next_one_in_one_piece_are_both_answered(edge: Node) -> None:
    line = await dial(edge)
    line.writer.write(b"GET /a HTTP/1.1\r\nHost: hub\r\n\r\nGET /b HTTP/1.1\r\nHost: hub\r\n\r\n")
    for _ in range(2):
        head = await line.head()
        assert b" 404 " in head
        await line.reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))


async def test_who_says_nothing_or_never_ends_its_head_is_hung_up_on(
    edge: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "_HEAD_S", 0.2)
    silent, slow = await dial(edge), await dial(edge)
    slow.writer.write(b"GET /socket.io/?EIO=4")
    for line in (silent, slow):
        with contextlib.suppress(ConnectionResetError):
            assert await line.ended()


async def test_frames_that_come_with_the_handshake_are_heard(edge: Node) -> None:
    line = await dial(edge)
    line.writer.write(upgrade() + b"\x81\x81\0\0\0\x001")
    await line.head()
    await line.frame()
    assert await line.frame() == b"\x88\x03\xe8"


@pytest.mark.skipif(sys.platform == "win32", reason="no uvloop there")
def test_the_front_stands_on_uvloop_as_well() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def both() -> None:
        async with node() as edge:
            await test_a_handshake_on_a_connection_that_served_http_before_opens_too(edge)
            await test_a_handshake_in_any_pieces_opens_and_agrees_to_no_extension(edge)

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(both())


async def test_a_port_that_is_taken_is_told() -> None:
    async with node() as edge:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        with pytest.raises(OSError, match="address already in use"):
            async with front.listening(runner, edge.edge, "127.0.0.1", edge.port):
                pass
        await runner.cleanup()
