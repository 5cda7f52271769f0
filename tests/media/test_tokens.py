"""Tokens: decoded, they hold exactly what was granted."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from hub.media import tokens
from hub.media.livekit import LiveKit
from hub.media.values import SOURCES, Grant, Server

SERVER = Server(url="ws://127.0.0.1:7880", api_key="key-one", api_secret="secret-one-of-more-than-32-characters")
ADMIN = {"roomAdmin", "roomCreate", "roomList", "roomRecord", "ingressAdmin", "agent", "destinationRoom"}


def claims(grant: Grant, **others: object) -> dict[str, object]:
    token, _ = tokens.mint(
        SERVER,
        room_name="room_a_1",
        identity="anna",
        name="Anna",
        grant=grant,
        **others,  # type: ignore[arg-type]
    )
    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    found: dict[str, object] = jwt.decode(token, SERVER.api_secret, algorithms=["HS256"], issuer=SERVER.api_key)
    return found


def test_a_token_names_room_and_person_and_is_signed_by_the_servers_secret() -> None:
    """S-019, S-151, S-152: iss is the API key, sub the identity, and only the secret verifies it."""
    found = claims(Grant(can_publish_sources=SOURCES), metadata={"role": "host"}, attributes={"role": "host"})
    assert (found["iss"], found["sub"], found["name"]) == ("key-one", "anna", "Anna")
    assert json.loads(str(found["metadata"])) == {"role": "host"}
    assert found["attributes"] == {"role": "host"}
    assert abs(int(str(found["nbf"])) - time.time()) <= 2
    token, _ = tokens.mint(SERVER, room_name="room_a_1", identity="anna", name="", grant=Grant())
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, "another-secret-of-more-than-32-characters", algorithms=["HS256"])


def test_a_viewers_token_says_no_to_publishing() -> None:
    """S-019: no sources means can_publish false, and not an empty list, which LiveKit reads as "all"."""
    video = claims(Grant(can_publish_sources=frozenset(), can_publish_data=False))["video"]
    assert video == {
        "roomJoin": True,
        "room": "room_a_1",
        "canPublish": False,
        "canSubscribe": True,
        "canPublishData": False,
        "canUpdateOwnMetadata": False,
    }


@pytest.mark.parametrize(
    "sources", [{"microphone"}, {"microphone", "camera"}, {"screen_share", "screen_share_audio"}, SOURCES]
)
def test_a_token_grants_exactly_the_sources_given(sources: set[str]) -> None:
    """S-019: role-derived grants."""
    video = claims(Grant(can_publish_sources=frozenset(sources)))["video"]
    assert isinstance(video, dict)
    assert video["canPublish"] is True
    assert set(video["canPublishSources"]) == set(sources)
    assert not ADMIN & set(video)
    assert video["canUpdateOwnMetadata"] is False


def test_hidden_is_said_only_of_the_hidden() -> None:
    assert "hidden" not in claims(Grant())["video"]  # type: ignore[operator]
    assert claims(Grant(hidden=True))["video"]["hidden"] is True  # type: ignore[index]


def test_a_token_lives_as_long_as_asked_and_ten_minutes_by_default() -> None:
    """S-019: exp within the configured lifetime, and the moment that is told is the one in the token."""
    default = tokens.mint(SERVER, room_name="room_a_1", identity="anna", name="", grant=Grant())
    short = tokens.mint(SERVER, room_name="room_a_1", identity="anna", name="", grant=Grant(), ttl_s=90)
    for ttl_s, (token, expires_at) in ((600, default), (90, short)):
        found = jwt.decode(token, options={"verify_signature": False})
        assert datetime.fromtimestamp(found["exp"], UTC) == expires_at
        assert timedelta(seconds=ttl_s - 2) <= expires_at - datetime.now(UTC) <= timedelta(seconds=ttl_s)


def test_a_token_without_room_identity_or_lifetime_is_refused() -> None:
    for wrong in ({"room_name": ""}, {"identity": ""}, {"ttl_s": 0}):
        with pytest.raises(ValueError, match="names a room"):
            tokens.mint(SERVER, **({"room_name": "r", "identity": "i", "name": "", "grant": Grant()} | wrong))  # type: ignore[arg-type]


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="webcam"):
        Grant(can_publish_sources=frozenset({"webcam"}))


async def test_each_region_signs_with_its_own_key_and_has_its_own_url() -> None:
    """S-150: the URL decides where everything goes; a region without a server is the default one's."""
    other = Server(url="https://eu.example", api_key="key-two", api_secret="secret-two-of-more-than-32-characters")
    async with LiveKit({"default": SERVER, "eu": other}) as livekit:
        for region, key, url in (
            (None, "key-one", "ws://127.0.0.1:7880"),
            ("eu", "key-two", "wss://eu.example"),
            ("mars", "key-one", "ws://127.0.0.1:7880"),
        ):
            token, _ = livekit.mint_token(
                room_name="r", identity="i", name="", metadata={}, attributes={}, grant=Grant(), region=region
            )
            assert jwt.decode(token, options={"verify_signature": False})["iss"] == key
            assert livekit.public_url(region) == url
        assert (livekit.has_region("eu"), livekit.has_region("mars")) == (True, False)


def test_a_server_is_checked_when_it_is_made_and_never_shows_its_secret() -> None:
    """S-150, S-152: a bad or missing URL is refused with a clear message; the secret is not printed."""
    for wrong, message in (
        ({"url": ""}, "needs a URL"),
        ({"url": "ftp://x"}, "ws, wss"),
        ({"url": "ws://"}, "names a host"),
        ({"public_url": "livekit.example"}, "ws, wss"),
        ({"api_key": ""}, "API key"),
        ({"api_secret": ""}, "secret"),
    ):
        with pytest.raises(ValueError, match=message):
            Server(**({"url": "ws://a", "api_key": "k", "api_secret": "s"} | wrong))
    assert SERVER.api_secret not in repr(SERVER)
    assert SERVER.api_secret not in f"{SERVER}"


async def test_a_public_url_is_what_clients_get() -> None:
    server = Server(url="http://livekit:7880", public_url="https://media.example/lk", api_key="k", api_secret="s" * 32)
    async with LiveKit({"default": server}) as livekit:
        assert livekit.public_url() == "wss://media.example/lk"
