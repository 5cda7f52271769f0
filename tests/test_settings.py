"""The settings: every one is read, a bad one is named in one line, secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hub import __version__, settings
from hub.app import make_edge_options, make_rules
from hub.cluster.cluster import RECOVERY_WINDOW_S
from hub.cluster.redis import Door
from hub.context import Rules
from hub.settings import Address, SettingError
from hub.transport.socketio import EdgeOptions

MINIMUM = {
    "DATABASE_URL": "postgresql://hub_app:x@127.0.0.1/auralink",
    "REDIS_URL": "redis://127.0.0.1:6379",
    "LIVEKIT_URL": "wss://livekit.example.com",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "s" * 32,
    "AURALINK_JWT_SECRET": "j" * 32,
}


def test_the_minimum_set_is_enough() -> None:
    loaded = settings.load(MINIMUM)
    assert loaded.livekit_url == "wss://livekit.example.com"
    assert loaded.listen == Address("0.0.0.0", 8080)
    assert loaded.node_id


def test_every_default_has_one_value() -> None:
    """The rules of actions and the edge's options, as tests and benches make them, are those of a node without a
    setting of its own."""
    loaded = settings.load(MINIMUM)
    assert make_rules(loaded) == msgspec.structs.replace(
        # But for the store, which files are tested with.
        Rules(),
        stores_files=False,
        room_mark=make_rules(loaded).room_mark,
        sockets=make_edge_options(loaded).published(),
    )
    assert make_edge_options(loaded) == EdgeOptions(origins=loaded.origins, version=__version__)
    assert loaded.recovery_window_s == RECOVERY_WINDOW_S


def test_whoever_is_killed_has_left_within_thirty_seconds() -> None:
    """The promise of docs/decisions/0001: the socket's grace, with what it takes to notice, and the media's."""
    rules = Rules()
    assert rules.socket_grace_s + 5 <= 30
    assert rules.reconnect_grace_s < rules.socket_grace_s


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"])
def test_a_missing_required_setting_is_named(name: str) -> None:
    """S-150: a missing LIVEKIT_URL refuses the start with a clear message. S-156, S-157."""
    with pytest.raises(SettingError, match=f"^{name} is not set: [^\n]+$"):
        settings.load({key: value for key, value in MINIMUM.items() if key != name})


@pytest.mark.parametrize(
    "url", ["wss://a.example", "https://a.example", "ws://127.0.0.1:7880", "http://127.0.0.1:7880"]
)
def test_livekit_url_takes_all_four_schemes(url: str) -> None:
    """S-150: wss and https are both accepted."""
    assert settings.load({**MINIMUM, "LIVEKIT_URL": url}).livekit_url == url


@pytest.mark.parametrize(
    "url",
    ["redis://u:p@r:6379/1", "rediss://r", "unix:///run/redis.sock", "redis+sentinel://:p@a:26379,b:26379/main/2"],
)
async def test_redis_url_takes_what_the_door_to_redis_takes(url: str) -> None:
    await Door(settings.load({**MINIMUM, "REDIS_URL": url}).redis_url).close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AURALINK_LISTEN", "8080"),
        ("AURALINK_LISTEN", "0.0.0.0:99999"),
        ("AURALINK_DRAIN_S", "soon"),
        ("AURALINK_MAX_PARTICIPANTS", "0"),
        ("AURALINK_ALLOWED_ORIGINS", "*"),
        ("AURALINK_ALLOWED_ORIGINS", "https://a.example/path"),
        ("AURALINK_TRUSTED_PROXIES", "10.0.0.0/99"),
        ("AURALINK_NODE_ID", "a b"),
        ("AURALINK_LOG_LEVEL", "loud"),
        ("LIVEKIT_URL", "livekit"),
        ("DATABASE_URL", "mysql://x/y"),
        ("AURALINK_STORAGE", "auralink-files"),
        ("AURALINK_STORAGE", "s3://Upper_Case"),
        ("AURALINK_STORAGE", "s3://bucket/prefix"),
        ("AURALINK_STORAGE", "file://host/dir"),
        ("AURALINK_S3_ENCRYPTION", "rot13"),
        ("AURALINK_CLAMAV_URL", "http://clamd:3310"),
        ("SUPABASE_STORAGE_BUCKET", "a/b"),
    ],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}: ") as caught:
        settings.load({**MINIMUM, name: value})
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingError, match="AURALINK_LISTENN is not a setting; did you mean AURALINK_LISTEN"):
        settings.load({**MINIMUM, "AURALINK_LISTENN": "x"})


def test_a_short_secret_is_refused_without_showing_it() -> None:
    """S-152: at least 32 characters are enforced, and the value is not in the message."""
    with pytest.raises(SettingError, match="LIVEKIT_API_SECRET") as caught:
        settings.load({**MINIMUM, "LIVEKIT_API_SECRET": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("f" * 40 + "\n")
    environ = {key: value for key, value in MINIMUM.items() if key != "AURALINK_JWT_SECRET"}
    assert settings.load({**environ, "AURALINK_JWT_SECRET_FILE": str(path)}).jwt_secret == "f" * 40
    with pytest.raises(SettingError, match="AURALINK_JWT_SECRET_FILE: cannot read"):
        settings.load({**environ, "AURALINK_JWT_SECRET_FILE": str(tmp_path / "absent")})


def test_the_redacted_dump_holds_no_secret() -> None:
    """S-152: the secret is never shown."""
    dump = str(settings.load(MINIMUM).redacted())
    assert "s" * 32 not in dump
    assert "j" * 32 not in dump
    assert "hub_app:x" not in dump
    assert "wss://livekit.example.com" in dump


def test_the_two_secrets_must_differ() -> None:
    with pytest.raises(SettingError, match="must differ"):
        settings.load({**MINIMUM, "AURALINK_JWT_SECRET": "s" * 32})


def test_every_setting_is_documented() -> None:
    text = settings.document()
    for setting in settings.SETTINGS:
        assert f"`{setting.name}`" in text


@pytest.mark.parametrize("name", ["REDIS_URL", "AURALINK_JWKS_URL"])
def test_a_url_of_a_local_file_needs_no_host(name: str) -> None:
    url = {"REDIS_URL": "unix:///run/valkey.sock", "AURALINK_JWKS_URL": "file:///etc/auralink/jwks.json"}[name]
    assert url in settings.load({**MINIMUM, name: url}).redacted().values() or name == "REDIS_URL"


def test_no_file_may_be_larger_than_stores_copy_at_once() -> None:
    assert settings.load({**MINIMUM, "AURALINK_FILE_MAX_BYTES": "5000000000"}).file_max_bytes == 5_000_000_000
    with pytest.raises(SettingError, match="AURALINK_FILE_MAX_BYTES"):
        settings.load({**MINIMUM, "AURALINK_FILE_MAX_BYTES": "5000000001"})
