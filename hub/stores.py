"""Which object store the settings mean, made ready to be opened."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import unquote, urlsplit

from hub import metrics
from hub.settings import Settings
from storage.local import LocalStore
from storage.nowhere import Nowhere
from storage.scan import Clamd
from storage.signing import UrlSigner
from storage.store import Store

if TYPE_CHECKING:
    from storage.s3 import S3Options

# Where the hub serves the signed URLs that are its own.
PATH: Final = "/storage"

CALLS = metrics.Outcomes(
    "storage_call", "Calls to the object store by name and outcome", "Time of a call", "call", "outcome"
)


def make_signer(settings: Settings, secret: bytes) -> UrlSigner:
    return UrlSigner(settings.public_url + PATH, secret)


def make_store(settings: Settings, signer: UrlSigner) -> AbstractAsyncContextManager[Store]:
    """The store, to be opened. Opening raises StorageRefused or StorageUnavailable."""
    place = settings.storage or settings.supabase_storage_bucket
    if place is None:
        return nullcontext(Nowhere("AURALINK_STORAGE is not set"))
    parts = urlsplit(place)
    if parts.scheme == "file":
        directory = Path(unquote(parts.path))
        return LocalStore(directory, signer, timeout_s=settings.storage_timeout_s, observe=_observe)
    # Half a second and 28 MB that a hub without it does not need.
    from storage.s3 import S3Store

    return S3Store(_options(settings, parts.netloc), signer=signer if _proxied(settings) else None, observe=_observe)


def make_scanner(settings: Settings) -> Clamd | None:
    return None if settings.clamav_url is None else Clamd(settings.clamav_url)


def _options(settings: Settings, bucket: str) -> S3Options:
    supabase = settings.supabase_url if settings.s3_endpoint is None else None
    endpoint = f"{supabase}/storage/v1/s3" if supabase else settings.s3_endpoint
    access_key, secret_key, token = _credentials(settings)
    addressing = settings.s3_addressing or ("path" if endpoint else "virtual")
    from storage.s3 import S3Options

    return S3Options(
        bucket=bucket,
        region=settings.s3_region,
        endpoint=endpoint,
        public_endpoint=settings.s3_public_endpoint,
        access_key_id=access_key,
        secret_access_key=secret_key,
        session_token=token,
        addressing=cast('Literal["path", "virtual"]', addressing),
        checksums=cast('Literal["when_required", "when_supported"]', settings.s3_checksums),
        encryption=cast('Literal["", "AES256", "aws:kms"]', settings.s3_encryption),
        timeout_s=settings.storage_timeout_s,
    )


def _credentials(settings: Settings) -> tuple[str | None, str | None, str | None]:
    key = settings.supabase_service_role_key
    if settings.s3_access_key_id or not (key and settings.supabase_url):
        return settings.s3_access_key_id, settings.s3_secret_access_key, settings.s3_session_token
    # Supabase's session credentials: the JWT is what it goes by, key and secret are the project's reference, the first
    # label of its host. https://supabase.com/docs/guides/storage/s3/authentication
    project = (urlsplit(settings.supabase_url).hostname or "").split(".")[0]
    return project, project, key


def _proxied(settings: Settings) -> bool:
    """A session token is a part of every URL that is signed with it, and Supabase's is the key to everything."""
    ours = settings.supabase_service_role_key is not None and settings.s3_access_key_id is None
    return settings.s3_proxy or (ours and settings.supabase_url is not None)


def _observe(name: str, outcome: str, seconds: float) -> None:
    CALLS.add(seconds, (name, outcome))
