"""Files over HTTP: forms that stream, limits to the byte, redirects."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from hub.transport import forms, middleware, rest
from hub.transport.runner import Runner
from tests.actions.conftest import Node, Person
from tests.actions.sharing import Room, bytes_of, shared

MIB = 1024 * 1024
BOUNDARY = "a-boundary-of-the-tests"


class _Server(TestServer):
    async def _make_runner(self, **how: Any) -> Runner:
        return Runner(self.app, **how)


@dataclass
class Door:
    room: Room
    client: TestClient[web.Request, web.Application]

    async def ask(self, method: str, path: str, *, who: Person | None, **how: Any) -> aiohttp.ClientResponse:
        headers = dict(how.pop("headers", {}))
        if who is not None:
            self.room.hub.tokens.actors[who.id] = who.actor
            headers["Authorization"] = f"Bearer {who.id}"
        response = await self.client.request(method, f"/api/v1{path}", headers=headers, allow_redirects=False, **how)
        await response.read()
        return response

    async def send(self, *parts: tuple[str, Any], who: Person | None = None, **how: Any) -> aiohttp.ClientResponse:
        """A form with these parts, in that order."""
        return await self.ask("POST", "/files/upload", who=who or self.room.bob, data=form(*parts), **how)


def form(*parts: tuple[str, Any]) -> aiohttp.MultipartWriter:
    writer = aiohttp.MultipartWriter("form-data", boundary=BOUNDARY)
    for name, value in parts:
        part = writer.append(value if isinstance(value, bytes) else str(value))
        if name == "file":
            part.set_content_disposition("form-data", name=name, filename="notes.bin")
        else:
            part.set_content_disposition("form-data", name=name)
    return writer


@pytest.fixture
async def door(hub: Node) -> AsyncIterator[Door]:
    app = web.Application()
    middleware.setup(app, origins=frozenset(), https=False)
    rest.setup(app, hub.dispatcher, hub)
    forms.setup(app, hub.dispatcher, hub, hub.pours)
    room = await shared(hub)
    async with TestClient(_Server(app)) as client:
        yield Door(room, client)


@pytest.mark.parametrize("file_first", [True, False])
async def test_the_briefs_form_brings_a_file(door: Door, file_first: bool) -> None:
    """S-145, S-044, S-048: in the brief's order, the file first, and in the faster one; 201, Location, 24 hours."""
    data = secrets.token_bytes(6 * MIB)
    fields: list[tuple[str, Any]] = [
        ("call_id", door.room.call_id),
        ("access_level", "call_participants"),
        ("expires_in_hours", 24),
    ]
    file: list[tuple[str, Any]] = [("file", data)]
    response = await door.send(*(file + fields if file_first else fields + file))
    assert response.status == 201, await response.text()
    shown = await response.json()
    assert response.headers["Location"] == f"/api/v1/files/{shown['file_id']}"
    assert shown["sha256"] == hashlib.sha256(data).hexdigest()
    assert (shown["name"], shown["size_bytes"]) == ("notes.bin", len(data))
    left = datetime.fromisoformat(shown["expires_at"]) - datetime.now(UTC) - timedelta(hours=24)
    assert abs(left) < timedelta(seconds=20)
    got = await door.ask("GET", urlsplit(shown["download_url"]).path.removeprefix("/api/v1"), who=door.room.cat)
    assert got.status == 302 and got.headers["Cache-Control"] == "no-store"
    assert await bytes_of(door.room.hub, got.headers["Location"]) == data
    plain = await door.ask("GET", f"/files/{shown['file_id']}/download?redirect=false", who=door.room.cat)
    assert plain.status == 200 and set(await plain.json()) == {"url", "expires_at"}


@pytest.mark.parametrize("file_first", [True, False])
async def test_the_limit_holds_to_the_byte(door: Door, file_first: bool) -> None:
    """S-049, S-180: exactly the limit is taken, one byte more is 413, whatever the request says of its length."""
    hub = door.room.hub
    hub.rules = msgspec.structs.replace(hub.rules, file_bytes=2 * MIB)
    call: list[tuple[str, Any]] = [("call_id", door.room.call_id)]
    for size, status in ((2 * MIB, 201), (2 * MIB + 1, 413)):
        file: list[tuple[str, Any]] = [("file", bytes(size))]
        response = await door.send(*(file + call if file_first else call + file))
        assert response.status == status, await response.text()
        if status == 413:
            assert (await response.json())["code"] == "file_too_large"
    assert await hub.value("SELECT count(*) FROM files") == 1
    assert await hub.value("SELECT (SELECT count(*) FROM uploads) + (SELECT count(*) FROM file_tombstones)") == 0


async def test_what_is_announced_as_too_long_is_not_even_read(door: Door) -> None:
    """S-049"""
    reader, writer = await asyncio.open_connection(door.client.host, door.client.port)
    door.room.hub.tokens.actors["bob"] = door.room.bob.actor
    writer.write(
        b"POST /api/v1/files/upload HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer bob\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000000\r\n\r\n"
    )
    status = await asyncio.wait_for(reader.readline(), 5)
    assert b" 413 " in status
    writer.close()


async def test_bodies_without_a_length_are_counted_as_they_come(door: Door) -> None:
    hub = door.room.hub
    hub.rules = msgspec.structs.replace(hub.rules, file_bytes=MIB)

    async def body(size: int) -> AsyncIterator[bytes]:
        yield (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="call_id"\r\n\r\n{door.room.call_id}\r\n'
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        ).encode()
        for _ in range(size // 4096):
            yield bytes(4096)
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    how = {"headers": {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}}
    taken = await door.ask("POST", "/files/upload", who=door.room.bob, data=body(MIB), **how)
    assert taken.status == 201, await taken.text()
    refused = await door.ask("POST", "/files/upload", who=door.room.bob, data=body(MIB + 4096), **how)
    assert refused.status == 413


@pytest.mark.parametrize(
    ("parts", "status", "path"),
    [
        ([("file", b"x")], 422, "call_id"),
        ([("call_id", "{call}")], 422, "file"),
        ([("call_id", "not-a-uuid"), ("file", b"x")], 422, "call_id"),
        ([("file", b"x"), ("call_id", "{call}"), ("expires_in_hours", "0")], 422, "expires_in_hours"),
        ([("file", b"x"), ("call_id", "{call}"), ("access_level", "everybody")], 422, "access_level"),
        ([("file", b"x"), ("call_id", "{call}"), ("colour", "red")], 422, "colour"),
        ([("file", b"x"), ("call_id", "{call}"), ("call_id", "{call}")], 422, "call_id"),
        ([("file", b"x"), ("file", b"x"), ("call_id", "{call}")], 422, "file"),
        ([("call_id", "{call}"), ("file", b"x"), ("access_level", "private")], 422, "file"),
    ],
)
async def test_a_form_that_is_not_whole_names_its_field(
    door: Door, parts: list[tuple[str, Any]], status: int, path: str
) -> None:
    """S-145, S-179"""
    call = str(door.room.call_id)
    response = await door.send(*((name, call if value == "{call}" else value) for name, value in parts))
    assert response.status == status, await response.text()
    assert [each["path"] for each in (await response.json())["errors"]] == [path]
    hub = door.room.hub
    assert await hub.value("SELECT (SELECT count(*) FROM files) + (SELECT count(*) FROM uploads)") == 0
    assert (await hub.store.list()).items == ()


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=x", b"no parts", 400),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc', 400),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y--\r\n--x--",
            400,
        ),
    ],
)
async def test_what_is_no_form_is_refused_in_one_shape(door: Door, content_type: str, body: bytes, status: int) -> None:
    """S-179, S-192"""
    response = await door.ask(
        "POST", "/files/upload", who=door.room.bob, data=body, headers={"Content-Type": content_type}
    )
    assert response.status == status, await response.text()
    assert response.content_type == "application/problem+json"


async def test_nobody_uploads_without_a_token_or_into_a_foreign_call(door: Door) -> None:
    """S-171"""
    response = await door.ask("POST", "/files/upload", who=None, data=form(("file", b"x")))
    assert response.status == 401
    stranger = door.room.hub.person("stranger")
    assert (await door.send(("call_id", door.room.call_id), ("file", b"x"), who=stranger)).status == 404


async def test_a_public_file_is_fetched_without_a_token(door: Door) -> None:
    """S-050"""
    shown = await (await door.send(("file", b"abc"), ("call_id", door.room.call_id), ("access_level", "public"))).json()
    got = await door.ask("GET", f"/files/{shown['file_id']}/download", who=None)
    assert got.status == 302
    for path in (f"/files/{shown['file_id']}", f"/files/{door.room.call_id}/download", "/files"):
        assert (await door.ask("GET", path, who=None)).status == 401


async def test_a_client_that_hangs_up_leaves_nothing(door: Door) -> None:
    """S-195, S-056"""
    hub = door.room.hub
    hub.tokens.actors["bob"] = door.room.bob.actor
    _, writer = await asyncio.open_connection(door.client.host, door.client.port)
    writer.write(
        b"POST /api/v1/files/upload HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer bob\r\nContent-Length: 50000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="call_id"\r\n\r\n' + str(door.room.call_id).encode() + b"\r\n"
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(6 * MIB)
    )
    await writer.drain()
    await _until(hub, "SELECT count(*) = 1 FROM uploads WHERE multipart_id IS NOT NULL")
    writer.transport.abort()
    await _until(hub, "SELECT (SELECT count(*) FROM uploads) + (SELECT count(*) FROM file_tombstones) = 0")
    assert (await hub.store.uploads()).items == ()


def _rss() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def _until(hub: Node, claim: str) -> None:
    async with asyncio.timeout(10):
        while not await hub.value(claim):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.05)


async def test_ten_large_uploads_at_once_take_no_memory(door: Door) -> None:
    """Bounded by the parts that are being sent, not by what comes in: both orders, 10 × 16 MiB."""
    hub = door.room.hub
    hub.rules = msgspec.structs.replace(hub.rules, uploads_per_user=100)
    block = secrets.token_bytes(64 * 1024)

    async def body(*, file_first: bool) -> AsyncIterator[bytes]:
        call = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="call_id"\r\n\r\n{door.room.call_id}\r\n'
        ).encode()
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
        yield head if file_first else call + head
        for _ in range(16 * MIB // len(block)):
            yield block
        yield b"\r\n" + (call if file_first else b"") + f"--{BOUNDARY}--\r\n".encode()

    async def one(file_first: bool) -> int:
        how = {"headers": {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}}
        response = await door.ask("POST", "/files/upload", who=door.room.bob, data=body(file_first=file_first), **how)
        return response.status

    assert await one(False) == 201
    before, most = _rss(), 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, _rss())
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    assert await asyncio.gather(*(one(bool(n % 2)) for n in range(10))) == [201] * 10
    watching.cancel()
    # The tests' own client is in this process as well.
    assert most - before < 60 * MIB, f"{(most - before) / MIB:.0f} MiB"
