"""What has come of a file and is in no part yet, on this node's disk: so that many uploads at once need little memory.

A ring of a few parts in a file without a name, which is gone with the process. Everything here blocks: it belongs into
a thread.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence


class Spool:
    """Holds the last `ring_bytes` of what was written. Raises OSError.

    Locked: whoever gave up on a slow disk closes it while a thread may still be at it.
    """

    def __init__(self, directory: str | None, ring_bytes: int) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, prefix="auralink-", buffering=0)  # noqa: SIM115 - `close`
        self._ring = ring_bytes
        self._lock = threading.Lock()

    def write(self, offset: int, chunks: Sequence[bytes]) -> None:
        """`chunks` one behind the other, from byte `offset` of the upload on."""
        with self._lock:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    at = offset % self._ring
                    done = os.pwrite(self._file.fileno(), view[: self._ring - at], at)
                    offset, view = offset + done, view[done:]

    def read(self, offset: int, length: int) -> bytes:
        """Raises OSError also where less is there."""
        with self._lock:
            parts = []
            while length:
                at = offset % self._ring
                part = os.pread(self._file.fileno(), min(length, self._ring - at), at)
                if not part:
                    raise OSError("the spool is shorter than what was written")
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        with self._lock:
            self._file.close()
