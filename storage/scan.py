"""A client of clamd: bytes in by INSTREAM, a verdict out. Nothing is kept, nothing is held in memory but one piece.

clamd has to be told not to wave through what is larger than its limits: `StreamMaxLength`, `MaxFileSize` and
`MaxScanSize` at least as large as the largest file, and `AlertExceedsMax yes` (docs/operating.md).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

_CONNECT_S: Final = 2.0
# Of one piece, and of a short question. A busy scanner is slow; one that takes nothing for so long is not there.
_IDLE_S: Final = 20.0
# For the verdict, once all is sent: archives are unpacked then.
_VERDICT_S: Final = 60.0
_VERDICT_S_PER_MIB: Final = 1.0
# What clamd says where it did not look into all of a file.
_NOT_ALL: Final = "Heuristics.Limits.Exceeded"
_MOST_REPLY: Final = 4096


class ScannerUnavailable(Exception):
    """The scanner did not answer, or not in time: try again later."""


class ScanFailed(Exception):
    """The scanner answered that it cannot say: too large, or an error of its own. Trying again does not help."""


class Verdict(msgspec.Struct, frozen=True):
    """`signature`: what was found; None: nothing."""

    signature: str | None

    @property
    def clean(self) -> bool:
        return self.signature is None


class Clamd:
    """`url`: `tcp://host:3310` or `unix:///run/clamav/clamd.ctl`. A connection a scan; any number at once."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def scan(self, pieces: AsyncIterator[bytes]) -> Verdict:
        """Of all that `pieces` gives. Raises ScannerUnavailable, ScanFailed, and what `pieces` raises."""
        async with self._connected() as (reader, writer):
            sent = 0
            async with _answering():
                writer.write(b"zINSTREAM\0")
            cut = False
            async for piece in pieces:
                if not piece:
                    continue
                try:
                    async with _answering():
                        writer.write(struct.pack("!L", len(piece)))
                        writer.write(piece)
                        await writer.drain()
                except ScannerUnavailable as error:
                    if not isinstance(error.__cause__, ConnectionError):
                        raise
                    # It has heard enough, and may have said why before it hung up.
                    cut = True
                    break
                sent += len(piece)
            reply = await self._verdict(reader, writer, sent, cut)
        return _read(reply, cut)

    async def ping(self) -> None:
        """Raises ScannerUnavailable."""
        if await self._ask(b"zPING\0") != "PONG":
            raise ScannerUnavailable("what answers is not clamd")

    async def version(self) -> str:
        """The engine's, and that of its signatures. Raises ScannerUnavailable."""
        return await self._ask(b"zVERSION\0")

    async def _ask(self, question: bytes) -> str:
        async with self._connected() as (reader, writer), _answering():
            writer.write(question)
            await writer.drain()
            return await _reply(reader)

    async def _verdict(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: int, cut: bool) -> str:
        within_s = _IDLE_S if cut else _VERDICT_S + _VERDICT_S_PER_MIB * sent / 2**20
        try:
            async with _answering(within_s):
                if not cut:
                    writer.write(struct.pack("!L", 0))
                    await writer.drain()
                return await _reply(reader)
        except ScannerUnavailable as error:
            if cut and isinstance(error.__cause__, ConnectionError):
                return ""
            raise

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with _answering(_CONNECT_S):
            if self._url.scheme == "unix":
                reader, writer = await asyncio.open_unix_connection(unquote(self._url.path))
            else:
                reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            yield reader, writer
        finally:
            # Not closed gently: what is left in the buffer is a file that nobody waits for.
            writer.transport.abort()


@asynccontextmanager
async def _answering(within_s: float = _IDLE_S) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError as error:
        raise ScannerUnavailable(f"no answer within {within_s:g} s") from error
    except OSError as error:
        raise ScannerUnavailable(error.strerror or type(error).__name__) from error


async def _reply(reader: asyncio.StreamReader) -> str:
    reply = bytearray()
    while len(reply) < _MOST_REPLY and not reply.endswith(b"\0"):
        more = await reader.read(_MOST_REPLY - len(reply))
        if not more:
            break
        reply += more
    if not reply:
        raise ConnectionResetError("clamd hung up")
    return reply.rstrip(b"\0\n").decode("utf-8", "replace")


def _read(reply: str, cut: bool) -> Verdict:
    said = reply.removeprefix("stream: ")
    if said == "OK" and not cut:
        return Verdict(None)
    if said.endswith(" FOUND"):
        signature = said.removesuffix(" FOUND")
        if signature.startswith(_NOT_ALL):
            raise ScanFailed("larger than what the scanner looks into")
        return Verdict(signature[:200])
    if cut and not said:
        # Over StreamMaxLength its answer is often lost on the way.
        raise ScanFailed("the scanner broke off: it is larger than StreamMaxLength")
    raise ScanFailed(said[:200] or "no verdict")
