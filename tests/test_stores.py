"""Which store the settings mean."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from hub import settings
from hub.app import open_store
from hub.settings import SettingError
from storage import keys
from storage.errors import StorageRefused
from storage.local import LocalStore
from storage.s3 import S3Store

from .test_settings import MINIMUM

KEY = keys.content(uuid4(), uuid4(), uuid4())
PAIR = {"AWS_ACCESS_KEY_ID": "hub", "AWS_SECRET_ACCESS_KEY": "hidden"}
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2VjcmV0"


async def signed(**environ: str) -> str:
    async with open_store(settings.load({**MINIMUM, **environ})) as store:
        return (await store.sign_get(KEY, ttl_s=60, content_type="a/b", disposition="attachment")).url


async def test_without_a_setting_files_are_refused_and_all_else_goes_on() -> None:
    async with open_store(settings.load(MINIMUM)) as store:
        with pytest.raises(StorageRefused, match="AURALINK_STORAGE is not set"):
            await store.put(KEY, b"")


async def test_a_directory_is_named_by_a_file_url(tmp_path: Path) -> None:
    wanted = tmp_path / "a b"
    loaded = settings.load({**MINIMUM, "AURALINK_STORAGE": wanted.as_uri()})
    async with open_store(loaded) as store:
        assert isinstance(store, LocalStore)
        await store.put(KEY, b"bytes")
        assert (wanted / "objects" / KEY).read_bytes() == b"bytes"
        url = (await store.sign_get(KEY, ttl_s=60, content_type="a/b", disposition="attachment")).url
        assert url.startswith(f"{loaded.public_url}/storage/{KEY}?")


async def test_a_bucket_is_on_aws_unless_an_endpoint_is_named() -> None:
    """S-153, S-155: the endpoint and the bucket of the environment are what is used. S-169: nobody is asked for a URL;
    nothing answers under these names."""
    aws = urlsplit(await signed(AURALINK_STORAGE="s3://files", AWS_REGION="eu-central-1", **PAIR))
    assert (aws.scheme, aws.netloc, aws.path) == ("https", "files.s3.eu-central-1.amazonaws.com", f"/{KEY}")
    assert "eu-central-1" in parse_qs(aws.query)["X-Amz-Credential"][0]
    endpoint = {"AURALINK_STORAGE": "s3://files", "AWS_ENDPOINT_URL_S3": "http://store:9000", **PAIR}
    assert (await signed(**endpoint)).startswith(f"http://store:9000/files/{KEY}?")
    public = await signed(**endpoint, AURALINK_S3_PUBLIC_ENDPOINT="https://cdn.example")
    assert public.startswith(f"https://cdn.example/files/{KEY}?")
    virtual = await signed(**endpoint, AURALINK_S3_ADDRESSING="virtual")
    assert virtual.startswith(f"http://files.store:9000/{KEY}?")
    assert (await signed(**endpoint, AURALINK_S3_PROXY="true")).startswith(f"http://127.0.0.1:8080/storage/{KEY}?")


async def test_the_settings_of_supabase_mean_its_s3_endpoint() -> None:
    """S-153…S-155: the brief's names are accepted. A service role key never becomes a part of a URL."""
    project = {"SUPABASE_URL": "https://abcdef.supabase.co", "SUPABASE_STORAGE_BUCKET": "auralink-files"}
    own = await signed(**project, **PAIR)
    assert own.startswith(f"https://abcdef.supabase.co/storage/v1/s3/auralink-files/{KEY}?")
    loaded = settings.load({**MINIMUM, **project, "SUPABASE_SERVICE_ROLE_KEY": JWT})
    async with open_store(loaded) as store:
        assert isinstance(store, S3Store)
        for url in (
            (await store.sign_get(KEY, ttl_s=60, content_type="a/b", disposition="attachment")).url,
            (await store.sign_put(KEY, ttl_s=60, content_type="a/b", size_bytes=1)).url,
        ):
            assert url.startswith(f"{loaded.public_url}/storage/")
            assert JWT not in url
    assert JWT not in str(loaded.redacted())
    with pytest.raises(SettingError, match="SUPABASE_SERVICE_ROLE_KEY is not a JWT"):
        settings.load({**MINIMUM, **project, "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_abc"})


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(SettingError, match="go together"):
        settings.load({**MINIMUM, "AURALINK_STORAGE": "s3://files", "AWS_ACCESS_KEY_ID": "hub"})


def test_the_stores_secrets_may_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    """S-154: the file-based variant works, and the dump is redacted."""
    for name, value in PAIR.items():
        (tmp_path / name).write_text(f"{value}\n")
    files = {f"{name}_FILE": str(tmp_path / name) for name in PAIR}
    loaded = settings.load({**MINIMUM, **files})
    assert (loaded.s3_access_key_id, loaded.s3_secret_access_key) == ("hub", "hidden")
    assert "hidden" not in str(loaded.redacted())
