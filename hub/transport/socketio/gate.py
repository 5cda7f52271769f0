"""What may come in. Pure: everything here looks at data and says no by raising Malformed."""

from __future__ import annotations

from typing import Any

# Names that mean something to Socket.IO itself, on one side or the other, and names that mean something to JavaScript.
RESERVED = frozenset(
    (
        "connect",
        "connect_error",
        "disconnect",
        "disconnecting",
        "newListener",
        "removeListener",
        "__proto__",
        "constructor",
        "prototype",
    )
)
_NAME_CHARS = 128
_PLAIN = (str, int, float, bool, type(None))


class Malformed(Exception):
    """Nothing a well-behaved client sends: the connection is closed. The text is for the log, and holds no data."""


def event(arguments: Any) -> tuple[str, Any]:
    """Name and payload of an event's `[name, payload]`.

    Anything but exactly one payload comes back as None, which no command accepts; the client is told by its ack.
    """
    if not isinstance(arguments, list) or not arguments:
        raise Malformed("an event must be a list")
    name = arguments[0]
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARS:
        raise Malformed("an event must have a name")
    if name in RESERVED:
        raise Malformed("a reserved event name")
    return name, arguments[1] if len(arguments) == 2 else None


def nesting(value: Any, most: int) -> bool:
    """Check a decoded tree: depth, string keys. True where it holds something JSON has no word for."""
    if isinstance(value, dict):
        if most <= 0:
            raise Malformed("nested too deep")
        foreign = False
        for key, item in value.items():
            if not isinstance(key, str):
                raise Malformed("a key must be a string")
            foreign = nesting(item, most - 1) or foreign
        return foreign
    if isinstance(value, list):
        if most <= 0:
            raise Malformed("nested too deep")
        foreign = False
        for item in value:
            foreign = nesting(item, most - 1) or foreign
        return foreign
    return not isinstance(value, _PLAIN)


def rebuild(value: Any, attachments: tuple[bytes, ...], most: int) -> Any:
    """`value` with its placeholders filled: each attachment exactly once, or one small packet becomes a huge one."""
    unused = dict(enumerate(attachments))
    whole = _fill(value, unused, most)
    if unused:
        raise Malformed("an attachment without a placeholder")
    return whole


def _fill(value: Any, unused: dict[int, bytes], most: int) -> Any:
    if isinstance(value, dict):
        if most <= 0:
            raise Malformed("nested too deep")
        if value.get("_placeholder") is True:
            number = value.get("num")
            if type(number) is not int or number not in unused:
                raise Malformed("a placeholder for no attachment, or used twice")
            return unused.pop(number)
        return {key: _fill(item, unused, most - 1) for key, item in value.items()}
    if isinstance(value, list):
        if most <= 0:
            raise Malformed("nested too deep")
        return [_fill(item, unused, most - 1) for item in value]
    return value


class Flood:
    """Three strikes: a strike is `strike` refused packets; ten quiet seconds forgive all."""

    __slots__ = ("_last", "_refused", "_strike")

    def __init__(self, strike: int) -> None:
        self._strike = strike
        self._refused = 0
        self._last = 0.0

    def refuse(self, now: float) -> bool:
        """Count one refused packet. True: enough."""
        if now - self._last > 10:
            self._refused = 0
        self._last = now
        self._refused += 1
        return self._refused >= 3 * self._strike
