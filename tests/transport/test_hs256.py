"""The short way of an ordinary token: never a yes where PyJWT says no, and the same claims."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.transport import hs256

KEYS = (b"the-present-secret-that-is-long-enough", b"the-previous-secret-that-is-long-enough")
NOW = int(time.time())
GOOD: dict[str, Any] = {"sub": "ada", "aud": "authenticated", "exp": NOW + 36_000}


def short(token: str, issuer: str | None = None) -> Mapping[str, Any] | None:
    if hs256.header(token.partition(".")[0]) is None:
        return None
    return hs256.claims(token, KEYS, "authenticated", issuer, now=time.time(), leeway_s=60)


def full(token: str, issuer: str | None = None) -> Mapping[str, Any] | None:
    for key in KEYS:
        try:
            found: dict[str, Any] = jwt.decode(
                token, key, ["HS256"], audience="authenticated", issuer=issuer, leeway=60,
                options={"require": ["exp", "aud", "sub"]},
            )  # fmt: skip
            return found
        except jwt.PyJWTError:
            continue
    return None


def signed(claims: Mapping[str, Any], key: bytes = KEYS[0], **header: Any) -> str:
    return jwt.encode(dict(claims), key, "HS256", headers=header)


@pytest.mark.parametrize("key", KEYS)
def test_an_ordinary_token_is_read_the_short_way(key: bytes) -> None:
    claims = {**GOOD, "iat": NOW, "nbf": NOW, "iss": "me", "user_metadata": {"name": "Ädä"}}
    assert short(signed(claims, key)) == claims == full(signed(claims, key))
    assert short(signed(claims, key, kid="1"), "me") == claims


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(NOW - 200, NOW + 200), st.floats(NOW - 200, NOW + 200), st.text(max_size=3),
    st.sampled_from(["authenticated", "me", ["authenticated"], [], {}, str(NOW + 600), 1e400, -(2**70), 2**70]),
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "iat", "iss", "jti"]), _VALUES, max_size=3))
def test_it_says_yes_to_nothing_that_pyjwt_refuses(changed: dict[str, Any]) -> None:
    try:
        token = signed({**GOOD, **changed})
    except (TypeError, ValueError):
        return
    for issuer in (None, "me"):
        found = short(token, issuer)
        assert found is None or found == full(token, issuer)


@settings(deadline=None)
@given(st.integers(0, 400), st.characters(codec="ascii"))
def test_a_changed_token_is_never_read(at: int, char: str) -> None:
    token = signed(GOOD)
    at %= len(token)
    changed = token[:at] + char + token[at + 1 :]
    if changed != token:
        assert short(changed) is None or short(changed) == full(changed)


def test_other_headers_and_other_shapes_are_not_for_the_short_way() -> None:
    for header in ({"crit": ["x"]}, {"b64": False}, {"alg": "none"}, {"kid": 5}):
        head = base64.urlsafe_b64encode(jwt.utils.force_bytes(str({"alg": "HS256", **header}))).decode().rstrip("=")
        assert hs256.header(head) is None
    assert hs256.header(signed(GOOD, crit=["exp"]).partition(".")[0]) is None
    assert hs256.header(jwt.encode(GOOD, KEYS[0], "HS512").partition(".")[0]) is None
    for token in ("", ".", "..", "a.b.c", signed(GOOD) + ".x", "x." + signed(GOOD)):
        assert short(token) is None


def test_keys_that_look_public_are_left_to_pyjwt() -> None:
    assert hs256.usable(KEYS[0])
    assert not hs256.usable(b"-----BEGIN PUBLIC KEY-----\nx") and not hs256.usable(b"ssh-rsa AAAA")
