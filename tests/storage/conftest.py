"""The stores that the one behavioural suite runs over: a directory, and real S3-compatible servers."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from storage.local import LocalStore
from storage.s3 import S3Store
from storage.signing import UrlSigner
from storage.store import Store

from .servers import Rclone, S3Server, SeaweedFS

SECRET = b"signs-the-urls-of-the-storage-tests"
SIGNER = UrlSigner("http://127.0.0.1/storage", SECRET)


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalStore]:
    async with LocalStore(tmp_path / "store", SIGNER) as store:
        yield store


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="auralink-weed-") as directory, SeaweedFS(Path(directory)) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="auralink-rclone-") as directory, Rclone(Path(directory)) as server:
        yield server


# A client of the driver's takes a fifth of a second to make, so all tests of the suite share one, and its loop.
@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def seaweedfs(seaweedfs_server: S3Server) -> AsyncIterator[S3Store]:
    async with S3Store(seaweedfs_server.options()) as store:
        yield store


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rclone(rclone_server: S3Server) -> AsyncIterator[S3Store]:
    async with S3Store(rclone_server.options()) as store:
        yield store


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def directory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStore]:
    async with LocalStore(tmp_path_factory.mktemp("store"), SIGNER) as store:
        yield store


@pytest.fixture(params=["directory", "seaweedfs", "rclone"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found
