"""The sockets as an AsyncAPI 3.0 document."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from hub import protocol
from hub.commands import APPS, FILES, Command, Commands, Event, callers
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
from hub.protocol.errors import Problem
from hub.samples import sample


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


# Namespace → key, title, description.
_CHANNELS: Final = {
    APPS: (
        "root",
        "The namespace of apps",
        "One object is the payload of every event, one object acknowledges every command.",
    ),
    FILES: (
        "files",
        "The namespace of chunk frames",
        "On a connection of its own, so that nothing else waits behind a file: with stock clients `forceNew`. Bytes "
        "travel as attachments (JSON) or inside the packet (MessagePack).",
    ),
}
# What the server says of the session itself, whatever its namespace.
_OF_EVERY_SOCKET: Final = frozenset(
    ("session:ready", "session:expiring", "session:closing", "server:draining", "server:degraded")
)
# Found when this file is read, not when a node serves: it lists a directory.
_EVENTS: Final = tuple(_protocol_events())


def asyncapi(commands: Commands, events: Iterable[type[Event]] = ()) -> JsonObject:
    """The socket door as an AsyncAPI 3.0 document. `events`: those that neither a command nor `protocol/` names."""
    spoken = sorted((command for command in commands if command.socket), key=lambda command: command.name)
    told = sorted({*events, *_EVENTS, *(e for c in spoken for e in c.emits)}, key=lambda event: event.name)
    schemas = components_of([*(c.message for c in spoken), *(c.answer for c in spoken), *told, Problem, By])
    schemas["Problem"]["properties"]["code"] = {"$ref": ref_to("ErrorCode")}
    schemas["ErrorCode"] = error_codes(lambda status: True)
    messages: JsonObject = {}
    operations: JsonObject = {}
    for command in spoken:
        key = key_of(command.name)
        messages[key] = _command_message(command, schemas)
        messages[f"{key}.ack"] = _ack_message(command, schemas)
        operations[key] = _command_operation(command)
    for event in told:
        key = f"on.{key_of(event.name)}"
        messages[key] = _event_message(event, schemas)
        operations[key] = {
            "action": "send",
            "channel": {"$ref": "#/channels/root"},
            "summary": messages[key]["summary"],
            "messages": [{"$ref": f"#/channels/root/messages/{key}"}],
        }
    heard = {namespace: [*_keys_in(namespace, spoken), *_told_in(namespace, told)] for namespace in _CHANNELS}
    return {
        "asyncapi": "3.0.0",
        "info": info_of("Socket door"),
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
            channel: {
                "address": namespace,
                "title": title,
                "description": description,
                "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in heard[namespace]},
            }
            for namespace, (channel, title, description) in _CHANNELS.items()
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
        "x-errors": error_table(),
    }


def _keys_in(namespace: str, spoken: Iterable[Command]) -> Iterator[str]:
    for command in spoken:
        if namespace in command.namespaces:
            yield from (key_of(command.name), f"{key_of(command.name)}.ack")


def _told_in(namespace: str, told: Iterable[type[Event]]) -> Iterator[str]:
    for event in told:
        if namespace == APPS or event.name in _OF_EVERY_SOCKET:
            yield f"on.{key_of(event.name)}"


def _channel_of(command: Command) -> str:
    return _CHANNELS[command.namespaces[0]][0]


_NO_OP_ID = "Takes no `op_id`, and ignores one that is sent: saying it again does no harm, and is answered anew."


def _command_message(command: Command, schemas: JsonObject) -> JsonObject:
    payload = dict(schemas[schema_name(command.message)])
    properties = dict(payload["properties"])
    if command.mutates:
        properties["op_id"] = {
            "type": "string",
            "format": "uuid",
            "description": "Made by you: the same op_id within 10 minutes has one effect and gets the same ack.",
        }
    properties["traceparent"] = {"type": "string", "description": "W3C trace context; sockets have no headers."}
    payload["properties"] = properties
    repeats = {} if command.mutates else {"description": _NO_OP_ID}
    return {
        "name": command.name,
        "title": command.name,
        "summary": first_line(command.summary),
        **repeats,
        "payload": payload,
        "examples": [{"payload": sample(schemas[schema_name(command.message)], schemas)}],
    }


def _ack_message(command: Command, schemas: JsonObject) -> JsonObject:
    answer = schema_of(command.answer)
    done = {
        "type": "object",
        "title": "Done",
        "properties": {"ok": {"const": True}, "data": answer, "replayed": {"type": "boolean", "default": False}},
        "required": ["ok", "data"] if command.answer is not type(None) else ["ok"],
    }
    refused = {
        "type": "object",
        "title": "Refused",
        "properties": {"ok": {"const": False}, "error": {"$ref": ref_to("Problem")}},
        "required": ["ok", "error"],
    }
    return {
        "name": f"{command.name} ack",
        "title": f"Ack of {command.name}",
        "payload": {"oneOf": [done, refused]},
        "examples": [{"payload": {"ok": True, "data": sample(answer, schemas)}}],
    }


def _command_operation(command: Command) -> JsonObject:
    key, channel = key_of(command.name), f"#/channels/{_channel_of(command)}"
    return {
        "action": "receive",
        "channel": {"$ref": channel},
        "summary": first_line(command.summary),
        "description": described(command),
        "messages": [{"$ref": f"{channel}/messages/{key}"}],
        "reply": {"channel": {"$ref": channel}, "messages": [{"$ref": f"{channel}/messages/{key}.ack"}]},
        "x-needs": command.needs,
        "x-callers": list(callers(command.needs)),
        "x-rate": rate_of(command),
        "x-emits": sorted(event.name for event in command.emits),
        "x-deadline-s": command.deadline_s,
    }


def _event_message(event: type[Event], schemas: JsonObject) -> JsonObject:
    schema = schemas[schema_name(event)]
    envelope: JsonObject = {
        "call_id": {"type": "string", "format": "uuid", "description": "Where the event is about a room."},
        "ts": {"type": "string", "format": "date-time"},
        "by": {"$ref": ref_to("By")},
    }
    if event.recorded:
        envelope["epoch"] = {"type": "string", "description": "The room's log."}
        envelope["offset"] = {"type": "integer", "minimum": 0, "description": "The place in it; without gaps."}
    payload = {**schema, "properties": {**envelope, **schema["properties"]}}
    return {
        "name": event.name,
        "title": event.name,
        "summary": first_line(event.__doc__ or event.name),
        "payload": payload,
        "examples": [{"payload": sample(schema, schemas)}],
        "x-recorded": event.recorded,
    }
