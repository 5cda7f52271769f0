"""What a file is by its content, and what may come in."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from storage import sniff

NOTE = "name.bin"


def picture(format_: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, format_)
    return out.getvalue()


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x" * 50)
    return out.getvalue()


PROGRAMS = {
    "windows": b"MZ\x90\x00" + bytes(60),
    "linux": b"\x7fELF\x02\x01\x01" + bytes(50),
    "mac": struct.pack("<I", 0xFEEDFACF) + bytes(50),
    "java class": b"\xca\xfe\xba\xbe\x00\x00\x00\x34",
    "android": b"dex\n035\x00",
    "jar": zipped("META-INF/MANIFEST.MF", "a.class"),
    "apk": zipped("AndroidManifest.xml"),
    "shortcut": b"L\x00\x00\x00\x01\x14\x02\x00" + bytes(20),
}
ACTIVE = {
    "page": (b"<!DOCTYPE html><html>", sniff.HTML),
    "page behind space": (b"\n\n  \t<HtMl lang=x>", sniff.HTML),
    "page behind a mark": (b"\xef\xbb\xbf<script>alert(1)</script>", sniff.HTML),
    "page in UTF-16": ("\ufeff<html>".encode("utf-16-le"), sniff.HTML),
    "page in UTF-16, the other way": ("\ufeff<script >".encode("utf-16-be"), sniff.HTML),
    "comment": (b"<!-- --><script>", sniff.HTML),
    "bold": (b"<b>hello", sniff.HTML),
    "xhtml": (b'<?xml version="1.0"?><html xmlns="x">', sniff.HTML),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="x()">', sniff.SVG),
    "svg behind xml": (b'<?xml version="1.0"?>\n<!-- a --><svg>', sniff.SVG),
    "svg by doctype": (b"<!DOCTYPE svg PUBLIC", sniff.SVG),
    "xml": (b'<?xml version="1.0"?><a/>', sniff.XML),
    "script": (b"#!/bin/sh\nrm -rf /\n", sniff.SCRIPT),
}


@pytest.mark.parametrize("data", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_program_does_not_come_in_whatever_it_is_called(data: bytes) -> None:
    """S-181: an exe renamed .png is refused."""
    for name, declared in (
        ("holiday.png", "image/png"),
        ("setup", "application/octet-stream"),
        ("a.txt", "text/plain"),
    ):
        kind = sniff.look(data, name=name, declared=declared)
        assert kind.blocked and not kind.previewable
        assert kind.mime_type == sniff.PROGRAM


@pytest.mark.parametrize("name", ["a.EXE", "report.pdf.bat", "x.ps1", "a.lnk", "a.hta", "b.scr"])
def test_what_a_system_runs_by_its_ending_does_not_come_in(name: str) -> None:
    assert sniff.look(b"@echo off", name=name, declared="text/plain").blocked


@pytest.mark.parametrize(("data", "detected"), ACTIVE.values(), ids=ACTIVE.keys())
def test_a_page_comes_in_under_its_own_name_only_and_never_goes_out_as_one(data: bytes, detected: str) -> None:
    """S-118, S-181: SVG and HTML are never served inline; in disguise they are refused."""
    honest = sniff.look(data, name="page.txt", declared="text/html")
    assert (honest.mime_type, honest.blocked, honest.previewable) == (detected, False, False)
    assert sniff.served(honest.mime_type) == "application/octet-stream"
    assert sniff.look(data, name="cat.png", declared="application/octet-stream").blocked
    assert sniff.look(data, name="cat", declared="image/png").blocked
    assert sniff.look(data, name="letter", declared="application/pdf").blocked


@pytest.mark.parametrize("format_", ["png", "jpeg", "gif", "webp", "bmp", "tiff", "avif"])
def test_pictures_are_known_and_previewable(format_: str) -> None:
    kind = sniff.look(picture(format_), name=NOTE, declared="application/octet-stream")
    assert kind == sniff.Kind(f"image/{format_}", blocked=False, previewable=True)
    assert sniff.served(kind.mime_type) == f"image/{format_}"


def test_what_is_declared_does_not_count() -> None:
    """S-181: declared and detected differ, and both are known."""
    kind = sniff.look(picture("jpeg"), name="a.png", declared="image/png")
    assert (kind.mime_type, kind.blocked) == ("image/jpeg", False)


def test_documents_are_known() -> None:
    pdf = sniff.look(b"%PDF-1.7\n%\xe2\xe3", name=NOTE, declared="x/y")
    assert pdf == sniff.Kind("application/pdf", blocked=False, previewable=True)
    text = sniff.look("Grüße, 日本".encode(), name=NOTE, declared="x/y")
    assert text == sniff.Kind("text/plain", blocked=False, previewable=True)
    assert sniff.served(text.mime_type) == "text/plain; charset=utf-8"
    archive = sniff.look(zipped("a.txt"), name=NOTE, declared="x/y")
    assert archive == sniff.Kind("application/zip", blocked=False, previewable=False)


def test_text_whose_last_character_is_cut_is_text() -> None:
    head = ("a" + "ü" * sniff.HEAD_BYTES).encode()[: sniff.HEAD_BYTES]
    assert sniff.look(head, name=NOTE, declared="x/y").mime_type == "text/plain"


@pytest.mark.parametrize("data", [b"", bytes(100), zlib.compress(b"x" * 1000)[5:]])
def test_what_nobody_knows_is_bytes(data: bytes) -> None:
    kind = sniff.look(data, name=NOTE, declared="image/png")
    assert kind == sniff.Kind(None, blocked=False, previewable=False)
    assert sniff.served(None) == "application/octet-stream"


def test_a_picture_that_is_a_page_as_well_is_neither() -> None:
    kind = sniff.look(b"GIF89a/*<script>alert(1)</script>*/", name="a.gif", declared="image/gif")
    assert not kind.previewable
    assert sniff.served(kind.mime_type) == "application/octet-stream"


@given(head=st.binary(max_size=600), name=st.text(max_size=40), declared=st.text(max_size=40))
def test_nothing_that_is_sent_breaks_it_or_goes_out_as_a_page(head: bytes, name: str, declared: str) -> None:
    kind = sniff.look(head, name=name, declared=declared)
    shown = sniff.served(kind.mime_type)
    assert shown not in (sniff.HTML, sniff.SVG, sniff.XML, sniff.SCRIPT, "application/xhtml+xml", "text/xml")
