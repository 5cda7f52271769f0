"""The two documents, OpenAPI 3.1 and AsyncAPI 3.0, out of the declared commands and the events of `protocol/`.

Pure and deterministic: the same commands give the same bytes, so that a test can hold the files in `docs/` to the code.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from hub import protocol
from hub.commands import Command, Commands, Event
from hub.protocol.errors import TABLE, FieldError, Problem
from hub.protocol.problems import CONTENT_TYPE, HttpProblem
from hub.samples import sample

# Of the contract, not of the package: `protocol: "1"`, and a second number that counts additions.
VERSION: Final = "1.0"
_REF: Final = "#/components/schemas/{name}"
_BASE: Final = "/api/v1"
_BODY_METHODS = frozenset({"POST", "PATCH", "PUT"})
_ROOM_NAME = {"type": "string", "pattern": r"^room_[a-z0-9]+_[0-9]+$"}

JsonObject = dict[str, Any]


class By(msgspec.Struct, frozen=True):
    """Whose doing an event is."""

    participant_id: str | None
    user_id: str


def _protocol_events() -> Iterator[type[Event]]:
    """Every event that `hub.protocol` declares: some are told by no command, but by what LiveKit says."""
    for module in pkgutil.iter_modules(protocol.__path__):
        for value in vars(importlib.import_module(f"{protocol.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Event) and value is not Event:
                yield value


# Found when this file is read, not when a node serves: it lists a directory.
_EVENTS: Final = tuple(_protocol_events())


def text(document: JsonObject) -> str:
    """The document as it is served and kept in `docs/`."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def openapi(commands: Commands) -> JsonObject:
    """The REST door as an OpenAPI 3.1 document."""
    routed = sorted(
        (command for command in commands if command.http), key=lambda c: (c.http.path, c.http.method) if c.http else ()
    )
    schemas = _components([*(c.message for c in routed), *(c.answer for c in routed), HttpProblem])
    schemas["HttpProblem"]["properties"]["code"] = {"$ref": _ref("ErrorCode")}
    schemas["ErrorCode"] = _error_codes(lambda status: status != 0)
    paths: JsonObject = {}
    for command in routed:
        assert command.http is not None
        path = paths.setdefault(_BASE + command.http.path, {})
        path[command.http.method.lower()] = _operation(command, schemas)
    paths.update(_plain_paths())
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": _info("REST door"),
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
        "x-errors": _error_table(),
    }


def asyncapi(commands: Commands, events: Iterable[type[Event]] = ()) -> JsonObject:
    """The socket door as an AsyncAPI 3.0 document. `events`: those that neither a command nor `protocol/` names."""
    spoken = sorted((command for command in commands if command.socket), key=lambda command: command.name)
    told = sorted({*events, *_EVENTS, *(e for c in spoken for e in c.emits)}, key=lambda event: event.name)
    schemas = _components([*(c.message for c in spoken), *(c.answer for c in spoken), *told, Problem, By])
    schemas["Problem"]["properties"]["code"] = {"$ref": _ref("ErrorCode")}
    schemas["ErrorCode"] = _error_codes(lambda status: True)
    messages: JsonObject = {}
    operations: JsonObject = {}
    for command in spoken:
        key = _key(command.name)
        messages[key] = _command_message(command, schemas)
        messages[f"{key}.ack"] = _ack_message(command, schemas)
        operations[key] = _command_operation(command)
    for event in told:
        key = f"on.{_key(event.name)}"
        messages[key] = _event_message(event, schemas)
        operations[key] = {
            "action": "send",
            "channel": {"$ref": "#/channels/root"},
            "summary": messages[key]["summary"],
            "messages": [{"$ref": f"#/channels/root/messages/{key}"}],
        }
    return {
        "asyncapi": "3.0.0",
        "info": _info("Socket door"),
        "defaultContentType": "application/json",
        "servers": {
            "hub": {
                "host": "localhost:8080",
                "protocol": "socketio",
                "protocolVersion": "5",
                "pathname": "/socket.io/",
                "description": "Engine.IO 4 over WebSocket only; JSON, or MessagePack with `?parser=msgpack`.",
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            }
        },
        "channels": {
            "root": {
                "address": "/",
                "title": "The namespace of apps",
                "description": "One object is the payload of every event, one object acknowledges every command.",
                "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in messages},
            }
        },
        "operations": operations,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "messages": messages,
            "securitySchemes": {
                "bearer": {
                    "type": "httpApiKey",
                    "in": "header",
                    "name": "auth.token",
                    "description": '`token` in the auth object of CONNECT, beside `protocol: "1"`. Never in a query.',
                }
            },
        },
        "x-errors": _error_table(),
    }


def _operation(command: Command, schemas: JsonObject) -> JsonObject:
    assert command.http is not None
    message = schemas[_name(command.message)]
    operation: JsonObject = {
        "operationId": _key(command.name),
        "summary": _first_line(command.summary),
        "description": _described(command),
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
    operation["responses"] = _responses(command, schemas)
    operation["x-command"] = command.name
    operation["x-needs"] = command.needs
    operation["x-rate"] = _rate(command)
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
    name = _name(command.message)
    required = [field for field in message.get("required", []) if field not in in_path]
    if in_path:
        name += "Body"
        schemas[name] = {**message, "title": name, "properties": properties, "required": required}
    reference = {"$ref": _ref(name)}
    return {
        "required": bool(required),
        "content": {"application/json": {"schema": reference, "example": sample(reference, schemas)}},
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
    if status != 204:
        schema = _schema_of(command.answer)
        done["content"] = {"application/json": {"schema": schema, "example": sample(schema, schemas)}}
    if hasattr(command.answer, "etag"):
        done["headers"]["ETag"] = {"$ref": "#/components/headers/ETag"}
    if command.http.location:
        done["headers"]["Location"] = {"$ref": "#/components/headers/Location"}
    if command.http.method == "POST" and command.mutates:
        done["headers"]["Idempotency-Replayed"] = {"$ref": "#/components/headers/Idempotency-Replayed"}
    responses: JsonObject = {str(status): done}
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
        "content": {CONTENT_TYPE: {"schema": {"$ref": _ref("HttpProblem")}}},
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


def _command_message(command: Command, schemas: JsonObject) -> JsonObject:
    payload = dict(schemas[_name(command.message)])
    properties = dict(payload["properties"])
    if command.mutates:
        properties["op_id"] = {
            "type": "string",
            "format": "uuid",
            "description": "Made by you: the same op_id within 10 minutes has one effect and gets the same ack.",
        }
    properties["traceparent"] = {"type": "string", "description": "W3C trace context; sockets have no headers."}
    payload["properties"] = properties
    return {
        "name": command.name,
        "title": command.name,
        "summary": _first_line(command.summary),
        "payload": payload,
        "examples": [{"payload": sample(schemas[_name(command.message)], schemas)}],
    }


def _ack_message(command: Command, schemas: JsonObject) -> JsonObject:
    answer = _schema_of(command.answer)
    done = {
        "type": "object",
        "title": "Done",
        "properties": {"ok": {"const": True}, "data": answer, "replayed": {"type": "boolean", "default": False}},
        "required": ["ok", "data"] if command.answer is not type(None) else ["ok"],
    }
    refused = {
        "type": "object",
        "title": "Refused",
        "properties": {"ok": {"const": False}, "error": {"$ref": _ref("Problem")}},
        "required": ["ok", "error"],
    }
    return {
        "name": f"{command.name} ack",
        "title": f"Ack of {command.name}",
        "payload": {"oneOf": [done, refused]},
        "examples": [{"payload": {"ok": True, "data": sample(answer, schemas)}}],
    }


def _command_operation(command: Command) -> JsonObject:
    key = _key(command.name)
    return {
        "action": "receive",
        "channel": {"$ref": "#/channels/root"},
        "summary": _first_line(command.summary),
        "description": _described(command),
        "messages": [{"$ref": f"#/channels/root/messages/{key}"}],
        "reply": {
            "channel": {"$ref": "#/channels/root"},
            "messages": [{"$ref": f"#/channels/root/messages/{key}.ack"}],
        },
        "x-needs": command.needs,
        "x-rate": _rate(command),
        "x-emits": sorted(event.name for event in command.emits),
        "x-deadline-s": command.deadline_s,
    }


def _event_message(event: type[Event], schemas: JsonObject) -> JsonObject:
    schema = schemas[_name(event)]
    envelope: JsonObject = {
        "call_id": {"type": "string", "format": "uuid", "description": "Where the event is about a room."},
        "ts": {"type": "string", "format": "date-time"},
        "by": {"$ref": _ref("By")},
    }
    if event.recorded:
        envelope["epoch"] = {"type": "string", "description": "The room's log."}
        envelope["offset"] = {"type": "integer", "minimum": 0, "description": "The place in it; without gaps."}
    payload = {**schema, "properties": {**envelope, **schema["properties"]}}
    return {
        "name": event.name,
        "title": event.name,
        "summary": _first_line(event.__doc__ or event.name),
        "payload": payload,
        "examples": [{"payload": sample(schema, schemas)}],
        "x-recorded": event.recorded,
    }


def _components(types: Iterable[Any]) -> JsonObject:
    wanted = [kind for kind in dict.fromkeys(types) if kind is not type(None)]
    _, schemas = msgspec.json.schema_components([*wanted, FieldError], ref_template=_REF)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = _unwrapped(schema["description"])
    for name, field in _times(msgspec.inspect.multi_type_info(wanted)):
        part = schemas[name]["properties"][field]
        for kind in part.get("anyOf", [part]):
            if kind.get("type") == "string":
                kind["format"] = "date-time"
    return schemas


def _times(types: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """(struct, field) of every time: msgspec names the format only where a field insists on a zone."""
    waiting, seen = list(types), set()
    while waiting:
        match waiting.pop():
            case msgspec.inspect.StructType(cls=cls, fields=fields) if cls not in seen:
                seen.add(cls)
                for field in fields:
                    kinds = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
                    if any(isinstance(kind, msgspec.inspect.DateTimeType) for kind in kinds):
                        yield cls.__name__, field.encode_name
                    waiting.append(field.type)
            case msgspec.inspect.UnionType(types=kinds):
                waiting += kinds
            case msgspec.inspect.ListType(item_type=kind) | msgspec.inspect.DictType(value_type=kind):
                waiting.append(kind)


def _schema_of(kind: Any) -> JsonObject:
    if kind is type(None):
        return {"type": "null"}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return schema


def _name(kind: Any) -> str:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return str(schema["$ref"]).rpartition("/")[2]


def _ref(name: str) -> str:
    return _REF.format(name=name)


def _error_codes(wanted: Any) -> JsonObject:
    return {
        "type": "string",
        "title": "ErrorCode",
        "description": "What programs branch on. New ones may come.",
        "enum": sorted(code for code, error in TABLE.items() if wanted(error.status)),
    }


def _error_table() -> JsonObject:
    return {
        code: {
            "status": error.status or None,
            "retryable": error.retryable,
            "description": _first_line(error.__doc__ or code),
        }
        for code, error in sorted(TABLE.items())
    }


def _described(command: Command) -> str:
    who = {
        "anyone": "anybody with a token, guests too",
        "user": "users, not guests",
        "member": "members of the call",
        "admin": "admins of the tenant",
        "operator": "operators of the installation (service tokens)",
    }.get(command.needs, f"members of the call with `{command.needs}`")
    lines = [_unwrapped(command.summary), f"For {who}. At most {command.rate.times} per {command.rate.per_s:g} s."]
    if command.emits:
        lines.append("Tells " + ", ".join(f"`{name}`" for name in sorted(event.name for event in command.emits)) + ".")
    return "\n\n".join(lines)


def _rate(command: Command) -> JsonObject:
    return {"times": command.rate.times, "per_s": command.rate.per_s}


def _tags(commands: Iterable[Command]) -> list[JsonObject]:
    return [{"name": noun} for noun in sorted({"server", *(command.noun for command in commands)})]


def _info(title: str) -> JsonObject:
    return {
        "title": f"AuraLink Hub: {title}",
        "version": VERSION,
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }


def _key(name: str) -> str:
    return name.replace(":", "_")


def _unwrapped(prose: str) -> str:
    """A docstring without its line breaks; paragraphs stay."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", prose.strip()))


def _first_line(prose: str) -> str:
    return prose.strip().splitlines()[0].strip()
