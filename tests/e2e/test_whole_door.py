"""Both doors of a whole hub against their own documents, and nobody without a token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import jsonschema_rs
import pytest

from hub import contract
from hub.actions import all_commands
from tests.e2e.stage import Stage
from tests.transport.fuzzing import fuzz

ASYNCAPI = contract.asyncapi(all_commands())


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
    """S-171: 401 on every REST route but those that are for the public."""
    node = await stage.node()
    async with aiohttp.ClientSession() as http:
        for command in all_commands():
            if command.http is None or command.needs == "public":
                continue
            path = "/api/v1" + re.sub(r"{\w+}", "7b7c1f0a-5d0e-4d0c-9c3e-2f1a6b8d4e10", command.http.path)
            async with http.request(command.http.method, f"{node.url}{path}") as response:
                assert (response.status, path) == (401, path)
                assert (await response.json(content_type=None))["code"] == "unauthenticated"


async def test_what_the_sockets_say_is_what_their_document_says(stage: Stage) -> None:
    """S-225: every event heard and every ack given, held to AsyncAPI by another implementation of JSON Schema."""
    await stage.node()
    ada, bob = await stage.person("ada").connect(), await stage.person("bob").connect()
    call_id = (await ada.create())["call_id"]
    acks = {
        "room:join": await ada.ack("room:join", call_id=call_id),
        "session:ping": await ada.ack("session:ping", client_time=1),
        "room:update": await ada.ack("room:update", call_id=call_id, name="Retro", op_id=str(uuid4())),
    }
    joined = await bob.ask("room:join", call_id=call_id, media=False)
    acks["hand:raise"] = await bob.ack("hand:raise", call_id=call_id)
    acks["room:sync"] = await bob.ack("room:sync", call_id=call_id, since=joined["position"])
    acks["participant:update"] = await bob.ack("participant:update", call_id=call_id, display_name="Robert")
    acks["media:authorize"] = await bob.ack("media:authorize", call_id=call_id)
    acks["room:leave"] = await bob.ack("room:leave", call_id=call_id)
    acks["room:end"] = await ada.ack("room:end", call_id=call_id)
    await ada.wait_for("room:ended")
    for name, ack in acks.items():
        assert ack["ok"], (name, ack)
        _fits(f"{name.replace(':', '_')}.ack", ack)
    # A refusal fits the ack of every command.
    _fits("room_join.ack", await ada.ack("room:join", call_id=str(uuid4())))
    heard = [*ada.heard, *bob.heard]
    for name, payload in heard:
        _fits(f"on.{name.replace(':', '_')}", payload)
    assert {name for name, _ in heard} >= {
        *("session:ready", "participant:joined", "participant:updated", "participant:left"),
        *("hand:raised", "room:updated", "room:ended"),
    }


def _fits(message: str, payload: Any) -> None:
    schema = {**ASYNCAPI["components"]["messages"][message]["payload"], "components": ASYNCAPI["components"]}
    error = next(iter(jsonschema_rs.validator_for(schema).iter_errors(payload)), None)
    assert error is None, f"{message}: {error}"
    # A field that is not in the document is one that nobody knows of.
    if message.startswith("on."):
        assert set(payload) <= set(schema["properties"]), message
