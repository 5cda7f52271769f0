"""The public keys of an identity provider (JWKS), from a URL or a file.

Every key is pinned to one algorithm by its type, whatever a token's header claims. A key set is kept until a newer one
was read: an identity provider that is down for an hour must not lock everybody out.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from hub import metrics

log = structlog.get_logger("hub.jwks")

FETCHES = metrics.counter("jwks_fetches", "Readings of the key set by result", "result")

REFRESH_S = 600.0
# A token with an unknown kid makes the node look again, but anybody can make up kids: once a minute at most.
_UNKNOWN_KID_S = 60.0
_FETCH_DEADLINE_S = 3.0
_MAX_BYTES = 256 * 1024
_MAX_KEYS = 64
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Key(msgspec.Struct, frozen=True):
    """One public key and the only algorithm it may be used with."""

    kid: str | None
    algorithm: str
    key: Any


class KeySet:
    """The current keys. `run` keeps them fresh; `find` looks again for a kid it has not seen."""

    def __init__(self, source: str) -> None:
        """`source`: an https URL (http on loopback only), a file:// URL or a path."""
        parts = urlsplit(source)
        self._url: str | None = None
        self._path: Path | None = None
        if parts.scheme in ("http", "https"):
            if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
                raise ValueError("a JWKS URL must be https")
            self._url = source
        elif parts.scheme in ("", "file"):
            self._path = Path(parts.path)
        else:
            raise ValueError(f"a JWKS is read from https or a file, not from {parts.scheme}:")
        self._keys: tuple[Key, ...] = ()
        self._tried_at = float("-inf")
        self._lock = asyncio.Lock()
        # Counts the key sets read: who caches verdicts drops them when it moves.
        self.version = 0

    async def run(self) -> None:
        """Read the keys now and every ten minutes. Never returns, never raises for a source that is down."""
        while True:
            await self.refresh()
            # Without any key nobody gets in: try again soon.
            await asyncio.sleep(REFRESH_S if self._keys else 5.0)

    async def refresh(self) -> bool:
        """Read the keys. False, and the old ones stay, where that failed."""
        async with self._lock:
            return await self._refresh()

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key a token names. One without a kid is fine while there is only one key of that algorithm."""
        key = self._find(kid, algorithm)
        if key is not None:
            return key
        async with self._lock:
            if time.monotonic() - self._tried_at >= _UNKNOWN_KID_S:
                await self._refresh()
        return self._find(kid, algorithm)

    def _find(self, kid: str | None, algorithm: str) -> Key | None:
        fitting = [key for key in self._keys if key.algorithm == algorithm]
        if kid is not None:
            return next((key for key in fitting if key.kid == kid), None)
        return fitting[0] if len(fitting) == 1 else None

    async def _refresh(self) -> bool:
        self._tried_at = time.monotonic()
        try:
            async with asyncio.timeout(_FETCH_DEADLINE_S):
                keys = parse(await self._read())
        except (OSError, TimeoutError, aiohttp.ClientError, ValueError) as error:
            FETCHES.labels("failed").inc()
            log.warning("jwks_unreadable", error=type(error).__name__, kept=len(self._keys))
            return False
        FETCHES.labels("ok").inc()
        self._keys = keys
        self.version += 1
        return True

    async def _read(self) -> bytes:
        if self._path is not None:
            return await asyncio.to_thread(self._path.read_bytes)
        assert self._url is not None
        # One session a reading: it happens every ten minutes, and nothing stays open in between.
        async with (
            aiohttp.ClientSession() as session,
            session.get(self._url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > _MAX_BYTES:
                    raise ValueError("too large")
            return bytes(body)


def parse(raw: bytes) -> tuple[Key, ...]:
    """The usable keys of a JWKS document. Raises ValueError where there is none."""
    try:
        document = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError("not JSON") from error
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWKS")
    keys = tuple(key for entry in entries[:_MAX_KEYS] if (key := _key(entry)) is not None)
    if not keys:
        raise ValueError("no usable key")
    return keys


def _key(entry: Any) -> Key | None:
    """None for what must not verify a user token: symmetric keys, encryption keys, odd curves, short moduli."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    match entry.get("kty"), entry.get("crv"):
        case "RSA", None:
            algorithm = "RS256"
        case "EC", "P-256":
            algorithm = "ES256"
        case "OKP", "Ed25519":
            algorithm = "EdDSA"
        case _:
            return None
    if entry.get("alg", algorithm) != algorithm:
        return None
    kid = entry.get("kid")
    try:
        key = jwt.PyJWK(entry, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < 2048:
        return None
    # A set that leaks private halves is broken; PyJWK would hand out a private key here.
    if "d" in entry:
        return None
    return Key(kid if isinstance(kid, str) else None, algorithm, key)
