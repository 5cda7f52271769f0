"""Signed URLs of our own: what they allow, and until when."""

from __future__ import annotations

import time
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest

from storage import keys
from storage.errors import SignatureInvalid
from storage.signing import Granted, UrlSigner

from .conftest import SIGNER

KEY = keys.content(uuid4(), uuid4(), uuid4())


def test_a_signed_url_allows_what_it_says_until_it_ends() -> None:
    """S-027: a URL whose key, type or end was altered, or whose time is over, is refused."""
    signed = SIGNER.get(KEY, ttl_s=60, content_type="image/webp", disposition='attachment; filename="a b"')
    parts = urlsplit(signed.url)
    query = dict(parse_qsl(parts.query))
    assert parts.path == f"/storage/{KEY}"
    assert SIGNER.granted("GET", KEY, query) == Granted(KEY, "image/webp", 'attachment; filename="a b"')
    refused = [
        (KEY[:-1] + ("0" if KEY[-1] != "0" else "1"), query),
        (KEY, {**query, "type": "text/html"}),
        (KEY, {**query, "disposition": "inline"}),
        (KEY, {**query, "expires": str(int(query["expires"]) + 1)}),
        (KEY, {**query, "size": "1"}),
        (KEY, {**query, "signature": ""}),
        (KEY, {**query, "signature": "ü"}),
        (KEY, {}),
        ("../" + KEY, query),
    ]
    for key, changed in refused:
        with pytest.raises(SignatureInvalid):
            SIGNER.granted("GET", key, changed)
    with pytest.raises(SignatureInvalid):
        SIGNER.granted("PUT", KEY, query)
    SIGNER.granted("GET", KEY, query, now=time.time() + 58)
    with pytest.raises(SignatureInvalid, match="expired"):
        SIGNER.granted("GET", KEY, query, now=time.time() + 61)


def test_what_may_be_put_is_bound_to_its_size_and_type() -> None:
    """S-031: a presigned PUT says size and type."""
    signed = SIGNER.put(KEY, ttl_s=60, content_type="text/plain", size_bytes=10)
    query = dict(parse_qsl(urlsplit(signed.url).query))
    assert (signed.method, signed.headers) == ("PUT", {"Content-Type": "text/plain"})
    assert SIGNER.granted("PUT", KEY, query) == Granted(KEY, "text/plain", size_bytes=10)
    for name, value in (("size", "11"), ("type", "text/html")):
        with pytest.raises(SignatureInvalid):
            SIGNER.granted("PUT", KEY, {**query, name: value})


def test_another_secret_signs_other_urls() -> None:
    signed = UrlSigner("http://h", b"another").get(KEY, ttl_s=60, content_type="a/b", disposition="attachment")
    with pytest.raises(SignatureInvalid):
        SIGNER.granted("GET", KEY, dict(parse_qsl(urlsplit(signed.url).query)))
