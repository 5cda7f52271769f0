"""What a room's members are written, and when."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import msgspec

from tests.fakes.sockets import node, raw


class AtTheEndOfTheTurn:
    """A transport whose buffer keeps what it is given until the turn of the loop is over."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self._buffer = b""

    def write(self, data: bytes) -> None:
        if not self._buffer:
            asyncio.get_running_loop().call_soon(self._flush)
        self._buffer += data

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def _flush(self) -> None:
        data, self._buffer = self._buffer, b""
        self._wire.write(data)


async def test_a_burst_in_one_turn_of_the_loop_cuts_nobody_off() -> None:
    async with node() as edge, raw(edge.socket_url, token="good:a") as client:
        call_id = str(uuid4())
        assert (await client.command("room:join", {"call_id": call_id}))["ok"]
        session = next(iter(edge.edge.sessions()))
        session.socket.transport = AtTheEndOfTheTurn(session.socket.transport)  # type: ignore[assignment]
        session.socket._descriptor = session.socket._direct = -1
        # In the turn that writes the burst.
        asyncio.get_running_loop().call_soon(session.send, "test:typed", {"text": "first"})
        for offset in range(1, 2001):
            body = msgspec.json.encode({"offset": offset})
            edge.edge.deliver_room(UUID(call_id), offset, "e1", "test:posted", body, None)
        assert (await client.event())[0] == "test:typed"
        assert [(await client.event())[1]["offset"] for _ in range(2000)] == list(range(1, 2001))
