"""What both documents are made of: schemas, the table of errors, words about commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from hub.commands import Command
from hub.protocol.errors import TABLE, FieldError

# Of the contract, not of the package: `protocol: "1"`, and a second number that counts additions.
VERSION: Final = "1.0"
REF: Final = "#/components/schemas/{name}"
JsonObject = dict[str, Any]


def text(document: JsonObject) -> str:
    """The document as it is served and kept in `docs/`."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def components_of(types: Iterable[Any]) -> JsonObject:
    wanted = [kind for kind in dict.fromkeys(types) if kind is not type(None)]
    _, schemas = msgspec.json.schema_components([*wanted, FieldError], ref_template=REF)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = unwrapped(schema["description"])
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


def schema_of(kind: Any) -> JsonObject:
    if kind is type(None):
        return {"type": "null"}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REF)
    return schema


def schema_name(kind: Any) -> str:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REF)
    return str(schema["$ref"]).rpartition("/")[2]


def ref_to(name: str) -> str:
    return REF.format(name=name)


def error_codes(wanted: Any) -> JsonObject:
    return {
        "type": "string",
        "title": "ErrorCode",
        "description": "What programs branch on. New ones may come.",
        "enum": sorted(code for code, error in TABLE.items() if wanted(error.status)),
    }


def error_table() -> JsonObject:
    return {
        code: {
            "status": error.status or None,
            "retryable": error.retryable,
            "description": first_line(error.__doc__ or code),
        }
        for code, error in sorted(TABLE.items())
    }


def described(command: Command) -> str:
    who = {
        "public": "anybody, without a token too",
        "anyone": "anybody with a token, guests too",
        "user": "users, not guests",
        "member": "members of the call",
        "owner": "the owner of the call and admins of the tenant",
        "admin": "admins of the tenant",
        "operator": "operators of the installation (service tokens)",
    }.get(command.needs, f"members of the call with `{command.needs}`")
    lines = [unwrapped(command.summary), f"For {who}. At most {command.rate.times} per {command.rate.per_s:g} s."]
    if command.emits:
        lines.append("Tells " + ", ".join(f"`{name}`" for name in sorted(event.name for event in command.emits)) + ".")
    return "\n\n".join(lines)


def rate_of(command: Command) -> JsonObject:
    return {"times": command.rate.times, "per_s": command.rate.per_s}


def info_of(title: str) -> JsonObject:
    return {
        "title": f"AuraLink Hub: {title}",
        "version": VERSION,
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }


def key_of(name: str) -> str:
    return name.replace(":", "_")


def unwrapped(prose: str) -> str:
    """A docstring without its line breaks; paragraphs stay."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", prose.strip()))


def first_line(prose: str) -> str:
    return prose.strip().splitlines()[0].strip()
