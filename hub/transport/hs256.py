"""The ordinary token, read in a tenth of the time: HS256, plainly written, good now.

It only ever says yes. Whatever it does not say yes to is looked at by PyJWT, which knows all the rest, and why not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

_BLOCK_BYTES = 64


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Anything more (`crit`, `b64`) is not ordinary."""

    alg: str
    typ: str = "JWT"
    kid: str | None = None


@lru_cache(maxsize=64)
def header(segment: str) -> Header | None:
    """The first part of a token; the same for all tokens of an issuer."""
    try:
        found = msgspec.json.decode(_decoded(segment), type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error):
        return None
    return found if found.alg == "HS256" else None


def claims(
    token: str, keys: Iterable[bytes], audience: str, issuer: str | None, *, now: float, leeway_s: float
) -> Mapping[str, Any] | None:
    """What `token`, whose header is ordinary, says; if one of `keys` signed it for `audience`, and it is good now."""
    signed, _, signature = token.rpartition(".")
    if signed.count(".") != 1:
        return None
    text = signed.encode()
    for key in keys:
        if hmac.compare_digest(_encoded(_mac(key, text)), signature.encode()):
            break
    else:
        return None
    try:
        found = msgspec.json.decode(_decoded(signed.partition(".")[2]))
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error):
        return None
    good = isinstance(found, dict) and _good(found, audience, issuer, now, leeway_s)
    return found if good else None


def _good(found: Mapping[str, Any], audience: str, issuer: str | None, now: float, leeway_s: float) -> bool:
    ends, meant_for = found.get("exp"), found.get("aud")
    return (
        type(ends) is int
        and ends > now - leeway_s
        and all(type(found.get(name, 0)) is int and found.get(name, 0) <= now + leeway_s for name in ("nbf", "iat"))
        and meant_for == audience
        and (issuer is None or found.get("iss") == issuer)
        and isinstance(found.get("sub"), str)
        and isinstance(found.get("jti", ""), str)
    )


def _mac(key: bytes, text: bytes) -> bytes:
    """`hmac.digest` with SHA-256, in a third of its time: most of that is for the key, again each time."""
    begun, ended = _pads(key)
    inner, outer = begun.copy(), ended.copy()
    inner.update(text)
    outer.update(inner.digest())
    return outer.digest()


# The current key and the previous, of users and of guests.
@lru_cache(maxsize=8)
def _pads(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """RFC 2104: the key, mixed with either constant, as far as it is hashed before any text."""
    block = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(bytes(each ^ 0x36 for each in block)), hashlib.sha256(bytes(each ^ 0x5C for each in block))


def usable(key: bytes) -> bool:
    """PyJWT refuses keys that look like public ones: who signs with those could be anybody."""
    return b"-----" not in key and not key.startswith((b"ssh-", b"ecdsa-"))


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
