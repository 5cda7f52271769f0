"""An example for a JSON Schema of ours, for the documents: the same schema gives the same example. Pure."""

from __future__ import annotations

from typing import Any

_UUID = "7b7c1f0a-5d0e-4d0c-9c3e-2f1a6b8d4e10"
_FORMATS = {"uuid": _UUID, "date-time": "2026-01-05T09:30:00Z", "uri": "https://example.com/"}
# What a field with this name looks like, where its schema alone would say "text".
_NAMED = {
    "actor": "user-42",
    "call_type": "group",
    "client": "app/1.2.3",
    "code": "timeout",
    "cursor": "b3BhcXVl",
    "data": "hello",
    "device_id": "laptop",
    "display_name": "Ada Lovelace",
    "epoch": "k3v9",
    "identity": "user-42",
    "message": "12 of 12 seats taken",
    "name": "Weekly sync",
    "node_id": "node-1",
    "owner_id": "user-42",
    "q": "sync",
    "region": "default",
    "role": "participant",
    "room_id": "RM_hBqy8oWeNUyv",
    "room_name": "room_k3v9q2m8x1az_1767605400",
    "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "since": "k3v9:41",
    "status": "active",
    "text": "See you at ten",
    "token": "eyJhbGciOiJIUzI1NiJ9…",
    "topic": "app/cursor",
    "url": "wss://livekit.example.com",
    "user_id": "user-42",
}
_NUMBERS = {"duration_s": 61.5, "max_participants": 12, "offset": 41, "participant_count": 3, "quality_score": 4.2}
_OF_STRUCT = {
    ("ParticipantView", "status"): "joined",
    ("CreatedRoom", "status"): "waiting",
    ("CreateRoom", "name"): "Sprint planning",
    ("You", "role"): "authenticated",
    ("Me", "role"): "authenticated",
    ("LobbyEntry", "status"): "waiting",
    ("InboxEntry", "event"): "participant_joined",
    ("InboxEntry", "status"): "done",
    ("NodeView", "status"): "ready",
}
# What is unknown as long as a call goes on.
_NOT_YET = frozenset({"ended_at", "end_reason", "hand_raised_at", "left_at", "left_reason", "next_cursor"})
# Deep enough for a page of participants with their media; what is recursive ends somewhere.
_DEPTH = 6


def sample(schema: dict[str, Any], schemas: dict[str, Any], name: str = "", depth: int = 0) -> Any:
    """A value that fits `schema`, whose references are looked up in `schemas`."""
    if "$ref" in schema:
        return sample(schemas[schema["$ref"].rpartition("/")[2]], schemas, name, depth)
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("contentEncoding") == "base64":
        return "aGVsbG8="
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            kinds = [kind for kind in schema[several] if kind.get("type") != "null"]
            if name in _NOT_YET and len(kinds) < len(schema[several]):
                return None
            return sample(kinds[0], schemas, name, depth)
    return _of_type(schema, schemas, name, depth)


def _of_type(schema: dict[str, Any], schemas: dict[str, Any], name: str, depth: int) -> Any:
    match schema.get("type"):
        case "object":
            return _object(schema, schemas, depth)
        case "array":
            if depth > _DEPTH or not schema.get("items"):
                return []
            return [sample(schema["items"], schemas, _singular(name), depth + 1)]
        case "string":
            return _text(schema, name)
        case "integer":
            return schema.get("default") or max(_NUMBERS.get(name, 1), schema.get("minimum", 1))
        case "number":
            return schema.get("default") or max(_NUMBERS.get(name, 1.5), schema.get("minimum", 0))
        case "boolean":
            return schema.get("default", True)
        case _:
            return None


def _object(schema: dict[str, Any], schemas: dict[str, Any], depth: int) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        name: _OF_STRUCT.get((schema.get("title", ""), name)) or sample(part, schemas, name, depth + 1)
        for name, part in schema.get("properties", {}).items()
        # What may be left out is shown where it has a value of its own.
        if name in required or part.get("default") not in (None, {}, [])
    }


def _text(schema: dict[str, Any], name: str) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    if name.endswith("_at") or name in ("ts", "server_time"):
        return _FORMATS["date-time"]
    text = str(schema.get("default") or _NAMED.get(name, "text"))
    return text[: schema.get("maxLength", len(text))]


def _singular(name: str) -> str:
    return name[:-1] if name.endswith("s") else name
