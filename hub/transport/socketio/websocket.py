"""Messages of a client out of a stream of bytes (RFC 6455 §5). No I/O here: bytes in, messages out."""

from __future__ import annotations

from typing import Final

from hub.transport.socketio import frames

try:
    # XOR in C. Not public; what it does is covered by tests, and below is what does the same.
    from aiohttp._websocket.helpers import websocket_mask
except ImportError:  # pragma: no cover

    def websocket_mask(mask: bytes, data: bytearray) -> None:
        size = len(data)
        key = (mask * (size // 4 + 1))[:size]
        data[:] = (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


_FINAL, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F
_MASKED, _SIZE = 0x80, 0x7F
_LONE_TEXT = _FINAL | frames.TEXT
_FIRST_CONTROL = 8
# Control frames are never in pieces and never longer.
_CONTROL_BYTES = 125
# A flag, a size and a key: the shortest frame.
_SHORTEST = 6
# The same with a size of eight bytes.
_LONGEST_HEAD = 14
# RFC 6455 §7.4: codes that a peer may put into a frame, below those for applications.
_CLOSE_CODES: Final = frozenset((*range(1000, 1004), *range(1007, 1015)))


class Broken(Exception):
    """The peer does not speak the protocol, or too much of it. `code` is what to close with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Reader:
    """`feed` it what arrives; ask it for the `next` message until there is none.

    What has arrived is not looked at before it is asked for, so a caller that is busy can let it lie.
    """

    __slots__ = ("_at", "_chunk", "_later", "_limit", "_opcode", "_parts", "_wanted", "held")

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of a message, over all its fragments."""
        self._limit = limit
        # What is being read, from `_at` on, and what came behind it.
        self._chunk = b""
        self._at = 0
        self._later: list[bytes] | None = None
        self.held = 0
        # Fewer bytes are not worth looking at: a large frame comes in many pieces.
        self._wanted = _SHORTEST
        # Fragments of a message that is not complete.
        self._opcode = 0
        self._parts: bytearray | None = None

    def widen(self, limit: int) -> None:
        """Take longer messages from here on."""
        self._limit = limit

    def feed(self, data: bytes) -> None:
        if not self.held:
            self._chunk, self._at = data, 0
        elif self._later is None:
            self._later = [data]
        else:
            self._later.append(data)
        self.held += len(data)

    def lone_text(self, data: bytes) -> bytes | None:
        """The text, where all that has arrived is one short text in one piece, as nearly always; else None: `feed`."""
        size = len(data)
        if self.held or self._parts is not None or not _SHORTEST <= size <= self._limit or data[0] != _LONE_TEXT:
            return None
        head = _SHORTEST if data[1] < _MASKED | 126 else _SHORTEST + 2
        if size - head != (data[1] & _SIZE if head == _SHORTEST else data[2] << 8 | data[3]) or data[1] < _MASKED:
            return None
        payload = bytearray(data[head:])
        websocket_mask(data[head - 4 : head], payload)
        return bytes(payload) if payload.isascii() else None

    def next(self) -> tuple[int, bytes] | None:
        """The next whole message, TEXT (valid UTF-8) or BINARY, or control frame. Raises Broken: no more after that."""
        text = self._short_text() if self._later is None and self._parts is None else None
        if text is not None:
            return frames.TEXT, text
        while self.held >= self._wanted:
            if self._later is not None and len(self._chunk) - self._at < _LONGEST_HEAD:
                self._chunk = b"".join((self._chunk[self._at :], *self._later))
                self._at, self._later = 0, None
            frame = self._frame()
            if frame is None:
                return None
            first, payload = frame
            message = self._whole(first & _OPCODE, first & _FINAL, payload)
            if message is not None:
                return message
        return None

    def _short_text(self) -> bytes | None:
        """The next message, where it is one of several short texts that came in one piece."""
        chunk, at, size = self._chunk, self._at, self.held
        if size < _SHORTEST or chunk[at] != _LONE_TEXT or chunk[at + 1] < _MASKED:
            return None
        start = at + _SHORTEST
        length = chunk[at + 1] & _SIZE
        if length == 126:
            start += 2
            length = chunk[at + 2] << 8 | chunk[at + 3]
        end = start + length
        if length == 127 or end > len(chunk) or length > self._limit:
            return None
        payload = bytearray(chunk[start:end])
        websocket_mask(chunk[start - 4 : start], payload)
        if not payload.isascii():
            return None
        self.held -= end - at
        self._wanted = _SHORTEST
        if self.held:
            self._at = end
        else:
            self._chunk = b""
        return bytes(payload)

    def _frame(self) -> tuple[int, bytes] | None:
        """First byte and payload, or None while it has not arrived."""
        chunk, at = self._chunk, self._at
        first, second = chunk[at], chunk[at + 1]
        size, head = second & _SIZE, _SHORTEST
        if size > _CONTROL_BYTES:
            width = 2 if size == 126 else 8
            head += width
            if self.held < head:
                self._wanted = head
                return None
            size = int.from_bytes(chunk[at + 2 : at + 2 + width], "big")
        if not second & _MASKED:
            raise Broken(frames.PROTOCOL_ERROR, "a frame without a mask")
        self._check(first, size)
        if self.held < head + size:
            self._wanted = head + size
            return None
        start = at + head
        self.held -= head + size
        self._wanted = _SHORTEST
        payload = self._take(start, size)
        websocket_mask(chunk[start - 4 : start], payload)
        return first, bytes(payload)

    def _take(self, start: int, size: int) -> bytearray:
        """A copy of `size` bytes, from `start` of the chunk on; what is read next stands behind them."""
        chunk, later, end = self._chunk, self._later or [], start + size
        if end < len(chunk):
            self._at = end
            return bytearray(memoryview(chunk)[start:end])
        pieces: list[bytes | memoryview] = [memoryview(chunk)[start:]]
        missing, used, self._at = end - len(chunk), 0, 0
        while missing:
            piece = later[used]
            if len(piece) > missing:
                pieces.append(memoryview(piece)[:missing])
                self._at = missing
                break
            pieces.append(piece)
            missing -= len(piece)
            used += 1
        self._chunk, self._later = (later[used], later[used + 1 :] or None) if used < len(later) else (b"", None)
        return bytearray().join(pieces)

    def _check(self, first: int, size: int) -> None:
        if first & _RESERVED:
            raise Broken(frames.PROTOCOL_ERROR, "a reserved bit")
        opcode = first & _OPCODE
        if opcode >= _FIRST_CONTROL:
            if opcode > frames.PONG or not first & _FINAL or size > _CONTROL_BYTES:
                raise Broken(frames.PROTOCOL_ERROR, "not a control frame")
            return
        if opcode > frames.BINARY:
            raise Broken(frames.PROTOCOL_ERROR, "an unknown kind of frame")
        if (opcode == frames.CONTINUATION) is not (self._parts is not None):
            raise Broken(frames.PROTOCOL_ERROR, "a fragment out of place")
        if size + (len(self._parts) if self._parts else 0) > self._limit:
            raise Broken(frames.TOO_BIG, "a message over the limit")

    def _whole(self, opcode: int, final: int, payload: bytes) -> tuple[int, bytes] | None:
        if opcode >= _FIRST_CONTROL:
            if opcode == frames.CLOSE:
                _check_close(payload)
            return opcode, payload
        if not final or self._parts is not None:
            if self._parts is None:
                self._opcode, self._parts = opcode, bytearray()
            self._parts += payload
            if not final:
                return None
            opcode, payload, self._parts = self._opcode, bytes(self._parts), None
        if opcode == frames.TEXT and not payload.isascii():
            _check_text(payload)
        return opcode, payload


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        # Not chained into a log: the text of the error holds data.
        raise Broken(frames.NOT_TEXT, "not UTF-8") from None


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (code in _CLOSE_CODES or 3000 <= code < 5000):
        raise Broken(frames.PROTOCOL_ERROR, "not a close code")
    _check_text(payload[2:])
