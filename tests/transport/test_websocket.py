"""Messages out of bytes: what RFC 6455 asks of a server, and the limits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.transport.socketio import frames
from hub.transport.socketio.websocket import Broken, Reader

LIMIT = 100_000
KEY = b"\x01\x82\x43\xc4"


def masked(opcode: int, payload: bytes, *, final: bool = True, key: bytes = KEY, reserved: int = 0) -> bytes:
    """A client's frame, made the slow way."""
    size = len(payload)
    head = bytes(((0x80 if final else 0) | reserved | opcode,))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 65536:
        head += b"\xfe" + size.to_bytes(2, "big")
    else:
        head += b"\xff" + size.to_bytes(8, "big")
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def heard(data: bytes, cuts: list[int] | None = None, limit: int = LIMIT) -> list[tuple[int, bytes]]:
    reader, messages, at = Reader(limit), [], 0
    for cut in [*sorted(cuts or []), len(data)]:
        if data[at:cut]:
            reader.feed(data[at:cut])
        at = max(at, cut)
        while (message := reader.next()) is not None:
            messages.append(message)
    return messages


def code(data: bytes, limit: int = LIMIT) -> int:
    with pytest.raises(Broken) as broken:
        heard(data, limit=limit)
    return broken.value.code


@pytest.mark.parametrize("size", [0, 1, 3, 125, 126, 127, 65_535, 65_536, 70_001])
def test_a_frame_of_any_size_is_unmasked(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    assert heard(masked(frames.BINARY, payload)) == [(frames.BINARY, payload)]
    assert heard(masked(frames.BINARY, payload), [1, 5, 9, size // 2]) == [(frames.BINARY, payload)]


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 4), st.binary(min_size=4, max_size=4)), max_size=6),
    st.lists(st.integers(0, 3000), max_size=10),
)
def test_however_the_stream_is_cut_the_messages_are_the_same(
    messages: list[tuple[bytes, int, bytes]], cuts: list[int]
) -> None:
    stream = b""
    for payload, pieces, key in messages:
        step = max(1, -(-len(payload) // pieces))
        parts = [payload[at : at + step] for at in range(0, len(payload), step)] or [b""]
        for number, part in enumerate(parts):
            opcode = frames.CONTINUATION if number else frames.BINARY
            stream += masked(opcode, part, final=number == len(parts) - 1, key=key)
            # Control frames may come in between.
            stream += masked(frames.PING, b"?")
    data = [message for message in heard(stream, [cut for cut in cuts if cut < len(stream)]) if message[0] != 9]
    assert data == [(frames.BINARY, payload) for payload, _, _ in messages]


def test_a_caller_may_let_things_lie() -> None:
    reader = Reader(LIMIT)
    reader.feed(masked(frames.TEXT, b"one") + masked(frames.TEXT, b"two"))
    assert reader.next() == (frames.TEXT, b"one")
    reader.feed(masked(frames.TEXT, b"three"))
    assert reader.held > 0
    assert [reader.next(), reader.next(), reader.next()] == [(frames.TEXT, b"two"), (frames.TEXT, b"three"), None]
    assert reader.held == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x03abc" + bytes(4),  # not masked
        masked(frames.TEXT, b"x", reserved=0x40),  # compressed, which was never agreed
        masked(frames.TEXT, b"x", reserved=0x10),
        masked(3, b"x"),
        masked(11, b"x"),
        masked(frames.CONTINUATION, b"x"),
        masked(frames.TEXT, b"x", final=False) + masked(frames.TEXT, b"y"),
        masked(frames.PING, b"x", final=False),
        masked(frames.PING, b"x" * 126),
        masked(frames.CLOSE, b"x"),
        masked(frames.CLOSE, (999).to_bytes(2, "big")),
        masked(frames.CLOSE, (1005).to_bytes(2, "big")),
        masked(frames.CLOSE, (5000).to_bytes(2, "big")),
    ],
)
def test_what_is_not_the_protocol_is_a_protocol_error(data: bytes) -> None:
    assert code(data) == 1002


@pytest.mark.parametrize(
    "data",
    [
        masked(frames.TEXT, b"\xff"),
        masked(frames.TEXT, "ä".encode()[:1]),
        masked(frames.TEXT, b"\xed\xa0\x80"),
        masked(frames.CLOSE, (1000).to_bytes(2, "big") + b"\xff"),
    ],
)
def test_text_is_utf_8(data: bytes) -> None:
    assert code(data) == 1007


def test_a_character_may_be_cut_by_a_fragment() -> None:
    whole = "käse".encode()
    data = masked(frames.TEXT, whole[:2], final=False) + masked(frames.CONTINUATION, whole[2:])
    assert heard(data) == [(frames.TEXT, whole)]


def test_too_much_is_refused_before_it_has_come() -> None:
    assert code(masked(frames.BINARY, bytes(1001), key=KEY)[:8], limit=1000) == 1009
    half = masked(frames.BINARY, bytes(600), final=False)
    assert code(half + masked(frames.CONTINUATION, bytes(600))[:8], limit=1000) == 1009
    assert code(b"\x82\xff" + b"\xff" * 8 + KEY) == 1009


def test_a_close_frame_is_handed_on() -> None:
    for payload in (b"", (1000).to_bytes(2, "big"), (4001).to_bytes(2, "big") + b"bye"):
        assert heard(masked(frames.CLOSE, payload)) == [(frames.CLOSE, payload)]


@pytest.mark.parametrize("size", [0, 1, 2, 125, 126, 127, 65_535, 65_536])
def test_a_lone_text_is_read_at_once_and_nothing_else_is(size: int) -> None:
    whole = masked(frames.TEXT, b"x" * size)
    fits = size < 65_536
    assert Reader(LIMIT).lone_text(whole) == (b"x" * size if fits else None)
    for other in (
        whole + b"\x81", whole[:-1], masked(frames.BINARY, b"x" * size), masked(frames.TEXT, b"x" * size, final=False),
        masked(frames.TEXT, b"x" * size, reserved=0x40), masked(frames.TEXT, b"x" * size + b"\xc3"),
        b"\x81", b"\x81\xfe",
        bytes((0x81, size & 127)) + bytes(4 + size),
    ):  # fmt: skip
        assert Reader(LIMIT).lone_text(other) is None
    behind, within = Reader(LIMIT), Reader(LIMIT)
    behind.feed(b"\x81")
    within.feed(masked(frames.TEXT, b"x", final=False))
    assert within.next() is None
    assert behind.lone_text(whole) is None and within.lone_text(whole) is None
    assert Reader(size).lone_text(whole) is None
