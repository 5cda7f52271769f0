"""The store of a hub that was given none: everything else goes on, files are refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NoReturn

from storage.errors import StorageRefused
from storage.store import OCTETS, Page, Part, Signed, Stored, UploadPage


class Nowhere:
    """A `Store` whose every call raises StorageRefused."""

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self) -> NoReturn:
        raise StorageRefused(self._why)

    async def put(self, key: str, data: bytes, *, content_type: str = OCTETS) -> Stored:
        self._refuse()

    async def begin(self, key: str, *, content_type: str = OCTETS) -> str:
        self._refuse()

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        self._refuse()

    async def complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> Stored:
        self._refuse()

    async def abort(self, key: str, upload_id: str) -> None:
        self._refuse()

    async def head(self, key: str) -> Stored:
        self._refuse()

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        self._refuse()
        yield b""

    async def copy(self, source: str, target: str) -> Stored:
        self._refuse()

    async def move(self, source: str, target: str) -> Stored:
        self._refuse()

    async def delete(self, key: str) -> None:
        self._refuse()

    async def list(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> Page:
        self._refuse()

    async def uploads(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> UploadPage:
        self._refuse()

    async def sign_get(self, key: str, *, ttl_s: int, content_type: str, disposition: str) -> Signed:
        self._refuse()

    async def sign_put(self, key: str, *, ttl_s: int, content_type: str, size_bytes: int) -> Signed:
        self._refuse()

    async def ping(self) -> None:
        self._refuse()
