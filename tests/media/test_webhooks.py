"""Webhook verification: what LiveKit signed is taken, everything else is refused in one way."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from hub.media import tokens, webhooks
from hub.media.values import Grant, Server
from hub.media.webhooks import WebhookRefused

KEYS = {"key-one": "secret-one-of-more-than-32-characters", "key-two": "secret-two-of-more-than-32-characters"}
KEY, SECRET = next(iter(KEYS.items()))
JOINED: dict[str, Any] = {
    "event": "participant_joined",
    "id": "EV_1",
    "createdAt": "1795646986",
    "numDropped": 2,
    "room": {"sid": "RM_1", "name": "room_a_1", "turnPassword": "hunter2", "creationTimeMs": "1795646981145"},
    "participant": {
        "sid": "PA_1",
        "identity": "anna",
        "name": "Anna",
        "state": "ACTIVE",
        "joinedAt": "1795646982",
        "joinedAtMs": "1795646982185",
        "attributes": {"role": "host"},
        "permission": {"canSubscribe": True, "canPublish": True, "canPublishSources": ["MICROPHONE"]},
        "tracks": [{"sid": "TR_1", "source": "CAMERA", "muted": True}],
    },
    "somethingNew": {"a": 1},
}


def raw_of(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def token(body: bytes, *, key: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """A header as LiveKit makes it, with claims replaced, or left out where they are None."""
    now = datetime.now(UTC)
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    whole = {"iss": KEY, "nbf": now, "iat": now, "exp": now + timedelta(minutes=5), "sha256": digest} | claims
    return jwt.encode({name: value for name, value in whole.items() if value is not None}, key, algorithm)


def minutes(count: float) -> datetime:
    return datetime.now(UTC) + timedelta(minutes=count)


def refused(raw: bytes, authorization: str) -> str:
    with pytest.raises(WebhookRefused) as caught:
        webhooks.verify(raw, authorization, KEYS)
    # Outside nobody can tell one reason from another.
    assert caught.value.problem() == WebhookRefused("anything").problem()
    assert caught.value.status == 401
    return caught.value.reason


def test_a_signed_event_becomes_our_own_value() -> None:
    """S-131: verified over the raw body; unknown fields are passed over."""
    raw = raw_of(JOINED)
    event = webhooks.verify(raw, token(raw), KEYS)
    assert (event.event_id, event.event, event.room_sid, event.room_name) == (
        "EV_1",
        "participant_joined",
        "RM_1",
        "room_a_1",
    )
    assert event.created_at == datetime.fromtimestamp(1795646986, UTC)
    assert event.num_dropped == 2
    assert event.track is None
    who = event.participant
    assert who is not None
    assert (who.sid, who.identity, who.state, who.kind, who.countable) == ("PA_1", "anna", "active", "standard", True)
    assert who.joined_at == datetime.fromtimestamp(1795646982.185, UTC)
    assert who.disconnect_reason == ""
    assert who.grant == Grant(can_publish_sources=frozenset({"microphone"}), can_publish_data=False)
    assert [(track.sid, track.source, track.muted) for track in who.tracks] == [("TR_1", "camera", True)]


def test_the_kept_body_has_no_secrets_and_can_be_read_again() -> None:
    egress = {
        "event": "egress_ended",
        "id": "EV_2",
        "createdAt": "1795646986",
        "room": {"name": "room_a_1", "turnPassword": "hunter2"},
        "egressInfo": {
            "egressId": "EG_1",
            "roomName": "room_a_1",
            "status": "EGRESS_COMPLETE",
            "roomComposite": {"fileOutputs": [{"filepath": "a.mp4", "s3": {"accessKey": "AK", "secret": "hunter2"}}]},
        },
    }
    for body in (JOINED, egress):
        raw = raw_of(body)
        event = webhooks.verify(raw, token(raw), KEYS)
        assert b"hunter2" not in event.raw
        assert b"turnPassword" not in event.raw
        assert "hunter2" not in repr(event)
        assert webhooks.parse(event.raw) == event
    assert event.egress is not None
    assert event.egress["egressId"] == "EG_1"
    assert event.egress["roomComposite"]["fileOutputs"][0]["filepath"] == "a.mp4"


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ""), ("Bearer ", ""), ("bearer ", ""), (" ", "\t"), ("Bearer   ", " ")]
)
def test_a_scheme_that_a_proxy_put_in_front_is_no_harm(prefix: str, suffix: str) -> None:
    raw = raw_of(JOINED)
    assert webhooks.verify(raw, prefix + token(raw) + suffix, KEYS).event_id == "EV_1"


def test_either_key_verifies_while_keys_rotate_and_a_third_does_not() -> None:
    """S-159: the configured key, another known one, an unknown one."""
    raw = raw_of(JOINED)
    for key, secret in KEYS.items():
        assert webhooks.verify(raw, webhooks.sign(raw, key, secret), KEYS).event_id == "EV_1"
    assert refused(raw, webhooks.sign(raw, "key-three", SECRET)) == "unknown_key"
    # The right name with the other's secret.
    assert refused(raw, webhooks.sign(raw, "key-one", KEYS["key-two"])) == "bad_signature"


BAD_HEADERS: dict[str, Callable[[bytes], str]] = {
    "missing": lambda raw: "",
    "missing ": lambda raw: "Bearer ",
    "malformed_token": lambda raw: "not.a.token",
    "malformed_token ": lambda raw: "\udcff",
    "expired": lambda raw: token(raw, exp=minutes(-1.1)),
    "not_yet_valid": lambda raw: token(raw, nbf=minutes(1.1)),
    "missing_claim": lambda raw: token(raw, exp=None),
    "bad_signature": lambda raw: token(raw, key="someone-elses-secret-of-32-characters"),
    "bad_algorithm": lambda raw: token(raw, key="", algorithm="none"),
    "bad_algorithm ": lambda raw: token(raw, key=SECRET * 2, algorithm="HS512"),
    "unknown_key": lambda raw: token(raw, iss="nobody"),
    "unknown_key ": lambda raw: token(raw, iss=None),
    "no_body_hash": lambda raw: token(raw, sha256=None),
    "no_body_hash ": lambda raw: token(raw, sha256=7),
    "body_hash": lambda raw: token(raw, sha256=base64.b64encode(b"x" * 32).decode()),
    "body_hash ": lambda raw: token(raw, sha256="%%%"),
    "body_hash  ": lambda raw: token(raw + b" "),
}


@pytest.mark.parametrize("reason", BAD_HEADERS)
def test_a_header_that_does_not_vouch_for_the_body_is_refused(reason: str) -> None:
    """S-131: wrong signature, body hash or time."""
    raw = raw_of(JOINED)
    assert refused(raw, BAD_HEADERS[reason](raw)) == reason.strip()


def test_a_clock_may_be_a_minute_off() -> None:
    raw = raw_of(JOINED)
    for header in (token(raw, exp=minutes(-0.9)), token(raw, nbf=minutes(0.9))):
        assert webhooks.verify(raw, header, KEYS).event_id == "EV_1"


def test_a_body_that_was_parsed_and_written_again_is_refused() -> None:
    raw = raw_of(JOINED)
    assert refused(json.dumps(json.loads(raw), separators=(",", ":")).encode(), token(raw)) == "body_hash"


def test_a_participants_token_vouches_for_nothing() -> None:
    server = Server(url="ws://127.0.0.1", api_key=KEY, api_secret=SECRET)
    theirs, _ = tokens.mint(server, room_name="room_a_1", identity="anna", name="", grant=Grant())
    assert refused(raw_of(JOINED), theirs) == "no_body_hash"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        b'"text"',
        b'{"createdAt": "9999999999999999"}',
        b'{"room": 1}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    assert refused(body, token(body)) == "malformed_body"


def test_two_mebibytes_are_read() -> None:
    raw = raw_of(JOINED | {"room": {"name": "room_a_1", "metadata": "x" * 2**21}})
    assert webhooks.verify(raw, token(raw), KEYS).room_name == "room_a_1"


def test_names_and_numbers_we_do_not_know_are_no_error() -> None:
    raw = raw_of(
        {
            "event": "room_painted",
            "id": "EV_3",
            "participant": {"sid": "PA_1", "state": 77, "kind": 99, "disconnectReason": 88, "permission": {}},
            "track": {"sid": "TR_1", "source": 66},
            "roomEndReason": 55,
        }
    )
    event = webhooks.verify(raw, token(raw), KEYS)
    assert event.event == "room_painted"
    assert event.participant is not None
    assert event.track is not None
    assert (event.participant.state, event.participant.kind, event.track.source) == ("unknown", "unknown", "unknown")
    assert (event.participant.disconnect_reason, event.room_end_reason) == ("UNKNOWN", "UNKNOWN")
    assert not event.participant.countable
    assert abs(event.created_at - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_track_event_has_ids_only() -> None:
    raw = raw_of(
        {
            "event": "track_published",
            "id": "EV_4",
            "room": {"sid": "RM_1", "name": "room_a_1"},
            "participant": {"sid": "PA_1", "identity": "anna"},
            "track": {"sid": "TR_1", "source": "SCREEN_SHARE_AUDIO"},
        }
    )
    event = webhooks.verify(raw, token(raw), KEYS)
    assert event.track is not None
    assert event.participant is not None
    assert (event.track.source, event.participant.identity, event.participant.grant) == (
        "screen_share_audio",
        "anna",
        None,
    )


@pytest.mark.parametrize("permission", ["hidden", "recorder", "agent"])
def test_recorders_agents_and_the_hidden_take_no_seat(permission: str) -> None:
    raw = raw_of({"event": "participant_joined", "participant": {"permission": {permission: True}}})
    who = webhooks.verify(raw, token(raw), KEYS).participant
    assert who is not None
    assert not who.countable


def test_an_event_without_an_id_is_known_by_its_body() -> None:
    first, other = raw_of({"event": "room_started"}), raw_of({"event": "room_finished"})
    event = webhooks.verify(first, token(first), KEYS)
    assert event.event_id == webhooks.verify(first, token(first), KEYS).event_id
    assert event.event_id != webhooks.verify(other, token(other), KEYS).event_id
    assert webhooks.parse(event.raw).event_id == event.event_id


def test_the_reason_a_person_left_is_livekits_word() -> None:
    raw = raw_of({"event": "participant_left", "participant": {"sid": "PA_1", "disconnectReason": "CLIENT_INITIATED"}})
    who = webhooks.verify(raw, token(raw), KEYS).participant
    assert who is not None
    assert who.disconnect_reason == "CLIENT_INITIATED"


def test_a_nul_is_not_kept() -> None:
    raw = raw_of({"event": "participant_joined", "participant": {"name": "a\0b"}})
    assert b"\\u0000" not in webhooks.verify(raw, token(raw), KEYS).raw
