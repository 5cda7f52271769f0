"""What operators have this node do, whichever node they ask: send its sockets away, take them again, speak to all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from hub.commands import Event
from hub.protocol.errors import ClusterUnavailable
from hub.protocol.notices import ServerAnnounced

log = structlog.get_logger("hub.control")

_WAITING = 100


class Shown(Protocol):
    """Where the others see how the node is. Raises ClusterUnavailable; then they see it with the next beat."""

    async def drain(self, on: bool = True) -> None: ...


class Sockets(Protocol):
    async def drain(self, *, staying: bool = False) -> None: ...
    async def undrain(self) -> None: ...
    async def tell_tenant(self, tenant_id: UUID, event: Event) -> int: ...


class Orders(Protocol):
    def obey(self, kind: str, do: Callable[[dict[str, Any]], None]) -> None: ...


class Control:
    """`run` it in a TaskGroup. `draining` turns `/readyz`; after `stop` nothing brings the node back."""

    def __init__(self, shown: Shown, sockets: Sockets, orders: Orders) -> None:
        self.draining = False
        self._stopping = False
        self._shown, self._sockets = shown, sockets
        self._orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING)
        self._sending_away: asyncio.Task[None] | None = None
        for kind in ("drain", "undrain", "announce"):
            orders.obey(kind, self._hear)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._obey(await self._orders.get(), tasks.create_task)

    async def stop(self) -> None:
        """The node is going down: send everybody away, and return when they are gone or given up on."""
        self._stopping = True
        await self._halt()
        await self._show(True)
        await self._sockets.drain()

    def _hear(self, order: dict[str, Any]) -> None:
        try:
            self._orders.put_nowait(order)
        except asyncio.QueueFull:
            log.warning("order_dropped", kind=order.get("kind"))

    async def _obey(
        self, order: dict[str, Any], start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        match order["kind"]:
            case "drain" if not self.draining:
                log.info("draining")
                await self._show(True)
                self._sending_away = start(self._sockets.drain(staying=True))
            case "undrain" if self.draining and not self._stopping:
                log.info("undrained")
                await self._halt()
                await self._sockets.undrain()
                await self._show(False)
            case "announce":
                start(self._announce(order))

    async def _halt(self) -> None:
        task, self._sending_away = self._sending_away, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait((task,))

    async def _show(self, draining: bool) -> None:
        self.draining = draining
        try:
            await self._shown.drain(draining)
        except ClusterUnavailable:
            log.warning("drain_unseen", draining=draining)

    async def _announce(self, order: dict[str, Any]) -> None:
        try:
            tenant_id = UUID(str(order["tenant_id"]))
            event = msgspec.convert(order["event"], ServerAnnounced)
        except (KeyError, ValueError, msgspec.ValidationError):
            log.exception("announcement_misshapen")
            return
        heard = await self._sockets.tell_tenant(tenant_id, event)
        log.info("announced", sessions=heard)
