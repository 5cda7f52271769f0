"""Files of a call: bringing them, finding them, the way to their bytes, and what the room hears of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId, Cursor, Limit
from hub.protocol.names import NAME

Access = Literal["public", "call_participants", "private"]
ScanStatus = Literal["pending", "clean", "infected", "failed", "skipped"]
PreviewStatus = Literal["none", "pending", "ready", "failed"]

FileId = Annotated[UUID, Meta(description="The file; also the id of the transfer it came by.")]
FileName = Annotated[
    str,
    Meta(
        min_length=1, max_length=255, pattern=NAME, description="What the file is called; ways and marks are removed."
    ),
]
MimeType = Annotated[
    str,
    Meta(
        min_length=3,
        max_length=255,
        pattern=r"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?: *;[ -~]*)?$(?!\n)",
        description="The content type as the sender knows it; what the bytes say is looked at as well.",
    ),
]
Sha256 = Annotated[
    str,
    Meta(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$(?!\n)", description="Of the whole file, in hex."),
]
AccessLevel = Annotated[
    Access,
    Meta(description="`public`: anybody with its id; `call_participants`: who is in the call; `private`: only you."),
]
ExpiresInHours = Annotated[int, Meta(ge=1, le=87_600, description="Delete the file after so many hours.")]
SizeBytes = Annotated[int, Meta(ge=0, le=2**40, description="Exactly how many bytes.")]


class UploadFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of the form beside `file`. They come all before it or all after it; before it is faster."""

    call_id: CallId
    access_level: AccessLevel = "call_participants"
    expires_in_hours: ExpiresInHours | None = None
    sha256: Sha256 | None = None
    name: FileName | None = None


class PresignFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is going to be put to the store directly."""

    call_id: CallId
    name: FileName
    size_bytes: SizeBytes
    mime_type: MimeType = "application/octet-stream"
    access_level: AccessLevel = "call_participants"
    expires_in_hours: ExpiresInHours | None = None
    sha256: Sha256 | None = None


class PresignedFile(msgspec.Struct, frozen=True):
    """Send the bytes there with that method and exactly these headers, then complete the file."""

    file_id: UUID
    method: Literal["PUT"]
    url: str
    headers: dict[str, str]
    # Of the URL.
    expires_at: datetime


class ConfirmFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file_id: FileId
    sha256: Sha256 | None = None


class NameFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file_id: FileId


class ListFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Those of one call, or without it those that you brought, whatever the call."""

    call_id: CallId | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class DownloadFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file_id: FileId
    redirect: Annotated[bool, Meta(description="`false`: answer with the URL instead of a redirect to it.")] = True


class CopyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Into a call in which you may send files: the same one, or another."""

    file_id: FileId
    call_id: CallId
    access_level: AccessLevel | None = None


class MoveFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Into another call, in which you may send files."""

    file_id: FileId
    call_id: CallId


class FileView(msgspec.Struct, frozen=True, kw_only=True):
    """A file. Its bytes are to be had where `scan_status` is `clean` or `skipped` (this hub has no scanner)."""

    file_id: UUID
    call_id: UUID
    uploader_id: str
    name: str
    size_bytes: int
    # As it was declared, and as the bytes say; null where they say nothing.
    mime_type: str
    detected_mime_type: str | None
    sha256: str
    # public | call_participants | private
    access_level: str
    # rest | presigned | frames | copy | recording
    source: str
    # pending | clean | infected | failed | skipped
    scan_status: str
    scanned_at: datetime | None
    # none | pending | ready | failed
    preview_status: str
    expires_at: datetime | None
    created_at: datetime
    # They take a token, but for a public file, and lead to the bytes by a URL that is good for a moment.
    download_url: str
    preview_url: str | None


class FilePage(msgspec.Struct, frozen=True):
    items: list[FileView]
    next_cursor: str | None


class FileLink(msgspec.Struct, frozen=True):
    """Whoever has the URL has the bytes, Range included, until it expires."""

    url: str
    expires_at: datetime


class PolicyAnswer(msgspec.Struct, frozen=True):
    """Who may do what.

    `roles`: the permissions of each. `features`: what everybody loses while one is off. `files`: by role (beside the
    four, the `uploader` and somebody of the tenant who is not in the call), level and action: `ok`, or the refusal.
    """

    roles: dict[str, list[str]]
    features: dict[str, list[str]]
    files: dict[str, dict[str, dict[str, str]]]


class FileAnnounced(Event, frozen=True):
    """A file is there, whole and checked. A private one is announced to its uploader only."""

    name: ClassVar[str] = "file:announced"

    file: FileView


class FileScanned(Event, frozen=True):
    """The scanner has spoken (or is asked again: `pending`). To the uploader and the owner of the call as well, where
    the file is infected or could not be scanned and they are not in the room."""

    name: ClassVar[str] = "file:scanned"

    file: FileView


class FileUpdated(Event, frozen=True):
    """Something else about a file changed: its preview is there."""

    name: ClassVar[str] = "file:updated"

    file: FileView


class FileDeleted(Event, frozen=True):
    """A file is gone from this call, and why."""

    name: ClassVar[str] = "file:deleted"

    file_id: UUID
    call_id: UUID
    reason: Literal["deleted", "expired", "moved"]


class FileProgressed(Event, frozen=True):
    """How far a file has come that somebody is sending; at most four times a second and file."""

    name: ClassVar[str] = "file:progressed"
    recorded: ClassVar[bool] = False

    file_id: UUID
    call_id: UUID
    uploader_id: str
    file_name: str
    received_bytes: int
    # null: not known before the end.
    size_bytes: int | None
