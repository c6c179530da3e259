"""Each format is identified by its first bytes, and read or refused by its name."""

from __future__ import annotations

import pytest

from embedding_learning.data.image_formats import READABLE, describe_unreadable, identify_format

PICTURES = {
    "JPEG 2000": [
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjph ",
        b"\xff\x4f\xff\x51\x00\x2f",
    ],
    "JPEG XL": [b"\xff\x0a\xfa", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "JPEG-LS": [b"\xff\xd8\xff\xf7\x00\x0b"],
    "JPEG XR": [b"II\xbc\x01"],
    "GIF": [b"GIF87a", b"GIF89a"],
    "AVIF": [b"\0\0\0\x20ftypavif", b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif"],
    "HEIC": [b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", b"\0\0\0\x18ftypmsf1"],
    "PFM": [b"PF\n3 2\n", b"Pf\n3 2\n"],
    "PAM": [b"P7\nWIDTH 3\n"],
    "Radiance HDR": [b"#?RADIANCE\n", b"#?RGBE\n"],
    "OpenEXR": [b"v/1\x01\x02\0\0\0"],
    "Sun raster": [b"\x59\xa6\x6a\x95"],
    "icon": [b"\0\0\1\0\2\0", b"icns\0\0"],
    "Photoshop": [b"8BPS\0\1"],
    "camera raw": [b"II*\0\x10\0\0\0CR\2\0", b"\0\0\0\x18ftypcrx \0", b"FUJIFILMCCD-RAW 0201"],
    "SVG": [
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC ''>\n<svg>",
    ],
}
OTHERS = {
    "HTML": [b"<!DOCTYPE html>", b"\n<html><svg>", b"<?xml version='1.0'?><html>"],
    "XML": [b"<?xml version='1.0'?><a/>"],
    "PDF": [b"%PDF-1.7"],
    "numpy": [b"\x93NUMPY\1\0"],
    "zip": [b"PK\3\4"],
    "video": [b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3"],
    "AppleDouble": [b"\0\5\x16\7\0\2\0\0"],
    "CSV": [b"path,label\na.jpg,1\n"],
    "text": [b"404 not found", "Größe 鳥".encode(), "a,b\n".encode("utf-16"), b"a\nb,c\n"],
}


@pytest.mark.parametrize("name", [*PICTURES, *OTHERS])
def test_what_is_not_read_is_refused_by_its_name(name: str) -> None:
    way_out = "convert it to JPEG or PNG" if name in PICTURES else "replace the file"
    for content in {**PICTURES, **OTHERS}[name]:
        assert describe_unreadable(content) in (
            f"is a {name} file; {way_out}",
            f"is an {name} file; {way_out}",
        )
        assert identify_format(content) not in READABLE


@pytest.mark.parametrize(
    "name, content",
    [
        ("JPEG", b"\xff\xd8\xff\xe0"),
        ("PNG", b"\x89PNG\r\n\x1a\n"),
        ("BMP", b"BM" + bytes(12) + b"\x28\0\0\0"),
        ("TIFF", b"II*\0\x08\0\0\0"),
        ("TIFF", b"MM\0*\0\0\0\x08"),
        ("TIFF", b"II+\0\x08\0\0\0"),
        ("WebP", b"RIFF\x10\0\0\0WEBP"),
        *(("PNM", f"P{kind}\n".encode()) for kind in range(1, 7)),
    ],
)
def test_what_is_read_is_known(name: str, content: bytes) -> None:
    assert identify_format(content) == name in READABLE


def test_the_article_is_right() -> None:
    assert describe_unreadable(b"GIF89a").startswith("is a GIF file")
    assert describe_unreadable(b"<svg>").startswith("is an SVG file")
    assert describe_unreadable(b"\0\0\0\x20ftypavif").startswith("is an AVIF file")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty; replace the file"),
        (bytes(range(256)), "is not an image of a known format (JPEG, PNG, BMP, TIFF, WebP, PNM)"),
        (b"BMW,red\nAudi,blue\n", "is a CSV file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not the image"),
        # A character that the end of the part that is looked at cuts in two.
        (b"x" + "é".encode() * 1000, "is a text file"),
    ],
)
def test_files_without_a_signature_are_described(content: bytes, message: str) -> None:
    assert describe_unreadable(content).startswith(message)


def test_no_beginning_takes_long() -> None:
    """A pattern that tries all ways to part a text would not come to an end."""
    for start in (b"<?xml", b"<!--", b"<", b" ", b"P2", b"\0\0\0\x20ftyp", b"<!-- -->"):
        for filler in (b" ", b"<", b"<!--", b"-->", b"#", b"a"):
            describe_unreadable(start + filler * 2000)
