"""Who asks: bearer tokens to `Actor`, in one place for sockets and REST.

Two kinds of token and no third: user tokens from the identity provider (HS256 with the current or the previous secret,
or a JWKS key with its one algorithm) and guest tokens made by this hub. LiveKit's tokens are for LiveKit. Every refusal
has the same text, so that nobody learns which check failed; only an otherwise good token that has ended is told so.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from uuid import UUID, uuid4, uuid5

import jwt
import msgspec

from hub import metrics
from hub.context import Actor, GuestPass
from hub.protocol.errors import TokenExpired, TokenInvalid
from hub.protocol.names import clean_name
from hub.transport import hs256
from hub.transport.jwks import KeySet

VERIFIED = metrics.Tally("tokens", "Bearer tokens by kind and verdict", "kind", "verdict")

GUEST_AUDIENCE = "auralink-guest"
_GUEST_TYPE = "auralink-guest+jwt"
_REFUSAL = "the token does not verify"
_MAX_TOKEN = 8192
_MAX_CACHED = 10_000
# Organisations whose ids are no UUIDs get one made of them. Changing this moves every such tenant's data out of reach.
_TENANTS = UUID("5f0a7f9c-52a5-5f0e-9d0c-6f1d3a7f4a52")
_CANONICAL_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,253}")
_ROLES = ("authenticated", "anon", "service_role")

UserRole = Literal["authenticated", "anon", "service_role"]
assert set(get_args(UserRole)) == set(_ROLES)


class TokenRules(msgspec.Struct, frozen=True, kw_only=True):
    """What tokens are held against."""

    # Current first, then the previous one while a rotation lasts. Empty: no HS256 user tokens.
    secrets: tuple[str, ...] = ()
    # URL or path of a key set.
    jwks: str | None = None
    audience: str = "authenticated"
    issuer: str | None = None
    # Where a token names no organisation.
    default_tenant: UUID = UUID(int=0)
    leeway_s: int = 60
    guest_ttl_s: int = 900
    # What guest tokens are signed from where there is no secret above, as with JWKS alone. The same on all nodes.
    guest_secret: str = ""

    def __repr__(self) -> str:
        # The generated one would put the secrets into logs and tracebacks.
        return f"TokenRules(audience={self.audience!r}, issuer={self.issuer!r}, jwks={self.jwks!r})"


class Issued(msgspec.Struct, frozen=True):
    """A token this hub made."""

    token: str
    user_id: str
    expires_at: datetime


class Tokens:
    """Verifies and issues. Owns a cache of verified tokens and, with JWKS, the key set (run `keys.run()` in a task)."""

    def __init__(self, rules: TokenRules) -> None:
        if not rules.secrets and not rules.jwks:
            raise ValueError("tokens need a secret or a JWKS to be verified with")
        self._rules = rules
        self.keys = KeySet(rules.jwks) if rules.jwks else None
        bases = rules.secrets or ((rules.guest_secret,) if rules.guest_secret else ())
        self._guest_keys = tuple(_derived(secret) for secret in bases)
        self._user_keys = tuple(key for secret in rules.secrets if hs256.usable(key := secret.encode()))
        # Digest → the actor, what the token said of its end, and the key set it was verified with.
        self._cache: OrderedDict[bytes, tuple[Actor, float, int]] = OrderedDict()

    async def verify(self, token: str) -> Actor:
        """The actor `token` speaks for. Raises TokenInvalid or TokenExpired."""
        if len(token) > _MAX_TOKEN or not token.isascii():
            raise _refused("unknown", "oversized")
        digest = hashlib.sha256(token.encode()).digest()
        version = self.keys.version if self.keys else 0
        cached = self._cache.get(digest)
        if cached is not None and cached[1] > time.time() and cached[2] == version:
            self._cache.move_to_end(digest)
            return cached[0]
        actor = await self._verify(token)
        self._cache[digest] = (actor, actor.expires_at.timestamp(), version)
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return actor

    async def _verify(self, token: str) -> Actor:
        # The header only chooses which full verification runs; neither trusts anything of it.
        kind = "user"
        try:
            claims = None
            ordinary = hs256.header(token.partition(".")[0])
            if ordinary is not None:
                kind = "guest" if ordinary.typ == _GUEST_TYPE else "user"
                claims = self._ordinary_claims(token, kind)
            if claims is None:
                header = self._header(token)
                kind = "guest" if header.get("typ") == _GUEST_TYPE else "user"
                claims = self._guest_claims(token) if kind == "guest" else await self._user_claims(token, header)
            actor = _guest(claims) if kind == "guest" else self._user(claims)
        except jwt.ExpiredSignatureError:
            VERIFIED.add(1, kind, "expired")
            raise TokenExpired("the token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, LookupError, OverflowError, OSError) as error:
            # The last two: an `exp` beyond what a date can say.
            raise _refused(kind, "refused") from error
        VERIFIED.add(1, kind, "ok")
        return actor

    def _ordinary_claims(self, token: str, kind: str) -> Mapping[str, Any] | None:
        rules = self._rules
        keys, audience, issuer = (
            (self._guest_keys, GUEST_AUDIENCE, None)
            if kind == "guest"
            else (self._user_keys, rules.audience, rules.issuer)
        )
        return hs256.claims(token, keys, audience, issuer, now=time.time(), leeway_s=rules.leeway_s)

    @staticmethod
    def _header(token: str) -> Mapping[str, Any]:
        try:
            return jwt.get_unverified_header(token)
        except (jwt.PyJWTError, RecursionError):
            raise _refused("unknown", "unreadable") from None

    async def _user_claims(self, token: str, header: Mapping[str, Any]) -> dict[str, Any]:
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm == "HS256":
            return self._first(token, self._rules.secrets, self._rules.audience, self._rules.issuer)
        if self.keys is None or algorithm not in ("RS256", "ES256", "EdDSA"):
            raise jwt.InvalidAlgorithmError
        key = await self.keys.find(kid, algorithm)
        if key is None:
            raise jwt.InvalidKeyError
        return self._decode(token, key.key, key.algorithm, self._rules.audience, self._rules.issuer)

    def _guest_claims(self, token: str) -> dict[str, Any]:
        return self._first(token, self._guest_keys, GUEST_AUDIENCE, None)

    def _first(self, token: str, secrets: tuple[Any, ...], audience: str, issuer: str | None) -> dict[str, Any]:
        """The claims under whichever of our secrets signed it."""
        for secret in secrets:
            try:
                return self._decode(token, secret, "HS256", audience, issuer)
            except jwt.InvalidSignatureError:
                continue
        raise jwt.InvalidSignatureError

    def _decode(self, token: str, key: Any, algorithm: str, audience: str, issuer: str | None) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=audience,
            issuer=issuer,
            leeway=self._rules.leeway_s,
            options={"require": ["exp", "aud", "sub"]},
        )

    def _user(self, claims: Mapping[str, Any]) -> Actor:
        # LiveKit's own tokens carry `video`: even where somebody gave both the same secret, they stay apart.
        if "video" in claims or claims["aud"] == GUEST_AUDIENCE:
            raise ValueError("another system's token")
        user_id = _subject(claims)
        if user_id.startswith("guest:"):
            raise ValueError("guests are made here only")
        role = claims.get("role", "authenticated")
        if role not in _ROLES:
            raise ValueError("role")
        app, user = _object(claims, "app_metadata"), _object(claims, "user_metadata")
        organisation = app.get("org_id") or app.get("tenant_id") or claims.get("tenant_id")
        hub_role = app.get("hub_role")
        return Actor(
            tenant_id=self._rules.default_tenant if organisation is None else tenant_id(organisation),
            user_id=user_id,
            role=role,
            expires_at=datetime.fromtimestamp(int(claims["exp"]), UTC),
            display_name=clean_name(user.get("display_name") or user.get("full_name") or user.get("name")),
            avatar_url=_avatar(user.get("avatar_url")),
            # An unknown word gives nothing.
            hub_role=hub_role if hub_role in ("viewer", "admin") else None,
            email=_email(claims),
        )

    def issue_guest(
        self, *, tenant: UUID, guest: GuestPass, display_name: str = "", user_id: str | None = None
    ) -> Issued:
        """A guest token: with the `user_id` of the old one to renew it, else for somebody new.

        Raises ValueError where there is no secret to sign with.
        """
        if not self._guest_keys:
            raise ValueError("guest tokens need AURALINK_JWT_SECRET")
        who = user_id or f"guest:{uuid4()}"
        claims = {
            "tenant_id": str(tenant),
            "guest": msgspec.to_builtins(guest),
            "name": clean_name(display_name),
        }
        return _signed(who, claims, self._guest_keys[0], GUEST_AUDIENCE, self._rules.guest_ttl_s, _GUEST_TYPE)

    def issue(
        self,
        user_id: str,
        *,
        tenant: str | UUID | None = None,
        role: UserRole = "authenticated",
        hub_role: Literal["viewer", "admin"] | None = None,
        display_name: str = "",
        ttl_s: int = 3600,
    ) -> Issued:
        """A user token, for the command line and the demo. Raises ValueError without a secret to sign with."""
        if not self._rules.secrets:
            raise ValueError("this hub verifies tokens with a JWKS; it cannot make any")
        app = {"org_id": str(tenant) if tenant else None, "hub_role": hub_role}
        claims: dict[str, Any] = {
            "role": role,
            "app_metadata": {name: value for name, value in app.items() if value},
            "user_metadata": {"display_name": display_name} if display_name else {},
        }
        if self._rules.issuer:
            claims["iss"] = self._rules.issuer
        return _signed(user_id, claims, self._rules.secrets[0], self._rules.audience, ttl_s, "JWT")


def tenant_id(organisation: object) -> UUID:
    """The tenant of an organisation id: the id itself where it is a UUID, else one made of it for good."""
    if isinstance(organisation, UUID):
        return organisation
    if not isinstance(organisation, str) or not 0 < len(organisation) <= 128:
        raise ValueError("organisation id")
    if _CANONICAL_UUID.fullmatch(organisation):
        return UUID(organisation)
    return uuid5(_TENANTS, organisation)


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header, None where it is not one bearer token."""
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token and " " not in token else None


def _guest(claims: Mapping[str, Any]) -> Actor:
    user_id = _subject(claims)
    if not user_id.startswith("guest:"):
        raise ValueError("sub")
    return Actor(
        tenant_id=UUID(claims["tenant_id"]),
        user_id=user_id,
        role="guest",
        expires_at=datetime.fromtimestamp(int(claims["exp"]), UTC),
        display_name=clean_name(claims.get("name")),
        guest=msgspec.convert(claims["guest"], GuestPass),
    )


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims["sub"]
    # Spaces and control characters would end up in identities and log lines.
    if not isinstance(subject, str) or not 0 < len(subject) <= 128 or not subject.isprintable() or " " in subject:
        raise ValueError("sub")
    return subject


def _object(claims: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = claims.get(name) or {}
    if not isinstance(value, Mapping):
        raise ValueError(name)
    return value


def _avatar(value: object) -> str:
    return value if isinstance(value, str) and value.startswith("https://") and len(value) <= 1024 else ""


def _email(claims: Mapping[str, Any]) -> str:
    """The address that the identity provider vouches for. What `user_metadata` says, people write themselves."""
    value = claims.get("email")
    if not isinstance(value, str) or claims.get("email_verified", True) is not True:
        return ""
    return value.lower() if _EMAIL.fullmatch(value) else ""


def _derived(secret: str) -> bytes:
    """The key of guest tokens. Another one than the secret's own, so that neither kind can pass for the other."""
    return hmac.digest(secret.encode(), b"auralink guest token 1", "sha256")


def _signed(
    user_id: str, claims: Mapping[str, Any], key: str | bytes, audience: str, ttl_s: int, token_type: str
) -> Issued:
    now = int(time.time())
    expires = now + ttl_s
    payload = {**claims, "sub": user_id, "aud": audience, "iat": now, "exp": expires}
    token = jwt.encode(payload, key, algorithm="HS256", headers={"typ": token_type})
    return Issued(token, user_id, datetime.fromtimestamp(expires, UTC))


def _refused(kind: str, verdict: str) -> TokenInvalid:
    VERIFIED.add(1, kind, verdict)
    return TokenInvalid(_REFUSAL)
