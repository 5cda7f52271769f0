"""The public port of a node: opened, closed for a drain, opened again."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self
from uuid import UUID

from aiohttp import web

from hub.commands import Event
from hub.settings import Address
from hub.transport.socketio import Edge, listening


class Door:
    """As a context it is open. Opening raises OSError.

    `shared`: other processes listen on the same port. Then a node that drains stops listening at once, so that the
    kernel gives what comes to the others; alone on its port it goes on, to answer that it is draining.
    """

    def __init__(self, runner: web.AppRunner, edge: Edge, address: Address, *, shared: bool) -> None:
        self._runner, self._edge, self._address, self._shared = runner, edge, address, shared
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await self._listen()
        except BaseException:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()
        await self._runner.cleanup()

    async def _listen(self) -> None:
        how = {"reuse_port": True} if self._shared else {}
        await self._open.enter_async_context(
            listening(self._runner, self._edge, self._address.host, self._address.port, **how)
        )

    # What an operator has it do

    async def drain(self, *, staying: bool = False) -> None:
        if self._shared:
            await self._open.aclose()
        await self._edge.drain(staying=staying)

    async def undrain(self) -> None:
        self._edge.undrain()
        if self._shared:
            await self._open.aclose()
            await self._listen()

    async def tell_tenant(self, tenant_id: UUID, event: Event) -> int:
        return await self._edge.tell_tenant(tenant_id, event)
