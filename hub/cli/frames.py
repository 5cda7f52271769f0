"""A client of `/files`: Socket.IO over one WebSocket, as MessagePack, as far as chunk frames need it."""

from __future__ import annotations

import asyncio
import itertools
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from hub import __version__

_CONNECT, _EVENT, _ACK, _ERROR = 0, 2, 3, 4
_NAMESPACE = "/files"
_OPEN_S = 10.0
# The hub pings every 15 s; where nothing comes for longer, nobody is there any more.
_SILENCE_S = 25.0
_MOST_BYTES = 1024 * 1024


class Lost(Exception):
    """The connection is gone, or was never there: another may be had."""


class Refused(Exception):
    """The hub's error object."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code = str(error.get("code"))
        self.retryable = bool(error.get("retryable"))
        self.wait_s = (error.get("retry_after_ms") or 500) / 1000
        self.details: dict[str, Any] = error.get("details") or {}


class Frames:
    """`async with Frames(url, token) as frames`: then `ask`, or `send` and wait for its answer later.

    Raises Lost, or Refused where the hub lets nobody in with that token.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/").replace("http", "ws", 1) + "/socket.io/?EIO=4&transport=websocket&parser=msgpack"
        self._token = token
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(_OPEN_S):
                self._socket = await self._http.ws_connect(self._url, max_msg_size=_MOST_BYTES)
                await self._enter(self._socket)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            await self._http.close()
            raise Lost(str(error) or type(error).__name__) from error
        except BaseException:
            await self._http.close()
            raise
        self._reader = asyncio.create_task(self._read(self._socket))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()
        if self._http is not None:
            await self._http.close()

    async def _enter(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        auth = {"token": self._token, "protocol": "1", "client": f"auralink-hub/{__version__}"}
        await socket.send_bytes(_packet(_CONNECT, auth))
        async for message in socket:
            packet = _decoded(message)
            if packet is None:
                await _pong(socket, message)
            elif packet["type"] == _ERROR:
                raise Refused({"message": packet["data"].get("message"), **packet["data"].get("data", {})})
            elif packet["type"] == _CONNECT:
                return
        raise Lost("the connection was closed at once")

    async def ask(self, command: str, /, **fields: Any) -> dict[str, Any]:
        """The `data` of the ack. Raises Refused or Lost."""
        return await (await self.send(command, **fields))

    async def send(self, command: str, /, **fields: Any) -> asyncio.Future[dict[str, Any]]:
        """The answer, to come. Waits while the socket takes no more."""
        assert self._socket is not None
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        # Whoever gives up on an answer need not hear that it was a refusal.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await self._socket.send_bytes(_packet(_EVENT, [command, fields], number))
        except (aiohttp.ClientError, OSError) as error:
            self._asked.pop(number, None)
            raise Lost(str(error) or "the connection broke") from error
        if self._reader is None or self._reader.done():
            self._lost()
        return answer

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    message = await socket.receive()
                if message.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                    break
                packet = _decoded(message)
                if packet is None:
                    await _pong(socket, message)
                elif packet["type"] == _ACK:
                    self._answered(packet["id"], packet["data"][0])
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        finally:
            self._lost()

    def _answered(self, number: int, ack: dict[str, Any]) -> None:
        answer = self._asked.pop(number, None)
        if answer is None or answer.done():
            return
        if ack.get("ok"):
            answer.set_result(ack.get("data") or {})
        else:
            answer.set_exception(Refused(ack.get("error") or {}))

    def _lost(self) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Lost("the connection broke"))
        self._asked.clear()


def _packet(kind: int, data: Any, number: int | None = None) -> bytes:
    packet = {"type": kind, "nsp": _NAMESPACE, "data": data}
    if number is not None:
        packet["id"] = number
    return msgspec.msgpack.encode(packet)


def _decoded(message: aiohttp.WSMessage) -> dict[str, Any] | None:
    """A packet; None for what Engine.IO says as text."""
    if message.type is not aiohttp.WSMsgType.BINARY:
        return None
    packet: dict[str, Any] = msgspec.msgpack.decode(message.data)
    return packet


async def _pong(socket: aiohttp.ClientWebSocketResponse, message: aiohttp.WSMessage) -> None:
    if message.type is aiohttp.WSMsgType.TEXT and message.data == "2":
        await socket.send_str("3")
