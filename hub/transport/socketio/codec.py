"""Socket.IO 5 packets, as JSON and as msgpack (socket.io-msgpack-parser): in from the wire, out as ready frames.

JSON packets are text, `<type>[<attachments>-][<namespace>,][<ack id>][<JSON>]`, each behind Engine.IO's `4`; a msgpack
packet is one binary message that holds `{type, data, nsp, id?}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta
from socketio import packet

from hub.protocol.plain import loaded
from hub.transport.socketio import frames, gate
from hub.transport.socketio.gate import Malformed

CONNECT, DISCONNECT, EVENT, ACK = packet.CONNECT, packet.DISCONNECT, packet.EVENT, packet.ACK
CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = packet.CONNECT_ERROR, packet.BINARY_EVENT, packet.BINARY_ACK

_ID_DIGITS = 15
_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_decode_event = msgspec.json.Decoder(tuple[str, msgspec.Raw]).decode


class Packet(msgspec.Struct):
    kind: int
    namespace: str
    id: int | None
    data: Any
    # Attachments still to come.
    attachments: int = 0
    # Holds bytes, or what else JSON has no word for.
    foreign: bool = False


class Codec(Protocol):
    """One serializer. What it returns are complete WebSocket frames."""

    name: str
    # Of what it encodes; what it decodes says its own.
    namespace: str

    def decode(self, data: bytes) -> Packet:
        """Raises Malformed."""
        ...

    def connect(self, sid: str) -> bytes: ...
    def connect_error(self, message: str, data: Any, namespace: str = "/") -> bytes: ...
    def disconnect(self) -> bytes: ...
    def event(self, name: str, payload: Any) -> bytes: ...
    def event_json(self, name: str, body: bytes) -> bytes:
        """`body` is the payload's JSON."""
        ...

    def ack(self, number: int, payload: Any) -> bytes: ...
    def binary_event(self, name: str, payload: Any) -> tuple[bytes, int]:
        """An event whose payload holds bytes; as how many frames."""
        ...

    def binary_ack(self, number: int, payload: Any) -> tuple[bytes, int]:
        """An ack whose payload holds bytes; as how many frames."""
        ...

    def packet(self, whole: packet.Packet) -> bytes:
        """One of python-socketio's own packets."""
        ...


class Json:
    name = "json"

    def __init__(self, nesting: int = 32, attachments: int = 4, namespace: str = "/") -> None:
        self._nesting = nesting
        self._attachments = attachments
        self.namespace = namespace
        self._where = _where(namespace)

    def decode(self, data: bytes) -> Packet:
        """`data` as it follows Engine.IO's `4`."""
        try:
            return self._decode(data)
        except (ValueError, IndexError, RecursionError):
            # Not chained into a log: the text of these errors holds data.
            raise Malformed("not a packet") from None

    def _decode(self, data: bytes) -> Packet:
        kind = data[0] - 48
        if not 0 <= kind <= 6:
            raise Malformed("an unknown packet type")
        at, attachments, namespace = 1, 0, "/"
        if kind >= BINARY_EVENT:
            dash = data.index(b"-", 1, 4)
            attachments, at = _number(data[1:dash]), dash + 1
            if not 0 < attachments <= self._attachments:
                raise Malformed("too many attachments")
        if data[at : at + 1] == b"/":
            comma = data.find(b",", at)
            end = len(data) if comma < 0 else comma
            namespace, at = data[at:end].partition(b"?")[0].decode(), min(end + 1, len(data))
        start = at
        while start < len(data) and 48 <= data[start] <= 57:
            start += 1
        number = _number(data[at:start]) if start > at else None
        if start == len(data):
            return Packet(kind, namespace, number, None)
        if data.count(b"[") + data.count(b"{") > self._nesting:
            whole = loaded(data[start:]) if kind == EVENT else _decode_json(data[start:])
            # One more for the list that an event is.
            gate.nesting(whole, self._nesting + 1)
            return Packet(kind, namespace, number, whole, attachments)
        whole = loaded(data[start:]) if kind == EVENT else _decode_json(data[start:])
        return Packet(kind, namespace, number, whole, attachments)

    def plain_event(self, data: bytes) -> tuple[int | None, str, msgspec.Raw] | None:
        """Ack id, name and payload of `42[<id>]["<name>",<JSON>]`, as nearly all packets are; else None: `decode`."""
        start = data.find(b"[", 2, 2 + _ID_DIGITS)
        if start < 0 or data.count(b"[") + data.count(b"{") > self._nesting:
            return None
        try:
            name, payload = _decode_event(data[start:])
            return (int(data[2:start]) if start > 2 else None), name, payload
        except (ValueError, RecursionError):
            return None

    def connect(self, sid: str) -> bytes:
        return frames.text(b"40" + self._where + _encode_json({"sid": sid}))

    def connect_error(self, message: str, data: Any, namespace: str = "/") -> bytes:
        return frames.text(b"44" + _where(namespace) + _encode_json({"message": message, "data": data}))

    def disconnect(self) -> bytes:
        return frames.text(b"41" + self._where)

    def event(self, name: str, payload: Any) -> bytes:
        return self.event_json(name, _encode_json(payload))

    def event_json(self, name: str, body: bytes) -> bytes:
        begins = b'42%b["%b",' % (self._where, name.encode())
        return b"%b%b%b]" % (frames.head(frames.TEXT, len(begins) + len(body) + 1), begins, body)

    def ack(self, number: int, payload: Any) -> bytes:
        return frames.text(b"43%b%d[%b]" % (self._where, number, _encode_json(payload)))

    def binary_event(self, name: str, payload: Any) -> tuple[bytes, int]:
        attachments: list[bytes] = []
        body = _encode_json(_detached(_plain(payload), attachments))
        return _with(b'45%d-%b["%b",%b]' % (len(attachments), self._where, name.encode(), body), attachments)

    def binary_ack(self, number: int, payload: Any) -> tuple[bytes, int]:
        attachments: list[bytes] = []
        body = _encode_json(_detached(_plain(payload), attachments))
        return _with(b"46%d-%b%d[%b]" % (len(attachments), self._where, number, body), attachments)

    def packet(self, whole: packet.Packet) -> bytes:
        encoded = whole.encode()
        head, *attachments = encoded if isinstance(encoded, list) else [encoded]
        return frames.text(b"4" + head.encode()) + b"".join(frames.binary(one) for one in attachments)


def _with(packet: bytes, attachments: Sequence[bytes]) -> tuple[bytes, int]:
    """The packet and its attachments, each copied once."""
    pieces = [frames.text(packet)]
    for one in attachments:
        pieces += (frames.head(frames.BINARY, len(one)), one)
    return b"".join(pieces), 1 + len(attachments)


def _where(namespace: str) -> bytes:
    return b"" if namespace == "/" else namespace.encode() + b","


def _detached(value: Any, attachments: list[bytes]) -> Any:
    """`value` with a placeholder for each of its bytes, which go to `attachments`."""
    match value:
        case bytes() | bytearray() | memoryview():
            attachments.append(bytes(value))
            return {"_placeholder": True, "num": len(attachments) - 1}
        case dict():
            return {key: _detached(item, attachments) for key, item in value.items()}
        case list():
            return [_detached(item, attachments) for item in value]
    return value


class _Wire(msgspec.Struct):
    """The shape of a msgpack packet. Fields we do not know (`options`) are ignored."""

    type: Annotated[int, Meta(ge=0, le=4)]
    nsp: Annotated[str, Meta(min_length=1, max_length=256)]
    data: Any = None
    id: Annotated[int, Meta(ge=0, lt=10**_ID_DIGITS)] | None = None


class Undeclared(msgspec.Struct, frozen=True):
    """An extension type nobody declared."""

    code: int


def _extension(code: int, data: memoryview) -> Any:
    """notepack.io, which stock clients use, writes `undefined` and Date and foreign buffers as extension 0."""
    if code == 0:
        return None if len(data) == 1 else bytes(data)
    return Undeclared(code)


class Msgpack:
    name = "msgpack"

    def __init__(self, nesting: int = 32, namespace: str = "/") -> None:
        self._nesting = nesting
        self.namespace = namespace
        self._decoder = msgspec.msgpack.Decoder(_Wire, ext_hook=_extension)
        self._encode = msgspec.msgpack.Encoder().encode

    def decode(self, data: bytes) -> Packet:
        try:
            wire = self._decoder.decode(data)
        except (ValueError, TypeError, RecursionError):
            raise Malformed("not a packet") from None
        if wire.type in (EVENT, ACK) and not isinstance(wire.data, list):
            raise Malformed("an event must be a list")
        foreign = gate.nesting(wire.data, self._nesting + 1)
        return Packet(wire.type, wire.nsp.partition("?")[0], wire.id, wire.data, foreign=foreign)

    def _frame(self, kind: int, data: Any, namespace: str | None = None, number: int | None = None) -> bytes:
        wire = {"type": kind, "data": data, "nsp": namespace or self.namespace}
        if number is not None:
            wire["id"] = number
        return frames.binary(self._encode(wire))

    def connect(self, sid: str) -> bytes:
        return self._frame(CONNECT, {"sid": sid})

    def connect_error(self, message: str, data: Any, namespace: str = "/") -> bytes:
        return self._frame(CONNECT_ERROR, {"message": message, "data": _plain(data)}, namespace)

    def disconnect(self) -> bytes:
        # Without `data`: the stock parser takes null for an invalid payload.
        return frames.binary(self._encode({"type": DISCONNECT, "nsp": self.namespace}))

    def event(self, name: str, payload: Any) -> bytes:
        return self._frame(EVENT, [name, _plain(payload)])

    def event_json(self, name: str, body: bytes) -> bytes:
        return self._frame(EVENT, [name, _decode_json(body)])

    def ack(self, number: int, payload: Any) -> bytes:
        return self._frame(ACK, [_plain(payload)], number=number)

    def binary_event(self, name: str, payload: Any) -> tuple[bytes, int]:
        return self.event(name, payload), 1

    def binary_ack(self, number: int, payload: Any) -> tuple[bytes, int]:
        return self.ack(number, payload), 1

    def packet(self, whole: packet.Packet) -> bytes:
        kind = {BINARY_EVENT: EVENT, BINARY_ACK: ACK}.get(whole.packet_type, whole.packet_type)
        if kind == DISCONNECT:
            return self.disconnect()
        return self._frame(kind, _plain(whole.data), whole.namespace or "/", whole.id)


def _plain(value: Any) -> Any:
    """As JSON would have it (times and UUIDs as strings), but bytes stay bytes."""
    try:
        return msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview))
    except TypeError:
        # JSON kept from before (msgspec.Raw), inside.
        return _decode_json(_encode_json(value))


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _ID_DIGITS:
        raise Malformed("not a number")
    return int(digits)
