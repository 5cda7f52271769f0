"""clamd by our client: the real daemon where it is installed, and one of ours that misbehaves."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hub.embedded import free_port
from storage import scan
from storage.scan import Clamd, ScanFailed, ScannerUnavailable

from .clamav import EICAR, LIMIT_BYTES, ClamAV, clamd_path


async def pieces(data: bytes, piece_bytes: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), piece_bytes):
        yield data[at : at + piece_bytes]


@pytest.fixture(scope="session")
def clamav() -> Iterator[ClamAV]:
    if clamd_path() is None:
        pytest.skip("no clamd here: apt-get install clamav-daemon")
    with tempfile.TemporaryDirectory(prefix="auralink-clamav-") as directory, ClamAV(Path(directory)) as server:
        yield server


@pytest.fixture(params=["tcp", "unix"])
def clamd(request: pytest.FixtureRequest, clamav: ClamAV) -> Clamd:
    return Clamd(clamav.url if request.param == "tcp" else clamav.socket_url)


async def test_the_scanner_is_there(clamd: Clamd) -> None:
    await clamd.ping()
    assert (await clamd.version()).startswith("ClamAV")


async def test_clean_bytes_are_clean(clamd: Clamd) -> None:
    for data in (b"", b"hello", bytes(1_000_000)):
        assert (await clamd.scan(pieces(data))).clean


async def test_a_virus_is_found_wherever_it_hides(clamd: Clamd) -> None:
    """S-054: EICAR as it is, inside of other bytes, across pieces, and in an archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner.txt", EICAR)
    hidden = bytes(150_000) + EICAR + bytes(50_000)
    for data, piece_bytes in ((EICAR, 100), (EICAR, 7), (hidden, 150_010), (archive.getvalue(), 100_000)):
        verdict = await clamd.scan(pieces(data, piece_bytes))
        assert verdict.signature == "Test.EICAR.NDB.UNOFFICIAL"
        assert not verdict.clean


async def test_many_scans_at_once_do_not_mix_up(clamd: Clamd) -> None:
    verdicts = await asyncio.gather(
        *(clamd.scan(pieces(EICAR if number % 2 else bytes(200_000))) for number in range(12))
    )
    assert [verdict.clean for verdict in verdicts] == [number % 2 == 0 for number in range(12)]


async def test_what_is_too_large_to_be_scanned_is_not_clean(clamd: Clamd) -> None:
    """S-054: fail closed."""
    with pytest.raises(ScanFailed):
        await clamd.scan(pieces(bytes(3 * LIMIT_BYTES), 256 * 1024))


async def test_what_the_bytes_raise_is_raised(clamd: Clamd) -> None:
    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"some"
        raise LookupError("the store is away")

    with pytest.raises(LookupError, match="the store is away"):
        await clamd.scan(breaks_off())


async def test_without_a_scanner_it_says_so(tmp_path: Path) -> None:
    for url in (f"tcp://127.0.0.1:{free_port()}", f"unix://{tmp_path}/none.sock"):
        with pytest.raises(ScannerUnavailable):
            await Clamd(url).ping()
        with pytest.raises(ScannerUnavailable):
            await Clamd(url).scan(pieces(b"x"))


@asynccontextmanager
async def answering(reply: bytes | None) -> AsyncIterator[Clamd]:
    """Something that reads a stream to its end and answers `reply`, or hangs up where that is empty; None: never."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(50)
        if reply is None:
            await reader.read()
        elif reply:
            writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Clamd(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (b"", ScannerUnavailable),
        (b"stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\0", ScanFailed),
        (b"INSTREAM size limit exceeded. ERROR\0", ScanFailed),
        (b"stream: Can't allocate memory ERROR\0", ScanFailed),
        (b"HTTP/1.1 400 Bad Request\r\n", ScanFailed),
        (b"x" * 100_000, ScanFailed),
    ],
)
async def test_whatever_else_it_says_is_not_clean(reply: bytes, raised: type[Exception]) -> None:
    async with answering(reply) as clamd:
        with pytest.raises(raised):
            await clamd.scan(pieces(b"data"))


async def test_a_scanner_that_says_nothing_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_VERDICT_S", 0.3)
    async with answering(None) as clamd:
        with pytest.raises(ScannerUnavailable, match="no answer within"):
            await clamd.scan(pieces(b"data"))
