"""A whole hub over a real S3 store, which goes away and comes back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.e2e.stage import Person, Stage
from tests.fakes.proxy import Proxy
from tests.storage.servers import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS


async def upload(person: Person, call_id: str, data: bytes) -> tuple[int, dict[str, Any]]:
    form = aiohttp.FormData()
    form.add_field("call_id", call_id)
    form.add_field("file", data, filename="notes.bin", content_type="application/octet-stream")
    headers = {"Authorization": f"Bearer {person.token}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{person.url}/api/v1/files/upload", data=form, headers=headers) as response,
    ):
        return response.status, await response.json(content_type=None)


async def health(node_url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"{node_url}/healthz") as response:
        found: dict[str, Any] = await response.json()
        return found


# Three servers and a hub are started for it.
@pytest.mark.timeout(180)
async def test_a_store_that_goes_away_takes_only_the_bytes_with_it(stage: Stage) -> None:
    """S-026, S-153, S-155, S-184: bytes end in the bucket that is named; while the store is away what touches them is
    refused within seconds, all else goes on, and it comes back by itself."""
    with tempfile.TemporaryDirectory(prefix="auralink-weed-") as directory, SeaweedFS(Path(directory)) as server:
        async with Proxy("127.0.0.1", server.port) as line:
            node = await stage.node(
                AURALINK_STORAGE=f"s3://{BUCKET}",
                AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{line.port}",
                AWS_ACCESS_KEY_ID=ACCESS_KEY,
                AWS_SECRET_ACCESS_KEY=SECRET_KEY,
                AURALINK_STORAGE_TIMEOUT_S="10",
            )
            ada = await stage.person("ada").connect()
            call = await ada.create()
            call_id = call["call_id"]
            await ada.join(call_id)
            data = os.urandom(6_000_000)
            status, file = await upload(ada, call_id, data)
            assert status == 201, file
            assert file["sha256"] == hashlib.sha256(data).hexdigest()
            assert await _downloaded(ada, file["file_id"]) == data
            assert (await health(node.url))["checks"]["storage"]["status"] == "ok"

            line.set("refuse")
            for _ in range(2):
                started = time.monotonic()
                status, problem = await upload(ada, call_id, data)
                assert (status, problem["code"]) == (503, "storage_unavailable"), problem
                assert time.monotonic() - started < 12
            await _until(node.url, "degraded")
            async with aiohttp.ClientSession() as http, http.get(f"{node.url}/readyz") as response:
                assert response.status == 200
            await ada.ask("room:update", call_id=call_id, name="Goes on")

            line.set("reset")
            await _until(node.url, "ok")
            status, file = await upload(ada, call_id, data)
            assert status == 201, file
            # Of what was refused nothing is announced, and nothing is listed.
            listed = await ada.rest("GET", f"/files?call_id={call_id}")
            assert len(listed.body["items"]) == 2


async def _downloaded(person: Person, file_id: str) -> bytes:
    link = await person.rest("GET", f"/files/{file_id}/download?redirect=false")
    assert link.status == 200, link
    async with aiohttp.ClientSession() as http, http.get(URL(link.body["url"], encoded=True)) as response:
        assert response.status == 200
        assert response.headers["Content-Disposition"].startswith("attachment")
        return await response.read()


async def _until(node_url: str, status: str) -> None:
    for _ in range(150):
        if (await health(node_url))["status"] == status:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"never {status}: {await health(node_url)}")
