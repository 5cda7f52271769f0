"""Uploads by people with bad lines: bits flip, chunks come twice, too early, overlapping, empty or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import google_crc32c

from hub.cli.frames import Frames, Lost
from hub.cli.sending import Upload

_NOBODYS = "00000000-0000-4000-8000-000000000000"


class RoughUpload(Upload):
    """Does with some of its chunks what a bad client would, and counts it in `tricks`."""

    def __init__(self, *args: Any, chance: random.Random, rough: float = 0.06, **more: Any) -> None:
        super().__init__(*args, **more)
        self._chance, self._rough = chance, rough
        self.tricks: Counter[str] = Counter()
        # It has asked for the end: from here on its file may be seen.
        self.asked = False

    async def complete(self, frames: Frames, sha256: str) -> dict[str, Any]:
        self.asked = True
        return await super().complete(frames, sha256)

    async def send_chunk(self, frames: Frames, offset: int, data: bytes) -> asyncio.Future[dict[str, Any]]:
        if self._chance.random() >= self._rough:
            return await super().send_chunk(frames, offset, data)
        trick = self._chance.choice(("flip", "twice", "early", "overlap", "empty", "lost", "beyond", "forged"))
        self.tricks[trick] += 1
        match trick:
            case "flip":
                # On the way: the sum is the right bytes'.
                flipped = bytearray(data)
                flipped[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)
                return await self._raw(frames, offset, bytes(flipped), google_crc32c.value(data))
            case "lost":
                raise Lost("cut by the drill")
            case "early":
                await self._raw(frames, offset + len(data), data)
            case "overlap":
                await self._raw(frames, max(0, offset - 10), data)
            case "empty":
                await self._raw(frames, offset, b"")
            case "beyond":
                await self._raw(frames, self.size_bytes, data)
            case "forged":
                # Of a transfer that is nobody's.
                await frames.send("file:chunk", transfer_id=_NOBODYS, offset=0, data=data)
        answer = await super().send_chunk(frames, offset, data)
        if trick == "twice":
            await self._raw(frames, offset, data)
        return answer

    async def _raw(
        self, frames: Frames, offset: int, data: bytes, crc32c: int | None = None
    ) -> asyncio.Future[dict[str, Any]]:
        crc32c = google_crc32c.value(data) if crc32c is None else crc32c
        return await frames.send("file:chunk", transfer_id=self.transfer_id, offset=offset, data=data, crc32c=crc32c)


def make_file(path: Path, size: int, seed: int) -> str:
    """Write so many bytes that are like no other file's; their sha256."""
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
