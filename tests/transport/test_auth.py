"""Tokens: who is let in, and that everybody else hears the same."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from livekit.api import AccessToken, VideoGrants

from hub.context import GuestPass
from hub.protocol.errors import HubError, TokenExpired, TokenInvalid
from hub.protocol.names import clean_name
from hub.transport.auth import GUEST_AUDIENCE, TokenRules, Tokens, bearer, tenant_id
from hub.transport.jwks import KeySet, parse
from tests.transport.door import SECRET, Door, commands, opened

PREVIOUS = "the-secret-before-that-was-long-enough-too"
OTHER = "a-secret-that-this-hub-has-never-heard-of"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def claims(**changes: Any) -> dict[str, Any]:
    """A good set of claims; None takes one away."""
    now = int(time.time())
    full: dict[str, Any] = {
        "sub": "ada",
        "aud": "authenticated",
        "role": "authenticated",
        "iat": now,
        "exp": now + 600,
        **changes,
    }
    return {name: value for name, value in full.items() if value is not None}


def signed(payload: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers or None)


def by_hand(payload: dict[str, Any], key: bytes, header: dict[str, Any]) -> str:
    """A token no library would make."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    body = b".".join(parts)
    seal = base64.urlsafe_b64encode(hmac.digest(key, body, hashlib.sha256)).rstrip(b"=") if key else b""
    return (body + b"." + seal).decode()


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def livekit_token() -> str:
    # Signed with the hub's own secret, as where somebody used one secret for both.
    return (
        AccessToken("devkey", SECRET).with_identity("ada").with_grants(VideoGrants(room_join=True, room="r")).to_jwt()
    )


def tampered() -> str:
    head, _, seal = signed(claims()).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(sub="eve")).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{seal}"


REFUSED: dict[str, Callable[[], str]] = {
    "nonsense": lambda: "nonsense",
    "empty parts": lambda: "..",
    "deep header": lambda: base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.x",
    "alg none": lambda: by_hand(claims(), b"", {"alg": "none", "typ": "JWT"}),
    "alg None in capitals": lambda: by_hand(claims(), b"", {"alg": "NONE", "typ": "JWT"}),
    "alg none with a signature": lambda: by_hand(claims(), SECRET.encode(), {"alg": "none", "typ": "JWT"}),
    "HS512": lambda: signed(claims(), algorithm="HS512"),
    "another secret": lambda: signed(claims(), OTHER),
    "tampered": tampered,
    "no aud": lambda: signed(claims(aud=None)),
    "wrong aud": lambda: signed(claims(aud="somebody-else")),
    "no exp": lambda: signed(claims(exp=None)),
    "no sub": lambda: signed(claims(sub=None)),
    "empty sub": lambda: signed(claims(sub="")),
    "long sub": lambda: signed(claims(sub="a" * 129)),
    "sub with a line break": lambda: signed(claims(sub="ada\nroot")),
    "a guest's sub in a user token": lambda: signed(claims(sub=f"guest:{uuid4()}")),
    "exp is text": lambda: signed(claims(exp="tomorrow")),
    "exp beyond all time": lambda: signed(claims(exp=10**18)),
    "nbf in 120 s": lambda: signed(claims(nbf=int(time.time()) + 120)),
    "iat in 120 s": lambda: signed(claims(iat=int(time.time()) + 120)),
    "a role there is not": lambda: signed(claims(role="root")),
    "app_metadata is a list": lambda: signed(claims(app_metadata=["org"])),
    "org_id is a number": lambda: signed(claims(app_metadata={"org_id": 7})),
    "HS256 with the RSA public key": lambda: by_hand(claims(), public_pem(RSA), {"alg": "HS256", "typ": "JWT"}),
    "HS256 with the RSA public key and its kid": lambda: by_hand(
        claims(), public_pem(RSA), {"alg": "HS256", "typ": "JWT", "kid": "rsa"}
    ),
    "a LiveKit token": livekit_token,
    "a LiveKit token with our aud": lambda: signed(claims(video={"roomJoin": True})),
    "a user token dressed as a guest's": lambda: signed(claims(aud=GUEST_AUDIENCE), typ="auralink-guest+jwt"),
    "a guest audience in a user token": lambda: signed(claims(aud=GUEST_AUDIENCE)),
    "RS256 without any key set": lambda: signed(claims(), RSA, "RS256", kid="rsa"),
    "a crit header": lambda: by_hand(claims(), SECRET.encode(), {"alg": "HS256", "crit": ["x"], "x": 1}),
    "nine kilobytes": lambda: signed(claims(filler="x" * 9000)),
    "not ASCII": lambda: "eyJ\u00e9.a.b",
}


def tokens(**changes: Any) -> Tokens:
    return Tokens(TokenRules(**{"secrets": (SECRET, PREVIOUS), **changes}))


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with opened() as door:
        yield door


@pytest.mark.parametrize("case", REFUSED)
async def test_a_token_that_does_not_verify_is_refused_without_a_reason(case: str) -> None:
    """S-171: wrong algorithm, audience, signature, claims."""
    with pytest.raises(TokenInvalid) as refusal:
        await tokens().verify(REFUSED[case]())
    assert refusal.value.message == "the token does not verify"


async def test_every_refused_token_gets_the_same_bytes_over_http(door: Door) -> None:
    """S-171: 401 on REST, one body whatever the reason."""
    bodies = set()
    for make in REFUSED.values():
        token = make()
        if not token.isascii() or len(token) > 8000:
            # No HTTP header at all; a socket's auth object could carry it.
            continue
        response = await door.ask("GET", "/api/v1/things", token=token, headers={"X-Request-Id": "same"})
        assert response.status == 401
        bodies.add(await response.read())
    assert len(bodies) == 1


async def test_an_expired_token_is_told_so_after_the_leeway() -> None:
    """S-171: 60 s of leeway, not 61."""
    now = int(time.time())
    assert (await tokens().verify(signed(claims(exp=now - 55)))).user_id == "ada"
    with pytest.raises(TokenExpired):
        await tokens().verify(signed(claims(exp=now - 61)))


async def test_an_expired_token_of_a_stranger_is_not_told_so() -> None:
    """S-171"""
    with pytest.raises(TokenInvalid):
        await tokens().verify(signed(claims(exp=int(time.time()) - 3600), OTHER))


async def test_every_route_asks_for_a_token_before_anything_else(door: Door) -> None:
    """S-171: no token, 401 on every REST route, whatever the body."""
    for command in commands:
        assert command.http is not None
        path = "/api/v1" + re.sub(r"{\w+}", "x", command.http.path)
        response = await door.ask(command.http.method, path, token=None, data=b"not json")
        assert response.status == 401
        assert (await response.json())["code"] == "unauthenticated"
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["Basic YWRhOmFkYQ==", "Bearer", "Bearer a b", "Token abc", ""])
async def test_only_a_bearer_header_carries_a_token(door: Door, header: str) -> None:
    """S-171"""
    response = await door.ask("GET", "/api/v1/things", token=None, headers={"Authorization": header})
    assert response.status == 401


@pytest.mark.parametrize("name", ["token", "access_token", "JWT"])
async def test_a_token_in_the_query_is_refused_even_beside_a_good_header(door: Door, name: str) -> None:
    """S-171: it would be in the logs of every proxy by now."""
    response = await door.ask("GET", f"/api/v1/things?{name}={door.token}")
    assert (response.status, (await response.json())["code"]) == (401, "unauthenticated")


async def test_both_secrets_of_a_rotation_verify() -> None:
    for secret in (SECRET, PREVIOUS):
        assert (await tokens().verify(signed(claims(), secret))).user_id == "ada"


async def test_the_issuer_counts_where_one_is_set() -> None:
    strict = tokens(issuer="https://id.example.com")
    assert (await strict.verify(signed(claims(iss="https://id.example.com")))).user_id == "ada"
    for issuer in (None, "https://evil.example.com"):
        with pytest.raises(TokenInvalid):
            await strict.verify(signed(claims(iss=issuer)))


async def test_claims_become_the_actor() -> None:
    """S-171: a verified token says who asks, for which tenant."""
    org = uuid4()
    actor = await tokens().verify(
        signed(
            claims(
                app_metadata={"org_id": str(org), "hub_role": "admin"},
                user_metadata={"display_name": "  Ada\u202e\x00 Lovelace ", "avatar_url": "https://img.example.com/a"},
            )
        )
    )
    assert (actor.tenant_id, actor.user_id, actor.hub_role, actor.admin) == (org, "ada", "admin", True)
    assert (actor.display_name, actor.avatar_url) == ("Ada Lovelace", "https://img.example.com/a")


async def test_what_the_user_wrote_about_themselves_gives_no_right_and_no_tenant() -> None:
    mine = {"org_id": str(uuid4()), "hub_role": "admin", "avatar_url": "javascript:alert(1)"}
    actor = await tokens().verify(signed(claims(user_metadata=mine)))
    assert (actor.tenant_id, actor.admin, actor.avatar_url) == (UUID(int=0), False, "")


async def test_an_organisation_without_a_uuid_gets_one_for_good() -> None:
    by_name = await tokens().verify(signed(claims(app_metadata={"org_id": "acme"})))
    by_claim = await tokens().verify(signed(claims(tenant_id="acme")))
    assert by_name.tenant_id == by_claim.tenant_id == tenant_id("acme") == UUID("4355787c-b700-5d23-8bc2-3c1bcc84d35d")
    assert tenant_id("acme") != tenant_id("Acme")


@pytest.mark.parametrize(
    ("told", "email"),
    [
        ({"email": "Zoe@Example.com"}, "zoe@example.com"),
        ({"email": "zoe@example.com", "email_verified": True}, "zoe@example.com"),
        ({"email": "zoe@example.com", "email_verified": False}, ""),
        ({"email": "zoe@example.com", "email_verified": "yes"}, ""),
        ({"email": "zoe"}, ""),
        ({"email": "zoe@evil.example@example.com"}, ""),
        ({"email": ["zoe@example.com"]}, ""),
        ({"user_metadata": {"email": "zoe@example.com"}}, ""),
        ({}, ""),
    ],
)
async def test_an_address_counts_where_the_identity_provider_vouches_for_it(told: dict[str, Any], email: str) -> None:
    """S-067: not what people wrote into their own profile."""
    assert (await tokens().verify(signed(claims(**told)))).email == email


async def test_a_guest_token_is_bound_to_its_call() -> None:
    bound = GuestPass(call_id=uuid4(), role="viewer", denied=("chat_post",))
    tenant = uuid4()
    issued = tokens().issue_guest(tenant=tenant, guest=bound, display_name="Bob")
    actor = await tokens().verify(issued.token)
    assert (actor.tenant_id, actor.role, actor.guest, actor.display_name) == (tenant, "guest", bound, "Bob")
    assert actor.user_id == issued.user_id and issued.user_id.startswith("guest:")
    assert 890 < actor.expires_at.timestamp() - time.time() <= 900
    renewed = tokens().issue_guest(tenant=tenant, guest=bound, user_id=issued.user_id)
    assert (await tokens().verify(renewed.token)).user_id == issued.user_id


async def test_guest_tokens_of_the_previous_secret_verify_and_others_do_not() -> None:
    bound = GuestPass(call_id=uuid4(), role="viewer")
    old = Tokens(TokenRules(secrets=(PREVIOUS,))).issue_guest(tenant=uuid4(), guest=bound)
    assert (await tokens().verify(old.token)).role == "guest"
    foreign = Tokens(TokenRules(secrets=(OTHER,))).issue_guest(tenant=uuid4(), guest=bound)
    with pytest.raises(TokenInvalid):
        await tokens().verify(foreign.token)


async def test_a_guest_signed_with_the_plain_secret_is_refused() -> None:
    """Whoever may sign user tokens may not make guests of them."""
    forged = claims(sub=f"guest:{uuid4()}", aud=GUEST_AUDIENCE, tenant_id=str(uuid4()), guest={})
    with pytest.raises(TokenInvalid):
        await tokens().verify(signed(forged, typ="auralink-guest+jwt"))


async def test_a_token_seen_before_is_not_verified_again_but_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Tokens(TokenRules(secrets=(SECRET,), leeway_s=0))
    token = signed(claims(exp=int(time.time()) + 600))
    assert await one.verify(token) is await one.verify(token)
    later = time.time() + 601
    monkeypatch.setattr(time, "time", lambda: later)
    # PyJWT asks datetime, not time: what counts here is that the cache does not answer any more.
    assert await one.verify(token) is not await one.verify(token)


def jwks(*keys: tuple[Any, str]) -> bytes:
    entries = []
    for key, kid in keys:
        public = key.public_key()
        if isinstance(key, rsa.RSAPrivateKey):
            entry = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(public))
        elif isinstance(key, ec.EllipticCurvePrivateKey):
            entry = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(public))
        else:
            entry = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(public))
        entries.append({**entry, "kid": kid, "use": "sig"})
    return json.dumps({"keys": entries}).encode()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks((RSA, "rsa"), (EC, "ec"), (ED, "ed")))
    return path


async def test_each_kind_of_key_verifies_with_its_own_algorithm(key_file: Path) -> None:
    """S-171: RS256, ES256 and EdDSA from a key set."""
    one = tokens(jwks=str(key_file))
    for key, kid, algorithm in ((RSA, "rsa", "RS256"), (EC, "ec", "ES256"), (ED, "ed", "EdDSA")):
        assert (await one.verify(signed(claims(), key, algorithm, kid=kid))).user_id == "ada"


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS512", "rsa"), (RSA, "PS256", "rsa"), (RSA, "RS256", "ec"), (EC, "ES256", "nobody"), (ED, "EdDSA", "rsa")],
)
async def test_a_key_is_good_for_its_own_algorithm_and_kid_only(
    key_file: Path, key: Any, algorithm: str, kid: str
) -> None:
    """S-171"""
    with pytest.raises(TokenInvalid):
        await tokens(jwks=str(key_file)).verify(signed(claims(), key, algorithm, kid=kid))


async def test_a_public_key_is_no_secret_with_a_key_set_either(key_file: Path) -> None:
    """S-171: the classic confusion, where the hub really has that key."""
    for secrets in ((SECRET,), ()):
        one = Tokens(TokenRules(secrets=secrets, jwks=str(key_file)))
        with pytest.raises(TokenInvalid):
            await one.verify(by_hand(claims(), public_pem(RSA), {"alg": "HS256", "kid": "rsa"}))


def test_only_public_signing_keys_are_taken_from_a_key_set() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    document = json.loads(jwks((RSA, "good"), (short, "short")))
    document["keys"] += [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"},
        {**document["keys"][0], "kid": "encrypts", "use": "enc"},
        {**document["keys"][0], "kid": "another algorithm", "alg": "RS512"},
        {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA)), "kid": "private"},
        {"kty": "EC", "crv": "P-521", "kid": "curve"},
        {"kty": ["RSA"]},
        "nonsense",
    ]
    assert [key.kid for key in parse(json.dumps(document).encode())] == ["good"]


class Provider:
    """An identity provider whose key set can change, and which can be down."""

    def __init__(self) -> None:
        self.body = jwks((RSA, "one"))
        self.status = 200
        self.asked = 0

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(body=self.body, status=self.status)


@pytest.fixture
async def provider() -> AsyncIterator[tuple[Provider, str]]:
    provider = Provider()
    app = web.Application()
    app.router.add_get("/jwks", provider.answer)
    async with TestServer(app) as server:
        yield provider, str(server.make_url("/jwks"))


async def test_an_unknown_kid_makes_the_hub_look_again_but_not_twice_a_minute(
    provider: tuple[Provider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = provider
    one = Tokens(TokenRules(jwks=url))
    assert one.keys is not None
    await one.keys.refresh()
    served.body = jwks((RSA, "one"), (EC, "two"))
    for _ in range(3):
        with pytest.raises(TokenInvalid):
            await one.verify(signed(claims(), EC, "ES256", kid="two"))
    assert served.asked == 1
    minute_later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: minute_later)
    assert (await one.verify(signed(claims(), EC, "ES256", kid="two"))).user_id == "ada"
    assert served.asked == 2


async def test_keys_outlive_an_identity_provider_that_is_down(provider: tuple[Provider, str]) -> None:
    served, url = provider
    one = Tokens(TokenRules(jwks=url))
    assert one.keys is not None
    assert await one.keys.refresh()
    served.status = 500
    assert not await one.keys.refresh()
    assert (await one.verify(signed(claims(), RSA, "RS256", kid="one"))).user_id == "ada"


async def test_a_key_that_is_gone_from_the_set_verifies_nothing_any_more(provider: tuple[Provider, str]) -> None:
    served, url = provider
    one = Tokens(TokenRules(jwks=url))
    assert one.keys is not None
    token = signed(claims(), RSA, "RS256", kid="one")
    assert (await one.verify(token)).user_id == "ada"
    served.body = jwks((EC, "two"))
    await one.keys.refresh()
    with pytest.raises(TokenInvalid):
        await one.verify(token)


@pytest.mark.parametrize("source", ["http://id.example.com/jwks", "ftp://id.example.com/jwks"])
def test_a_key_set_comes_by_https_or_from_a_file(source: str) -> None:
    with pytest.raises(ValueError):
        KeySet(source)


def test_a_hub_that_could_verify_nothing_does_not_start() -> None:
    with pytest.raises(ValueError):
        Tokens(TokenRules())


async def test_an_issued_token_is_one_the_hub_takes() -> None:
    one = tokens(issuer="https://id.example.com")
    issued = one.issue("ada", tenant="acme", hub_role="viewer", display_name="Ada", ttl_s=60)
    actor = await one.verify(issued.token)
    assert (actor.user_id, actor.tenant_id, actor.hub_role, actor.expires_at) == (
        "ada",
        tenant_id("acme"),
        "viewer",
        issued.expires_at,
    )


def test_names_are_one_short_line() -> None:
    assert clean_name("Ada\r\n\tLovelace") == "Ada Lovelace"
    assert clean_name("\u2066\u202eevil\u2069") == "evil"
    assert clean_name("👩\u200d🚀 یک\u200cنام") == "👩\u200d🚀 یک\u200cنام"
    assert clean_name("x" * 5000) == "x" * 128
    assert clean_name("Ada\u2028\x85Lovelace\u200b") == "Ada Lovelace\u200b"
    assert clean_name("\u200b\ufeff\u200d") == clean_name("\ud800\x85") == ""
    assert clean_name(42) == clean_name(None) == ""


def test_secrets_do_not_show_in_a_representation() -> None:
    assert SECRET not in repr(TokenRules(secrets=(SECRET,), guest_secret=SECRET))


def test_bearer_reads_one_token() -> None:
    assert bearer("Bearer abc") == bearer("bearer  abc ") == "abc"
    assert bearer(None) is bearer("abc") is None


async def test_random_text_is_refused_as_any_bad_token() -> None:
    for text in ("", ".", "a.b.c", "e30.e30.e30", "\x00", "eyJhbGciOiJIUzI1NiJ9.W10.x"):
        with pytest.raises(HubError):
            await tokens().verify(text)
