"""Every environment variable the hub reads: its type, its default, what it means.

`load(environ)` refuses the first bad or unknown one with one line that names it. A secret may come as `NAME_FILE`, the
path of a file that holds it. Variables are ours as `AURALINK_*`; third-party names are what everybody calls them.
"""

from __future__ import annotations

import ipaddress
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


class SettingError(ValueError):
    """A setting that cannot be used; the text is one line and begins with its name."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: host and port; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable. `parse` raises ValueError with what was expected."""

    name: str
    attribute: str
    parse: Callable[[str], Any]
    default: Any
    meaning: str
    secret: bool = False
    required: bool = False
    aliases: tuple[str, ...] = ()


def _text(value: str) -> str:
    return value


def _secret(value: str) -> str:
    if len(value) < 32:
        raise ValueError("at least 32 characters")
    return value


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?\d{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value) or not low <= float(value) <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value.lower()

    return parse


def _named(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return parse


def _claim(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return value.lower() == "true"


def _address(value: str) -> Address:
    host, _, port = value.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("host:port, as in 0.0.0.0:8080")
    return Address(host, int(port))


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in schemes or not (parts.path if parts.scheme in ("file", "unix") else parts.netloc):
            raise ValueError(f"a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value.rstrip("/")

    return parse


def _place(value: str) -> str:
    parts = urlsplit(value)
    kept = parts.scheme == "file" and not parts.netloc and len(parts.path) > 1
    bucket = (
        parts.scheme == "s3"
        and parts.path in ("", "/")
        and re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc)
    )
    if not (kept or bucket) or parts.query or parts.fragment:
        raise ValueError("s3://bucket or file:///directory")
    return value.rstrip("/")


def _bucket(value: str) -> str:
    return _place(f"s3://{value}")


def _clamd(value: str) -> str:
    parts = urlsplit(value)
    tcp = parts.scheme == "tcp" and parts.hostname and parts.port and not parts.path.strip("/")
    if not tcp and not (parts.scheme == "unix" and not parts.netloc and len(parts.path) > 1):
        raise ValueError("tcp://host:port or unix:///path of clamd")
    return value.rstrip("/")


def _origins(value: str) -> tuple[str, ...]:
    origins = tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or "*" in origin:
            raise ValueError("a comma-separated list of origins, as in https://app.example.com (no wildcard)")
    return origins


def _networks(value: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    for part in parts:
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError:
            raise ValueError("a comma-separated list of networks, as in 10.0.0.0/8") from None
    return parts


def _word(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", value):
        raise ValueError("1–32 of a-z, 0-9, - and _")
    return value


def _node_id(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("1–64 of letters, digits, . - and _")
    return value


def _pairs(what: str) -> Callable[[str], dict[str, str]]:
    def parse(value: str) -> dict[str, str]:
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        if any(not name or not rest for name, _, rest in pairs):
            raise ValueError(f"a comma-separated list of {what}")
        return {name: rest for name, _, rest in pairs}

    return parse


def _default_node_id() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node())[:64].lstrip(".-_") or "node"


_POSTGRES = _url("postgresql", "postgres")
_LIVEKIT = _url("ws", "wss", "http", "https")

SETTINGS: tuple[Setting, ...] = (
    Setting("DATABASE_URL", "database_url", _POSTGRES, None, "PostgreSQL, as the role `hub_app`. TLS by `?sslmode=`.", secret=True, required=True),
    Setting("AURALINK_DATABASE_OWNER_URL", "database_owner_url", _POSTGRES, None, "PostgreSQL as the role that owns the schema; only `migrate` uses it.", secret=True),
    Setting("AURALINK_DATABASE_POOL", "database_pool", _whole(1, 200), 10, "Most connections to PostgreSQL per node."),
    Setting("AURALINK_DATABASE_STATEMENT_CACHE", "database_statement_cache", _whole(0, 10_000), 256, "Prepared statements kept per connection; 0 behind a transaction pooler."),
    Setting("REDIS_URL", "redis_url", _url("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "rediss+cluster"), None, "Redis ≥ 7.0 or Valkey, which joins the nodes; `redis+sentinel://host:port,…/service` asks sentinels for it, `redis+cluster://host:port,…` names some nodes of a Redis Cluster.", secret=True, required=True),
    Setting("LIVEKIT_URL", "livekit_url", _LIVEKIT, None, "LiveKit as the hub reaches it.", required=True),
    Setting("LIVEKIT_PUBLIC_URL", "livekit_public_url", _LIVEKIT, None, "LiveKit as clients reach it; LIVEKIT_URL if unset."),
    Setting("LIVEKIT_API_KEY", "livekit_api_key", _text, None, "The id of the LiveKit API key; the `iss` of tokens.", required=True),
    Setting("LIVEKIT_API_SECRET", "livekit_api_secret", _secret, None, "Its secret, ≥ 32 characters.", secret=True, required=True),
    Setting("AURALINK_LIVEKIT_WEBHOOK_KEYS", "livekit_webhook_keys", _pairs("key=secret"), {}, "Further LiveKit key pairs whose webhooks are accepted, for rotation: `key=secret,…`.", secret=True),
    Setting("AURALINK_LIVEKIT_REGIONS", "livekit_regions", _pairs("region=url"), {}, "LiveKit of each region: `eu=wss://…,us=wss://…`; LIVEKIT_URL serves the others."),
    Setting("AURALINK_LIVEKIT_TIMEOUT_S", "livekit_timeout_s", _seconds(0.1, 30), 2.5, "Deadline of one LiveKit call."),
    Setting("AURALINK_LISTEN", "listen", _address, Address("0.0.0.0", 8080), "Where sockets, REST and webhooks are served."),
    Setting("AURALINK_INTERNAL_LISTEN", "internal_listen", _address, Address("127.0.0.1", 9090), "Where /metrics and the health pages are served to operators."),
    Setting("AURALINK_PUBLIC_URL", "public_url", _url("http", "https"), "http://127.0.0.1:8080", "The hub as clients reach it."),
    Setting("AURALINK_ALLOWED_ORIGINS", "allowed_origins", _origins, (), "Origins of browser apps, for sockets and CORS; the public URL's own is always allowed."),
    Setting("AURALINK_TRUSTED_PROXIES", "trusted_proxies", _networks, (), "Networks of proxies whose X-Forwarded-For is believed."),
    Setting("AURALINK_JWT_SECRET", "jwt_secret", _secret, None, "HS256 secret of user tokens, ≥ 32 characters.", secret=True, aliases=("SUPABASE_JWT_SECRET",)),
    Setting("AURALINK_JWT_SECRET_PREVIOUS", "jwt_secret_previous", _secret, None, "The secret before it, accepted while rotating.", secret=True),
    Setting("AURALINK_JWKS_URL", "jwks_url", _url("http", "https", "file"), None, "Public keys of user tokens (RS256, ES256, EdDSA)."),
    Setting("AURALINK_JWT_ISSUER", "jwt_issuer", _text, None, "The `iss` user tokens must have; any if unset."),
    Setting("AURALINK_JWT_AUDIENCE", "jwt_audience", _text, "authenticated", "The `aud` user tokens must have."),
    Setting("AURALINK_DEFAULT_TENANT", "default_tenant", _word, "default", "The tenant of tokens that name none."),
    Setting("AURALINK_ENV", "env", _word, "prod", "Prefix of keys and channels: hubs that share a Redis differ in it."),
    Setting("AURALINK_CLUSTER_SECRET", "cluster_secret", _secret, None, "Signs what nodes tell each other; derived from the JWT secret if unset.", secret=True),
    Setting("AURALINK_NODE_ID", "node_id", _node_id, None, "This node's name; the host's name if unset."),
    Setting("AURALINK_REGION", "region", _word, "default", "This node's region."),
    Setting("AURALINK_MAX_PARTICIPANTS", "max_participants", _whole(1, 10_000), 100, "Most seats a call may have."),
    Setting("AURALINK_MAX_CONNECTIONS", "max_connections", _whole(1, 1_000_000), 20_000, "Most sockets on this node."),
    Setting("AURALINK_MAX_CONNECTIONS_PER_USER", "max_connections_per_user", _whole(1, 10_000), 10, "Most sockets of one user on this node."),
    Setting("AURALINK_MAX_CONNECTIONS_PER_ADDRESS", "max_connections_per_address", _whole(1, 1_000_000), 1_000, "Most sockets from one address on this node."),
    Setting("AURALINK_TOKEN_TTL_S", "token_ttl_s", _whole(60, 3600), 600, "Lifetime of a LiveKit token: time to join, not to stay."),
    Setting("AURALINK_WAITING_EXPIRES_S", "waiting_expires_s", _whole(60, 31_536_000), 604_800, "A call that nobody joined ends after this."),
    Setting("AURALINK_RECONNECT_GRACE_S", "reconnect_grace_s", _seconds(0, 60), 20.0, "A participant whose media connection broke is `reconnecting` this long; 5 s at most where LiveKit waited already."),
    Setting("AURALINK_SOCKET_GRACE_S", "socket_grace_s", _seconds(0, 300), 25.0, "A participant whose socket broke stays this long."),
    Setting("AURALINK_ABSENT_ROOM_GRACE_S", "absent_room_grace_s", _seconds(1, 600), 60.0, "A call whose LiveKit room vanished ends after this."),
    Setting("AURALINK_SWEEP_S", "sweep_s", _seconds(1, 300), 10.0, "Time between two comparisons with LiveKit."),
    Setting("AURALINK_LOBBY_TIMEOUT_S", "lobby_timeout_s", _whole(10, 86_400), 600, "A knock that nobody answers is over after this."),
    Setting("AURALINK_LOBBY_COOLDOWN_S", "lobby_cooldown_s", _whole(0, 86_400), 60, "Who was denied may not knock again for this long."),
    Setting("AURALINK_CHAT_RETENTION_DAYS", "chat_retention_days", _whole(1, 36_500), 90, "Chat messages are deleted after this."),
    Setting("AURALINK_QUALITY_RETENTION_DAYS", "quality_retention_days", _whole(1, 36_500), 30, "Quality reports are deleted after this; the scores of calls and people stay."),
    Setting("AURALINK_RECOVERY_WINDOW_S", "recovery_window_s", _whole(10, 3600), 120, "How long a room's events can be had again after a reconnect."),
    Setting("AURALINK_DRAIN_S", "drain_s", _seconds(0, 300), 10.0, "Time over which a node that stops sends its sockets away."),
    Setting("AURALINK_STORAGE", "storage", _place, None, "Where the bytes of files are: `s3://bucket`, or `file:///directory` on this machine; unset, files are refused."),
    Setting("AWS_ENDPOINT_URL_S3", "s3_endpoint", _url("http", "https"), None, "The S3-compatible store as the hub reaches it; AWS itself if unset. From SUPABASE_URL where that is set."),
    Setting("AURALINK_S3_PUBLIC_ENDPOINT", "s3_public_endpoint", _url("http", "https"), None, "The store as clients reach it, in signed URLs; AWS_ENDPOINT_URL_S3 if unset."),
    Setting("AURALINK_S3_PROXY", "s3_proxy", _claim, False, "`true`: signed URLs lead through the hub, for a store that clients cannot reach."),
    Setting("AWS_REGION", "s3_region", _text, "us-east-1", "The region of the bucket.", aliases=("AWS_DEFAULT_REGION",)),
    Setting("AWS_ACCESS_KEY_ID", "s3_access_key_id", _text, None, "The store's access key; without one it is looked for where AWS puts it.", secret=True),
    Setting("AWS_SECRET_ACCESS_KEY", "s3_secret_access_key", _text, None, "Its secret.", secret=True),
    Setting("AWS_SESSION_TOKEN", "s3_session_token", _text, None, "The session token that goes with a temporary key.", secret=True),
    Setting("AURALINK_S3_ADDRESSING", "s3_addressing", _choice("path", "virtual"), None, "How the bucket is named: in the `path`, or as the host (`virtual`); `path` with an endpoint, else `virtual`."),
    Setting("AURALINK_S3_CHECKSUMS", "s3_checksums", _choice("when_required", "when_supported"), "when_required", "Checksums beside Content-MD5; `when_supported` is for AWS itself, other stores often refuse them."),
    Setting("AURALINK_S3_ENCRYPTION", "s3_encryption", _named("AES256", "aws:kms"), "", "Server-side encryption that is asked for: `AES256` or `aws:kms`."),
    Setting("SUPABASE_URL", "supabase_url", _url("http", "https"), None, "A Supabase project: its storage is used where AWS_ENDPOINT_URL_S3 is not set."),
    Setting("SUPABASE_SERVICE_ROLE_KEY", "supabase_service_role_key", _text, None, "Its service role key (the JWT), where there is no AWS_ACCESS_KEY_ID; signed URLs then lead through the hub.", secret=True),
    Setting("SUPABASE_STORAGE_BUCKET", "supabase_storage_bucket", _bucket, None, "The bucket, where AURALINK_STORAGE is not set."),
    Setting("AURALINK_STORAGE_TIMEOUT_S", "storage_timeout_s", _seconds(0.1, 60), 2.5, "Deadline of one call to the store, tries included; a copy gets four times as long."),
    Setting("AURALINK_CLAMAV_URL", "clamav_url", _clamd, None, "The clamd that scans files: `tcp://host:3310` or `unix:///path`; unset, files are not scanned."),
    Setting("AURALINK_SCAN_FAIL_OPEN", "scan_fail_open", _claim, False, "`true`: files that could not be scanned are had all the same; `false`: nobody has them until they are."),
    Setting("AURALINK_FILE_MAX_BYTES", "file_max_bytes", _whole(1, 5 * 10**9), 104_857_600, "Most bytes of one file; stores copy and take no more than 5 GB at once."),
    Setting("AURALINK_FILES_PER_CALL", "files_per_call", _whole(1, 1_000_000), 1000, "Most files of one call."),
    Setting("AURALINK_CALL_QUOTA_BYTES", "call_quota_bytes", _whole(1, 2**60), 10 * 2**30, "Most bytes of all files of one call."),
    Setting("AURALINK_TENANT_QUOTA_BYTES", "tenant_quota_bytes", _whole(1, 2**60), 1000 * 2**30, "Most bytes of all files of one tenant."),
    Setting("AURALINK_FILE_URL_S", "file_url_s", _whole(5, 3600), 60, "How long a signed URL to a file's bytes is good."),
    Setting("AURALINK_UPLOAD_TTL_S", "upload_ttl_s", _whole(300, 604_800), 86_400, "An upload that is not finished by then is given up."),
    Setting("AURALINK_SPOOL_DIR", "spool_dir", _text, None, "Where uploads wait on this machine's disk until the store has them; the system's directory for such files if unset."),
    Setting("AURALINK_LOG_FORMAT", "log_format", _choice("json", "console"), "json", "`json` or `console`."),
    Setting("AURALINK_LOG_LEVEL", "log_level", _choice("debug", "info", "warning", "error"), "info", "`debug`, `info`, `warning` or `error`."),
    Setting("AURALINK_TRANSFERS", "transfers", _whole(1, 10_000), 128, "Most uploads by chunk frames in hand on this node; each takes up to 15 MiB of disk."),
    Setting("AURALINK_DATA_DIR", "data_dir", _text, None, "Where `dev` keeps its embedded servers' data; the user's data directory if unset."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the variables came to. Attributes are documented in SETTINGS."""

    database_url: str
    database_owner_url: str | None
    database_pool: int
    database_statement_cache: int
    redis_url: str
    livekit_url: str
    livekit_public_url: str | None
    livekit_api_key: str
    livekit_api_secret: str
    livekit_webhook_keys: Mapping[str, str]
    livekit_regions: Mapping[str, str]
    livekit_timeout_s: float
    listen: Address
    internal_listen: Address
    public_url: str
    allowed_origins: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    jwt_secret: str | None
    jwt_secret_previous: str | None
    jwks_url: str | None
    jwt_issuer: str | None
    jwt_audience: str
    default_tenant: str
    env: str
    cluster_secret: str | None
    node_id: str
    region: str
    max_participants: int
    max_connections: int
    max_connections_per_user: int
    max_connections_per_address: int
    token_ttl_s: int
    waiting_expires_s: int
    reconnect_grace_s: float
    socket_grace_s: float
    absent_room_grace_s: float
    sweep_s: float
    lobby_timeout_s: int
    lobby_cooldown_s: int
    chat_retention_days: int
    quality_retention_days: int
    recovery_window_s: int
    drain_s: float
    storage: str | None
    s3_endpoint: str | None
    s3_public_endpoint: str | None
    s3_proxy: bool
    s3_region: str
    s3_access_key_id: str | None
    s3_secret_access_key: str | None
    s3_session_token: str | None
    s3_addressing: str | None
    s3_checksums: str
    s3_encryption: str
    supabase_url: str | None
    supabase_service_role_key: str | None
    supabase_storage_bucket: str | None
    storage_timeout_s: float
    clamav_url: str | None
    scan_fail_open: bool
    file_max_bytes: int
    files_per_call: int
    call_quota_bytes: int
    tenant_quota_bytes: int
    file_url_s: int
    upload_ttl_s: int
    spool_dir: str | None
    log_format: str
    log_level: str
    transfers: int
    data_dir: str | None

    @property
    def origins(self) -> frozenset[str]:
        """The allow-list, with the public URL's own origin."""
        parts = urlsplit(self.public_url)
        return frozenset((*self.allowed_origins, f"{parts.scheme}://{parts.netloc}"))

    @property
    def stores_files(self) -> bool:
        return bool(self.storage or self.supabase_storage_bucket)

    def redacted(self) -> dict[str, Any]:
        """All settings by variable name, secrets as `***`, for people to read."""
        shown: dict[str, Any] = {}
        for setting in SETTINGS:
            value = getattr(self, setting.attribute)
            shown[setting.name] = "***" if setting.secret and value else _plain(value)
        return shown


def load(environ: Mapping[str, str], *, needed: frozenset[str] | None = None) -> Settings:
    """The settings out of `environ`. Raises SettingError.

    `needed` narrows which required variables must be there (a command that only talks to the database needs only its
    URL); the others may be missing and are then empty.
    """
    _refuse_unknown(environ)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = _read(setting, environ)
        if text is None or text == "":
            if setting.required and (needed is None or setting.name in needed):
                raise SettingError(f"{setting.name} is not set: {setting.meaning}")
            values[setting.attribute] = setting.default if not setting.required else ""
            continue
        try:
            values[setting.attribute] = setting.parse(text)
        except ValueError as error:
            shown = "its value" if setting.secret else repr(text)
            raise SettingError(f"{setting.name}: {shown} is not {error}") from None
    values["node_id"] = values["node_id"] or _default_node_id()
    settings = Settings(**values)
    if needed is None and not (settings.jwt_secret or settings.jwks_url):
        raise SettingError("AURALINK_JWT_SECRET is not set, nor AURALINK_JWKS_URL: user tokens could not be verified")
    if settings.jwt_secret and settings.jwt_secret == settings.livekit_api_secret:
        raise SettingError("AURALINK_JWT_SECRET must differ from LIVEKIT_API_SECRET")
    if bool(settings.s3_access_key_id) != bool(settings.s3_secret_access_key):
        raise SettingError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together")
    key = settings.supabase_service_role_key
    if key and key.count(".") != 2:
        raise SettingError("SUPABASE_SERVICE_ROLE_KEY is not a JWT: make S3 access keys, and set AWS_ACCESS_KEY_ID")
    return settings


def given(name: str, environ: Mapping[str, str]) -> bool:
    """Whether `environ` says something of the setting `name`, be it by an alias or by a file."""
    setting = next(setting for setting in SETTINGS if setting.name == name)
    return any(
        spelling in environ or (setting.secret and f"{spelling}_FILE" in environ)
        for spelling in (setting.name, *setting.aliases)
    )


def only_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of `environ` that says something to the hub."""
    return {name: value for name, value in environ.items() if name in _known()}


def described() -> list[dict[str, Any]]:
    """Every setting as data: name, default (None where there is none), meaning, and what it may also be called."""
    return [
        {
            "name": setting.name,
            "required": setting.required,
            "default": None if setting.default in (None, (), {}, "") else _plain(setting.default),
            "secret": setting.secret,
            "meaning": setting.meaning,
            "aliases": list(setting.aliases),
        }
        for setting in SETTINGS
    ]


def document() -> str:
    """The settings as a Markdown table."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for each in described():
        default = "required" if each["required"] else "–" if each["default"] is None else f"`{each['default']}`"
        also = f" Also as `{each['name']}_FILE`." if each["secret"] else ""
        alias = f" Also read from {', '.join(each['aliases'])}." if each["aliases"] else ""
        lines.append(f"| `{each['name']}` | {default} | {each['meaning']}{also}{alias} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Address):
        return str(value)
    if isinstance(value, tuple):
        return ",".join(value)
    return dict(value) if isinstance(value, Mapping) else value


def _read(setting: Setting, environ: Mapping[str, str]) -> str | None:
    for name in (setting.name, *setting.aliases):
        if name in environ:
            return environ[name]
        if setting.secret and f"{name}_FILE" in environ:
            return _file(f"{name}_FILE", environ[f"{name}_FILE"])
    return None


def _file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingError(f"{name}: cannot read {path!r}: {reason}") from None


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = _known()
    for name in sorted(environ):
        if name.startswith("AURALINK_") and name not in known:
            near = _nearest(name, known)
            raise SettingError(f"{name} is not a setting" + (f"; did you mean {near}?" if near else ""))


def _known() -> set[str]:
    names = {name for setting in SETTINGS for name in (setting.name, *setting.aliases)}
    return names | {
        f"{name}_FILE" for setting in SETTINGS if setting.secret for name in (setting.name, *setting.aliases)
    }


def _nearest(name: str, known: set[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, known, n=1, cutoff=0.75)), None)


assert [field.name for field in fields(Settings)] == [setting.attribute for setting in SETTINGS]
