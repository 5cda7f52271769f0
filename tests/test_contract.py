"""The two documents against the code: nothing missing, nothing made up, every example good."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from hub import contract
from hub.actions import all_commands
from hub.commands import Event
from hub.protocol.errors import TABLE

COMMANDS = all_commands()
OPENAPI = contract.openapi(COMMANDS)
ASYNCAPI = contract.asyncapi(COMMANDS)
DOCS = Path(__file__).parents[1] / "docs"
Json = dict[str, Any]


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every object in a document."""
    if isinstance(value, dict):
        yield path, value
        for name, part in value.items():
            yield from walk(part, f"{path}/{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from walk(part, f"{path}/{index}")


def operations() -> Iterator[tuple[str, str, Json]]:
    for path, verbs in OPENAPI["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def resolved(document: Json, reference: str) -> Any:
    found: Any = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


@pytest.mark.parametrize(("name", "document"), [("openapi", OPENAPI), ("asyncapi", ASYNCAPI)])
def test_the_documents_in_docs_are_the_ones_the_code_makes(name: str, document: Json) -> None:
    """S-225: run `auralink-hub spec openapi` and `spec asyncapi` into docs/ after a change."""
    assert (DOCS / f"{name}.json").read_text() == contract.text(document)


def test_the_same_commands_give_the_same_bytes() -> None:
    assert contract.text(contract.openapi(all_commands())) == contract.text(OPENAPI)
    assert contract.text(contract.asyncapi(all_commands())) == contract.text(ASYNCAPI)


@pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(document: Json) -> None:
    """S-193"""
    references = [part["$ref"] for _, part in walk(document) if isinstance(part.get("$ref"), str)]
    assert len(references) > 100
    for reference in references:
        resolved(document, reference)


@pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])
def test_every_schema_is_a_json_schema(document: Json) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name


def test_every_route_of_a_command_is_there_and_no_other_under_api() -> None:
    """S-193, S-225"""
    declared = {
        ("/api/v1" + command.http.path, command.http.method.lower()) for command in COMMANDS if command.http is not None
    }
    shown = {(path, verb) for path, verb, _ in operations() if path.startswith("/api/")}
    assert shown == declared


def test_operations_have_names_words_and_parameters_for_their_paths() -> None:
    """S-193"""
    ids = [operation["operationId"] for _, _, operation in operations() if "operationId" in operation]
    assert len(ids) == len(set(ids))
    for path, verb, operation in operations():
        assert operation["summary"].endswith((".", "`", ")", ";")) or operation["summary"], (path, verb)
        named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), (path, verb)
        assert "requestBody" not in operation or verb in ("post", "patch", "put")


def test_every_protected_route_says_401_and_every_refusal_is_a_problem() -> None:
    """S-171, S-192"""
    for path, _, operation in operations():
        if not path.startswith("/api/"):
            continue
        public = operation["x-needs"] == "public"
        assert operation.get("security", "the rule") == ([{}, {"bearer": []}] if public else "the rule")
        assert {"401", "403", "429", "503", "default"} <= operation["responses"].keys()
        for status, response in operation["responses"].items():
            if not status.startswith(("2", "3")):
                full = resolved(OPENAPI, response["$ref"])
                assert list(full["content"]) == ["application/problem+json"]
    assert OPENAPI["security"] == [{"bearer": []}]


def test_a_created_thing_says_where_it_is() -> None:
    """S-193"""
    for path, _, operation in operations():
        if "201" in operation["responses"]:
            assert "Location" in operation["responses"]["201"]["headers"], path


def test_lists_page_alike() -> None:
    """S-193: pagination uniform."""
    schemas = OPENAPI["components"]["schemas"]
    for path, verb, operation in operations():
        queries = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "query"}
        if verb != "get" or "cursor" not in queries:
            continue
        assert queries["limit"]["schema"]["minimum"] == 1 and queries["limit"]["schema"]["maximum"] == 100, path
        name = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(schemas[name]["required"]) >= {"items", "next_cursor"}, path


def test_the_error_table_is_whole_in_both() -> None:
    """S-192: the same codes over HTTP and in acks."""
    assert OPENAPI["x-errors"].keys() == ASYNCAPI["x-errors"].keys() == TABLE.keys()
    assert ASYNCAPI["components"]["schemas"]["ErrorCode"]["enum"] == sorted(TABLE)
    assert set(OPENAPI["components"]["schemas"]["ErrorCode"]["enum"]) == {
        code for code, error in TABLE.items() if error.status
    }
    for code, error in TABLE.items():
        if error.status:
            assert f"`{code}`" in OPENAPI["components"]["responses"][str(error.status)]["description"]


def test_every_socket_command_has_its_message_its_ack_and_its_words() -> None:
    """S-225"""
    messages = ASYNCAPI["components"]["messages"]
    for command in COMMANDS:
        key = command.name.replace(":", "_")
        assert (key in ASYNCAPI["operations"]) is command.socket
        if not command.socket:
            continue
        operation = ASYNCAPI["operations"][key]
        assert (operation["action"], operation["x-needs"]) == ("receive", command.needs)
        assert messages[key]["name"] == command.name
        assert ("op_id" in messages[key]["payload"]["properties"]) is command.mutates
        assert ("Takes no `op_id`" in messages[key].get("description", "")) is not command.mutates
        channel = {"/": "root", "/files": "files"}[command.namespaces[0]]
        assert operation["reply"]["messages"] == [{"$ref": f"#/channels/{channel}/messages/{key}.ack"}]
        for namespace, channel in (("/", "root"), ("/files", "files")):
            assert (key in ASYNCAPI["channels"][channel]["messages"]) is (namespace in command.namespaces)


def test_every_event_a_command_emits_is_there_and_so_are_the_notices() -> None:
    """S-225"""
    told = {one["name"]: one for key, one in ASYNCAPI["components"]["messages"].items() if key.startswith("on.")}
    emitted: set[type[Event]] = {event for command in COMMANDS for event in command.emits}
    assert {event.name for event in emitted} <= told.keys()
    for name in ("session:ready", "session:expiring", "session:closing", "server:draining", "server:degraded"):
        assert name in told
    for event in emitted:
        assert told[event.name]["x-recorded"] is event.recorded
        assert ("offset" in told[event.name]["payload"]["properties"]) is event.recorded


# Examples.


def _examples() -> Iterator[tuple[str, Any, Any]]:
    """Where, the type it must be, the example."""
    for command in COMMANDS:
        if command.socket:
            key = command.name.replace(":", "_")
            messages = ASYNCAPI["components"]["messages"]
            yield command.name, command.message, messages[key]["examples"][0]["payload"]
            yield f"{command.name} ack", command.answer, messages[f"{key}.ack"]["examples"][0]["payload"]["data"]
        if command.http is not None:
            operation = OPENAPI["paths"]["/api/v1" + command.http.path][command.http.method.lower()]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                # What the path says is put in as the door does it.
                path = dict.fromkeys(command.http.fields, "7b7c1f0a-5d0e-4d0c-9c3e-2f1a6b8d4e10")
                # A form's file is beside its fields.
                left_out = {"file"} if command.http.form else set()
                fields = {name: value for name, value in content["example"].items() if name not in left_out}
                yield f"{command.http.path} body", command.message, {**path, **fields}
            for response in operation["responses"].values():
                for content_type, content in response.get("content", {}).items():
                    kind = command.answer if content_type == "application/json" else str
                    yield f"{command.http.path} answer", kind, content["example"]


EXAMPLES = list(_examples())


@pytest.mark.parametrize(("where", "kind", "example"), EXAMPLES, ids=[one[0] for one in EXAMPLES])
def test_every_example_is_one_the_hub_would_take_or_give(where: str, kind: Any, example: Any) -> None:
    """S-225: examples validate."""
    if kind is type(None):
        assert example is None
    else:
        msgspec.convert(example, kind)


def test_every_example_fits_the_schema_it_stands_beside() -> None:
    """S-225: by another implementation of JSON Schema than the one that made them."""
    checked = 0
    for where, part in walk(OPENAPI["paths"]):
        if "example" in part and "schema" in part:
            schema = {**part["schema"], "components": OPENAPI["components"]}
            jsonschema_rs.validator_for(schema).validate(part["example"])
            checked += 1
            assert where
    for message in ASYNCAPI["components"]["messages"].values():
        schema = {**message["payload"], "components": ASYNCAPI["components"]}
        for example in message["examples"]:
            jsonschema_rs.validator_for(schema).validate(example["payload"])
            checked += 1
    assert checked > 60
