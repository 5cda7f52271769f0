"""URLs of our own that allow one request until they end, for stores that cannot sign or must not be seen from outside.

The hub serves them (`hub/transport/blobs.py`). All nodes have the same secret, so each serves what another signed.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlencode

import msgspec

from storage import keys
from storage.errors import SignatureInvalid
from storage.store import Signed

Method = Literal["GET", "PUT"]


class Granted(msgspec.Struct, frozen=True):
    """What a signed URL of ours allows."""

    key: str
    content_type: str
    # Of a GET.
    disposition: str = ""
    # Of a PUT: exactly so many.
    size_bytes: int = 0


class UrlSigner:
    """Signs with HMAC-SHA256. `base_url` is where the hub serves what is signed."""

    def __init__(self, base_url: str, secret: bytes) -> None:
        self._base_url = base_url.rstrip("/")
        self._secret = secret

    def get(self, key: str, *, ttl_s: int, content_type: str, disposition: str) -> Signed:
        granted = Granted(keys.check(key), content_type, disposition)
        return self._signed("GET", granted, ttl_s, {"disposition": disposition}, {})

    def put(self, key: str, *, ttl_s: int, content_type: str, size_bytes: int) -> Signed:
        granted = Granted(keys.check(key), content_type, size_bytes=size_bytes)
        return self._signed("PUT", granted, ttl_s, {"size": str(size_bytes)}, {"Content-Type": content_type})

    def granted(self, method: Method, key: str, query: Mapping[str, str], now: float | None = None) -> Granted:
        """What the URL with this key and query allows, at `now` (Unix time). Raises SignatureInvalid."""
        try:
            expires = int(query["expires"])
            granted = Granted(keys.check(key), query["type"], query.get("disposition", ""), int(query.get("size", "0")))
        except (KeyError, ValueError):
            raise SignatureInvalid("not a signed URL") from None
        given = query.get("signature", "").encode("utf-8", "replace")
        # First whether it is ours: what an altered URL says of its end means nothing.
        if not hmac.compare_digest(self._signature(method, granted, expires).encode(), given):
            raise SignatureInvalid("the signature does not match")
        if expires <= (time.time() if now is None else now):
            raise SignatureInvalid("the URL has expired")
        return granted

    def _signed(
        self, method: Method, granted: Granted, ttl_s: int, terms: Mapping[str, str], headers: Mapping[str, str]
    ) -> Signed:
        expires = int(time.time()) + ttl_s
        query = {
            "expires": str(expires),
            "type": granted.content_type,
            **terms,
            "signature": self._signature(method, granted, expires),
        }
        return Signed(
            url=f"{self._base_url}/{granted.key}?{urlencode(query)}",
            expires_at=datetime.fromtimestamp(expires, UTC),
            method=method,
            headers=headers,
        )

    def _signature(self, method: Method, granted: Granted, expires: int) -> str:
        # As JSON, so that no two requests come to the same text.
        said = msgspec.json.encode([method, *msgspec.structs.astuple(granted), expires])
        return hmac.digest(self._secret, said, "sha256").hex()
