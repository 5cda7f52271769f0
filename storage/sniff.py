"""What a file is by its content, whatever its sender says; whether it may come in, and as what it goes out.

Binary formats are told by `filetype`; what a browser would run (HTML, SVG, scripts) it does not know, so that is looked
for here, after the rules by which browsers sniff (https://mimesniff.spec.whatwg.org). Nothing here makes a file safe:
whatever it is, it is served as an attachment, with `nosniff`, from a sandbox.
"""

from __future__ import annotations

import re
from typing import Final

import filetype
import msgspec

# What `look` wants to see of a file; office documents say what they are only behind some zip entries.
HEAD_BYTES: Final = 8192

OCTETS: Final = "application/octet-stream"
PROGRAM: Final = "application/x-executable"
TEXT: Final = "text/plain"
HTML: Final = "text/html"
SVG: Final = "image/svg+xml"
XML: Final = "application/xml"
SCRIPT: Final = "text/x-script"
PDF: Final = "application/pdf"


class Kind(msgspec.Struct, frozen=True):
    """`mime_type` None: nobody knows. `blocked`: it must not come in. `previewable`: `preview` may try."""

    mime_type: str | None
    blocked: bool
    previewable: bool


# What a system runs when it is opened, by its first bytes: PE, ELF, Mach-O (and Java classes, which share a number),
# Android's, WebAssembly, Windows shortcuts.
_PROGRAMS: Final = (
    *(b"MZ", b"\x7fELF", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe"),
    *(b"\xca\xfe\xba\xbe", b"dex\n", b"\x00asm", b"L\x00\x00\x00\x01\x14\x02\x00"),
)
# A zip that is a program: of Java, of Android.
_PROGRAM_ENTRIES: Final = (b"META-INF/MANIFEST.MF", b"AndroidManifest.xml", b"classes.dex")
# Thirty words are not better read with ninety marks between them.
# ruff: noqa: SIM905
# What Windows runs by its ending alone.
_RUNS: Final = frozenset(
    "exe dll scr com pif cpl msi msp bat cmd ps1 psm1 vbs vbe jse wsf wsh wsc hta lnk scf reg inf jar apk appx msix "
    "application gadget chm msc".split()
)
# What a browser takes for a page. `<b` and the like count only as whole tags.
_PAGE: Final = re.compile(
    rb"<(!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|form|img|object|embed|meta"
    rb"|link|base|frameset|input|button|video|audio|math|template|!--)(?=[\s>/]|--)",
    re.IGNORECASE,
)
_MARKUP: Final = re.compile(rb"<(script|html|svg|iframe|!doctype html|\?xml|body)(?=[\s>/!?])", re.IGNORECASE)
_TEXT_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
# Who says so and is a page wants to be opened.
_INERT_CLAIMS: Final = re.compile(
    r"(image/(?!svg)|audio/|video/|font/|application/(pdf|zip|msword|rtf|vnd\.(ms-|openxmlformats|oasis)))"
)
_INERT_ENDINGS: Final = frozenset(
    "png jpg jpeg gif webp bmp tif tiff ico avif heic mp3 wav ogg flac m4a mp4 mov webm mkv avi pdf doc docx xls xlsx "
    "ppt pptx odt ods odp rtf zip gz 7z rar ttf otf woff woff2".split()
)
_PICTURES: Final = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/tiff", "image/avif"}
)
_DOCUMENTS: Final = re.compile(
    r"application/(pdf|zip|gzip|x-7z-compressed|msword|rtf|epub\+zip|vnd\.(ms-|openxml|oasis).*)"
)


def look(head: bytes, *, name: str, declared: str) -> Kind:
    """`head`: the first HEAD_BYTES, or all there is. `name`, `declared`: what the sender calls it."""
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    found = _detected(head)
    if found == PROGRAM or ending in _RUNS:
        return Kind(found, blocked=True, previewable=False)
    if found in (HTML, SVG, XML, SCRIPT):
        disguised = bool(_INERT_CLAIMS.match(declared.strip().lower())) or ending in _INERT_ENDINGS
        return Kind(found, blocked=disguised, previewable=False)
    return Kind(found, blocked=False, previewable=found in _PICTURES or found in (PDF, TEXT))


def served(mime_type: str | None) -> str:
    """The Content-Type to serve a file as that was detected to be `mime_type`: never one that a browser would run."""
    if mime_type is None:
        return OCTETS
    if mime_type == TEXT:
        return "text/plain; charset=utf-8"
    media = mime_type.startswith(("image/", "audio/", "video/", "font/")) and "xml" not in mime_type
    return mime_type if media or _DOCUMENTS.fullmatch(mime_type) else OCTETS


def _detected(head: bytes) -> str | None:
    if head.startswith(_PROGRAMS):
        return PROGRAM
    if head.startswith(b"PK\x03\x04") and any(entry in head for entry in _PROGRAM_ENTRIES):
        return PROGRAM
    active = _active(head)
    if active is not None:
        return active
    guessed = filetype.guess_mime(head) if head else None
    if guessed is not None:
        # A picture that is a page as well is neither.
        return OCTETS if _MARKUP.search(head[:512]) and str(guessed).startswith("image/") else str(guessed)
    return TEXT if head and _is_text(head) else None


def _active(head: bytes) -> str | None:
    """What a browser or a shell would run."""
    if head.startswith(b"#!"):
        return SCRIPT
    text = _as_ascii(head).lstrip(b" \t\r\n\x0c")
    if text[:5].lower() == b"<?xml" or text[:9].lower() == b"<!doctype" or text[:4] == b"<!--":
        if re.search(rb"<svg[\s>/:]|doctype\s+svg", text, re.IGNORECASE):
            return SVG
        if text[:5].lower() == b"<?xml" and not re.search(rb"<html[\s>]", text, re.IGNORECASE):
            return XML
        return HTML
    if re.match(rb"<svg[\s>/:]", text, re.IGNORECASE):
        return SVG
    return HTML if _PAGE.match(text) else None


def _as_ascii(head: bytes) -> bytes:
    """Without a byte order mark; UTF-16, which browsers read by its mark, as single bytes."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            return head[2:].decode(encoding, "replace").encode("ascii", "replace")
    return head.removeprefix(b"\xef\xbb\xbf")


def _is_text(head: bytes) -> bool:
    if _TEXT_CONTROLS.search(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut.
        return len(head) >= HEAD_BYTES and error.start > len(head) - 4
    return True
