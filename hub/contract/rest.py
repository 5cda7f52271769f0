"""The REST door as an OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hub.commands import Command, Commands, callers
from hub.contract.parts import (
    JsonObject,
    components_of,
    described,
    error_codes,
    error_table,
    first_line,
    info_of,
    key_of,
    rate_of,
    ref_to,
    schema_name,
    schema_of,
)
from hub.protocol.errors import TABLE
from hub.protocol.problems import CONTENT_TYPE, HttpProblem
from hub.samples import sample

_BASE: Final = "/api/v1"
_BODY_METHODS = frozenset({"POST", "PATCH", "PUT"})
_ROOM_NAME = {"type": "string", "pattern": r"^room_[a-z0-9]+_[0-9]+$"}


def openapi(commands: Commands) -> JsonObject:
    """The REST door as an OpenAPI 3.1 document."""
    routed = sorted(
        (command for command in commands if command.http), key=lambda c: (c.http.path, c.http.method) if c.http else ()
    )
    answers = (c.answer for c in routed if c.http and c.http.content == "application/json")
    schemas = components_of([*(c.message for c in routed), *answers, HttpProblem])
    schemas["HttpProblem"]["properties"]["code"] = {"$ref": ref_to("ErrorCode")}
    schemas["ErrorCode"] = error_codes(lambda status: status != 0)
    paths: JsonObject = {}
    for command in routed:
        assert command.http is not None
        path = paths.setdefault(_BASE + command.http.path, {})
        path[command.http.method.lower()] = _operation(command, schemas)
    paths.update(_plain_paths())
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": info_of("REST door"),
        "servers": [{"url": "/", "description": "This hub"}],
        "security": [{"bearer": []}],
        "tags": _tags(routed),
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": _problem_responses(),
            "headers": _headers(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A user token of the identity provider, or a guest token made by the hub.",
                },
                "livekit": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "LiveKit's own signature: a bare JWT over the SHA-256 of the body.",
                },
            },
        },
        "x-errors": error_table(),
    }


def _operation(command: Command, schemas: JsonObject) -> JsonObject:
    assert command.http is not None
    message = schemas[schema_name(command.message)]
    operation: JsonObject = {
        "operationId": key_of(command.name),
        "summary": first_line(command.summary),
        "description": described(command),
        "tags": [command.noun],
    }
    in_path = set(command.http.fields)
    parameters = [_path_parameter(name, message["properties"][name]) for name in command.http.fields]
    if command.http.method in _BODY_METHODS:
        body = _body_schema(command, message, in_path, schemas)
        if body is not None:
            operation["requestBody"] = body
    else:
        required = message.get("required", [])
        parameters += [
            {"name": name, "in": "query", "required": name in required, **_parameter(schema)}
            for name, schema in message["properties"].items()
            if name not in in_path
        ]
    parameters += _header_parameters(command)
    if parameters:
        operation["parameters"] = parameters
    if command.needs == "public":
        operation["security"] = [{}, {"bearer": []}]
    operation["responses"] = _responses(command, schemas)
    operation["x-command"] = command.name
    operation["x-needs"] = command.needs
    operation["x-callers"] = list(callers(command.needs))
    operation["x-rate"] = rate_of(command)
    return operation


def _path_parameter(name: str, schema: JsonObject) -> JsonObject:
    parameter: JsonObject = {"name": name, "in": "path", "required": True, **_parameter(schema)}
    if name == "call_id":
        parameter["schema"] = {"anyOf": [{"type": "string", "format": "uuid"}, _ROOM_NAME]}
    return parameter


def _parameter(schema: JsonObject) -> JsonObject:
    """A schema as a parameter: its description moves up, and null is left out (a parameter is there or not)."""
    schema = dict(schema)
    description = schema.pop("description", None)
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
        rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
        schema = {**rest, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
        description = schema.pop("description", description)
    return {"schema": schema, **({"description": description} if description else {})}


def _body_schema(command: Command, message: JsonObject, in_path: set[str], schemas: JsonObject) -> JsonObject | None:
    """The body is the message without what the path says; None where nothing is left."""
    properties = {name: schema for name, schema in message["properties"].items() if name not in in_path}
    if not properties:
        return None
    name = schema_name(command.message)
    required = [field for field in message.get("required", []) if field not in in_path]
    if in_path:
        name += "Body"
        schemas[name] = {**message, "title": name, "properties": properties, "required": required}
    reference = {"$ref": ref_to(name)}
    if command.http is not None and command.http.form:
        return _form(name, schemas)
    return {
        "required": bool(required),
        "content": {"application/json": {"schema": reference, "example": sample(reference, schemas)}},
    }


def _form(name: str, schemas: JsonObject) -> JsonObject:
    """The fields, and the file beside them."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "description": "The bytes."}
    schema = schemas[name]
    schemas[name] = {
        **schema,
        "properties": {"file": file, **schema["properties"]},
        "required": ["file", *schema.get("required", [])],
    }
    reference = {"$ref": ref_to(name)}
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": reference, "example": sample(reference, schemas)}},
    }


def _header_parameters(command: Command) -> list[JsonObject]:
    assert command.http is not None
    found: list[JsonObject] = []
    if command.http.method == "POST" and command.mutates:
        found.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key and body within 24 hours has one effect and gets the same answer.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
            }
        )
    if command.http.method == "PATCH":
        found.append(
            {
                "name": "If-Match",
                "in": "header",
                "description": "The ETag of what is changed; `precondition_failed` where somebody was faster.",
                "schema": {"type": "string", "maxLength": 256},
            }
        )
    return found


def _responses(command: Command, schemas: JsonObject) -> JsonObject:
    assert command.http is not None
    status = 204 if command.answer is type(None) else command.http.status
    done: JsonObject = {
        "description": "Done",
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
    }
    if command.http.content != "application/json":
        done["content"] = {command.http.content: {"schema": {"type": "string"}, "example": "…"}}
    elif status != 204:
        schema = schema_of(command.answer)
        done["content"] = {"application/json": {"schema": schema, "example": sample(schema, schemas)}}
    if hasattr(command.answer, "etag"):
        done["headers"]["ETag"] = {"$ref": "#/components/headers/ETag"}
    if command.http.location:
        done["headers"]["Location"] = {"$ref": "#/components/headers/Location"}
    if command.http.method == "POST" and command.mutates:
        done["headers"]["Idempotency-Replayed"] = {"$ref": "#/components/headers/Idempotency-Replayed"}
    responses: JsonObject = {str(status): done}
    if command.http.redirect:
        responses["302"] = {
            "description": "There it is",
            "headers": {"Location": {"$ref": "#/components/headers/Location"}},
        }
    for code in sorted(_refusals(command)):
        responses[str(code)] = {"$ref": f"#/components/responses/{code}"}
    responses["default"] = {"$ref": "#/components/responses/default"}
    return responses


def _refusals(command: Command) -> set[int]:
    assert command.http is not None
    found = {400, 401, 403, 422, 429, 500, 503}
    if command.http.fields:
        found |= {404, 409, 410}
    if command.http.method in _BODY_METHODS:
        found |= {409, 413, 415, 502}
    if command.http.method == "PATCH":
        found.add(412)
    return found


def _problem_responses() -> JsonObject:
    by_status: dict[int, list[str]] = {}
    for code, error in sorted(TABLE.items()):
        if error.status:
            by_status.setdefault(error.status, []).append(code)
    responses = {
        str(status): _problem_response(", ".join(f"`{code}`" for code in codes), status)
        for status, codes in sorted(by_status.items())
    }
    responses["default"] = _problem_response("Any other refusal", 0)
    return responses


def _problem_response(description: str, status: int) -> JsonObject:
    response: JsonObject = {
        "description": description,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
        "content": {CONTENT_TYPE: {"schema": {"$ref": ref_to("HttpProblem")}}},
    }
    if status in (429, 503):
        response["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if status == 429:
        response["headers"]["RateLimit"] = {"$ref": "#/components/headers/RateLimit"}
        response["headers"]["RateLimit-Policy"] = {"$ref": "#/components/headers/RateLimit-Policy"}
    return response


def _headers() -> JsonObject:
    plain = {"type": "string"}
    return {
        "X-Request-Id": {
            "description": "Yours if you sent a good one; it finds the request in the logs.",
            "schema": plain,
        },
        "ETag": {"description": "For If-Match; it changes with what PATCH can change.", "schema": plain},
        "Location": {"description": "Where the new thing is.", "schema": {"type": "string", "format": "uri-reference"}},
        "Idempotency-Replayed": {"description": "`true`: this is the answer of the first time.", "schema": plain},
        "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
        "RateLimit": {"description": "What is left (`r`), and until when in seconds (`t`).", "schema": plain},
        "RateLimit-Policy": {"description": "How many (`q`) in how many seconds (`w`).", "schema": plain},
    }


def _plain_paths() -> JsonObject:
    """The routes that are no commands."""
    any_object = {"type": "object"}

    def page(summary: str, kind: str, *, may_fail: bool = False) -> JsonObject:
        content = {kind: {"schema": any_object if kind == "application/json" else {"type": "string"}}}
        responses: JsonObject = {"200": {"description": "Here it is", "content": content}}
        if may_fail:
            responses["503"] = {"$ref": "#/components/responses/503"}
        return {"get": {"summary": summary, "tags": ["server"], "security": [], "responses": responses}}

    paths = {
        "/livez": page("Whether the node is alive; needs nothing else.", "application/json"),
        "/readyz": page("Whether the node may be given work.", "application/json", may_fail=True),
        "/healthz": page(
            "How the node and what it depends on are; `degraded` is 200.", "application/json", may_fail=True
        ),
        "/openapi.json": page("This document.", "application/json"),
        "/asyncapi.json": page("The socket door as AsyncAPI 3.0.", "application/json"),
        "/docs": page("Both documents to read.", "text/html"),
    }
    gone = {
        str(code): {"description": "A page that says so", "content": {"text/html": {"schema": {"type": "string"}}}}
        for code in (410, 429, 503)
    }
    paths["/join/{short_code}"] = page("The page that the URL of a link leads to; counts a click.", "text/html")
    paths["/join/{short_code}"]["get"]["responses"].update(gone)
    paths["/join/{short_code}"]["get"]["parameters"] = [
        {"name": "short_code", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    paths["/readyz"]["get"]["parameters"] = [
        {
            "name": "verbose",
            "in": "query",
            "description": "Present: with every check.",
            "schema": {"type": "string"},
            "allowEmptyValue": True,
        }
    ]
    paths["/webhooks/livekit"] = {
        "post": {
            "operationId": "webhook_receive",
            "summary": "LiveKit tells what happened; 200 says it is stored, or was already.",
            "tags": ["server"],
            "security": [{"livekit": []}],
            "requestBody": {"required": True, "content": {"application/webhook+json": {"schema": any_object}}},
            "responses": {
                "200": {"description": "Stored, or a duplicate"},
                **{str(code): {"$ref": f"#/components/responses/{code}"} for code in (401, 413, 503)},
            },
        }
    }
    return paths


def _tags(commands: Iterable[Command]) -> list[JsonObject]:
    return [{"name": noun} for noun in sorted({"server", *(command.noun for command in commands)})]
