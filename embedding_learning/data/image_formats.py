"""Identifies the format of a file by its first bytes; the ending of its name may be wrong.

Only the formats of READABLE are decoded. OpenCV decodes more, but one of its decoders ends the
process at a damaged file (JPEG 2000), and others give pixels that are not 8 bits of red, green and
blue (PFM, Radiance HDR, OpenEXR, PAM). A file of another format is refused with its format's name.
"""

from __future__ import annotations

import re

JPEG, PNG, BMP, TIFF, WEBP, PNM = "JPEG", "PNG", "BMP", "TIFF", "WebP", "PNM"
READABLE = (JPEG, PNG, BMP, TIFF, WEBP, PNM)

# The first bytes of a file that the patterns look at.
_BEGINNING = 1024

_CONVERT, _REPLACE = "convert it to JPEG or PNG", "replace the file"

# Name and pattern; the first match counts. Of two formats with the same first bytes, the rarer one
# comes first.
_IMAGE_FORMATS = [
    ("JPEG-LS", rb"\xff\xd8\xff\xf7"),
    (JPEG, rb"\xff\xd8\xff"),
    (PNG, rb"\x89PNG\r\n\x1a\n"),
    # The second header of a BMP file has one of these sizes.
    (BMP, rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("camera raw", rb"II\*\0.{4}CR|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb|\0MRM|.{4}ftypcrx "),
    (TIFF, rb"II[*+]\0|MM\0[*+]"),
    (WEBP, rb"RIFF.{4}WEBP"),
    (PNM, rb"P[1-6][\s#]"),
    ("JPEG 2000", rb"\0\0\0\x0cjP|\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\0\0\0\x0cJXL |\xff\x0a"),
    ("JPEG XS", rb"\0\0\0\x0cJXS |\xff\x10\xff\x50"),
    ("JPEG XR", rb"II\xbc"),
    ("GIF", rb"GIF8"),
    # The first brand may be a general one, such as mif1.
    ("AVIF", rb".{4}ftyp(?:.{4}){0,12}avi[fs]"),
    ("HEIC", rb".{4}ftyp(?:hei[cfmsx]|hev[cmsx]|m[is]f[12]|miaf|1pic)"),
    ("PFM", rb"P[Ff]4?\s"),
    ("PAM", rb"P7[\s#]"),
    ("Radiance HDR", rb"#\?R"),
    ("OpenEXR", rb"v/1\x01"),
    ("Sun raster", rb"\x59\xa6\x6a\x95"),
    ("icon", rb"\0\0[\x01\x02]\0[^\0]\0|icns"),
    ("TGA", rb"\0\0[\x02\x03\x0a\x0b]\0{5}"),
    ("Photoshop", rb"8BP[SB]"),
    ("GIMP", rb"gimp xcf"),
    ("QOI", rb"qoif"),
    ("BPG", rb"BPG\xfb"),
    ("FLIF", rb"FLIF"),
    ("DDS", rb"DDS "),
    ("PCX", rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]"),
    ("SGI", rb"\x01\xda[\0\x01][\x01\x02]"),
    ("MNG", rb"\x8a[MJ]NG|\x8bJNG"),
    ("DjVu", rb"AT&TFORM"),
    ("DICOM", rb".{128}DICM"),
    ("FITS", rb"SIMPLE  ="),
    ("Windows metafile", rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF"),
    ("XPM", rb"/\* XPM"),
    ("XBM", rb"#define \S+_width"),
    ("PostScript", rb"%!PS|\xc5\xd0\xd3\xc6"),
    # Long XML comments may come before the svg element.
    ("SVG", rb"\s*<(?:svg\b|(?:svg:|\?xml|!--|!DOCTYPE svg)(?:(?!<html).)*?<?(?:svg:)?svg\b)"),
]
_OTHER_FORMATS = [
    ("HTML", rb"(?i)\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b"),
    ("XML", rb"\s*<\?xml\b"),
    ("PDF", rb"%PDF"),
    ("numpy", rb"\x93NUMPY"),
    ("HDF5", rb"\x89HDF"),
    ("MATLAB", rb"MATLAB \d"),
    ("pickle", rb"\x80[\x02-\x05][\x95(\]}c]"),
    ("zip", rb"PK(?:\x03\x04|\x05\x06|\x07\x08)"),
    ("gzip", rb"\x1f\x8b"),
    ("bzip2", rb"BZh\d"),
    ("xz", rb"\xfd7zXZ"),
    ("Zstandard", rb"\x28\xb5\x2f\xfd"),
    ("7z", rb"7z\xbc\xaf"),
    ("RAR", rb"Rar!"),
    ("tar", rb".{257}ustar"),
    ("SQLite", rb"SQLite format 3"),
    ("video", rb".{4}(?:ftyp|moov|mdat|wide)|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]"),
    ("sound", rb"RIFF.{4}WAVE|ID3|OggS|fLaC"),
    ("AppleDouble", rb"\0\x05\x16[\0\x07]"),
    ("ELF", rb"\x7fELF"),
]
_COMPILED_FORMATS = [
    (name, re.compile(pattern, re.DOTALL)) for name, pattern in _IMAGE_FORMATS + _OTHER_FORMATS
]
_IMAGE_FORMAT_NAMES = {name for name, _ in _IMAGE_FORMATS}
_ABBREVIATIONS_WITH_AN = ("HDF5", "HTML", "MNG", "SGI", "SVG", "XBM", "XML", "XPM")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# All characters except control characters; tabs and line ends are allowed.
_TEXT = re.compile("[\t\n\f\r -~\x85\xa0-\U0010ffff]+")


def identify_format(content: bytes) -> str | None:
    """Returns the name of the format, in READABLE or not; None if no pattern matches."""
    beginning = content[:_BEGINNING]
    if beginning.startswith(_BYTE_ORDER_MARK):
        beginning = beginning[len(_BYTE_ORDER_MARK) :]
    return next((name for name, pattern in _COMPILED_FORMATS if pattern.match(beginning)), None)


def describe_unreadable(content: bytes) -> str:
    """Returns the end of an error message: the type of an unreadable file, and the way out."""
    if not content:
        return f"is empty; {_REPLACE}"
    if content.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the image; fetch the image with: git lfs pull"
    name = identify_format(content) or _find_text_type(content[:_BEGINNING])
    if name is None:
        return f"is not an image of a known format ({', '.join(READABLE)}); {_REPLACE}"
    article = "an" if name[0] in "AEIOaeio" or name in _ABBREVIATIONS_WITH_AN else "a"
    return f"is {article} {name} file; {_CONVERT if name in _IMAGE_FORMAT_NAMES else _REPLACE}"


def _find_text_type(beginning: bytes) -> str | None:
    """Returns "CSV" for two lines of equally many commas, "text" for other text, else None."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return "text"
    for cut in range(4):  # the last character may be incomplete
        try:
            text = beginning[: len(beginning) - cut].decode("utf-8-sig")
            break
        except UnicodeDecodeError:
            continue
    else:
        return None
    if not _TEXT.fullmatch(text):
        return None
    commas = [line.count(",") for line in text.splitlines()[:2]]
    return "CSV" if len(commas) == 2 and commas[0] == commas[1] > 0 else "text"
