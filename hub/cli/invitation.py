"""The link that `auralink-hub dev` prints: into a call of Ada's, for whoever opens it in a browser."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from hub.cli.output import dim, say

_EVERY_S = 5.0
_ROOM = "Ada's room"


async def offer(url: str, token: str) -> None:
    """Print the link of last time, if its call still goes, else a new one, as soon as LiveKit can carry a call.

    `token`: Ada's. Runs beside the hub, and is cancelled with it.
    """
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as http:
        while True:
            try:
                link = await _kept(http, url) or await _made(http, url)
            except (aiohttp.ClientError, TimeoutError):
                link = None
            if link is not None:
                say(f"  join      {link}   {dim('(a call of Ada, for anybody)')}")
                return
            await asyncio.sleep(_EVERY_S)


async def _kept(http: aiohttp.ClientSession, url: str) -> str | None:
    status, page = await _ask(http, "GET", f"{url}/api/v1/links")
    for link in page["items"] if status == 200 else ():
        status, call = await _ask(http, "GET", f"{url}/api/v1/rooms/{link['call_id']}")
        goes = status == 200 and call["status"] != "ended"
        if goes and (link["status"], link["access_type"]) == ("active", "public"):
            return str(link["url"])
    return None


async def _made(http: aiohttp.ClientSession, url: str) -> str | None:
    """None: not yet."""
    status, call = await _ask(http, "POST", f"{url}/api/v1/rooms", {"name": _ROOM})
    if status != 201:
        return None
    status, link = await _ask(http, "POST", f"{url}/api/v1/links", {"call_id": call["call_id"], "title": _ROOM})
    return str(link["url"]) if status == 201 else None


async def _ask(http: aiohttp.ClientSession, method: str, url: str, body: Any = None) -> tuple[int, Any]:
    async with http.request(method, url, json=body) as response:
        return response.status, await response.json(content_type=None)
