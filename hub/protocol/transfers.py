"""Files by chunk frames, on `/files`: offered, sent chunk by chunk, completed; and read in frames."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.protocol.fields import CallId
from hub.protocol.files import AccessLevel, ExpiresInHours, FileId, FileName, FileView, MimeType, Sha256, SizeBytes

# What a client is asked to send at once. Small enough that nothing else on the connection waits long.
CHUNK_BYTES: Final = 65_536
# What it may send at once, and read at once.
MOST_CHUNK_BYTES: Final = 262_144

TransferId = Annotated[UUID, Meta(description="As `file:offer` answered it.")]
Offset = Annotated[int, Meta(ge=0, le=2**53, description="In bytes, from the file's beginning.")]


class OfferFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is going to be sent in chunks."""

    call_id: CallId
    name: FileName
    size_bytes: SizeBytes
    mime: MimeType = "application/octet-stream"
    sha256: Sha256 | None = None
    access_level: AccessLevel = "call_participants"
    expires_in_hours: ExpiresInHours | None = None


class TransferOffer(msgspec.Struct, frozen=True):
    """Room is reserved; send chunks from `offset` on."""

    file_id: UUID
    transfer_id: UUID
    # Send so many bytes at once: fewer, or up to the limit of a frame, are taken as well.
    chunk_bytes: int
    # So many chunks may be on their way.
    window: int
    offset: int
    stored: int
    expires_at: datetime


class SendChunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next bytes of a file."""

    transfer_id: TransferId
    offset: Offset
    data: Annotated[bytes, Meta(min_length=1, max_length=MOST_CHUNK_BYTES, description="The bytes.")]
    crc32c: Annotated[int, Meta(ge=0, lt=2**32, description="CRC-32C (Castagnoli) of `data`.")] | None = None


class ChunkTaken(msgspec.Struct, frozen=True):
    """`offset`: received, in order; `stored`: what survives this node; `window`: chunks that may be on their way."""

    offset: int
    stored: int
    # 0: wait a moment, and ask with `file:resume`.
    window: int


class ResumeTransfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transfer of yours, to go on with on this connection."""

    transfer_id: TransferId


class TransferState(msgspec.Struct, frozen=True):
    """Send from `offset` on. On a connection that has just taken it up everything before it is durable."""

    file_id: UUID
    transfer_id: UUID
    size_bytes: int
    chunk_bytes: int
    window: int
    offset: int
    stored: int
    # There is nothing to send any more: it is a file.
    completed: bool
    expires_at: datetime | None


class CompleteTransfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All bytes were sent."""

    transfer_id: TransferId
    sha256: Sha256


class CompletedTransfer(msgspec.Struct, frozen=True):
    """It is a file."""

    file: FileView


class CancelTransfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transfer of yours that is not to be."""

    transfer_id: TransferId


class ReadFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Some bytes of a file."""

    file_id: FileId
    offset: Offset
    length: Annotated[int, Meta(ge=1, le=MOST_CHUNK_BYTES, description="At most so many bytes.")] = MOST_CHUNK_BYTES


class FileBytes(msgspec.Struct, frozen=True):
    """The bytes from `offset` on, fewer than asked for only at the file's end (`eof`)."""

    data: bytes
    eof: bool
