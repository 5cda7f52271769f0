"""A whole hub with a real scanner: nothing is had before it has spoken, and nothing infected ever."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image
from yarl import URL

from tests.e2e.stage import Person, Stage
from tests.storage.clamav import EICAR, ClamAV, clamd_path


async def upload(person: Person, call_id: str, name: str, data: bytes) -> dict[str, Any]:
    form = aiohttp.FormData()
    form.add_field("call_id", call_id)
    form.add_field("file", data, filename=name, content_type="application/octet-stream")
    headers = {"Authorization": f"Bearer {person.token}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{person.url}/api/v1/files/upload", data=form, headers=headers) as response,
    ):
        body: dict[str, Any] = await response.json()
        assert response.status == 201, body
        return body


# clamd, LiveKit and a hub are started for it.
@pytest.mark.timeout(180)
async def test_an_infected_file_is_had_by_nobody_and_a_clean_one_after_its_scan(stage: Stage) -> None:
    """S-054, S-118, S-119: pending, then clean with a preview, or infected: told to the room, and blocked."""
    if clamd_path() is None:
        pytest.skip("no clamd here: apt-get install clamav-daemon")
    with tempfile.TemporaryDirectory(prefix="auralink-clamav-") as directory, ClamAV(Path(directory)) as clamav:
        node = await stage.node(AURALINK_CLAMAV_URL=clamav.url)
        ada = await stage.person("ada").connect()
        call_id = (await ada.create())["call_id"]
        await ada.join(call_id)
        out = io.BytesIO()
        Image.new("RGB", (900, 300), "green").save(out, "PNG")

        clamav.freeze()
        picture = await upload(ada, call_id, "green.png", out.getvalue())
        virus = await upload(ada, call_id, "letter.txt", b"Dear Ada, " + EICAR)
        assert {picture["scan_status"], virus["scan_status"]} == {"pending"}
        refused = await ada.rest("GET", f"/files/{picture['file_id']}/download?redirect=false")
        assert (refused.status, refused.body["code"]) == (409, "scan_pending")

        clamav.thaw()
        for file, verdict in ((picture, "clean"), (virus, "infected")):
            heard = await ada.wait_for("file:scanned", lambda event, file=file: _about(event, file))  # type: ignore[misc]
            assert verdict in str(heard)
        link = await ada.rest("GET", f"/files/{picture['file_id']}/download?redirect=false")
        assert (await _fetch(link.body["url"]))[1] == out.getvalue()
        blocked = await ada.rest("GET", f"/files/{virus['file_id']}/download?redirect=false")
        assert (blocked.status, blocked.body["code"]) == (403, "file_infected")

        await ada.wait_for("file:updated", lambda event: _about(event, picture))
        preview = await ada.rest("GET", f"/files/{picture['file_id']}/preview?redirect=false")
        headers, data = await _fetch(preview.body["url"])
        assert Image.open(io.BytesIO(data)).size == (512, 171)
        assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("image/webp", "nosniff")
        async with aiohttp.ClientSession() as http, http.get(f"{node.url}/healthz") as response:
            assert (await response.json())["checks"]["scanner"]["status"] == "ok"


def _about(event: dict[str, Any], file: dict[str, Any]) -> bool:
    return str(file["file_id"]) in str(event)


async def _fetch(url: str) -> tuple[Any, bytes]:
    async with aiohttp.ClientSession() as http, http.get(URL(url, encoded=True)) as response:
        assert response.status == 200
        return response.headers, await response.read()
