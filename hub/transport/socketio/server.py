"""python-socketio's AsyncServer as the face of the edge: ids, namespaces, `emit` and `disconnect` for what uses them.

Apps do not pass through its event handling: commands have the dispatcher and rooms have the fan-out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import socketio

from hub.transport.socketio.engine import Engine


class Manager(socketio.AsyncManager):  # type: ignore[misc]
    """Which client is which connection, without the rooms that the library keeps for every single client.

    The library's own leaves a client by looking through all rooms of the namespace, and every client has a room: ten
    thousand disconnects cost it eleven seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._connections: dict[str, dict[str, str]] = {}
        self._clients: dict[str, dict[str, str]] = {}

    def connect(self, sid: str, namespace: str, client: str) -> None:
        """`sid` is the connection's id, `client` the client's."""
        self._connections.setdefault(namespace, {})[client] = sid
        self._clients.setdefault(namespace, {})[sid] = client

    def drop(self, eio_sid: str) -> None:
        for namespace, clients in self._clients.items():
            client = clients.pop(eio_sid, None)
            if client is not None:
                del self._connections[namespace][client]
                self.callbacks.pop(client, None)

    def basic_disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        eio_sid = self._connections.get(namespace, {}).pop(sid, None)
        if eio_sid is not None:
            self._clients[namespace].pop(eio_sid, None)
        self.callbacks.pop(sid, None)

    def is_connected(self, sid: str, namespace: str) -> bool:
        return sid in self._connections.get(namespace, ())

    def sid_from_eio_sid(self, eio_sid: str, namespace: str) -> str | None:
        return self._clients.get(namespace, {}).get(eio_sid)

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        return self._connections.get(namespace, {}).get(sid)

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        return self.eio_sid_from_sid(sid, namespace)

    def get_namespaces(self) -> Any:
        return self._connections.keys()

    def get_participants(self, namespace: str, room: str | None) -> Iterator[tuple[str, str]]:
        """A client by its own id, or everybody (None). There are no other rooms here."""
        clients = self._connections.get(namespace, {})
        if room is None:
            yield from list(clients.items())
        elif room in clients:
            yield room, clients[room]

    def get_rooms(self, sid: str, namespace: str) -> list[str]:
        return [sid] if self.is_connected(sid, namespace) else []

    def basic_enter_room(self, sid: str, namespace: str, room: str, eio_sid: str | None = None) -> None:
        raise NotImplementedError("rooms are the fan-out's")


class Server(socketio.AsyncServer):  # type: ignore[misc]
    """The library's server over our engine."""

    eio: Engine
    manager: Manager

    def __init__(self) -> None:
        # Loggers of our own name: given False, the library adds handlers that print tracebacks of what strangers send.
        logger = logging.getLogger("hub.socketio")
        super().__init__(
            client_manager=Manager(),
            async_mode="aiohttp",
            async_handlers=False,
            transports=["websocket"],
            logger=logger,
            engineio_logger=logger,
        )

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    async def _send_packet(self, eio_sid: str, pkt: Any) -> None:
        """In the parser of that connection; the library knows one for all."""
        socket = self.eio.sockets.get(eio_sid)
        if socket is not None:
            socket.write(socket.codec.packet(pkt))
