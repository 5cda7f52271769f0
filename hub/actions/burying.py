"""Deleting bytes whose row is gone. The tombstone stays until the store has said that they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import structlog

from db import system, tombstones
from db.errors import DatabaseUnavailable
from db.tombstones import Tombstone
from storage.errors import StorageError

if TYPE_CHECKING:
    from db.pool import Transaction
    from hub.context import Context
    from storage.store import Store

log = structlog.get_logger("hub.burying")

# Of the time that a deletion takes as people see it; what is not done by then the sweep does.
_NOW_S = 1.0
_AGAIN_S = (5.0, 3600.0)


class Tenants(Protocol):
    def tenant(self, tenant_id: UUID, user_id: str | None = None) -> AbstractAsyncContextManager[Transaction]: ...
    def system(self) -> AbstractAsyncContextManager[Transaction]: ...


class Graveyard(Protocol):
    @property
    def db(self) -> Tenants: ...
    @property
    def store(self) -> Store: ...
    @property
    def clock(self) -> Callable[[], datetime]: ...


async def bury_now(ctx: Context, file_id: UUID) -> None:
    """What was left of a file or an upload just now, so that its bytes are gone when the answer is there. Never raises
    for what is away."""
    try:
        async with asyncio.timeout(_NOW_S):
            async with ctx.transaction() as tx:
                graves = await tombstones.of_file(tx, file_id, ctx.now())
            for grave in graves:
                await bury(ctx.hub, grave)
    except (DatabaseUnavailable, TimeoutError) as error:
        log.warning("bytes_left_to_the_sweep", error=type(error).__name__, request_id=ctx.request_id)


async def bury(yard: Graveyard, grave: Tombstone) -> bool:
    """Delete the bytes, then the tombstone. False: the store did not, and it is tried again later.

    What a file or an upload has its bytes under stays: those leave a tombstone of their own when they go.

    Raises DatabaseUnavailable.
    """
    asked = [key for key in (grave.storage_key, grave.preview_storage_key) if key is not None]
    async with yard.db.system() as tx:
        held = await system.held_keys(tx, asked)
    if held:
        log.warning("bytes_still_held", tombstone_id=grave.id)
    try:
        if grave.multipart_id is not None:
            await yard.store.abort(grave.storage_key, grave.multipart_id)
        for key in asked:
            if key not in held:
                await yard.store.delete(key)
    except StorageError as error:
        wait_s = min(_AGAIN_S[1], _AGAIN_S[0] * 2 ** min(grave.attempts, 16))
        log.warning("bytes_not_deleted", attempts=grave.attempts + 1, error=type(error).__name__)
        async with yard.db.tenant(grave.tenant_id) as tx:
            await tombstones.postpone(tx, grave.id, yard.clock() + timedelta(seconds=wait_s), repr(error))
        return False
    async with yard.db.tenant(grave.tenant_id) as tx:
        await tombstones.clear(tx, [grave.id])
    return True
