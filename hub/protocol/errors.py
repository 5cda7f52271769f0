"""Every refusal there is: one class a code, with its HTTP status and whether trying again can help.

The same codes travel in socket acks and in `application/problem+json` bodies. The code is for programs, the text is
English for developers. `TABLE` is what the documents are generated from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing wrong with one field: `path` in JSON notation from the payload, as in `participants[0].role`."""

    path: str
    message: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The error object of an ack, and the heart of a problem+json body."""

    code: str
    message: str
    # Always there, `false` included: a client branches on it.
    retryable: bool = msgspec.field()
    retry_after_ms: int | None = None
    details: dict[str, Any] | None = None
    errors: list[FieldError] | None = None
    request_id: str = ""


class HubError(Exception):
    """A refusal. Subclasses fix `code`, `status` (HTTP; 0: sockets only) and `retryable`."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str = "",
        *,
        details: Mapping[str, Any] | None = None,
        errors: Sequence[FieldError] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        self.message = message or (self.__doc__ or self.code).strip().splitlines()[0].rstrip(".")
        super().__init__(self.message)
        self.details = dict(details) if details else None
        self.errors = list(errors)
        self.retry_after_ms = retry_after_ms

    def problem(self, request_id: str = "") -> Problem:
        return Problem(
            code=self.code,
            message=self.message,
            retryable=self.retryable,
            retry_after_ms=self.retry_after_ms,
            details=self.details,
            errors=self.errors or None,
            request_id=request_id,
        )


TABLE: dict[str, type[HubError]] = {}

ErrorClass = TypeVar("ErrorClass", bound=type[HubError])


def _declared(cls: ErrorClass) -> ErrorClass:
    if cls.code in TABLE:
        raise ValueError(f"two errors with the code {cls.code}")
    TABLE[cls.code] = cls
    return cls


@_declared
class BadRequest(HubError):
    """The request cannot be read."""

    code, status, retryable = "bad_request", 400, False


@_declared
class InvalidCursor(HubError):
    """The cursor is not one this server gave."""

    code, status, retryable = "invalid_cursor", 400, False


@_declared
class ValidationFailed(HubError):
    """A field is missing, unknown or out of range."""

    code, status, retryable = "validation_failed", 422, False


@_declared
class PayloadTooLarge(HubError):
    """The payload is over the limit."""

    code, status, retryable = "payload_too_large", 413, False


@_declared
class FileTooLarge(HubError):
    """The file is over the limit."""

    code, status, retryable = "file_too_large", 413, False


@_declared
class UnsupportedMediaType(HubError):
    """The content type is not accepted here."""

    code, status, retryable = "unsupported_media_type", 415, False


@_declared
class FileTypeBlocked(HubError):
    """Files of this type are not accepted."""

    code, status, retryable = "file_type_blocked", 415, False


@_declared
class Unauthenticated(HubError):
    """A bearer token is needed."""

    code, status, retryable = "unauthenticated", 401, False


@_declared
class TokenInvalid(HubError):
    """The token does not verify."""

    code, status, retryable = "token_invalid", 401, False


@_declared
class TokenExpired(HubError):
    """The token has expired."""

    code, status, retryable = "token_expired", 401, False


@_declared
class LinkPasswordRequired(HubError):
    """The link asks for a password."""

    code, status, retryable = "link_password_required", 401, False


@_declared
class Forbidden(HubError):
    """You may not do this."""

    code, status, retryable = "forbidden", 403, False


@_declared
class RoomLocked(HubError):
    """The room is locked."""

    code, status, retryable = "room_locked", 403, False


@_declared
class LobbyRequired(HubError):
    """The room has a lobby: knock first."""

    code, status, retryable = "lobby_required", 403, False


@_declared
class LobbyDenied(HubError):
    """The host said no."""

    code, status, retryable = "lobby_denied", 403, False


@_declared
class Banned(HubError):
    """You are banned from this call."""

    code, status, retryable = "banned", 403, False


@_declared
class FileInfected(HubError):
    """The file is infected."""

    code, status, retryable = "file_infected", 403, False


@_declared
class LinkPasswordInvalid(HubError):
    """The password is wrong."""

    code, status, retryable = "link_password_invalid", 403, False


@_declared
class LinkRestricted(HubError):
    """The link is for other people."""

    code, status, retryable = "link_restricted", 403, False


@_declared
class NotFound(HubError):
    """There is nothing here that you may know of."""

    code, status, retryable = "not_found", 404, False


@_declared
class MethodNotAllowed(HubError):
    """The method is not allowed here."""

    code, status, retryable = "method_not_allowed", 405, False


@_declared
class RoomFull(HubError):
    """All seats are taken."""

    code, status, retryable = "room_full", 409, True


@_declared
class AlreadyInRoom(HubError):
    """You are in this room already."""

    code, status, retryable = "already_in_room", 409, False


@_declared
class AnsweredElsewhere(HubError):
    """Another device of yours answered first."""

    code, status, retryable = "answered_elsewhere", 409, False


@_declared
class NotInRoom(HubError):
    """You are not in this room."""

    code, status, retryable = "not_in_room", 409, False


@_declared
class OffsetMismatch(HubError):
    """The chunk does not start where the last one ended."""

    code, status, retryable = "offset_mismatch", 409, False


@_declared
class ChunkCorrupt(HubError):
    """The chunk does not match its checksum."""

    code, status, retryable = "chunk_corrupt", 409, True


@_declared
class ChecksumMismatch(HubError):
    """The file does not match its checksum."""

    code, status, retryable = "checksum_mismatch", 409, False


@_declared
class ScanPending(HubError):
    """The file has not been scanned yet."""

    code, status, retryable = "scan_pending", 409, True


@_declared
class ScanFailed(HubError):
    """The file could not be scanned, so nobody has it; it can be scanned again."""

    code, status, retryable = "scan_failed", 409, False


@_declared
class QuotaExceeded(HubError):
    """There is no more room for files."""

    code, status, retryable = "quota_exceeded", 409, False


@_declared
class OpIdConflict(HubError):
    """The same op_id was used with another payload."""

    code, status, retryable = "op_id_conflict", 409, False


@_declared
class Conflict(HubError):
    """The state does not allow this."""

    code, status, retryable = "conflict", 409, False


@_declared
class PreconditionFailed(HubError):
    """Somebody else changed it meanwhile."""

    code, status, retryable = "precondition_failed", 412, False


@_declared
class CallEnded(HubError):
    """The call has ended."""

    code, status, retryable = "call_ended", 410, False


@_declared
class InviteEnded(HubError):
    """It rings no longer."""

    code, status, retryable = "invite_ended", 410, False


@_declared
class LinkExpired(HubError):
    """The link has expired."""

    code, status, retryable = "link_expired", 410, False


@_declared
class LinkExhausted(HubError):
    """The link has been used up."""

    code, status, retryable = "link_exhausted", 410, False


@_declared
class FileExpired(HubError):
    """The file has expired."""

    code, status, retryable = "file_expired", 410, False


@_declared
class TransferExpired(HubError):
    """The transfer has expired."""

    code, status, retryable = "transfer_expired", 410, False


@_declared
class RateLimited(HubError):
    """Too many requests."""

    code, status, retryable = "rate_limited", 429, True


@_declared
class Internal(HubError):
    """Something broke here; the request_id finds it in the logs."""

    code, status, retryable = "internal", 500, True


@_declared
class MediaError(HubError):
    """The media server refused."""

    code, status, retryable = "media_error", 502, False


@_declared
class MediaUnavailable(HubError):
    """The media server cannot be reached."""

    code, status, retryable = "media_unavailable", 503, True


@_declared
class DatabaseUnavailable(HubError):
    """The database cannot be reached."""

    code, status, retryable = "database_unavailable", 503, True


@_declared
class StorageUnavailable(HubError):
    """The object store cannot be reached."""

    code, status, retryable = "storage_unavailable", 503, True


@_declared
class ClusterUnavailable(HubError):
    """The other nodes cannot be reached."""

    code, status, retryable = "cluster_unavailable", 503, True


@_declared
class ServerDraining(HubError):
    """This node is going down; another one answers."""

    code, status, retryable = "server_draining", 503, True


@_declared
class Timeout(HubError):
    """The deadline passed."""

    code, status, retryable = "timeout", 503, True


@_declared
class UnknownEvent(HubError):
    """There is no such command."""

    code, status, retryable = "unknown_event", 0, False


@_declared
class TokenMissing(HubError):
    """auth.token is missing."""

    code, status, retryable = "token_missing", 0, False


@_declared
class ProtocolUnsupported(HubError):
    """This server speaks protocol 1."""

    code, status, retryable = "protocol_unsupported", 0, False


@_declared
class NamespaceForbidden(HubError):
    """This namespace is not for you."""

    code, status, retryable = "namespace_forbidden", 0, False


@_declared
class TooManyConnections(HubError):
    """Too many connections."""

    code, status, retryable = "too_many_connections", 0, True


@_declared
class ServerBusy(HubError):
    """This node is full."""

    code, status, retryable = "server_busy", 0, True
