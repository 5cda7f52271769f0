"""Files by chunk frames: who may send them, what comes of them, and what is left of those that come to nothing."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import google_crc32c
import msgspec
import pytest

from hub.actions.transfers import WINDOW
from hub.background.expiry import Expiry
from hub.dispatch import Ack
from hub.protocol.errors import FieldError
from storage.store import PART_BYTES
from tests.actions.conftest import Node, Socket
from tests.actions.sharing import Room, bytes_of, shared
from tests.actions.test_file_care import Always

CHUNK = 65_536


@pytest.fixture
async def room(hub: Node) -> Room:
    return await shared(hub)


async def ask(socket: Socket, command: str, /, **fields: Any) -> Any:
    """The answer, or the refusal."""
    ack: Ack = await socket.ack(command, **fields)
    return ack.data if ack.ok else ack.error


async def offered(socket: Socket, call_id: UUID, size: int, **fields: Any) -> Any:
    return await ask(socket, "file:offer", call_id=call_id, name="film.bin", size_bytes=size, **fields)


async def sent(socket: Socket, transfer_id: UUID, data: bytes, until: int | None = None) -> Any:
    """In chunks, from the beginning; the last answer."""
    answer = None
    for at in range(0, len(data) if until is None else until, CHUNK):
        piece = data[at : at + CHUNK]
        answer = await ask(
            socket, "file:chunk", transfer_id=transfer_id, offset=at, data=piece, crc32c=google_crc32c.value(piece)
        )
    return answer


async def completed(socket: Socket, transfer_id: UUID, data: bytes) -> Any:
    return await ask(socket, "file:complete", transfer_id=transfer_id, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [0, 1, CHUNK, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 77])
async def test_a_file_that_is_sent_in_chunks_is_there_for_the_others(hub: Node, room: Room, size: int) -> None:
    """S-115, S-116: the same file as by a form: the row, the object, the event, the download."""
    data = secrets.token_bytes(size)
    socket = room.bob.files()
    offer = await offered(socket, room.call_id, size)
    assert (offer.offset, offer.stored, offer.chunk_bytes, offer.window) == (0, 0, CHUNK, WINDOW)
    await sent(socket, offer.transfer_id, data)
    assert await hub.value("SELECT count(*) FROM files") == 0
    file = (await completed(socket, offer.transfer_id, data)).file
    assert (file.size_bytes, file.sha256, file.source) == (size, hashlib.sha256(data).hexdigest(), "frames")
    assert await bytes_of(hub, (await room.cat.do("file:download", file_id=file.file_id)).url) == data
    announced = [event["file"]["file_id"] for name, event in room.ann_socket.heard if name == "file:announced"]
    assert announced == [str(file.file_id)]
    assert await hub.value("SELECT count(*) FROM uploads") == 0 and not len(hub.transfers)
    # An answer that was lost: asked again, on whatever connection, it is the same.
    assert (await completed(room.bob.files(), offer.transfer_id, data)).file == file
    assert (await ask(room.bob.files(), "file:resume", transfer_id=offer.transfer_id)).completed


async def test_a_chunk_that_is_corrupt_or_out_of_place_changes_nothing(hub: Node, room: Room) -> None:
    """S-116: missing, duplicate, out of order."""
    data = secrets.token_bytes(3 * CHUNK)
    socket = room.bob.files()
    transfer_id = (await offered(socket, room.call_id, len(data))).transfer_id

    async def chunk(at: int, piece: bytes, **fields: Any) -> Any:
        return await ask(socket, "file:chunk", transfer_id=transfer_id, offset=at, data=piece, **fields)

    taken = await chunk(0, data[:CHUNK])
    assert (taken.offset, taken.stored) == (CHUNK, 0)
    refusal = await chunk(CHUNK, data[CHUNK : 2 * CHUNK], crc32c=google_crc32c.value(data[:CHUNK]))
    assert (refusal.code, refusal.details, refusal.retryable) == ("chunk_corrupt", {"expected_offset": CHUNK}, True)
    for at in (0, CHUNK - 1, CHUNK + 1, 2 * CHUNK):
        refusal = await chunk(at, data[at : at + CHUNK])
        assert (refusal.code, refusal.details["expected_offset"]) == ("offset_mismatch", CHUNK)
    assert (await chunk(CHUNK, data[CHUNK:] + b"x")).code == "file_too_large"
    for wrong in ({"data": b""}, {"data": bytes(262_145)}, {"offset": -1}, {"crc32c": 2**32}, {"data": "?"}):
        fields = {"transfer_id": transfer_id, "offset": CHUNK, "data": b"x", **wrong}
        refusal = await ask(socket, "file:chunk", **fields)
        assert (refusal.code, [each.path for each in refusal.errors]) == ("validation_failed", list(wrong))
    early = await completed(socket, transfer_id, data)
    assert (early.code, early.details["expected_offset"]) == ("offset_mismatch", CHUNK)
    await chunk(CHUNK, data[CHUNK:])
    assert (await completed(socket, transfer_id, data)).file.size_bytes == len(data)


async def test_who_may_not_send_files_cannot_offer_one(hub: Node, room: Room) -> None:
    """S-057, S-141: by the table that holds for all ways in."""
    stranger, viewer = hub.person("zoe"), hub.person("vic")
    await viewer.socket().join(room.call_id)
    await room.ann_socket.do(
        "participant:set_role", call_id=room.call_id, participant_id=await _participant(hub, "vic"), role="viewer"
    )
    assert (await offered(stranger.files(), room.call_id, 10)).code == "not_found"
    assert (await offered(viewer.files(), room.call_id, 10)).code == "forbidden"
    limit = hub.rules.file_bytes
    assert (await offered(room.bob.files(), room.call_id, limit + 1)).code == "file_too_large"
    await room.ann_socket.do("room:update", call_id=room.call_id, features={"files": False})
    assert (await offered(room.bob.files(), room.call_id, 10)).code == "forbidden"
    assert await hub.value("SELECT count(*) FROM uploads") == 0


async def _participant(hub: Node, user_id: str) -> UUID:
    rows = await hub.rows("SELECT id, user_id FROM call_participants")
    return UUID(str(next(row["id"] for row in rows if row["user_id"] == user_id)))


async def test_a_transfer_is_its_senders_alone(hub: Node, room: Room) -> None:
    """For everybody else it is as if it were not there."""
    mine = room.bob.files()
    transfer_id = (await offered(mine, room.call_id, 100)).transfer_id
    for other in (room.ann.files(), hub.person("bob", tenant=uuid4()).files()):
        for name, fields in (
            ("file:chunk", {"offset": 0, "data": b"x"}),
            ("file:resume", {}),
            ("file:complete", {"sha256": "0" * 64}),
            ("file:cancel", {}),
        ):
            theirs = await ask(other, name, transfer_id=transfer_id, **fields)
            nobodys = await ask(other, name, transfer_id=uuid4(), **fields)
            assert msgspec.structs.replace(theirs, request_id="") == msgspec.structs.replace(nobodys, request_id="")
            assert theirs.code == "not_found"
    # Another connection of theirs has to take it up first.
    second = room.bob.files()
    assert (await ask(second, "file:chunk", transfer_id=transfer_id, offset=0, data=b"x")).code == "not_found"
    assert (await ask(second, "file:resume", transfer_id=transfer_id)).offset == 0
    assert (await ask(second, "file:chunk", transfer_id=transfer_id, offset=0, data=b"x")).offset == 1
    assert (await ask(mine, "file:chunk", transfer_id=transfer_id, offset=1, data=b"x")).code == "not_found"


async def test_a_connection_that_takes_over_goes_on_where_the_first_one_was(hub: Node, room: Room) -> None:
    data = secrets.token_bytes(PART_BYTES + 3 * CHUNK)
    first, second = room.bob.files(), room.bob.files()
    transfer_id = (await offered(first, room.call_id, len(data))).transfer_id
    cut = PART_BYTES + CHUNK
    await sent(first, transfer_id, data, until=cut)
    state = await ask(second, "file:resume", transfer_id=transfer_id)
    assert (state.offset, state.stored, state.completed) == (cut, cut, False)
    await ask(second, "file:chunk", transfer_id=transfer_id, offset=cut, data=data[cut:])
    file = (await completed(second, transfer_id, data)).file
    assert await bytes_of(hub, (await room.cat.do("file:download", file_id=file.file_id)).url) == data


async def test_somebody_who_is_put_out_sends_nothing_more(hub: Node, room: Room) -> None:
    """S-178: a kicked participant loses it within a second, and what came of it goes."""
    socket = room.bob.files()
    transfer_id = (await offered(socket, room.call_id, 3 * CHUNK)).transfer_id
    await ask(socket, "file:chunk", transfer_id=transfer_id, offset=0, data=bytes(CHUNK))
    await room.ann_socket.do("participant:kick", call_id=room.call_id, participant_id=room.bob_id)
    # A second later.
    hub.transfers.of(socket.id, transfer_id).allowed_at -= 1.0
    refusal = await ask(socket, "file:chunk", transfer_id=transfer_id, offset=CHUNK, data=bytes(CHUNK))
    assert refusal.code == "not_in_room"
    assert (await ask(socket, "file:resume", transfer_id=transfer_id)).code == "not_found"
    assert await hub.value("SELECT count(*) FROM uploads") == 0


@pytest.mark.parametrize("size", [CHUNK, PART_BYTES + 1])
async def test_a_file_whose_hash_is_wrong_comes_to_nothing(hub: Node, room: Room, size: int) -> None:
    data = secrets.token_bytes(size)
    socket = room.bob.files()
    transfer_id = (await offered(socket, room.call_id, size)).transfer_id
    await sent(socket, transfer_id, data)
    assert (await completed(socket, transfer_id, data[:-1])).code == "checksum_mismatch"
    assert (await completed(socket, transfer_id, data)).code == "not_found"
    assert await hub.value("SELECT (SELECT count(*) FROM files) + (SELECT count(*) FROM uploads)") == 0
    assert not (await hub.store.list()).items and not (await hub.store.uploads()).items


async def test_a_transfer_that_is_given_up_gives_its_room_back(hub: Node, room: Room) -> None:
    data = secrets.token_bytes(PART_BYTES + CHUNK)
    socket = room.bob.files()
    transfer_id = (await offered(socket, room.call_id, len(data))).transfer_id
    await sent(socket, transfer_id, data)
    await ask(socket, "file:cancel", transfer_id=transfer_id)
    assert (await ask(socket, "file:resume", transfer_id=transfer_id)).code == "not_found"
    assert await hub.value("SELECT bytes + files FROM call_file_usage") == 0 and not len(hub.transfers)
    assert not (await hub.store.list()).items and not (await hub.store.uploads()).items


async def test_where_there_is_no_store_an_offer_is_refused_at_once(hub: Node, room: Room) -> None:
    hub.rules = msgspec.structs.replace(hub.rules, stores_files=False)
    assert (await offered(room.bob.files(), room.call_id, 10)).code == "storage_unavailable"
    assert await hub.value("SELECT count(*) FROM uploads") == 0


async def test_a_transfer_is_not_confirmed_as_if_it_had_been_put_to_a_url(hub: Node, room: Room) -> None:
    """Else what was not said to be complete, and was never in hand, becomes a file, or is dropped."""
    data = secrets.token_bytes(1000)
    socket = room.bob.files()
    offer = await offered(socket, room.call_id, len(data))
    await sent(socket, offer.transfer_id, data)
    assert await room.bob.refused("file:confirm", file_id=offer.transfer_id) == "not_found"
    assert (await completed(socket, offer.transfer_id, data)).file.size_bytes == 1000
    assert await room.bob.refused("file:confirm", file_id=offer.transfer_id) == "not_found"


async def test_bytes_that_the_store_takes_after_a_cancel_do_not_stay(hub: Node, room: Room) -> None:
    """0 orphans: a small file is put by who makes it, and its key is known of before."""
    data = secrets.token_bytes(1000)
    socket = room.bob.files()
    offer = await offered(socket, room.call_id, len(data))
    await sent(socket, offer.transfer_id, data)
    began, goes_on, put = asyncio.Event(), asyncio.Event(), hub.store.put

    async def late(key: str, data: bytes, **fields: Any) -> Any:
        began.set()
        await goes_on.wait()
        return await put(key, data, **fields)

    hub.store.put = late  # type: ignore[method-assign]
    finishing = asyncio.create_task(completed(socket, offer.transfer_id, data))
    await asyncio.wait_for(began.wait(), 5.0)
    await ask(room.bob.files(), "file:cancel", transfer_id=offer.transfer_id)
    goes_on.set()
    assert (await finishing).code in ("timeout", "not_found")
    hub.ahead += timedelta(minutes=5)
    await Expiry(hub, Always()).once()
    assert (await hub.store.list()).items == ()
    assert await hub.value("SELECT count(*) FROM file_tombstones") == 0


async def test_an_offer_that_is_made_twice_under_one_op_id_is_made_once(hub: Node, room: Room) -> None:
    op_id = str(uuid4())
    first = await offered(room.bob.files(), room.call_id, 10, op_id=op_id)
    ack = await room.bob.files().ack("file:offer", call_id=room.call_id, name="film.bin", size_bytes=10, op_id=op_id)
    assert ack.replayed and msgspec.json.decode(ack.data)["transfer_id"] == str(first.transfer_id)
    assert await hub.value("SELECT count(*) FROM uploads") == 1


async def test_the_room_hears_how_far_it_is_and_of_a_private_file_only_its_sender(hub: Node, room: Room) -> None:
    """At most four times a second."""
    mine = await room.bob.listening()
    for access, ears, deaf in (
        ("call_participants", [room.ann_socket, room.cat_socket], []),
        ("private", [mine], [room.ann_socket, room.cat_socket]),
    ):
        for each in (*ears, *deaf):
            each.heard.clear()
        socket = room.bob.files()
        transfer_id = (await offered(socket, room.call_id, 20 * CHUNK, access_level=access)).transfer_id
        await sent(socket, transfer_id, bytes(20 * CHUNK))
        await room.ann_socket.do("hand:raise", call_id=room.call_id)
        await room.ann_socket.do("hand:lower", call_id=room.call_id)
        for each in ears:
            heard = [event for name, event in each.heard if name == "file:progressed"]
            assert 1 <= len(heard) <= 8 and heard[0]["file_id"] == str(transfer_id)
        for each in deaf:
            assert not [name for name, _ in each.heard if name == "file:progressed"]


async def test_who_may_download_reads_in_frames(hub: Node, room: Room) -> None:
    """S-048, S-057: by the same rules as by a signed URL."""
    data = secrets.token_bytes(600_000)
    socket = room.bob.files()
    transfer_id = (await offered(socket, room.call_id, len(data))).transfer_id
    await sent(socket, transfer_id, data)
    await completed(socket, transfer_id, data)
    reader, got, eof = room.cat.files(), b"", False
    while not eof:
        piece = await ask(reader, "file:read", file_id=transfer_id, offset=len(got), length=250_000)
        got, eof = got + piece.data, piece.eof
    assert got == data
    middle = await ask(reader, "file:read", file_id=transfer_id, offset=1234, length=10)
    assert (middle.data, middle.eof) == (data[1234:1244], False)
    end = await ask(reader, "file:read", file_id=transfer_id, offset=len(data))
    assert (end.data, end.eof) == (b"", True)
    behind = await ask(reader, "file:read", file_id=transfer_id, offset=len(data) + 1)
    assert behind.errors == [FieldError("offset", f"the file has {len(data)} bytes")]
    stranger = await ask(hub.person("zoe").files(), "file:read", file_id=transfer_id, offset=0)
    assert stranger.code == "not_found"
    assert await hub.value("SELECT download_count FROM files") == 1


async def test_a_file_that_is_not_scanned_yet_is_not_read(hub: Node, room: Room) -> None:
    """S-054, S-176: frames are no way around the scanner, for the sender neither."""
    hub.rules = msgspec.structs.replace(hub.rules, scanner=True)
    socket = room.bob.files()
    transfer_id = (await offered(socket, room.call_id, 3)).transfer_id
    await sent(socket, transfer_id, b"abc")
    await completed(socket, transfer_id, b"abc")
    for reader in (room.cat.files(), socket):
        assert (await ask(reader, "file:read", file_id=transfer_id, offset=0)).code == "scan_pending"
    await hub.rows("UPDATE files SET scan_status = 'infected' RETURNING id")
    assert (await ask(room.cat.files(), "file:read", file_id=transfer_id, offset=0)).code == "file_infected"


async def test_somebody_who_is_put_out_reads_nothing_more(hub: Node, room: Room) -> None:
    """S-178"""
    data = secrets.token_bytes(1000)
    socket = room.ann.files()
    transfer_id = (await offered(socket, room.call_id, len(data))).transfer_id
    await sent(socket, transfer_id, data)
    await completed(socket, transfer_id, data)
    reader: Socket = room.bob.files()
    assert (await ask(reader, "file:read", file_id=transfer_id, offset=0, length=10)).data == data[:10]
    await room.ann_socket.do("participant:kick", call_id=room.call_id, participant_id=room.bob_id)
    file, at = hub.readings._known[reader.id]
    hub.readings._known[reader.id] = file, at - 1.0
    assert (await ask(reader, "file:read", file_id=transfer_id, offset=10)).code == "not_found"
