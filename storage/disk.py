"""Files as a store needs them: whole or not there, on the disk when it is said so, in directories that come and go.

Everything here blocks: it belongs into a thread.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from storage.errors import ObjectMissing, RangeInvalid

_NO_COPYING: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class NewFile:
    """A file that is nowhere to be seen until it is renamed; synced before that. Gone, where it is not.

    Locked: whoever gave up on a slow disk discards it while a thread may be still at it, and its number may by then
    be another file's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, data: bytes | bytearray) -> None:
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]

    def append(self, source: int) -> None:
        """All of an open file, by the kernel: some file systems then share the blocks."""
        try:
            with self._lock:
                while os.copy_file_range(source, self._file.fileno(), 1 << 30):
                    pass
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_COPYING:
                raise
            while data := os.read(source, 1024 * 1024):
                self.write(data)

    def rename(self, target: Path) -> None:
        """Into a directory that is there, or raises FileNotFoundError."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._path.replace(target)
        sync_directory(target.parent)

    def settle(self, target: Path, root: Path, *, sync: bool = True) -> None:
        """Into a directory below `root`, which is made."""
        with self._lock:
            if sync:
                os.fsync(self._file.fileno())
            place(self._path, target, root, sync=sync)

    def discard(self) -> None:
        with self._lock:
            self._file.close()
            # Where it was renamed there is nothing left to remove.
            self._path.unlink(missing_ok=True)


class Reading:
    """An object that is being read; locked as `NewFile` is. Raises ObjectMissing, RangeInvalid."""

    def __init__(self, path: Path, key: str, offset: int) -> None:
        self._lock = threading.Lock()
        self._file = open_object(path, key)
        size = os.fstat(self._file.fileno()).st_size
        if offset < 0 or (offset >= size and offset > 0):
            self._file.close()
            raise RangeInvalid(f"from byte {offset} of {size}")
        self._file.seek(offset)

    def read(self, most: int) -> bytes:
        with self._lock:
            return self._file.read(most)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def open_object(path: Path, key: str) -> FileIO:
    """Raises ObjectMissing."""
    try:
        return path.open("rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ObjectMissing(key) from None


def walk(directory: Path, base: str, prefix: str, after: str) -> Iterator[tuple[str, Path]]:
    """Files in the order of their keys, behind `after`, of those that begin with `prefix`."""
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return
    # A directory stands where its first key does: `a.b` comes before `a/b`.
    named = sorted((entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""), entry) for entry in entries)
    for name, entry in named:
        key = base + name
        if name.endswith("/"):
            if not (key.startswith(prefix) or prefix.startswith(key)) or (key < after and not after.startswith(key)):
                continue
            yield from walk(Path(entry.path), key, prefix, after)
        elif key.startswith(prefix) and key > after:
            yield key, Path(entry.path)


def place(file: Path, target: Path, root: Path, *, sync: bool = True) -> None:
    """Rename below `root`. Raises FileNotFoundError where `file` is gone."""
    for attempt in range(5):
        _made(target.parent, root, sync=sync)
        try:
            file.replace(target)
        except FileNotFoundError:
            # Somebody deleted the last object beside it, and the directory with it.
            if attempt == 4 or not file.exists():
                raise
        else:
            if sync:
                sync_directory(target.parent)
            return


def _made(directory: Path, root: Path, *, sync: bool) -> None:
    """The directory is there, and on the disk where it was made to `sync`, below `root`, which is there."""
    missing = []
    while directory != root and not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        # Its parent may be removed meanwhile, as empty; then the rename fails and it is tried once more.
        with suppress(FileExistsError, FileNotFoundError):
            each.mkdir(mode=0o700)
            if sync:
                sync_directory(each.parent)


def sync_directory(directory: Path) -> None:
    try:
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        # Removed meanwhile, with what was to be kept in it.
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)
