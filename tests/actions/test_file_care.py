"""What happens to files by themselves: scanned, shown in small, expired, cleared away."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from PIL import Image

from db import tombstones
from hub.background.expiry import Expiry
from hub.background.scan import Scan
from storage import keys
from storage.errors import ObjectMissing, StorageUnavailable
from storage.preview import Previewer
from storage.scan import Clamd, ScanFailed, ScannerUnavailable, Verdict
from tests.actions.conftest import TENANT, Node, Socket, eventually
from tests.actions.sharing import Room, brought, bytes_of, put, shared
from tests.storage.clamav import EICAR, ClamAV, clamd_path


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(out, "PNG")
    return out.getvalue()


class Scanner:
    """Finds what contains `virus`; fails with `fails`, as often as that."""

    def __init__(self, *fails: Exception) -> None:
        self.fails = list(fails)
        self.scanned = 0

    async def scan(self, pieces: AsyncIterator[bytes]) -> Verdict:
        self.scanned += 1
        if self.fails:
            raise self.fails.pop(0)
        data = b"".join([piece async for piece in pieces])
        return Verdict("Test.Virus" if b"virus" in data else None)


async def clean(pieces: AsyncIterator[bytes]) -> Verdict:
    """As a scanner that does not know the virus (any more)."""
    async for _ in pieces:
        pass
    return Verdict(None)


class NoPreviews:
    async def make(self, pieces: AsyncIterator[bytes], mime_type: str) -> bytes | None:
        return None


class Always:
    async def leads(self) -> bool:
        return True


@pytest.fixture
async def room(hub: Node) -> Room:
    hub.rules = msgspec.structs.replace(hub.rules, scanner=True)
    return await shared(hub)


@pytest.fixture(scope="session")
def clamav() -> Iterator[ClamAV]:
    if clamd_path() is None:
        pytest.skip("no clamd here: apt-get install clamav-daemon")
    with tempfile.TemporaryDirectory(prefix="auralink-clamav-") as directory, ClamAV(Path(directory)) as server:
        yield server


async def work(hub: Node, scanner: Any, *, previewer: Any = None, attempts: int = 9) -> int:
    """Work off all that waits; how many times there was something."""
    worked = 0
    scan = Scan(hub, scanner, previewer or NoPreviews(), attempts=attempts)
    while await scan.once():
        worked += 1
    await hub.delivered()
    return worked


def scanned(socket: Socket) -> list[str]:
    return [event["file"]["scan_status"] for name, event in socket.heard if name == "file:scanned"]


async def refusals(hub: Node, room: Room, file_id: UUID) -> set[str]:
    """How every way to the bytes ends, for the uploader, the host, another participant and nobody at all."""
    said = set()
    other = await room.bob.room()
    for person in (room.bob, room.ann, room.cat):
        said.add(await person.refused("file:download", file_id=file_id))
        said.add(await person.refused("file:preview", file_id=file_id))
    for name in ("file:copy", "file:move"):
        said.add(await room.bob.refused(name, file_id=file_id, call_id=other))
    return said


async def test_bytes_are_nobodys_until_the_scanner_has_said_so(hub: Node, room: Room) -> None:
    """S-054, S-119: pending, then clean, told to the room; before that no way leads to them."""
    file = await brought(room.bob, b"all is well", call_id=room.call_id)
    assert file.scan_status == "pending"
    assert await refusals(hub, room, file.file_id) == {"scan_pending"}
    assert await work(hub, Scanner()) >= 1
    assert scanned(room.cat_socket) == ["clean"]
    shown = await room.cat.do("file:get", file_id=file.file_id)
    assert shown.scan_status == "clean" and shown.scanned_at is not None
    assert await bytes_of(hub, (await room.cat.do("file:download", file_id=file.file_id)).url) == b"all is well"


@pytest.mark.parametrize("way", ["form", "presigned", "frames"])
async def test_an_infected_file_is_had_by_no_way(hub: Node, room: Room, way: str, clamav: ClamAV) -> None:
    """S-054, S-119: EICAR, a real clamd; the uploader and the host hear of it wherever they are."""
    data = b"padding " * 100 + EICAR
    if way == "form":
        file = await brought(room.bob, data, call_id=room.call_id, access_level="public")
    elif way == "frames":
        socket = room.bob.files()
        fields = {"call_id": room.call_id, "name": "a", "size_bytes": len(data), "access_level": "public"}
        offer = (await socket.ack("file:offer", **fields)).data
        await socket.ack("file:chunk", transfer_id=offer.transfer_id, offset=0, data=data)
        said = await socket.ack("file:complete", transfer_id=offer.transfer_id, sha256=hashlib.sha256(data).hexdigest())
        file = said.data.file
    else:
        asked = await room.bob.do(
            "file:presign", call_id=room.call_id, name="a", size_bytes=len(data), access_level="public"
        )
        await put(hub, asked, data)
        file = await room.bob.do("file:confirm", file_id=asked.file_id)
    await room.bob_socket.do("room:leave", call_id=room.call_id)
    await work(hub, Clamd(clamav.url), previewer=Previewer())
    for socket in (room.ann_socket, room.bob_socket, room.cat_socket):
        await eventually(lambda socket=socket: scanned(socket) == ["infected"])  # type: ignore[misc]
    assert await refusals(hub, room, file.file_id) == {"file_infected"}
    assert await hub.value("SELECT scan_result FROM files") == "Test.EICAR.NDB.UNOFFICIAL"
    # A URL that was signed while it was thought clean leads to nothing.
    await Expiry(hub, Always()).once()
    of_file = keys.content(TENANT, room.call_id, file.file_id)
    left = [each.key for each in (await hub.store.list(of_file)).items]
    assert len(left) == 1 and left[0].startswith(f"{of_file}.infected-")
    await room.ann.do("file:delete", file_id=file.file_id)
    assert (await hub.store.list()).items == ()


async def test_without_a_scanners_word_a_file_stays_closed(hub: Node, room: Room) -> None:
    """S-054: tried again, then failed; nobody has it, but where the operator says so; a rescan opens it."""
    file = await brought(room.bob, b"abc", call_id=room.call_id)
    await room.bob_socket.do("room:leave", call_id=room.call_id)
    gone = Scanner(*[ScannerUnavailable("gone")] * 3)
    for attempt in range(3):
        assert await work(hub, gone, attempts=3) == 1, attempt
        assert await work(hub, gone, attempts=3) == 0, "not before a while"
        hub.ahead += timedelta(minutes=10)
    assert (gone.scanned, scanned(room.ann_socket)) == (3, ["failed"])
    await eventually(lambda: scanned(room.bob_socket) == ["failed"])
    assert await refusals(hub, room, file.file_id) == {"scan_failed"}
    strict, hub.rules = hub.rules, msgspec.structs.replace(hub.rules, serve_unscanned=True)
    assert await room.ann.refused("file:download", file_id=file.file_id) == "ok"
    hub.rules = strict
    assert await room.cat.refused("file:rescan", file_id=file.file_id) == "forbidden"
    assert (await room.ann.do("file:rescan", file_id=file.file_id)).scan_status == "pending"
    await work(hub, Scanner())
    assert scanned(room.ann_socket) == ["failed", "pending", "clean"]
    assert await room.ann.refused("file:download", file_id=file.file_id) == "ok"


async def test_what_the_scanner_cannot_look_into_has_failed(hub: Node, room: Room) -> None:
    file = await brought(room.bob, b"abc", call_id=room.call_id, access_level="private")
    await work(hub, Scanner(ScanFailed("larger than StreamMaxLength")))
    assert await room.bob.refused("file:download", file_id=file.file_id) == "scan_failed"
    await eventually(lambda: scanned(room.bob_socket) == ["failed"])
    assert scanned(room.ann_socket) == []


async def test_a_hub_without_a_scanner_says_so(hub: Node, room: Room) -> None:
    """Visibly `skipped`; what waits for a scanner goes on waiting, for a node that has one."""
    waiting = await brought(room.bob, b"abc", call_id=room.call_id)
    hub.rules = msgspec.structs.replace(hub.rules, scanner=False)
    assert (await brought(room.bob, b"abc", call_id=room.call_id)).scan_status == "skipped"
    await work(hub, None)
    assert (await room.bob.do("file:get", file_id=waiting.file_id)).scan_status == "pending"
    assert await room.bob.refused("file:download", file_id=waiting.file_id) == "scan_pending"
    assert await room.bob.refused("file:rescan", file_id=waiting.file_id) == "conflict"


async def test_a_node_without_a_scanner_opens_nothing_that_one_was_asked_about(hub: Node, room: Room) -> None:
    """Infected, or not yet known: neither becomes `skipped` since one node of several has no scanner set."""
    file = await brought(room.bob, b"a virus", call_id=room.call_id)
    await work(hub, Scanner())
    await room.bob.do("file:rescan", file_id=file.file_id)
    assert await work(hub, None) == 0
    assert await refusals(hub, room, file.file_id) == {"scan_pending"}
    await work(hub, Scanner())
    assert await refusals(hub, room, file.file_id) == {"file_infected"}


async def test_a_copy_of_a_clean_file_is_clean(hub: Node, room: Room) -> None:
    file = await brought(room.bob, b"abc", call_id=room.call_id)
    await work(hub, Scanner())
    copied = await room.cat.do("file:copy", file_id=file.file_id, call_id=room.call_id)
    assert copied.scan_status == "clean"


async def test_a_url_of_what_was_clean_for_a_while_leads_to_nothing(hub: Node, room: Room) -> None:
    """Infected, clean, infected again: what was signed in between is of a key that is no more."""
    file = await brought(room.bob, b"a virus", call_id=room.call_id)
    blind = Scanner()
    blind.scan = clean  # type: ignore[method-assign]
    urls = []
    for scanner in (Scanner(), blind, Scanner()):
        await room.bob.do("file:rescan", file_id=file.file_id)
        await work(hub, scanner)
        if scanner is blind:
            urls.append((await room.bob.do("file:download", file_id=file.file_id)).url)
            assert await bytes_of(hub, urls[0]) == b"a virus"
    assert await refusals(hub, room, file.file_id) == {"file_infected"}
    await Expiry(hub, Always()).once()
    with pytest.raises(ObjectMissing):
        await bytes_of(hub, urls[0])
    assert len((await hub.store.list()).items) == 1


async def test_bytes_that_a_file_has_are_not_deleted_by_an_older_tombstone(hub: Node, room: Room) -> None:
    file = await brought(room.bob, b"abc", call_id=room.call_id)
    key = await hub.value("SELECT storage_key FROM files")
    async with hub.db.tenant(TENANT) as tx:
        await tombstones.add(tx, file.file_id, key, hub.clock())
    assert (await Expiry(hub, Always()).once()).tombstones == 1
    assert (await hub.store.head(key)).size_bytes == 3


async def test_a_copy_is_scanned_where_the_verdict_changed_while_it_was_made(hub: Node, room: Room) -> None:
    file = await brought(room.bob, b"abc", call_id=room.call_id)
    await work(hub, Scanner())
    real = hub.store.copy

    async def meanwhile(source: str, target: str) -> Any:
        stored = await real(source, target)
        await room.bob.do("file:rescan", file_id=file.file_id)
        return stored

    hub.store.copy = meanwhile  # type: ignore[method-assign]
    copied = await room.cat.do("file:copy", file_id=file.file_id, call_id=room.call_id)
    assert copied.scan_status == "pending"


async def test_a_picture_gets_a_small_one(hub: Node, room: Room) -> None:
    """S-118: after the scan, by a process of its own; a URL of its own; the room hears that it is there."""
    file = await brought(room.bob, picture(), call_id=room.call_id, name="red.png")
    assert (file.preview_status, file.preview_url, file.detected_mime_type) == ("pending", None, "image/png")
    assert await work(hub, Scanner(), previewer=Previewer()) == 2
    shown = await room.cat.do("file:get", file_id=file.file_id)
    assert shown.preview_status == "ready" and shown.preview_url.endswith(f"/files/{file.file_id}/preview")
    assert [name for name, _ in room.cat_socket.heard if name.startswith("file:")][-2:] == [
        "file:scanned",
        "file:updated",
    ]
    small = await bytes_of(hub, (await room.cat.do("file:preview", file_id=file.file_id)).url)
    assert Image.open(io.BytesIO(small)).format == "WEBP"
    await room.bob.do("file:delete", file_id=file.file_id)
    assert (await hub.store.list()).items == ()


async def test_what_runs_in_a_browser_has_no_preview_and_breaks_nothing(hub: Node, room: Room) -> None:
    """S-118: SVG and HTML have none; a broken picture has failed, and everything else of it works."""
    for name, data, status in (
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "none"),
        ("a.html", b"<html><script>alert(1)</script></html>", "none"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(64), "failed"),
    ):
        file = await brought(room.bob, data, call_id=room.call_id, name=name)
        await work(hub, Scanner(), previewer=Previewer())
        assert (await room.bob.do("file:get", file_id=file.file_id)).preview_status == status, name
        assert await room.cat.refused("file:preview", file_id=file.file_id) == "not_found"
        assert await room.cat.refused("file:download", file_id=file.file_id) == "ok"


# --- time


async def test_what_has_expired_is_cleared_away(hub: Node, room: Room) -> None:
    """S-053, S-056, S-135: row, bytes and preview, and the room hears of it; what is left open is dropped, space and
    all."""
    file = await brought(room.bob, picture(), call_id=room.call_id, expires_in_hours=2)
    hidden = await brought(room.bob, b"abc", call_id=room.call_id, expires_in_hours=2, access_level="private")
    kept = await brought(room.bob, b"abc", call_id=room.call_id, expires_in_hours=48)
    await work(hub, Scanner(), previewer=Previewer())
    asked = await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=3)
    await put(hub, asked, b"abc")
    expiry = Expiry(hub, Always())
    assert (await expiry.once()).files == 0
    hub.ahead = timedelta(hours=2, seconds=1)
    cleared = await expiry.once()
    assert (cleared.files, cleared.uploads) == (2, 0)
    hub.ahead = timedelta(hours=25)
    assert (await expiry.once()).uploads == 1
    await hub.delivered()
    gone = [event for name, event in room.cat_socket.heard if name == "file:deleted"]
    assert [(event["file_id"], event["reason"]) for event in gone] == [(str(file.file_id), "expired")]
    await eventually(
        lambda: str(hidden.file_id) in {e["file_id"] for name, e in room.bob_socket.heard if name == "file:deleted"}
    )
    items = (await hub.store.list()).items
    where = (TENANT, room.call_id, kept.file_id)
    assert [item.key for item in items] == [keys.content(*where), keys.preview(*where)]
    assert await hub.value("SELECT bytes FROM tenant_file_usage") == 3
    assert await hub.value("SELECT (SELECT count(*) FROM uploads) + (SELECT count(*) FROM file_tombstones)") == 0


async def test_only_stray_uploads_of_this_hub_are_aborted(hub: Node, room: Room) -> None:
    """Not those of another environment in the same bucket, nor one that a slow form may still be at."""
    hub.rules = msgspec.structs.replace(hub.rules, upload_ttl_s=60)
    ours, foreign = keys.content(TENANT, room.call_id, uuid4()), keys.content(TENANT, uuid4(), uuid4())
    for key in (ours, foreign):
        await hub.store.begin(key)
    expiry = Expiry(hub, Always())
    hub.ahead = timedelta(hours=1)
    assert await expiry.strays() == 0
    hub.ahead = timedelta(hours=2, minutes=1)
    assert await expiry.strays() == 1
    assert [each.key for each in (await hub.store.uploads()).items] == [foreign]


async def test_a_store_that_is_away_keeps_its_tombstones(hub: Node, room: Room) -> None:
    """S-028, S-043: the row is gone at once; the bytes follow when the store is back."""
    file = await brought(room.bob, b"abc", call_id=room.call_id)
    real = hub.store

    class Away:
        def __getattr__(self, name: str) -> Any:
            async def fail(*_: Any, **__: Any) -> None:
                raise StorageUnavailable("away")

            return fail

    hub.store = Away()  # type: ignore[assignment]
    await room.bob.do("file:delete", file_id=file.file_id)
    assert await room.bob.refused("file:get", file_id=file.file_id) == "not_found"
    expiry = Expiry(hub, Always())
    hub.ahead = timedelta(minutes=1)
    assert (await expiry.once()).left == 1
    hub.store = real
    async with aclosing(hub.store.get(keys.content(TENANT, room.call_id, file.file_id))) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"abc"
    assert (await expiry.once()).tombstones == 0
    hub.ahead = timedelta(minutes=5)
    assert (await expiry.once()).tombstones == 1
    assert (await hub.store.list()).items == ()


async def test_an_upload_that_waits_for_the_store_is_not_lost(hub: Node, room: Room) -> None:
    """A direct upload whose completion the store interrupts can be completed later."""
    asked = await room.bob.do("file:presign", call_id=room.call_id, name="a", size_bytes=3)
    await put(hub, asked, b"abc")
    move = hub.store.move

    async def fail(source: str, target: str) -> Any:
        raise StorageUnavailable("away")

    hub.store.move = fail  # type: ignore[method-assign]
    assert await room.bob.refused("file:confirm", file_id=asked.file_id) == "storage_unavailable"
    hub.store.move = move  # type: ignore[method-assign]
    assert (await room.bob.do("file:confirm", file_id=asked.file_id)).size_bytes == 3
