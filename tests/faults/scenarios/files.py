"""Files in chunk frames: handed on from node to node, and two hundred of them while everything breaks."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from hub.cli.frames import Frames, Lost, Refused
from hub.cli.sending import Download, Failed, Upload
from tests.fakes.proxy import Proxy
from tests.faults.drill.figures import Figure, at_most, none, told
from tests.faults.drill.ground import Ground, until
from tests.faults.drill.plan import Plan, Scenario
from tests.faults.drill.uploads import RoughUpload, make_file

_MB = 1_000_000
_SIDE_BY_SIDE = 6
# Of the uploads, so many are given up by their senders.
_CANCELED = 0.1
_SWEPT_S = 120.0


async def _hand_on(ground: Ground, plan: Plan) -> Sequence[Figure]:
    size = 30 * _MB if plan.short else 100 * 1024 * 1024
    async with AsyncExitStack() as stack:
        place = _place(stack)
        proxies, urls = await _doors(ground, stack, place)
        call, token = await ground.room(), ground.token("owner")
        sha256 = await asyncio.to_thread(make_file, place / "source", size, plan.seed)
        due = 10 * _MB

        def told_of(offset: int) -> None:
            nonlocal due
            if offset >= due and offset < size:
                due += 10 * _MB
                for proxy in proxies:
                    proxy.set("reset")

        upload = Upload(urls, token, place / "source", {"call_id": call, "name": "a.bin"}, told=told_of)
        began = time.monotonic()
        file = await upload.run()
        seconds = time.monotonic() - began
        await Download(urls, token, file, place / "target").run()
        same = await asyncio.to_thread(_same, place / "target", place / "source")
        return [
            told("bytes", size),
            told("connections", upload.connections),
            told("MB/s, reconnects included", size / seconds / _MB),
            none("hashes that differ", file["sha256"] != sha256),
            none("downloads that differ", not same),
            at_most("of the bytes were sent twice", 100 * (upload.sent_bytes - size) / size, 5, "%"),
            *await _leftovers(ground, place),
        ]


async def _break(ground: Ground, plan: Plan) -> Sequence[Figure]:
    chance = random.Random(plan.seed)
    count, most = (plan.people(12), 6 * _MB) if plan.short else (plan.people(200), 20 * _MB)
    async with AsyncExitStack() as stack:
        place = _place(stack)
        proxies, urls = await _doors(ground, stack, place)
        call, token = await ground.room(), ground.token("owner")
        fleet = _Fleet(ground, place, urls, call, token, chance)
        async with asyncio.TaskGroup() as tasks:
            nemesis = tasks.create_task(_strike(ground, proxies, chance, short=plan.short))
            watcher = tasks.create_task(fleet.watch())
            await fleet.sail(_sizes(count, most, chance))
            nemesis.cancel()
            await asyncio.wait((nemesis,))
            for node in ground.nodes:
                await node.until_ready()
            watcher.cancel()
        await fleet.compare()
        return [
            told("uploads", count),
            told("megabytes", fleet.bytes / _MB),
            *(told(f"faults: {name}", number) for name, number in sorted(ground.struck.items())),
            *(told(f"chunks: {name}", number) for name, number in sorted(fleet.tricks.items())),
            told("given up by their sender", fleet.canceled),
            told("connections", fleet.connections),
            told("of the bytes were sent twice", 100 * (fleet.sent - fleet.bytes) / max(1, fleet.bytes), "%"),
            none("not through at the end", len(fleet.failed)),
            none("corrupt", fleet.corrupt),
            none("visible before they were complete", len(fleet.early)),
            told("looks at the list", fleet.looks),
            *await _leftovers(ground, place),
        ]


class _Fleet:
    """Many uploads to one call, some at a time, and whoever watches what is to be seen of them."""

    def __init__(
        self, ground: Ground, place: Path, urls: list[str], call: str, token: str, chance: random.Random
    ) -> None:
        self._ground, self._place, self._urls, self._call, self._token = ground, place, urls, call, token
        self._chance = chance
        self._gate = asyncio.Semaphore(_SIDE_BY_SIDE)
        self._uploads: list[RoughUpload] = []
        # File → what its bytes hash to here.
        self._made: dict[str, tuple[dict[str, Any], str, Path]] = {}
        self.tricks: Counter[str] = Counter()
        self.failed: list[str] = []
        self.early: set[str] = set()
        self.bytes = self.sent = self.connections = self.canceled = self.corrupt = self.looks = 0

    async def sail(self, sizes: Sequence[int]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, size in enumerate(sizes):
                tasks.create_task(self._one(number, size, random.Random(self._chance.random())))

    async def _one(self, number: int, size: int, chance: random.Random) -> None:
        async with self._gate:
            path = self._place / f"file-{number}"
            sha256 = await asyncio.to_thread(make_file, path, size, number)
            urls = chance.sample(self._urls, len(self._urls))
            offer = {"call_id": self._call, "name": path.name}
            upload = RoughUpload(
                urls,
                self._token,
                path,
                offer,
                chance=chance,
                chunk_bytes=chance.choice((16_384, 65_536, 65_536, 100_003, 262_144)),
            )
            self._uploads.append(upload)
            if chance.random() < _CANCELED:
                await self._give_up(upload, chance)
                path.unlink()
                return
            try:
                file = await upload.run()
            except Failed as error:
                self.failed.append(str(error))
                return
            finally:
                self.tricks += upload.tricks
                self.sent, self.connections = self.sent + upload.sent_bytes, self.connections + upload.connections
            self.bytes += size
            self._made[file["file_id"]] = file, sha256, path

    async def _give_up(self, upload: RoughUpload, chance: random.Random) -> None:
        """After a while, and then say so, to whoever listens."""
        running = asyncio.create_task(upload.run())
        await asyncio.wait((running,), timeout=chance.uniform(0.05, 1.0))
        if running.done() or upload.asked:
            await asyncio.wait((running,))
            return
        running.cancel()
        await asyncio.wait((running,))
        self.canceled += 1
        for url in [*self._urls] * 20:
            try:
                async with Frames(url, self._token) as frames:
                    if upload.transfer_id is not None:
                        await frames.ask("file:cancel", transfer_id=upload.transfer_id)
                return
            except Refused as error:
                if not error.retryable:
                    return
            except Lost:
                pass
            await asyncio.sleep(0.5)

    async def watch(self) -> None:
        """What anybody sees was asked for before."""
        headers = {"Authorization": f"Bearer {self._token}"}
        while True:
            for node in self._ground.nodes:
                url = f"{node.url}/api/v1/files?call_id={self._call}&limit=100"
                try:
                    async with asyncio.timeout(3), self._ground.http.get(url, headers=headers) as response:
                        items = (await response.json())["items"] if response.status == 200 else []
                except (OSError, TimeoutError, ValueError):
                    continue
                self.looks += 1
                asked = {each.transfer_id for each in self._uploads if each.asked}
                self.early |= {item["file_id"] for item in items} - asked
            await asyncio.sleep(0.3)

    async def compare(self) -> None:
        """Every file with what was sent, by its hash and by its bytes."""
        for file, sha256, path in self._made.values():
            target = path.with_suffix(".got")
            try:
                await Download(self._urls, self._token, file, target).run()
                same = await asyncio.to_thread(_same, path, target)
            except Failed:
                same = False
            self.corrupt += not same or file["sha256"] != sha256
            target.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _sizes(count: int, most: int, chance: random.Random) -> list[int]:
    """Empty, tiny, at the seams of chunks and parts, and anything in between."""
    part = 5 * 1024 * 1024
    seams = [0, 1, 65_535, 65_536, 65_537, part - 1, part, part + 1, 2 * part, 2 * part + 1, 3 * part]
    sizes = [size for size in seams if size <= most][:count]
    return sizes + [int(most * chance.random() ** 2) for _ in range(count - len(sizes))]


async def _strike(ground: Ground, proxies: list[Proxy], chance: random.Random, *, short: bool) -> None:
    """One fault after the other, until cancelled."""
    while True:
        await asyncio.sleep(chance.uniform(0.5, 1.5) if short else chance.uniform(1, 3))
        what = chance.choice(("cut", "cut", "cut", "silence", "kill"))
        ground.struck[what] += 1
        if what == "kill":
            node = chance.choice(ground.nodes)
            await asyncio.shield(_kill(ground, node))
            continue
        proxy = chance.choice(proxies)
        proxy.set("reset" if what == "cut" else "freeze")


async def _kill(ground: Ground, node: Any) -> None:
    await node.kill()
    await ground.start(node)


def _place(stack: AsyncExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="auralink-files-")))


async def _doors(ground: Ground, stack: AsyncExitStack, place: Path) -> tuple[list[Proxy], list[str]]:
    """Two nodes over one store, and a door to each that can be slammed."""
    await ground.several(2, AURALINK_STORAGE=f"file://{place}/store")
    proxies = [
        await stack.enter_async_context(Proxy("127.0.0.1", urlsplit(node.url).port or 0)) for node in ground.nodes
    ]
    return proxies, [f"http://127.0.0.1:{proxy.port}" for proxy in proxies]


async def _leftovers(ground: Ground, place: Path) -> list[Figure]:
    """Once the sweep has been by: what lies in the store and belongs to no file, or is open still."""
    admin = await asyncpg.connect(ground.database.admin_dsn)
    try:
        # Of whose offer the sender never heard, since the line broke: a day later their time would be over.
        abandoned = await admin.fetch("UPDATE uploads SET expires_at = now() RETURNING id")

        async def swept() -> bool:
            query = "SELECT (SELECT count(*) FROM file_tombstones) + (SELECT count(*) FROM uploads)"
            return not await admin.fetchval(query)

        took_s = await until(swept, timeout_s=_SWEPT_S, every_s=0.5)
        rows = await admin.fetch("SELECT storage_key, preview_storage_key FROM files")
        uploads = await admin.fetchval("SELECT count(*) FROM uploads")
    finally:
        await admin.close()
    known = {key for row in rows for key in row if key is not None}
    store = place / "store"
    objects = {str(path.relative_to(store / "objects")) for path in (store / "objects").rglob("*") if path.is_file()}
    return [
        told("uploads that nobody finished", len(abandoned)),
        none("tombstones after the sweep", took_s is None),
        none("orphans after the sweep", len(objects - known)),
        none("files without bytes", len(known - objects)),
        none("uploads that are open still", uploads),
        none("multiparts that are open still", len(list((store / "uploads").iterdir()))),
    ]


HANDED_ON = Scenario("handed_on", "100 MiB in frames, cut every 10 MB onto the other node", _hand_on)
FILES = Scenario("files", "200 uploads in frames under kills, cuts and bad clients", _break)
