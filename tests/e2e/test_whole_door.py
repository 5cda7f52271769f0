"""Every REST route of a whole hub: the requests its own document allows and forbids, and nobody without a token."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest

from hub.actions import all_commands
from tests.e2e.stage import Stage
from tests.transport.fuzzing import fuzz


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_no_request_made_of_the_document_breaks_the_hub(stage: Stage, tmp_path: Path) -> None:
    """S-179, S-182, S-193: never a 5xx, bad data refused, good data taken, every answer as documented."""
    node = await stage.node()
    token = stage.tokens.issue("ada", hub_role="admin").token
    await fuzz(node.url, token, tmp_path, paths="^/api/v1/", examples=15, strict=False)
    async with aiohttp.ClientSession() as http, http.get(f"{node.url}/readyz") as response:
        assert response.status == 200
    assert '"level":"error"' not in node.log()


async def test_no_route_answers_without_a_token(stage: Stage) -> None:
    """S-171: 401 on every REST route."""
    node = await stage.node()
    async with aiohttp.ClientSession() as http:
        for command in all_commands():
            if command.http is None:
                continue
            path = "/api/v1" + re.sub(r"{\w+}", "7b7c1f0a-5d0e-4d0c-9c3e-2f1a6b8d4e10", command.http.path)
            async with http.request(command.http.method, f"{node.url}{path}") as response:
                assert (response.status, path) == (401, path)
                assert (await response.json(content_type=None))["code"] == "unauthenticated"
