"""The body of a refusal over HTTP: RFC 9457, with all members of an ack's error object under the same names. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from hub.protocol.errors import FieldError

CONTENT_TYPE: Final = "application/problem+json"


class HttpProblem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What every refusal looks like over HTTP."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    # The same as `detail`, by the name an ack gives it.
    message: str
    # Always there: a client branches on it.
    retryable: bool = msgspec.field()
    retry_after_ms: int | None = None
    details: dict[str, Any] | None = None
    errors: list[FieldError] = msgspec.field()
    request_id: str = msgspec.field()
