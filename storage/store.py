"""The port: what the hub asks of a place that keeps bytes. All of it ends within a deadline of its own.

Every call may raise StorageUnavailable (again later) or StorageRefused (a matter of configuration); what else it may
raise stands with it. Every write may be repeated with the same arguments. Sizes and offsets are bytes; times are UTC.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

# 5 MiB: S3 refuses smaller parts except the last; some stores want all but the last equal, so send exactly this much.
PART_BYTES = 5 * 1024 * 1024
# S3's own limit on the parts of one object.
MOST_PARTS = 10_000
# What `put` takes at once; more goes by parts.
SMALL_BYTES = 8 * 1024 * 1024
OCTETS = "application/octet-stream"


Observe = Callable[[str, str, float], None]
"""Hears of every call to a store: its name, `ok` or the error's class, seconds. It must not block."""


class Stored(msgspec.Struct, frozen=True):
    """An object as it is kept. `content_type` is empty in a listing: stores do not say it there."""

    key: str
    size_bytes: int
    modified_at: datetime
    content_type: str = ""


class Part(msgspec.Struct, frozen=True):
    """A part that is durable. Numbers begin at 1; keep it, `complete` asks for it."""

    number: int
    etag: str
    size_bytes: int


class Upload(msgspec.Struct, frozen=True):
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    started_at: datetime


class Page(msgspec.Struct, frozen=True):
    """Objects in the order of their keys; `cursor` continues, None: that was all."""

    items: tuple[Stored, ...]
    cursor: str | None = None


class UploadPage(msgspec.Struct, frozen=True):
    """Open uploads in no promised order; `cursor` continues, None: that was all."""

    items: tuple[Upload, ...]
    cursor: str | None = None


class Signed(msgspec.Struct, frozen=True):
    """A request that whoever has the URL may make until `expires_at`, with exactly these headers."""

    url: str
    expires_at: datetime
    method: Literal["GET", "PUT"] = "GET"
    headers: Mapping[str, str] = {}


class Store(Protocol):
    """An object store. Safe for any number of tasks of one loop."""

    async def put(self, key: str, data: bytes, *, content_type: str = OCTETS) -> Stored:
        """Keep up to SMALL_BYTES under `key`, over what was there. Durable when this returns, and never half there."""
        ...

    async def begin(self, key: str, *, content_type: str = OCTETS) -> str:
        """Begin a multipart upload; its id. Nothing is to be seen under `key` before `complete`."""
        ...

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        """Keep one part; parts may come in any order, and again. Durable when this returns. Raises UploadMissing."""
        ...

    async def complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> Stored:
        """Make the object of its parts, in the order of their numbers.

        An upload that was completed before, with the same length, is answered again. Raises UploadMissing, and
        PartsMismatch, after which some stores have forgotten the upload.
        """
        ...

    async def abort(self, key: str, upload_id: str) -> None:
        """Forget the upload and its parts; nothing if it is gone already."""
        ...

    async def head(self, key: str) -> Stored:
        """Raises ObjectMissing."""
        ...

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on, `length` of them or up to the end, in pieces of at most 256 KiB.

        Whoever may stop before the end closes it: `async with contextlib.aclosing(store.get(…)) as pieces`. It ends
        early never: what is cut off raises StorageUnavailable. Raises ObjectMissing, RangeInvalid.
        """
        ...

    async def copy(self, source: str, target: str) -> Stored:
        """On the store's side. Raises ObjectMissing."""
        ...

    async def move(self, source: str, target: str) -> Stored:
        """Copy, then delete; where it stops halfway both are there. Repeated after it was done, it answers again.

        Raises ObjectMissing where neither is there.
        """
        ...

    async def delete(self, key: str) -> None:
        """Nothing if it is gone already."""
        ...

    async def list(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> Page:
        """Objects whose keys begin with `prefix`, up to 1000 at a time."""
        ...

    async def uploads(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> UploadPage:
        """Uploads that are open."""
        ...

    async def sign_get(self, key: str, *, ttl_s: int, content_type: str, disposition: str) -> Signed:
        """A URL that gives the bytes, Range included, with these as Content-Type and Content-Disposition.

        Computed here, without asking the store: that the object is there is not checked.
        """
        ...

    async def sign_put(self, key: str, *, ttl_s: int, content_type: str, size_bytes: int) -> Signed:
        """A URL that takes exactly `size_bytes` of `content_type`. Computed here. See `keys.incoming`."""
        ...

    async def ping(self) -> None:
        """Whether the store is there and ours to use."""
        ...


async def abort_abandoned(
    store: Store,
    *,
    before: datetime,
    among: Callable[[Sequence[str]], Awaitable[Collection[str]]],
    prefix: str = "",
    most: int = 1000,
) -> int:
    """Abort uploads that were begun before `before`, up to `most` of them; how many. S3 keeps and bills them else.

    `among`: of some keys those that may be aborted; the others are somebody else's.
    """
    aborted, cursor = 0, None
    while aborted < most:
        page = await store.uploads(prefix, cursor=cursor)
        old = [upload for upload in page.items if upload.started_at < before]
        ours = await among([upload.key for upload in old]) if old else ()
        for upload in old:
            if upload.key in ours and aborted < most:
                await store.abort(upload.key, upload.upload_id)
                aborted += 1
        cursor = page.cursor
        if cursor is None:
            break
    return aborted


def check_parts(parts: Sequence[Part]) -> None:
    """Raises ValueError where the numbers are not 1, 2, 3 …, or there is none: an empty file is `put`."""
    if not parts or [part.number for part in parts] != list(range(1, len(parts) + 1)) or len(parts) > MOST_PARTS:
        raise ValueError("parts are numbered 1, 2, 3 … and given in order, 1 at least")
