"""A store in a directory, for `auralink-hub dev` and for one machine. Nodes that share it share the directory.

```
objects/<key>        the bytes, put there by a rename: whole, or not at all
types/<key>          their content type
uploads/<id>/        upload.json, and each part as <number>.<sha256>
incoming/            what is being written; swept at start
```

What is put, copied or completed is on the disk when the call returns: the file is synced, then renamed, then its
directory is synced. All of it happens in a few threads of its own, so that a disk that hangs stops neither the loop
nor anybody's DNS.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from storage import keys
from storage.disk import NewFile, Reading, open_object, place, sync_directory, walk
from storage.errors import (
    ObjectMissing,
    PartsMismatch,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    UploadMissing,
)
from storage.signing import UrlSigner
from storage.store import OCTETS, SMALL_BYTES, Observe, Page, Part, Signed, Stored, Upload, UploadPage, check_parts

T = TypeVar("T")

PIECE_BYTES = 256 * 1024
_THREADS = 8
_COPY_TIMES = 4
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"(\d{5})\.([0-9a-f]{64})")
# What is left of a write that nobody can be at any more.
_STALE_S = 3600.0
# Where the fault is the disk's, not the caller's or the operator's.
_AGAIN: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE})


class _Begun(msgspec.Struct, frozen=True):
    """`upload.json`."""

    key: str
    content_type: str
    started_at: datetime


class LocalStore:
    """`async with LocalStore(Path("/var/lib/hub"), UrlSigner("https://hub/storage", secret)) as store`."""

    def __init__(
        self, directory: Path, signer: UrlSigner, *, timeout_s: float = 2.5, observe: Observe | None = None
    ) -> None:
        self._objects = directory / "objects"
        self._types = directory / "types"
        self._uploads = directory / "uploads"
        self._incoming = directory / "incoming"
        self._signer = signer
        self._observe = observe
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")
        self._free = asyncio.Semaphore(_THREADS)

    async def __aenter__(self) -> Self:
        await self._run("prepare", self._prepare)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not waited for: a thread that hangs in the disk would hold up the end of the node.
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -------------------------------------------------------------------------------------------------- whole objects

    async def put(self, key: str, data: bytes, *, content_type: str = OCTETS) -> Stored:
        if len(data) > SMALL_BYTES:
            raise ValueError(f"{len(data)} bytes at once; more than {SMALL_BYTES} go by parts")
        target = self._object(key)

        def write() -> Stored:
            with self._new() as file:
                file.write(data)
                return self._settle(file, key, target, content_type)

        return await self._run("put", write)

    async def head(self, key: str) -> Stored:
        return await self._run("head", lambda: self._head(key))

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        path = self._object(key)
        file = await self._run("get", lambda: Reading(path, key, offset))
        try:
            left = length
            while left is None or left > 0:
                most = PIECE_BYTES if left is None else min(PIECE_BYTES, left)
                piece = await self._threaded(lambda most=most: file.read(most), self._timeout_s)  # type: ignore[misc]
                if not piece:
                    return
                if left is not None:
                    left -= len(piece)
                yield piece
        finally:
            self._later(file.close)

    async def copy(self, source: str, target: str) -> Stored:
        here, there = self._object(source), self._object(target)

        def copy() -> Stored:
            kind = self._type(source)
            with open_object(here, source) as old, self._new() as file:
                file.append(old.fileno())
                return self._settle(file, target, there, kind)

        return await self._run("copy", copy, times=_COPY_TIMES)

    async def move(self, source: str, target: str) -> Stored:
        here, there = self._object(source), self._object(target)

        def move() -> Stored:
            try:
                kind = self._type(source)
                if not here.is_file():
                    # Done before, by somebody whose answer was lost.
                    return self._head(target)
                self._set_type(target, kind)
                place(here, there, self._objects)
            except FileNotFoundError:
                return self._head(target)
            self._forget(source)
            return self._head(target)

        return await self._run("move", move)

    async def delete(self, key: str) -> None:
        keys.check(key)
        await self._run("delete", lambda: self._forget(key))

    async def list(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> Page:
        limit = max(1, min(limit, 1000))

        def collect() -> Page:
            found: list[Stored] = []
            for key, path in walk(self._objects, "", prefix, cursor or ""):
                if len(found) == limit:
                    return Page(tuple(found), found[-1].key)
                with suppress(FileNotFoundError):
                    found.append(_stored(key, path))
            return Page(tuple(found))

        return await self._run("list", collect)

    # ---------------------------------------------------------------------------------------------------------- parts

    async def begin(self, key: str, *, content_type: str = OCTETS) -> str:
        keys.check(key)
        upload_id = secrets.token_hex(16)

        def begin() -> str:
            directory = self._uploads / upload_id
            directory.mkdir(mode=0o700)
            with self._new() as file:
                file.write(msgspec.json.encode(_Begun(key, content_type, datetime.now(UTC))))
                file.rename(directory / "upload.json")
            sync_directory(self._uploads)
            return upload_id

        return await self._run("begin", begin)

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        if not 1 <= number <= 10_000 or not data:
            raise ValueError("parts are numbered from 1 to 10000 and hold something")

        def write() -> Part:
            directory, _ = self._upload(key, upload_id)
            digest = hashlib.sha256(data).hexdigest()
            with self._new() as file:
                file.write(data)
                try:
                    # A part that is sent again, with other bytes, stands beside the first: `complete` says which.
                    file.rename(directory / f"{number:05}.{digest}")
                except FileNotFoundError:
                    raise UploadMissing(upload_id) from None
            return Part(number, digest, len(data))

        return await self._run("put_part", write)

    async def complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> Stored:
        check_parts(parts)
        target = self._object(key)
        size = sum(part.size_bytes for part in parts)

        def complete() -> Stored:
            try:
                directory, begun = self._upload(key, upload_id)
                with self._new() as file:
                    for part in parts:
                        _append_part(directory, part, file)
                    stored = self._settle(file, key, target, begun.content_type)
            except (UploadMissing, PartsMismatch):
                # Completed before, or by somebody else while we were at it.
                with suppress(ObjectMissing):
                    done = self._head(key)
                    if done.size_bytes == size and _begun(self._uploads / upload_id) is None:
                        return done
                raise
            self._drop(directory)
            return stored

        return await self._run("complete", complete, times=_COPY_TIMES)

    async def abort(self, key: str, upload_id: str) -> None:
        def abort() -> None:
            with suppress(UploadMissing):
                self._drop(self._upload(key, upload_id)[0])

        await self._run("abort", abort)

    async def uploads(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> UploadPage:
        limit = max(1, min(limit, 1000))

        def collect() -> UploadPage:
            found: list[Upload] = []
            for name in sorted(path.name for path in self._uploads.iterdir() if path.name > (cursor or "")):
                if len(found) == limit:
                    return UploadPage(tuple(found), found[-1].upload_id)
                begun = _begun(self._uploads / name)
                if begun is not None and begun.key.startswith(prefix):
                    found.append(Upload(begun.key, name, begun.started_at))
            return UploadPage(tuple(found))

        return await self._run("uploads", collect)

    # ----------------------------------------------------------------------------------------------------- signed URLs

    async def sign_get(self, key: str, *, ttl_s: int, content_type: str, disposition: str) -> Signed:
        return self._signer.get(key, ttl_s=ttl_s, content_type=content_type, disposition=disposition)

    async def sign_put(self, key: str, *, ttl_s: int, content_type: str, size_bytes: int) -> Signed:
        return self._signer.put(key, ttl_s=ttl_s, content_type=content_type, size_bytes=size_bytes)

    async def ping(self) -> None:
        def look() -> None:
            if not os.access(self._objects, os.R_OK | os.W_OK | os.X_OK):
                raise StorageRefused(f"{self._objects}: not there, or not ours to write")

        await self._run("ping", look)

    # ------------------------------------------------------------------------------------- what runs in the threads

    def _prepare(self) -> None:
        for directory in (self._objects, self._types, self._uploads, self._incoming):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._incoming.iterdir():
            # Another node may be writing here.
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - _STALE_S:
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()

    def _object(self, key: str) -> Path:
        return self._objects / keys.check(key)

    def _new(self) -> NewFile:
        return NewFile(self._incoming / secrets.token_hex(16))

    def _settle(self, file: NewFile, key: str, target: Path, content_type: str) -> Stored:
        self._set_type(key, content_type)
        file.settle(target, self._objects)
        return self._head(key)

    def _drop(self, directory: Path) -> None:
        """An upload that is over: gone at once and as a whole, then its bytes."""
        over = self._incoming / secrets.token_hex(16)
        with suppress(FileNotFoundError):
            directory.rename(over)
        shutil.rmtree(over, ignore_errors=True)

    def _head(self, key: str) -> Stored:
        try:
            return msgspec.structs.replace(_stored(key, self._object(key)), content_type=self._type(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(key) from None

    def _type(self, key: str) -> str:
        try:
            return (self._types / key).read_text(encoding="utf-8") or OCTETS
        except (FileNotFoundError, NotADirectoryError):
            return OCTETS

    def _set_type(self, key: str, content_type: str) -> None:
        """Not synced, as a second write would take as long again: after a crash of the machine a type may be lost."""
        with self._new() as file:
            file.write(content_type.encode())
            file.settle(self._types / key, self._types, sync=False)

    def _forget(self, key: str) -> None:
        for root in (self._objects, self._types):
            path = root / key
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                sync_directory(path.parent)
            for parent in path.parents:
                if parent == root:
                    break
                try:
                    parent.rmdir()
                except OSError:  # others are in it, or it is gone
                    break

    def _upload(self, key: str, upload_id: str) -> tuple[Path, _Begun]:
        """Raises UploadMissing."""
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise UploadMissing(upload_id)
        directory = self._uploads / upload_id
        begun = _begun(directory)
        if begun is None or begun.key != key:
            raise UploadMissing(upload_id)
        return directory, begun

    async def _run(self, name: str, work: Callable[[], T], *, times: int = 1) -> T:
        """In a thread, within the deadline; a thread that hangs keeps its place until it comes back."""
        started, outcome = time.monotonic(), "ok"
        try:
            return await self._threaded(work, self._timeout_s * times)
        except StorageError as error:
            outcome = type(error).__name__
            raise
        finally:
            if self._observe is not None:
                self._observe(name, outcome, time.monotonic() - started)

    async def _threaded(self, work: Callable[[], T], within_s: float) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within_s):
                await self._free.acquire()
                try:
                    running = loop.run_in_executor(self._pool, work)
                except BaseException:
                    self._free.release()
                    raise
                running.add_done_callback(self._done)
                return await asyncio.shield(running)
        except TimeoutError as error:
            raise StorageUnavailable(f"the disk did not answer within {within_s:g} s") from error
        except OSError as error:
            again = error.errno in _AGAIN
            raise (StorageUnavailable if again else StorageRefused)(error.strerror or str(error)) from error
        except RuntimeError as error:
            # The pool was shut down: the node is going.
            raise StorageUnavailable(str(error)) from error

    def _later(self, work: Callable[[], None]) -> None:
        # Where the pool was shut down the process ends, and its files with it.
        with suppress(RuntimeError):
            self._pool.submit(work)

    def _done(self, running: asyncio.Future[T]) -> None:
        self._free.release()
        # Nobody may wait for it any more; its error is not news then.
        if not running.cancelled():
            running.exception()


def _append_part(directory: Path, part: Part, file: NewFile) -> None:
    name = f"{part.number:05}.{part.etag}"
    if not _PART.fullmatch(name):
        raise PartsMismatch(f"part {part.number} is not one of this store's")
    try:
        with (directory / name).open("rb", buffering=0) as stored:
            if os.fstat(stored.fileno()).st_size != part.size_bytes:
                raise PartsMismatch(f"part {part.number} is not {part.size_bytes} bytes long")
            file.append(stored.fileno())
    except FileNotFoundError:
        raise PartsMismatch(f"part {part.number} is not stored") from None


def _begun(directory: Path) -> _Begun | None:
    try:
        return msgspec.json.decode((directory / "upload.json").read_bytes(), type=_Begun)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _stored(key: str, path: Path) -> Stored:
    found = path.stat()
    if not path.is_file():
        raise FileNotFoundError(key)
    return Stored(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
