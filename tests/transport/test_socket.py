"""What is due to a socket, over a real connection: in order whoever writes it, and never into another connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from hub.transport.socketio import EdgeOptions
from hub.transport.socketio.codec import Json
from hub.transport.socketio.socket import Socket

_USUAL = EdgeOptions()


class _Home:
    def heard(self, socket: Socket, opcode: int, data: bytes) -> None:
        """Three answers to each text."""
        for number in range(3):
            socket.write(b"%b%d;" % (data, number))

    def ending(self, socket: Socket) -> None: ...


@asynccontextmanager
async def connected(options: EdgeOptions = _USUAL) -> AsyncIterator[tuple[Socket, socket.socket]]:
    """The hub's side of a connection, and the other's, which blocks nobody."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    edge = Socket("sid", transport, Json(), "127.0.0.1", options, _Home())
    transport.set_protocol(edge)
    try:
        yield edge, theirs
    finally:
        transport.abort()
        theirs.close()


async def read(theirs: socket.socket, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(5):
        while len(data) < size:
            data += await asyncio.get_running_loop().sock_recv(theirs, 65_536)
    return data


@contextmanager
def written(edge: Socket) -> Iterator[list[bytes]]:
    """What goes by the transport."""
    taken: list[bytes] = []
    transport = edge.transport

    class Watched:
        def write(self, data: bytes | memoryview) -> None:
            taken.append(bytes(data))
            transport.write(data)

        def get_write_buffer_size(self) -> int:
            return transport.get_write_buffer_size()

    edge.transport = Watched()
    yield taken
    edge.transport = transport


async def test_what_the_kernel_takes_does_not_go_by_the_transport() -> None:
    async with connected() as (edge, theirs):
        with written(edge) as taken:
            edge.write(b"one;")
            edge.write(b"two;")
        assert await read(theirs, 8) == b"one;two;"
        assert not taken


async def test_what_the_kernel_does_not_take_comes_in_order_and_once() -> None:
    parts = [b"%06d" % number + b"x" * 994 for number in range(400)]
    async with connected() as (edge, theirs):
        with written(edge) as taken:
            for number, part in enumerate(parts):
                edge.write(part)
                if number == 200:
                    # Half of it, and then what is new behind what still waits.
                    received = await read(theirs, 100_000)
            received += await read(theirs, 400_000 - len(received))
            assert taken
            assert received == b"".join(parts)
            edge.write(b"direct again;")
            count = len(taken)
            edge.write(b"and again;")
            assert await read(theirs, 23) == b"direct again;and again;"
            assert len(taken) == count


async def test_who_does_not_read_is_cut_off_by_bytes_and_by_frames() -> None:
    for options in (EdgeOptions(queued_bytes=50_000), EdgeOptions(queued_frames=20)):
        async with connected(options) as (edge, _):
            for _ in range(500):
                edge.write(b"x" * 1000)
                if not edge.open:
                    break
            assert not edge.open


async def _closed(number: int) -> None:
    """The transport has closed it: the kernel may give the number to the next one."""
    async with asyncio.timeout(5):
        while True:
            await asyncio.sleep(0)
            try:
                os.fstat(number)
            except OSError:
                return


@pytest.mark.parametrize("end", ["aborted here", "closed here", "hung up there", "lost"])
async def test_a_descriptor_of_a_connection_that_ended_is_never_written_to(end: str) -> None:
    async with connected() as (edge, theirs):
        edge.write(b"mine;")
        assert await read(theirs, 5) == b"mine;"
        number = edge._direct
        assert number >= 0
        mine, others = socket.socketpair()
        match end:
            case "aborted here":
                edge.abort()
            case "closed here":
                edge.close(1000)
                edge._wire.abort()
            case "hung up there":
                theirs.close()
                async with asyncio.timeout(5):
                    while edge.open:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                edge.hang_up()
            case "lost":
                edge._wire.abort()
        await _closed(number)
        os.dup2(mine.fileno(), number)
        try:
            edge.write(b"not for you")
            others.setblocking(False)
            with pytest.raises(BlockingIOError):
                others.recv(100)
        finally:
            os.close(number)
            mine.close()
            others.close()


async def test_answers_to_what_came_in_one_piece_leave_in_one_write() -> None:
    def said(text: bytes) -> bytes:
        return bytes((0x81, 0x80 | len(text))) + bytes(4) + text

    async with connected() as (edge, theirs):
        edge.write(b"direct;")
        await read(theirs, 7)
        with written(edge) as taken:
            asyncio.get_running_loop().call_soon(edge.data_received, said(b"a") + said(b"b"))
            assert await read(theirs, 18) == b"a0;a1;a2;b0;b1;b2;"
            assert len(taken) == 6
            # One at a time is answered at once.
            asyncio.get_running_loop().call_soon(edge.data_received, said(b"c"))
            assert await read(theirs, 9) == b"c0;c1;c2;"
            assert len(taken) == 6
