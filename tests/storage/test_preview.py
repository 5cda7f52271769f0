"""Previews: what has one, and that what is made to break us costs nothing but the preview."""

from __future__ import annotations

import asyncio
import io
import os
import random
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image

from storage import preview
from storage.preview import MOST_BYTES, Previewer


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 256 * 1024):
        yield data[at : at + 256 * 1024]


async def preview_of(data: bytes, mime_type: str) -> Image.Image | None:
    made = await Previewer().make(pieces(data), mime_type)
    if made is None:
        return None
    shown = Image.open(io.BytesIO(made))
    assert shown.format == "WEBP"
    assert max(shown.size) <= 512
    assert not shown.getexif()
    return shown


def picture(format_: str, size: tuple[int, int] = (1600, 800), mode: str = "RGB", **how: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else None).save(out, format_, **how)
    return out.getvalue()


def png(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel, all black: many pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pdf(width: float = 595, height: float = 842) -> bytes:
    document = pypdfium2.PdfDocument.new()
    document.new_page(width, height)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


@pytest.mark.parametrize("format_", ["png", "jpeg", "avif"])
async def test_a_picture_has_a_small_one(format_: str) -> None:
    """S-118: image previews render."""
    shown = await preview_of(picture(format_), f"image/{format_}")
    assert shown is not None and shown.size == (512, 256)
    red, green, blue = shown.convert("RGB").getpixel((256, 128))  # type: ignore[misc]
    assert red > 200 and green < 60 and blue < 60


async def test_a_preview_says_nothing_of_who_took_the_picture_where() -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera of Ada"
    # Lying on its side.
    exif[0x0112] = 6
    shown = await preview_of(picture("jpeg", exif=exif), "image/jpeg")
    assert shown is not None and shown.size == (256, 512)
    assert "exif" not in shown.info


async def test_a_document_has_its_first_page_and_a_text_its_beginning() -> None:
    """S-118: PDF and text previews render."""
    page = await preview_of(pdf(), "application/pdf")
    assert page is not None and page.size[1] == 512
    text = await preview_of("Tagesordnung\n\n1. Begrüßung\n".encode() + b"x\n" * 100_000, "text/plain")
    assert text is not None and any(text.convert("L").histogram()[:100])


BROKEN = {
    "nothing": (b"", "image/png"),
    "noise": (random.Random(1).randbytes(10_000), "image/png"),
    "not what it is said to be": (b"<svg/>", "image/png"),
    "a format that is not offered": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "image/png"),
    "many pixels": (png(30_000, 10_000), "image/png"),
    "a few pixels too many": (png(8_000, 5_001), "image/png"),
    "pdf of noise": (b"%PDF-1.7\n" + random.Random(2).randbytes(20_000), "application/pdf"),
}


@pytest.mark.parametrize(("data", "mime_type"), BROKEN.values(), ids=BROKEN.keys())
async def test_bombs_and_broken_files_have_none(data: bytes, mime_type: str) -> None:
    assert await preview_of(data, mime_type) is None


async def test_as_many_pixels_as_are_allowed_have_one() -> None:
    shown = await preview_of(png(8_000, 5_000), "image/png")
    assert shown is not None and shown.size == (512, 320)


async def test_a_page_as_large_as_a_house_is_a_small_picture() -> None:
    shown = await preview_of(pdf(14_000, 14_000), "application/pdf")
    assert shown is not None and shown.size == (512, 512)


async def test_what_is_too_large_has_none_and_is_not_read_to_its_end() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 4 * 1024 * 1024
            yield bytes(4 * 1024 * 1024)

    assert await Previewer().make(endless(), "image/png") is None
    assert read <= MOST_BYTES + 8 * 1024 * 1024


async def test_a_child_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper, noted = tmp_path / "sleeper.py", tmp_path / "pid"
    sleeper.write_text(f"import time, os\nopen({str(noted)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    monkeypatch.setattr(preview, "_CHILD", sleeper)
    monkeypatch.setattr(preview, "_WITHIN_S", 3.0)
    assert await Previewer().make(pieces(b"data"), "image/png") is None
    # Where the machine was too busy to start it at all, there is nothing to be seen.
    if noted.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(noted.read_text()), 0)


async def test_whoever_waits_no_longer_leaves_no_process() -> None:
    making = asyncio.create_task(Previewer().make(pieces(picture("png")), "image/png"))
    await asyncio.sleep(0.05)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
