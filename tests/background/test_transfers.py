"""Uploads in the hands of two nodes over one database and one store: kept, given on, refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from db import uploads, users
from db.pool import Database
from db.uploads import Upload
from hub.background import receiving
from hub.background.receiving import Receiving
from hub.background.transfers import Desk, Transfers
from hub.protocol import errors
from storage.errors import StorageUnavailable
from storage.local import LocalStore
from storage.signing import UrlSigner
from storage.store import OCTETS, PART_BYTES, Part, Store, Stored
from tests.conftest import TestDatabase
from tests.db.people import make_call, tenant_id

CHUNK = 65_536


class Silence:
    async def at(self, received_bytes: int) -> None:
        pass


class Weak:
    """A store that can be told to fail or to hang."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.failing = 0
        self.hangs: asyncio.Event | None = None
        self.puts = 0
        # `put`, which tails come by: whether one has begun, and until when it waits.
        self.keeping = asyncio.Event()
        self.keeps: asyncio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, key: str, data: bytes, *, content_type: str = OCTETS) -> Stored:
        self.keeping.set()
        if self.keeps is not None:
            await self.keeps.wait()
        return await self._store.put(key, data, content_type=content_type)

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        self.puts += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.failing:
            self.failing -= 1
            raise StorageUnavailable("out of order")
        return await self._store.put_part(key, upload_id, number, data)


@dataclass
class Site:
    """Nodes over one database and one store. A node asks another by calling it."""

    db: Database
    store: Weak
    tenant: UUID
    call_id: UUID
    nodes: dict[str, Transfers] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)

    async def list(self) -> Sequence[Any]:
        return [
            SimpleNamespace(node_id=name, incarnation="i1", lost=False) for name in self.nodes if name not in self.dead
        ]

    async def control(self, node_id: str, message: Mapping[str, Any]) -> None:
        if node_id in self.dead:
            raise errors.ClusterUnavailable()
        assert message["kind"] == "yield"
        self.nodes[node_id].asked(UUID(message["transfer_id"]))

    async def offer(self, size: int) -> Upload:
        upload_id = uuid4()
        async with self.db.tenant(self.tenant, "olga") as tx:
            await users.seen(tx, "olga")
            return await uploads.open_(
                tx,
                upload_id,
                self.call_id,
                uploader_id="olga",
                source="frames",
                name="notes.bin",
                mime_type="application/octet-stream",
                size_bytes=size,
                sha256=None,
                access_level="call_participants",
                expires_in_hours=None,
                storage_key=f"{self.tenant}/{self.call_id}/{upload_id}",
                expires_at=datetime.now(UTC) + timedelta(days=1),
            )

    async def row(self, upload_id: UUID) -> Upload:
        async with self.db.tenant(self.tenant, "olga") as tx:
            row = await uploads.get(tx, upload_id)
        assert row is not None
        return row

    async def take_up(self, node: str, upload_id: UUID, session: str = "s1") -> Receiving:
        """What `file:resume` does."""
        transfers = self.nodes[node]
        await transfers.claim(await self.row(upload_id))
        async with self.db.tenant(self.tenant, "olga") as tx:
            taken = await uploads.take(tx, upload_id, transfers.writer, datetime.now(UTC))
        assert taken is not None
        return await transfers.open(taken, session, Silence())

    async def stored(self, upload_id: UUID) -> bytes:
        """What the store makes of the parts."""
        row = await self.row(upload_id)
        parts = [Part(each.number, each.etag, each.size_bytes) for each in row.parts]
        await self.store.complete(row.storage_key, row.multipart_id or "", parts)
        async with aclosing(self.store.get(row.storage_key)) as pieces:
            return b"".join([piece async for piece in pieces])

    @asynccontextmanager
    async def node(self, name: str, most: int = 10) -> AsyncIterator[Transfers]:
        desk = SimpleNamespace(
            db=self.db, bus=self, nodes=self, node_id=name, incarnation="i1", clock=lambda: datetime.now(UTC)
        )
        transfers = self.nodes[name] = Transfers(
            cast(Desk, desk), cast(Store, self.store), most=most, spool_directory=None
        )
        running = asyncio.create_task(transfers.run())
        await asyncio.sleep(0)
        try:
            yield transfers
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest_asyncio.fixture
async def site(database: TestDatabase, tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        db = await Database.open(database.app_dsn, max_size=5, statement_timeout_s=5.0, acquire_timeout_s=5.0)
        stack.push_async_callback(db.close)
        store = await stack.enter_async_context(LocalStore(tmp_path, UrlSigner("http://hub", b"x" * 32)))
        tenant = tenant_id()
        async with db.tenant(tenant, "olga") as tx:
            call = await make_call(tx)
        site = Site(db, Weak(store), tenant, call.id)
        for name in ("one", "two"):
            await stack.enter_async_context(site.node(name))
        yield site


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def send(receiving: Receiving, data: bytes, until: int | None = None, chunk: int = CHUNK) -> None:
    """From where it stands up to `until`."""
    end = len(data) if until is None else until
    while (at := receiving.at.received) < end:
        await receiving.chunk(at, data[at : min(at + chunk, end)])


@pytest.mark.parametrize("chunk", [1000 * 7 + 3, CHUNK, 4 * CHUNK])
async def test_a_file_comes_together_of_equal_parts(site: Site, chunk: int) -> None:
    """S-116: 100 MB in frames is the bench's; here 11 MiB and a bit, in chunks that do not fit the parts."""
    data = some_bytes(2 * PART_BYTES + 1_000_003)
    upload = await site.offer(len(data))
    incoming = await site.take_up("one", upload.id)
    await send(incoming, data, chunk=chunk)
    assert await incoming.finish(5.0) == hashlib.sha256(data).hexdigest()
    row = await site.row(upload.id)
    assert [part.size_bytes for part in row.parts] == [PART_BYTES, PART_BYTES, 1_000_003]
    assert row.stored_bytes == incoming.at.stored == len(data)
    assert await site.stored(upload.id) == data


async def test_a_file_of_one_part_or_less_never_becomes_a_multipart(site: Site) -> None:
    for size in (0, 1, 300_000):
        data = some_bytes(size)
        upload = await site.offer(size)
        incoming = await site.take_up("one", upload.id)
        await send(incoming, data)
        assert await incoming.finish(2.0) == hashlib.sha256(data).hexdigest()
        assert await incoming.content() == data and incoming.multipart_id is None
        site.nodes["one"].close(incoming)


async def test_a_broken_socket_loses_nothing_and_any_node_goes_on(site: Site) -> None:
    """S-116: resume after a disconnect, on another node: nothing is sent twice."""
    data = some_bytes(2 * PART_BYTES + 2_000_000)
    upload = await site.offer(len(data))
    cuts = [100_000, PART_BYTES - 1, PART_BYTES + 700_000, 2 * PART_BYTES + 5, len(data)]
    for number, cut in enumerate(cuts):
        node, session = ("one", "two")[number % 2], f"s{number}"
        incoming = await site.take_up(node, upload.id, session)
        assert incoming.at.received == incoming.at.stored == (cuts[number - 1] if number else 0)
        await send(incoming, data, cut)
        if number < 4:
            # Two of the four the other node has to ask for.
            if number % 2:
                site.nodes[node].left(session)
            continue
        # Some of it went by the other node: nobody here has seen all of it.
        assert await incoming.finish(5.0) is None
    assert await site.stored(upload.id) == data


async def test_a_dead_node_costs_what_was_not_stored_and_its_fence_shuts_it_out(site: Site) -> None:
    data = some_bytes(2 * PART_BYTES + 1000)
    upload = await site.offer(len(data))
    old = await site.take_up("one", upload.id)
    await send(old, data, PART_BYTES + 500_000)
    await _until(lambda: old.at.stored == PART_BYTES)
    site.dead.add("one")
    new = await site.take_up("two", upload.id)
    assert new.at.received == PART_BYTES and new.at.fence > old.at.fence
    # It is not dead at all, only slow: what it does now, and with other bytes, changes nothing.
    with pytest.raises(errors.Conflict):
        await send(old, (data[: PART_BYTES + 500_000] + some_bytes(PART_BYTES))[: len(data)])
        await old.finish(5.0)
    await send(new, data)
    await new.finish(5.0)
    assert await site.stored(upload.id) == data


async def test_a_second_connection_takes_over_and_the_first_is_refused(site: Site) -> None:
    data = some_bytes(600_000)
    upload = await site.offer(len(data))
    first = await site.take_up("one", upload.id, "s1")
    await send(first, data, 300_000)
    second = await site.take_up("one", upload.id, "s2")
    assert second.at.received == 300_000
    with pytest.raises(errors.NotFound):
        site.nodes["one"].of("s1", upload.id)
    with pytest.raises(errors.Conflict):
        await first.chunk(300_000, b"x")
    assert site.nodes["one"].of("s2", upload.id) is second


async def test_a_store_that_fails_is_tried_again_and_the_client_hears_of_it_in_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "_ROOM_S", 0.3)
    monkeypatch.setattr(receiving, "_AGAIN_S", (0.05, 0.2))
    data = some_bytes(5 * PART_BYTES)
    upload = await site.offer(len(data))
    incoming = await site.take_up("one", upload.id)
    site.store.failing = 1000
    with pytest.raises(errors.StorageUnavailable):
        await send(incoming, data)
    # No more is taken than there is room for, and nothing of that is lost.
    at = incoming.at
    assert at.received == receiving.ROOM_BYTES and at.stored == 0
    site.store.failing = 2
    async with asyncio.timeout(20):
        while not incoming.at.whole:
            try:
                await send(incoming, data)
            except errors.StorageUnavailable:
                await asyncio.sleep(0.1)
    await incoming.finish(10.0)
    assert await site.stored(upload.id) == data


async def test_a_store_that_hangs_shuts_the_window(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "_ROOM_S", 0.2)
    site.store.hangs = asyncio.Event()
    upload = await site.offer(10 * PART_BYTES)
    incoming = await site.take_up("one", upload.id)
    with pytest.raises(errors.ServerBusy):
        await send(incoming, bytes(10 * PART_BYTES))
    assert incoming.at.received == receiving.ROOM_BYTES
    # Only so many parts of all uploads are in memory at once.
    others = [await site.take_up("one", (await site.offer(2 * PART_BYTES)).id, f"s{number}") for number in range(3)]
    for other in others:
        await send(other, bytes(2 * PART_BYTES))
    await asyncio.sleep(0.1)
    assert site.store.puts == 2
    site.store.hangs.set()
    for other in others:
        await other.finish(10.0)


async def test_a_node_takes_only_so_many(site: Site) -> None:
    async with site.node("small", most=2) as small:
        for _ in range(2):
            await site.take_up("small", (await site.offer(10)).id)
        with pytest.raises(errors.ServerBusy):
            small.room()
        assert len(small) == 2


async def test_a_node_that_ends_lays_everything_aside(site: Site) -> None:
    data = some_bytes(PART_BYTES + 200_000)
    made = [await site.offer(len(data)) for _ in range(3)]
    for number, upload in enumerate(made):
        await send(await site.take_up("one", upload.id, f"s{number}"), data, PART_BYTES + 100_000)
    await site.nodes["one"].finish()
    assert not len(site.nodes["one"])
    for upload in made:
        row = await site.row(upload.id)
        assert (row.writer, row.stored_bytes, row.tail_bytes) == (None, PART_BYTES, 100_000)


async def test_nothing_is_taken_behind_a_tail_that_is_being_kept(site: Site) -> None:
    """Bytes that fill the part meanwhile would have the older tail behind them, and the file not be what was sent."""
    data = some_bytes(2 * PART_BYTES)
    upload = await site.offer(len(data))
    old = await site.take_up("one", upload.id)
    cut = PART_BYTES - 100_000
    await send(old, data, cut)
    site.store.keeps = asyncio.Event()
    site.nodes["one"].left("s1")
    await asyncio.wait_for(site.store.keeping.wait(), 5.0)
    with pytest.raises(errors.Conflict):
        await send(old, data, PART_BYTES + 50_000)
    site.store.keeps.set()
    new = await site.take_up("two", upload.id, "s2")
    assert new.at.received == old.at.stored == cut
    await send(new, data)
    await new.finish(5.0)
    assert await site.stored(upload.id) == data


async def test_a_tail_is_kept_only_where_the_parts_end(site: Site) -> None:
    upload = await site.offer(3 * PART_BYTES)
    incoming = await site.take_up("one", upload.id)
    async with site.db.tenant(site.tenant, "olga") as tx:
        assert not await uploads.lay_aside(tx, upload.id, incoming.at.fence, PART_BYTES, "a/tail", 7)
        assert await uploads.lay_aside(tx, upload.id, incoming.at.fence, 0, "a/tail", 7)


async def test_tails_are_deleted_once_they_are_of_no_use(site: Site) -> None:
    """0 orphans: each has its tombstone before it is there, due as soon as nobody needs it."""
    data = some_bytes(2 * PART_BYTES)
    upload = await site.offer(len(data))
    for number, cut in enumerate((1000, 2000, PART_BYTES + 10)):
        await send(await site.take_up("one", upload.id, f"s{number}"), data, cut)
    last = await site.take_up("two", upload.id)
    await send(last, data)
    await last.finish(5.0)
    async with site.db.tenant(site.tenant, "olga") as tx:
        keys = {
            row["storage_key"]: row["next_attempt_at"] < datetime.now(UTC) + timedelta(minutes=1)
            for row in await tx.fetch("SELECT storage_key, next_attempt_at FROM file_tombstones")
        }
    assert len(keys) == 3 and all(keys.values())
    assert {each.key for each in (await site.store.list()).items} == set(keys)


async def test_what_is_over_leaves_no_tail(site: Site) -> None:
    """The socket breaks while its upload becomes a file, or is given up: nothing is laid aside any more."""
    upload = await site.offer(1000)
    incoming = await site.take_up("one", upload.id)
    await send(incoming, some_bytes(1000))
    async with site.db.tenant(site.tenant, "olga") as tx:
        await uploads.drop(tx, upload.id)
    site.nodes["one"].left("s1")
    await site.nodes["one"].finish()
    async with site.db.tenant(site.tenant, "olga") as tx:
        keys = [row["storage_key"] for row in await tx.fetch("SELECT storage_key FROM file_tombstones")]
    assert keys == [upload.storage_key] and not (await site.store.list()).items


async def _until(true: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)
