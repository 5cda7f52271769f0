"""The documents and the page, as they are served."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from hub import contract
from hub.transport import reference
from tests.transport.door import Door, commands, opened


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with opened() as door:
        yield door


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
            if name in ("src", "srcset") or (tag == "link" and name == "href"):
                self.loaded.append(value or "")
            if name == "style" or name.startswith("on"):
                self.handlers.append(name)
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_served_documents_are_the_ones_the_code_makes(door: Door) -> None:
    """S-225"""
    for path, made in (("/openapi.json", contract.openapi), ("/asyncapi.json", contract.asyncapi)):
        response = await door.ask("GET", path, token=None)
        assert (response.status, response.content_type) == (200, "application/json")
        assert await response.json() == made(commands)
        tag = response.headers["ETag"]
        assert (await door.ask("GET", path, token=None, headers={"If-None-Match": tag})).status == 304


async def test_the_page_shows_every_route_command_and_code_and_leads_nowhere_else(door: Door) -> None:
    """S-225: readable without a network."""
    text = await (await door.ask("GET", "/docs", token=None)).text()
    page = Page(text)
    assert page.open == [] and page.loaded == [] and page.handlers == []
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link in ("/openapi.json", "/asyncapi.json") or unquote(link.removeprefix("#")) in page.ids
    for command in commands:
        assert command.http is not None
        assert f"/api/v1{command.http.path}" in text and f"command-{command.name.replace(':', '_')}" in page.ids
    assert "error-room_full" in page.ids and "schema-Thing" in page.ids


async def test_nothing_but_our_own_script_and_style_may_run_on_the_page(door: Door) -> None:
    response = await door.ask("GET", "/docs", token=None)
    text, policy = await response.text(), response.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(found) == 1
        digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and "default-src 'none'" in policy


async def test_what_the_code_says_is_text_on_the_page_not_markup() -> None:
    document = contract.openapi(commands)
    document["paths"]["/api/v1/things"]["get"]["description"] = "<img src=x onerror=alert(1)> & `<b>`"
    text = reference.page(document, contract.asyncapi(commands))
    assert "<img" not in text and "&lt;img src=x" in text and "<code>&lt;b&gt;</code>" in text


async def test_the_page_travels_packed_where_the_client_can_unpack(door: Door) -> None:
    for encoding, packed in (("gzip, br", True), ("identity", False)):
        async with door.client.session.get(
            door.client.make_url("/docs"), headers={"Accept-Encoding": encoding}, auto_decompress=False
        ) as response:
            body = await response.read()
        assert (response.headers.get("Content-Encoding") == "gzip") is packed
        assert (gzip.decompress(body) if packed else body).startswith(b"<!doctype html>")
