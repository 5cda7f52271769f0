"""Complete WebSocket frames (RFC 6455 §5.2). A server does not mask, so one frame serves every recipient."""

from __future__ import annotations

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def head(opcode: int, size: int) -> bytes:
    """What stands before the `size` bytes of one final, unmasked frame."""
    if size < 126:
        return bytes((0x80 | opcode, size))
    if size < 65536:
        return bytes((0x80 | opcode, 126, size >> 8, size & 255))
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")


def frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame."""
    return head(opcode, len(payload)) + payload


def text(payload: bytes) -> bytes:
    return frame(TEXT, payload)


def binary(payload: bytes) -> bytes:
    return frame(BINARY, payload)


def close(code: int) -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big"))


# RFC 6455 §7.4.1, and 1012 "service restart" of the IANA registry: stock clients reconnect after it.
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NOT_TEXT, POLICY, TOO_BIG, RESTART = 1000, 1001, 1002, 1007, 1008, 1009, 1012
