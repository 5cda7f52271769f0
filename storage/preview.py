"""A small picture of a file, made by a process that may break: of images, of a PDF's first page, of a text's beginning.

Decoders of foreign files are where holes are found. So they run in a child without our environment, without our files,
with little memory and little time (`preview_child.py`), and what it says is taken for a picture only if it is one.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from storage.errors import StorageUnavailable
from storage.sniff import PDF, TEXT

PREVIEW_TYPE: Final = "image/webp"
# Larger files have no preview: what is read here is written to this machine's disk first.
MOST_BYTES: Final = 64 * 1024 * 1024
# Of a text no more is looked at.
TEXT_BYTES: Final = 16 * 1024
# A picture of 512 × 512 has a tenth of that.
MOST_PREVIEW_BYTES: Final = 512 * 1024
# On a busy machine, too; the child's own limit is on computing time.
_WITHIN_S: Final = 30.0
_CHILD: Final = Path(__file__).with_name("preview_child.py")


class Previewer:
    """Makes one preview at a time: they are worth less than a call's packets."""

    def __init__(self, *, at_once: int = 1) -> None:
        self._turn = asyncio.Semaphore(at_once)

    async def make(self, pieces: AsyncIterator[bytes], mime_type: str) -> bytes | None:
        """The preview, of PREVIEW_TYPE, of a file that is `mime_type` by its content; None: it has none, nor ever will.

        Raises StorageUnavailable where it is this machine that cannot, and what `pieces` raises.
        """
        how = "pdf" if mime_type == PDF else "text" if mime_type == TEXT else "image"
        async with self._turn:
            try:
                file = await asyncio.to_thread(tempfile.TemporaryFile)
            except OSError as error:
                raise StorageUnavailable("this machine has no room for it") from error
            try:
                if not await _fill(file, pieces, TEXT_BYTES if how == "text" else None):
                    return None
                return await _run(file, how)
            finally:
                await asyncio.to_thread(file.close)


async def _fill(file: IO[bytes], pieces: AsyncIterator[bytes], most: int | None) -> bool:
    """False: it is too large."""
    size = 0
    try:
        async for piece in pieces:
            size += len(piece)
            if size > MOST_BYTES:
                return False
            await asyncio.to_thread(file.write, piece)
            if most is not None and size >= most:
                break
        await asyncio.to_thread(file.seek, 0)
    except OSError as error:
        raise StorageUnavailable("this machine has no room for it") from error
    return size > 0


async def _run(file: IO[bytes], how: str) -> bytes | None:
    try:
        # Isolated: neither our environment nor a module from where we happen to be.
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-B", str(_CHILD), how),
            stdin=file,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise StorageUnavailable("this machine starts no process for it") from error
    try:
        async with asyncio.timeout(_WITHIN_S):
            assert child.stdout is not None
            made = await _read(child.stdout)
            code = await child.wait() if made is not None else 1
    except TimeoutError:
        return None
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        # It has nothing to say any more; the kernel takes it down whatever it is at.
        await asyncio.shield(child.wait())
    return made if code == 0 and made is not None and made[:4] == b"RIFF" and made[8:12] == b"WEBP" else None


async def _read(stream: asyncio.StreamReader) -> bytes | None:
    """All of it; None: it is too much."""
    made = bytearray()
    while piece := await stream.read(65_536):
        made += piece
        if len(made) > MOST_PREVIEW_BYTES:
            return None
    return bytes(made)
