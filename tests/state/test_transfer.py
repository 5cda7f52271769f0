"""The transfer against a model that keeps the bytes themselves: chunks wrong in every way, stores that fail, writers
that die, come back and take over."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hub.protocol import errors
from hub.state import transfer
from hub.state.transfer import Piece, Transfer

PART, ROOM = 10, 30


def taken_up(size: int, **more: int) -> Transfer:
    return transfer.taken_up(size_bytes=size, part_bytes=PART, room_bytes=ROOM, fence=1, **more)


def test_chunks_in_order_are_taken_and_a_file_ends_where_it_was_offered() -> None:
    at = transfer.accept(transfer.accept(taken_up(12), 0, 7), 7, 5)
    assert at.whole and at.received == 12 and at.stored == 0
    with pytest.raises(errors.FileTooLarge):
        transfer.expect(at, 12, 1)


@pytest.mark.parametrize("offset", [0, 6, 8, 100])
def test_a_repetition_an_overlap_and_a_gap_are_told_the_offset_that_is_expected(offset: int) -> None:
    at = transfer.accept(taken_up(50), 0, 7)
    with pytest.raises(errors.OffsetMismatch) as refusal:
        transfer.expect(at, offset, 5)
    assert refusal.value.details == {"expected_offset": 7, "stored": 0}


def test_a_file_of_one_part_or_less_goes_whole() -> None:
    for size in (0, 1, PART):
        at = taken_up(size)
        if size:
            at = transfer.accept(at, 0, size)
        assert at.whole and transfer.next_part(at) is None and transfer.stage(at) == "ready"


def test_parts_are_equal_but_the_last() -> None:
    at = transfer.accept(taken_up(25), 0, 25)
    pieces = []
    while (piece := transfer.next_part(at)) is not None:
        at = transfer.send(at, piece)
        pieces.append(piece)
    assert pieces == [Piece(1, 0, 10), Piece(2, 10, 10), Piece(3, 20, 5)]
    assert transfer.stage(at) == "storing"
    for piece in pieces:
        at = transfer.keep(at, piece)
    assert at.stored == 25 and transfer.stage(at) == "ready"


def test_the_window_closes_with_the_room_and_opens_with_a_part_that_is_kept() -> None:
    at = transfer.accept(taken_up(100), 0, 27)
    assert transfer.window(at, 2, 8) == 1 and not transfer.fits(at, 4)
    at = transfer.accept(at, 27, 3)
    assert transfer.window(at, 2, 8) == 0
    piece = transfer.next_part(at)
    assert piece is not None
    at = transfer.keep(transfer.send(at, piece), piece)
    assert transfer.window(at, 2, 8) == 5 and transfer.window(at, 1, 8) == 8


def test_a_tail_waits_for_the_parts_before_it() -> None:
    at = transfer.accept(taken_up(100), 0, 17)
    piece = transfer.next_part(at)
    assert piece is not None and transfer.tail(at) is None
    at = transfer.send(at, piece)
    assert transfer.tail(at) is None
    at = transfer.keep(at, piece)
    rest = transfer.tail(at)
    assert rest == Piece(2, 10, 7)
    assert transfer.lay_aside(at, rest).stored == 17


@dataclass
class Row:
    """What survives: parts, a tail behind them, and who may write."""

    fence: int = 0
    parts: list[bytes] = field(default_factory=list)
    tail: bytes = b""

    @property
    def kept(self) -> int:
        return sum(map(len, self.parts))


@dataclass
class Writer:
    """A node that has it in hand; `sending` are parts whose fate is open."""

    at: Transfer
    bytes: bytearray
    sending: list[Piece] = field(default_factory=list)


class Uploading(RuleBasedStateMachine):
    """One file, several writers one after the other, the old ones still about."""

    @initialize(size=st.integers(0, 75))
    def offer(self, size: int) -> None:
        self.file = bytes(range(size))
        self.row = Row()
        self.writers: list[Writer] = []
        self.take_over()

    @property
    def now(self) -> Writer:
        return self.writers[-1]

    @rule()
    def take_over(self) -> None:
        """A reconnect, to whatever node: nothing in hand but what is durable."""
        self.row.fence += 1
        at = transfer.taken_up(
            size_bytes=len(self.file),
            part_bytes=PART,
            room_bytes=ROOM,
            fence=self.row.fence,
            kept=self.row.kept,
            tail=len(self.row.tail),
        )
        assert at.received == at.stored
        self.writers.append(Writer(at, bytearray(b"".join(self.row.parts) + self.row.tail)))

    @rule(offset=st.integers(0, 80), length=st.integers(1, 12), right=st.booleans(), which=st.integers(0, 2))
    def chunk(self, offset: int, length: int, right: bool, which: int) -> None:
        """At the right offset half of the time, from a client that does not know who writes."""
        writer = self.writers[-1 - which % len(self.writers)]
        offset = writer.at.received if right else offset
        before = writer.at
        try:
            transfer.expect(writer.at, offset, length)
        except errors.OffsetMismatch as refusal:
            assert refusal.details is not None and refusal.details["expected_offset"] == before.received != offset
        except errors.FileTooLarge:
            assert offset + length > len(self.file)
        else:
            if transfer.fits(writer.at, length):
                writer.at = transfer.accept(writer.at, offset, length)
                writer.bytes += self.file[offset : offset + length]

    @rule(which=st.integers(0, 2))
    def send(self, which: int) -> None:
        writer = self.writers[-1 - which % len(self.writers)]
        piece = transfer.next_part(writer.at)
        if piece is not None:
            writer.at = transfer.send(writer.at, piece)
            writer.sending.append(piece)

    @rule(which=st.integers(0, 2))
    def store_takes(self, which: int) -> None:
        writer = self.writers[-1 - which % len(self.writers)]
        if not writer.sending:
            return
        piece = writer.sending.pop(0)
        if writer.at.fence != self.row.fence:
            # The row refuses: an old writer changes nothing.
            writer.at, writer.sending = transfer.miss(writer.at), []
            return
        self.row.parts.append(bytes(writer.bytes[piece.offset : piece.end]))
        self.row.tail = b""
        writer.at = transfer.keep(writer.at, piece)

    @rule(which=st.integers(0, 2))
    def store_fails(self, which: int) -> None:
        writer = self.writers[-1 - which % len(self.writers)]
        writer.at, writer.sending = transfer.miss(writer.at), []

    @rule(which=st.integers(0, 2))
    def lay_aside(self, which: int) -> None:
        writer = self.writers[-1 - which % len(self.writers)]
        piece = transfer.tail(writer.at)
        if piece is not None and writer.at.fence == self.row.fence:
            self.row.tail = bytes(writer.bytes[piece.offset : piece.end])
            writer.at = transfer.lay_aside(writer.at, piece)

    @precondition(lambda self: transfer.stage(self.now.at) == "ready")
    @rule()
    def complete(self) -> None:
        made = b"".join(self.row.parts) if self.now.at.in_parts else bytes(self.now.bytes)
        assert made == self.file

    @invariant()
    def what_is_said_holds(self) -> None:
        for writer in self.writers[-3:]:
            at = writer.at
            assert 0 <= at.kept <= at.sent <= at.received <= at.size_bytes and at.stored <= at.received
            assert at.received == len(writer.bytes) and bytes(writer.bytes) == self.file[: at.received]
            assert at.received - at.kept <= ROOM and 0 <= transfer.window(at, 2, 4) <= 4
        durable = self.row.kept + len(self.row.tail)
        assert self.now.at.fence == self.row.fence and self.now.at.stored == max(self.row.kept, durable)
        assert all(len(part) == PART for part in self.row.parts[:-1])

    @invariant()
    def whoever_waits_can_go_on(self) -> None:
        """No stalemate: where the window is shut, a part is on its way or ready to be."""
        at = self.now.at
        if not at.whole and not transfer.fits(at, 1):
            assert transfer.next_part(at) is not None or at.sent > at.kept


TestUploading = Uploading.TestCase
TestUploading.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
