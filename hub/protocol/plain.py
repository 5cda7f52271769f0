"""Payloads without what bites later: JSON has more in it than PostgreSQL and Python agree on. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from hub.protocol.errors import FieldError, ValidationFailed

# What JSON, msgpack and PostgreSQL all carry: beyond, msgpack has no word, and jsonb writes 1e308 as 309 digits.
_MOST: Final = 2**63 - 1
# jsonb writes 1e-300 as 300 zeros.
_LEAST: Final = 1e-30
# JSON has no two ways to write these.
_PLAIN = (
    inspect.NoneType, inspect.BoolType, inspect.IntType, inspect.StrType, inspect.BytesType, inspect.UUIDType,
    inspect.EnumType, inspect.LiteralType,
)  # fmt: skip
# Deeper than anything of ours or of people's metadata, and far from where Python stops.
_DEPTH: Final = 64


def plain(payload: Mapping[str, Any]) -> dict[str, Any]:
    """`payload` with 2.0 as 2, as JavaScript and MessagePack may write it. Raises ValidationFailed.

    Refused is what cannot travel: text with a NUL, which PostgreSQL cannot hold, or with half a character, names that
    are no text, bottomless nesting, and numbers beyond 64 bits or too small to be written out.
    """
    return {_name(name, ""): _plain(value, str(name), 1) for name, value in payload.items()}


def loaded(data: bytes | msgspec.Raw) -> Any:
    """Decoded JSON that may hold half a character, which `plain` refuses by its place. Raises ValueError."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        # Half a character can only be written like that.
        if b"\\ud" not in bytes(data).lower():
            raise
        return json.loads(bytes(data))


def closed(message: type[msgspec.Struct]) -> bool:
    """Whether all that `message` may hold is declared, so that nothing in it can need to be made plain."""
    return _closed(inspect.type_info(message))


def _closed(kind: inspect.Type) -> bool:
    match kind:
        case inspect.Metadata():
            return _closed(kind.type)
        case inspect.StructType():
            return kind.forbid_unknown_fields and all(_closed(field.type) for field in kind.fields)
        case inspect.UnionType():
            return all(map(_closed, kind.types))
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.FrozenSetType():
            return _closed(kind.item_type)
        case inspect.AnyType() | inspect.RawType() | inspect.DictType() | inspect.CustomType():
            return False
        case inspect.FloatType():
            # 2.0 would be made 2.
            return False
    return isinstance(kind, _PLAIN)


def _plain(value: Any, path: str, depth: int) -> Any:
    if isinstance(value, float | int):
        return value if isinstance(value, bool) else _number(value, path)
    if isinstance(value, str):
        return _text(value, path)
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth > _DEPTH:
        raise _refused(path, f"nested deeper than {_DEPTH}")
    # Cut on the way, or a name of 30 kB would be copied for each of the ten thousand things below it.
    path = path[:200]
    if isinstance(value, Mapping):
        return {_name(name, path): _plain(item, f"{path}.{name}", depth + 1) for name, item in value.items()}
    return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]


def _number(value: float, path: str) -> float:
    """Whole ones as whole numbers, as jsonb would give them back."""
    if type(value) is float and not math.isfinite(value):
        raise _refused(path, "not a finite number")
    if abs(value) > _MOST:
        raise _refused(path, "a number beyond 64 bits")
    if value == int(value):
        return int(value)
    if abs(value) < _LEAST:
        raise _refused(path, f"a number below {_LEAST:g}: write 0")
    return value


def _text(value: str, path: str) -> str:
    if "\x00" in value:
        raise _refused(path, "contains NUL")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _refused(path, "contains half a character") from None
    return value


def _name(name: Any, path: str) -> str:
    if not isinstance(name, str):
        raise _refused(path, "names are text")
    return _text(name, path)


def _refused(path: str, reason: str) -> ValidationFailed:
    path = path.replace("\x00", "")[:200]
    return ValidationFailed(f"{path}: {reason}" if path else reason, errors=[FieldError(path, reason)])
