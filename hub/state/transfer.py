"""How far a file has come in, chunk by chunk: what is in hand, what is on its way to the store, what is durable. Pure.

Three lines move through a file, one behind the other: `kept` (in parts that the store has and the row names), `sent`
(handed to the store) and `received` (in hand on this node, in order). `stored` is what survives this node: `kept`, or
more where a tail was laid aside. All numbers are bytes from the file's beginning, but `number`, which counts from 1.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from hub.protocol import errors


class Piece(msgspec.Struct, frozen=True):
    """A stretch of the file: a part, or a tail that is shorter than one."""

    number: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """`fence` is the writer's; who has a smaller one than the row may not write any more."""

    size_bytes: int
    # Every part but the last has so many; a file of no more than one goes whole, when it is complete.
    part_bytes: int
    # Most that is received and in no part that is kept.
    room_bytes: int
    fence: int
    kept: int = 0
    sent: int = 0
    received: int = 0
    stored: int = 0

    @property
    def whole(self) -> bool:
        return self.received == self.size_bytes

    @property
    def in_parts(self) -> bool:
        return self.size_bytes > self.part_bytes

    @property
    def room(self) -> int:
        """How much more may come before another part is kept."""
        return self.room_bytes - (self.received - self.kept)


def taken_up(
    *, size_bytes: int, part_bytes: int, room_bytes: int, fence: int, kept: int = 0, tail: int = 0
) -> Transfer:
    """As a writer finds it: `kept` in parts, and behind them a tail of so many bytes, which is in hand again."""
    at = kept + tail
    assert 0 <= kept <= at <= size_bytes and tail <= part_bytes < room_bytes
    return Transfer(
        size_bytes=size_bytes,
        part_bytes=part_bytes,
        room_bytes=room_bytes,
        fence=fence,
        kept=kept,
        sent=kept,
        received=at,
        stored=at,
    )


def expect(transfer: Transfer, offset: int, length: int) -> None:
    """Whether a chunk is the next one. Raises OffsetMismatch (a gap, a repetition, an overlap) or FileTooLarge."""
    if offset != transfer.received:
        raise errors.OffsetMismatch(details={"expected_offset": transfer.received, "stored": transfer.stored})
    if offset + length > transfer.size_bytes:
        raise errors.FileTooLarge(
            "more than the size that was offered",
            details={"size_bytes": transfer.size_bytes, "expected_offset": offset},
        )


def fits(transfer: Transfer, length: int) -> bool:
    """Whether so many more may come now, or have to wait for a part to be kept."""
    return length <= transfer.room


def accept(transfer: Transfer, offset: int, length: int) -> Transfer:
    """With the next chunk, for which there has to be room. Raises what `expect` does."""
    expect(transfer, offset, length)
    assert fits(transfer, length)
    return msgspec.structs.replace(transfer, received=offset + length)


def next_part(transfer: Transfer) -> Piece | None:
    """The part that is complete and not yet handed to the store."""
    length = min(transfer.part_bytes, transfer.size_bytes - transfer.sent)
    if not transfer.in_parts or not length or transfer.received - transfer.sent < length:
        return None
    return Piece(transfer.sent // transfer.part_bytes + 1, transfer.sent, length)


def send(transfer: Transfer, piece: Piece) -> Transfer:
    """The part is on its way."""
    assert piece.offset == transfer.sent
    return msgspec.structs.replace(transfer, sent=piece.end)


def keep(transfer: Transfer, piece: Piece) -> Transfer:
    """The store has the part, and the row names it."""
    assert piece.offset == transfer.kept and piece.end <= transfer.sent
    return msgspec.structs.replace(transfer, kept=piece.end, stored=max(transfer.stored, piece.end))


def miss(transfer: Transfer) -> Transfer:
    """The store did not take what was on its way: it is to be sent again."""
    return msgspec.structs.replace(transfer, sent=transfer.kept)


def tail(transfer: Transfer) -> Piece | None:
    """What is in hand behind the last part and would be lost with this node; None where nothing would.

    Parts that are complete go first: as long as there are any, or some are on their way, there is no tail.
    """
    length = transfer.received - transfer.kept
    if transfer.received == transfer.stored or transfer.sent > transfer.kept or next_part(transfer) is not None:
        return None
    return Piece(transfer.kept // transfer.part_bytes + 1, transfer.kept, length)


def lay_aside(transfer: Transfer, piece: Piece) -> Transfer:
    """The tail is durable."""
    assert piece.offset == transfer.kept and piece.end == transfer.received
    return msgspec.structs.replace(transfer, stored=piece.end)


def window(transfer: Transfer, chunk_bytes: int, most: int) -> int:
    """How many chunks of `chunk_bytes` may be on their way here; 0: wait."""
    return most if transfer.whole else max(0, min(most, transfer.room // chunk_bytes))


def stage(transfer: Transfer) -> Literal["receiving", "storing", "ready"]:
    """`ready`: nothing is missing to complete it."""
    if not transfer.whole:
        return "receiving"
    return "ready" if not transfer.in_parts or transfer.kept == transfer.size_bytes else "storing"
