"""Files through whole nodes: brought to one, heard and fetched on the other, by the URLs that clients get."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.stage import Person, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1024 * 1024


async def _room(hub: Stage) -> tuple[Person, Person, str]:
    """ann and bob in a call, each on a node of their own."""
    if len(hub.nodes) < 2:
        await hub.node()
    ann, bob = hub.person("ann", node=hub.nodes[0]), hub.person("bob", node=hub.nodes[1])
    call_id: str = (await ann.create())["call_id"]
    for person in (ann, bob):
        await person.connect()
        await person.join(call_id)
    return ann, bob, call_id


async def _send(person: Person, call_id: str, data: Any, **fields: str) -> tuple[int, dict[str, Any]]:
    """`data`: bytes, or a stream of them."""
    form = aiohttp.MultipartWriter("form-data")
    for name, value in {"call_id": call_id, **fields}.items():
        form.append(value).set_content_disposition("form-data", name=name)
    part = form.append(data, {"Content-Type": "application/octet-stream"})
    part.set_content_disposition("form-data", name="file", filename="notes.bin")
    headers = {"Authorization": f"Bearer {person.token}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{person.url}/api/v1/files/upload", data=form, headers=headers) as response,
    ):
        return response.status, await response.json()


async def _way(person: Person, file_id: str) -> str:
    answer = await person.rest("GET", f"/files/{file_id}/download?redirect=false")
    assert answer.status == 200, answer
    url: str = answer.body["url"]
    return url


async def test_a_file_goes_from_node_to_node(hub: Stage) -> None:
    """S-044, S-048, S-027, S-115, S-135, S-246: heard at once, Range, altered URLs refused, gone when deleted."""
    ann, bob, call_id = await _room(hub)
    data = secrets.token_bytes(7 * MIB)
    status, file = await _send(ann, call_id, data, access_level="call_participants")
    assert status == 201, file
    heard = await bob.wait_for("file:announced")
    assert heard["file"]["file_id"] == file["file_id"] and heard["file"]["sha256"] == hashlib.sha256(data).hexdigest()
    url = await _way(bob, file["file_id"])
    async with aiohttp.ClientSession() as http:
        async with http.get(url) as response:
            assert response.status == 200 and await response.read() == data
            assert response.headers["Content-Disposition"].startswith("attachment;")
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        async with http.get(url, headers={"Range": "bytes=1000-1999"}) as response:
            assert response.status == 206 and await response.read() == data[1000:2000]
        async with http.get(url[:-1] + ("0" if url[-1] != "0" else "1")) as response:
            assert response.status == 403
        assert (await ann.rest("DELETE", f"/files/{file['file_id']}")).status == 204
        await bob.wait_for("file:deleted")
        async with http.get(url) as response:
            assert response.status == 404


async def test_a_client_puts_a_file_itself(hub: Stage) -> None:
    """S-031: to the URL of one node, completed on the other."""
    ann, bob, call_id = await _room(hub)
    data = b"The quick brown fox.\n" * 1000
    asked = await bob.rest("POST", "/files/presign", {"call_id": call_id, "name": "fox.txt", "size_bytes": len(data)})
    assert asked.status == 201, asked
    file_id = asked.body["file_id"]
    async with aiohttp.ClientSession() as http:
        async with http.put(asked.body["url"], data=data + b"!", headers=asked.body["headers"]) as response:
            assert response.status >= 400
        async with http.put(asked.body["url"], data=data, headers=asked.body["headers"]) as response:
            assert response.status in (200, 201, 204), await response.text()
    other = hub.person("bob", node=hub.nodes[0])
    done = await other.rest("POST", f"/files/{file_id}/complete", {"sha256": hashlib.sha256(data).hexdigest()})
    assert done.status == 200, done
    assert (done.body["detected_mime_type"], done.body["scan_status"]) == ("text/plain", "skipped")
    # The loops of a real node: a preview comes by itself.
    shown = await ann.wait_for("file:updated", lambda event: event["file"]["file_id"] == file_id)
    assert shown["file"]["preview_status"] == "ready"
    way = await ann.rest("GET", f"/files/{file_id}/preview?redirect=false")
    async with aiohttp.ClientSession() as http, http.get(way.body["url"]) as response:
        assert response.status == 200 and (await response.read())[8:12] == b"WEBP"
        assert response.headers["Content-Type"] == "image/webp"


async def test_the_largest_file_is_taken_and_one_byte_more_is_not(hub: Stage) -> None:
    """S-049, S-180: 104 857 600 bytes through a node whose memory does not grow by a fifth of it."""
    ann, _, call_id = await _room(hub)
    block = secrets.token_bytes(64 * 1024)
    await _send(ann, call_id, block)

    def rss() -> int:
        pages = Path(f"/proc/{hub.nodes[0].pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def body(extra: bytes) -> AsyncIterator[bytes]:
        for _ in range(100 * MIB // len(block)):
            yield block
        if extra:
            yield extra

    before, most = rss(), 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, rss())
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    status, file = await _send(ann, call_id, body(b""))
    assert status == 201 and file["size_bytes"] == 104_857_600, file
    status, refused = await _send(ann, call_id, body(b"!"))
    assert (status, refused["code"]) == (413, "file_too_large")
    watching.cancel()
    assert most - before < 20 * MIB, f"{(most - before) / MIB:.0f} MiB"
