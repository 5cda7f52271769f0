"""Run as a process of its own by `preview.py`, never imported: a file on stdin, a WebP picture on stdout, or a failure.

It is given a file that somebody may have made to break it. So it limits itself before it looks at it.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import warnings
from typing import BinaryIO

SIDE = 512
# With the libraries, which take 300 MB of address space. A picture of 40 megapixels has 160 MB.
MEMORY_BYTES = 768 * 1024 * 1024
COMPUTING_S = 10
MOST_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
LINES, COLUMNS = 32, 64
FONT_PX = 14


def limit() -> None:
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, COMPUTING_S),
        # No file is written, no dump left, no process started.
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (most, most))
    os.nice(10)


def of_image(file: BinaryIO) -> bytes:
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    # Between its limit and twice that the library only warns.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with Image.open(file, formats=FORMATS) as picture:
        # JPEG is decoded at a fraction of its size.
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))
        return packed(ImageOps.exif_transpose(picture))


def of_pdf(file: BinaryIO) -> bytes:
    import pypdfium2

    page = pypdfium2.PdfDocument(file)[0]
    scale = SIDE / max(*page.get_size(), 1)
    return packed(page.render(scale=scale, may_draw_forms=False).to_pil())


def of_text(file: BinaryIO) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    text = file.read().decode("utf-8", "replace").expandtabs(4)
    lines = ["".join(char if char.isprintable() else " " for char in line[:COLUMNS]) for line in text.splitlines()]
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    font = ImageFont.load_default(FONT_PX)
    ImageDraw.Draw(picture).multiline_text((12, 8), "\n".join(lines[:LINES]), fill="#202020", font=font, spacing=2)
    return packed(picture)


def packed(picture: object) -> bytes:
    """Small, and anew: nothing of where and by whom it was taken is left."""
    from PIL import Image

    assert isinstance(picture, Image.Image)
    picture = picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB")
    picture.thumbnail((SIDE, SIDE))
    picture.info = {}
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return out.getvalue()


def main() -> None:
    limit()
    how = {"image": of_image, "pdf": of_pdf, "text": of_text}[sys.argv[1]]
    sys.stdout.buffer.write(how(sys.stdin.buffer))


if __name__ == "__main__":
    main()
