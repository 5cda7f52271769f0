"""LiveKit's webhooks: verified over the raw body, turned into our own value, stripped of secrets."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any

import jwt
import msgspec
from google.protobuf import json_format
from livekit.api import AccessToken, TokenVerifier
from livekit.protocol import models, webhook

from hub.media import translate
from hub.media.values import WebhookEvent
from hub.protocol.errors import Unauthenticated

# What LiveKit gives its own.
SIGNATURE_TTL_S = 300
# `turnPassword` rides in every full room; the others in the outputs of an egress. protojson writes lowerCamelCase.
_SECRETS = frozenset(
    {
        *("turnPassword", "turn_password", "secret", "accessKey", "access_key", "sessionToken", "session_token"),
        *("accountKey", "account_key", "credentials", "streamKey", "stream_key", "password", "token"),
    }
)
# More specific classes first: most of these are kinds of DecodeError or InvalidTokenError.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not_yet_valid"),
    (jwt.MissingRequiredClaimError, "missing_claim"),
    (jwt.InvalidAlgorithmError, "bad_algorithm"),
    (jwt.InvalidSignatureError, "bad_signature"),
    (jwt.InvalidIssuerError, "unknown_key"),
)


class WebhookRefused(Unauthenticated):
    """The webhook does not verify.

    The answer outside is always the same; `reason` is for the metric: missing, malformed_token, unknown_key,
    bad_signature, bad_algorithm, expired, not_yet_valid, missing_claim, no_body_hash, body_hash, malformed_body.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


def verify(raw: bytes, authorization: str, keys: Mapping[str, str]) -> WebhookEvent:
    """`keys`: API key → secret, every one that a LiveKit may sign with now. Raises WebhookRefused."""
    # LiveKit sends the bare token; some proxies put the scheme in front.
    scheme, _, rest = authorization.strip().partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else authorization.strip()
    if not token:
        raise WebhookRefused("missing")
    _check_hash(raw, _body_hash(token, keys))
    return parse(raw)


def parse(raw: bytes) -> WebhookEvent:
    """The event in a body that was verified before, as in one that was kept. Raises WebhookRefused (malformed_body)."""
    try:
        return _event(raw)
    # Signed, so not an attack: a body that our version of the protocol cannot read, or of absurd depth or dates.
    except (json_format.ParseError, msgspec.DecodeError, ValueError, OverflowError, OSError, RecursionError) as error:
        raise WebhookRefused("malformed_body") from error


def sign(body: bytes, api_key: str, api_secret: str, *, valid_for: timedelta | None = None) -> str:
    """The Authorization header LiveKit would send with `body`."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    valid_for = timedelta(seconds=SIGNATURE_TTL_S) if valid_for is None else valid_for
    return AccessToken(api_key, api_secret).with_sha256(digest).with_ttl(valid_for).to_jwt()


def _body_hash(token: str, keys: Mapping[str, str]) -> str:
    """The claim `sha256` of a token that verifies."""
    try:
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except Exception as error:
        raise WebhookRefused("malformed_token") from error
    secret = keys.get(issuer) if isinstance(issuer, str) else None
    if not isinstance(issuer, str) or secret is None:
        raise WebhookRefused("unknown_key")
    try:
        digest = TokenVerifier(issuer, secret).verify(token).sha256
    except Exception as error:
        # The verifier raises many classes, and bare ones: whatever it is, the caller is not LiveKit.
        raise WebhookRefused(
            next((name for kind, name in _REASONS if isinstance(error, kind)), "malformed_token")
        ) from error
    if not digest or not isinstance(digest, str):
        # A participant's token verifies too; it vouches for no body.
        raise WebhookRefused("no_body_hash")
    return digest


def _check_hash(raw: bytes, digest: str) -> None:
    try:
        wanted = base64.b64decode(digest, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WebhookRefused("body_hash") from error
    if not hmac.compare_digest(hashlib.sha256(raw).digest(), wanted):
        raise WebhookRefused("body_hash")


# LiveKit's own have 15.
_ID_CHARS = 200


def _event(raw: bytes) -> WebhookEvent:
    message = json_format.Parse(raw.decode(), webhook.WebhookEvent(), ignore_unknown_fields=True)
    # Typed, for protobuf takes a few things for an empty event that are no object at all.
    scrubbed: dict[str, Any] = _scrub(msgspec.json.decode(raw, type=dict[str, Any]))
    # Should an event have no id: the body is the same at each attempt too. Both go into what is kept, for `parse`.
    event_id = message.id or f"sha256:{hashlib.sha256(raw).hexdigest()}"
    if len(event_id) > _ID_CHARS:
        # It is a key; no server of LiveKit's makes one like that.
        event_id = f"sha256:{hashlib.sha256(event_id.encode()).hexdigest()}"
    created_at = message.created_at or int(time())
    scrubbed |= {"id": event_id, "createdAt": str(created_at)}
    return WebhookEvent(
        event_id=event_id,
        event=message.event,
        created_at=datetime.fromtimestamp(created_at, UTC),
        room_sid=message.room.sid or message.egress_info.room_id,
        room_name=message.room.name or message.egress_info.room_name or message.ingress_info.room_name,
        participant=translate.participant(message.participant) if message.HasField("participant") else None,
        track=translate.track(message.track) if message.HasField("track") else None,
        egress=scrubbed.get("egressInfo") if message.HasField("egress_info") else None,
        room_end_reason=_end_reason(message),
        num_dropped=message.num_dropped,
        raw=msgspec.json.encode(scrubbed),
    )


def _end_reason(message: webhook.WebhookEvent) -> str:
    return translate.enum_name(models.RoomEndReason, message.room_end_reason) if message.room_end_reason else ""


def _scrub(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrub(item) for key, item in value.items() if key not in _SECRETS}
    if isinstance(value, list):
        return [_scrub(item) for item in value]
    # PostgreSQL keeps no NUL in jsonb.
    return value.replace("\0", "") if isinstance(value, str) else value
