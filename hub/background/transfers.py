"""The uploads by chunk frames that this node has in hand, and how one comes from node to node.

A transfer is one session's at a time. When the socket breaks, or another node asks, it is laid aside: what is complete
goes to the store as parts, the rest as an object of its own, and the row says so. Whoever takes it up next goes on
exactly there; only of a node that died the last parts that were not stored have to be sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import structlog

from db import uploads
from db.errors import DatabaseUnavailable
from db.pool import Database
from db.uploads import Upload
from hub import metrics
from hub.background.receiving import ROOM_BYTES, Receiving, Works
from hub.background.spool import Spool
from hub.context import Bus, Nodes, Progress
from hub.context import Receiving as InHand
from hub.protocol import errors
from hub.protocol.errors import HubError
from storage.errors import StorageError
from storage.store import Store

log = structlog.get_logger("hub.transfers")

OPEN = metrics.gauge("transfers", "Uploads by chunk frames in hand")
ASIDE = metrics.counter(
    "transfers_laid_aside", "Uploads given up for another connection to go on with, by outcome", "outcome"
)

# Gathered in memory before a write to the spool: over all uploads, and of one.
_GATHER_BYTES = 2 * 1024 * 1024
_GATHER_MOST, _GATHER_LEAST = 1024 * 1024, 65_536
# Parts in memory on their way to the store.
_SLOTS = 2
_THREADS = 4
# An upload that nobody says anything about is laid aside, so that its place is free; the client takes it up again.
_IDLE_S = 60.0
_LOOK_S = 5.0
# How long another node has to lay something aside.
_YIELD_S = 3.0
_POLL_S = 0.05


class Desk(Protocol):
    """What it needs of the node."""

    @property
    def db(self) -> Database: ...
    @property
    def bus(self) -> Bus: ...
    @property
    def nodes(self) -> Nodes: ...
    @property
    def node_id(self) -> str: ...
    @property
    def incarnation(self) -> str: ...
    @property
    def clock(self) -> Callable[[], datetime]: ...


class Transfers:
    """`run()` until cancelled; `finish()` before that."""

    def __init__(self, desk: Desk, store: Store, *, most: int, spool_directory: str | None) -> None:
        self._desk = desk
        self._store = store
        self._most = most
        self._spool_directory = spool_directory
        self._in_hand: dict[UUID, Receiving] = {}
        # Being taken up: places that are promised.
        self._coming = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._asides: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        self._works = Works(
            db=desk.db,
            store=store,
            clock=desk.clock,
            threads=self._threads,
            spawn=self._spawn,
            slots=asyncio.Semaphore(_SLOTS),
        )

    def __len__(self) -> int:
        return len(self._in_hand)

    @property
    def writer(self) -> str:
        """This node, as a row names whoever has a transfer in hand."""
        return f"{self._desk.node_id}/{self._desk.incarnation}"

    # Life

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                while True:
                    await asyncio.sleep(_LOOK_S)
                    now = time.monotonic()
                    for receiving in list(self._in_hand.values()):
                        if receiving.over or now - receiving.active_at > _IDLE_S:
                            self._lay_aside(receiving)
        finally:
            self._tasks = None
            for receiving in self._in_hand.values():
                receiving.end(errors.ServerDraining())
            self._threads.shutdown(wait=False, cancel_futures=False)

    async def finish(self) -> None:
        """Before a node ends: everything in hand is laid aside, as far as the store takes it."""
        for receiving in list(self._in_hand.values()):
            self._lay_aside(receiving)
        if self._asides:
            await asyncio.wait(self._asides)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            work.close()
            raise errors.ServerDraining()
        return self._tasks.create_task(work)

    # One session's transfers

    def room(self) -> None:
        """Raises ServerBusy where this node can take no more."""
        if self._tasks is None:
            raise errors.ServerDraining()
        if len(self._in_hand) + self._coming >= self._most:
            raise errors.ServerBusy("this node has its hands full of uploads", retry_after_ms=2000)

    async def open(self, upload: Upload, session_id: str, progress: Progress) -> Receiving:
        """Have an upload in hand, whose fence was just taken. Raises ServerBusy, StorageUnavailable, Conflict."""
        self.room()
        self._coming += 1
        try:
            tail = await self._tail(upload)
            spool = await self._works.apart(lambda: Spool(self._spool_directory, ROOM_BYTES))
            older = self._in_hand.get(upload.id)
            if older is not None:
                # Its fence is stale; whatever it still had in hand comes to nothing.
                self.close(older)
            gather = min(_GATHER_MOST, max(_GATHER_LEAST, _GATHER_BYTES // (len(self._in_hand) + self._coming)))
            receiving = Receiving(
                self._works, upload, session_id, progress, spool=spool, tail=tail, gather_bytes=gather
            )
            self._in_hand[upload.id] = receiving
            OPEN.inc()
            return receiving
        finally:
            self._coming -= 1

    async def _tail(self, upload: Upload) -> bytes:
        if upload.tail_key is None:
            return b""
        try:
            async with self._works.slots, aclosing(self._store.get(upload.tail_key)) as pieces:
                tail = b"".join([piece async for piece in pieces])
        except StorageError as error:
            raise errors.StorageUnavailable(retry_after_ms=1000) from error
        if len(tail) != upload.tail_bytes:
            raise errors.StorageUnavailable("what was laid aside is not whole")
        return tail

    def of(self, session_id: str, transfer_id: UUID) -> Receiving:
        """What that session has in hand. Raises NotFound, for all others alike."""
        receiving = self._in_hand.get(transfer_id)
        if receiving is None or receiving.session_id != session_id:
            raise errors.NotFound("not in hand on this connection: take it up with file:resume")
        return receiving

    def find(self, session_id: str, transfer_id: UUID) -> Receiving | None:
        with suppress(errors.NotFound):
            return self.of(session_id, transfer_id)
        return None

    def close(self, receiving: InHand) -> None:
        """It is a file now, or was given up for good."""
        mine = self._in_hand.get(receiving.upload.id)
        if mine is receiving:
            mine.end(errors.NotFound())
            self._forget(mine)

    def left(self, session_id: str) -> None:
        """The session's socket is gone."""
        for receiving in list(self._in_hand.values()):
            if receiving.session_id == session_id:
                self._lay_aside(receiving)

    def asked(self, transfer_id: UUID) -> None:
        """Another node, or another connection, wants to take it up."""
        receiving = self._in_hand.get(transfer_id)
        if receiving is not None:
            self._lay_aside(receiving)

    def _lay_aside(self, receiving: Receiving) -> None:
        if receiving.leaving is None and self._tasks is not None:
            receiving.leaving = self._tasks.create_task(self._see_off(receiving))
            self._asides.add(receiving.leaving)
            receiving.leaving.add_done_callback(self._asides.discard)

    async def _see_off(self, receiving: Receiving) -> None:
        try:
            ASIDE.labels("kept" if await receiving.lay_aside() else "lost").inc()
        except Exception:
            log.exception("lay_aside_crashed", transfer_id=str(receiving.id))
        finally:
            self._forget(receiving)

    def _forget(self, receiving: Receiving) -> None:
        if self._in_hand.get(receiving.id) is receiving:
            del self._in_hand[receiving.id]
            OPEN.dec()

    # From node to node

    async def claim(self, upload: Upload) -> None:
        """Have whoever has it in hand lay it aside, as far as they answer in time. Raises DatabaseUnavailable."""
        receiving = self._in_hand.get(upload.id)
        if receiving is not None:
            self._lay_aside(receiving)
            if receiving.leaving is not None:
                await asyncio.wait((receiving.leaving,))
        elif upload.writer is not None and upload.writer != self.writer and await self._ask(upload):
            await self._until_free(upload)

    async def _ask(self, upload: Upload) -> bool:
        node_id, _, incarnation = (upload.writer or "").rpartition("/")
        try:
            alive = any(
                (node.node_id, node.incarnation) == (node_id, incarnation) and not node.lost
                for node in await self._desk.nodes.list()
            )
            if alive:
                await self._desk.bus.control(node_id, {"kind": "yield", "transfer_id": str(upload.id)})
            return alive
        except HubError:
            # Nobody to be reached: the fence keeps them out.
            return False

    async def _until_free(self, upload: Upload) -> None:
        give_up = time.monotonic() + _YIELD_S
        while time.monotonic() < give_up:
            await asyncio.sleep(_POLL_S)
            with suppress(DatabaseUnavailable):
                async with self._desk.db.tenant(upload.tenant_id, upload.uploader_id) as tx:
                    row = await uploads.get(tx, upload.id)
                if row is None or row.writer != upload.writer:
                    return
        log.info("transfer_not_yielded", transfer_id=str(upload.id))
