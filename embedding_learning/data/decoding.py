"""Decodes the content of an image file to pixels, 8 bits per channel; refuses damaged files."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import cv2
import numpy as np
from PIL import (
    BmpImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from embedding_learning.data.image_formats import (
    BMP,
    JPEG,
    PNG,
    PNM,
    READABLE,
    TIFF,
    WEBP,
    describe_unreadable,
    identify_format,
)
from embedding_learning.errors import DataError
from embedding_learning.runtime import library_messages

# OpenCV and Pillow print messages that do not name the file. The important ones are raised here.
_SILENT, _DEBUG = 0, 5
cv2.setLogLevel(_SILENT)
_log_level_lock = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow's class of each format. `Image.open` is not used: it has its own limit of pixels.
_PILLOW_CLASSES: dict[str, type[ImageFile]] = {
    JPEG: JpegImagePlugin.JpegImageFile,
    PNG: PngImagePlugin.PngImageFile,
    BMP: BmpImagePlugin.BmpImageFile,
    TIFF: TiffImagePlugin.TiffImageFile,
    WEBP: WebPImagePlugin.WebPImageFile,
    PNM: PpmImagePlugin.PpmImageFile,
}
_PNG_SIGNATURE_BYTES = 8
# The chunks that make a PNG file an animation. Without them it is its still image.
_ANIMATION_CHUNKS = (b"acTL", b"fcTL", b"fdAT")
# In these formats OpenCV does not notice damage, but Pillow does. In JPEG files neither notices
# most of it, but libjpeg prints a message.
_CHECKED_BY_PILLOW = {TIFF, WEBP} if library_messages.CAN_COLLECT else {TIFF, WEBP, JPEG}
# Up to 9 extra bytes before the end marker (0xd9) are padding that cameras and editors write;
# no pixel is lost. Damage that ends the decoding early leaves more bytes.
_JPEG_DAMAGE = re.compile(
    r"(?:Corrupt JPEG data: (?!\d extraneous bytes before marker 0xd9)|Premature end)[^\n]*"
)
# Tags of TIFF, and their values. Sample formats: 1 is unsigned, 4 is undefined (read as unsigned).
_BITS_PER_SAMPLE, _COMPRESSION, _SAMPLE_FORMAT = 258, 259, 339
_JPEG_COMPRESSIONS = (6, 7)
_MOST_BITS, _UNSIGNED = 16, {1, 4}
_PNM_NUMBER = rb"(?:\s|#[^\n]*\n)+(\d+)"
_PNM_HEADER = re.compile(rb"P[2356]" + 3 * _PNM_NUMBER)
_PNM_MAXIMA = (255, 65535)
_NOT_WHOLE = "is not a whole image that can be decoded; replace the file"


def decode_image(path: str, content: bytes, flags: int) -> np.ndarray:
    """Decodes an image with OpenCV and checks the file for damage.

    Parameters
    ----------
    path : str
        The file's name in error messages.
    content : bytes
        The whole file.
    flags : int
        The flags of ``cv2.imdecode``: color, with or without the EXIF orientation.

    Returns
    -------
    ndarray of uint8 (height, width, 3), BGR.

    Raises
    ------
    DataError
        If the format is not supported, the file is cut off or damaged, or the image is too large.
    """
    format_name = identify_format(content)
    if format_name not in READABLE:
        raise DataError(f"{path}: {describe_unreadable(content)}")
    if format_name == PNG:
        content = _remove_png_animation(path, content)
    elif format_name == PNM:
        _check_pnm_maximum(path, content)
        content += b"\n"  # in a text file OpenCV looks for the end of the last number
    tags = _read_tiff_tags(content) if format_name == TIFF else {}
    _check_tiff_numbers(path, tags)
    is_jpeg_in_tiff = tags.get(_COMPRESSION) in _JPEG_COMPRESSIONS
    image = _decode_and_check(path, format_name, content, flags, is_jpeg_in_tiff)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{path}: has pixels of {image.dtype}, not of 8 bits a channel; convert it to an 8 bit "
            "JPEG or PNG file"
        )
    return image


def _decode_and_check(
    path: str, format_name: str, content: bytes, flags: int, is_jpeg_in_tiff: bool
) -> np.ndarray:
    """Decodes with OpenCV. Raises DataError if that fails or a library finds the file damaged."""
    with library_messages.collect_messages() as printed:
        try:
            with _print_tiff_messages() if is_jpeg_in_tiff else nullcontext():
                image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error as error:
            _check_size_limit(path, format_name, content, str(error))
            image = None
        if image is None:
            raise DataError(f"{path}: {_NOT_WHOLE}")
        if format_name in _CHECKED_BY_PILLOW:
            _check_with_pillow(path, format_name, content)
    damage = _JPEG_DAMAGE.search("".join(printed))
    if damage and (format_name == JPEG or is_jpeg_in_tiff):
        raise DataError(f"{path}: is damaged (libjpeg: {damage.group()}); replace the file")
    return image


def _remove_png_animation(path: str, content: bytes) -> bytes:
    """Returns the PNG file without its animation, which OpenCV may decode to 16 bits.

    Raises DataError if a chunk ends after the end of the file: OpenCV allocates its memory, up to
    4 GB, before it looks for the bytes.
    """
    chunks, start = [content[:_PNG_SIGNATURE_BYTES]], _PNG_SIGNATURE_BYTES
    chunk_type = b""
    while start < len(content) and chunk_type != b"IEND":
        chunk_type = content[start + 4 : start + 8]
        # Size, type, data, checksum.
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            raise DataError(f"{path}: {_NOT_WHOLE}")
        if chunk_type not in _ANIMATION_CHUNKS:
            chunks.append(content[start:end])
        start = end
    return b"".join(chunks)


def _check_pnm_maximum(path: str, content: bytes) -> None:
    """Raises DataError for a PNM file whose white OpenCV would decode as dark gray."""
    header = _PNM_HEADER.match(content[:4096])
    maximum = int(header[3][:9]) if header else None
    if header and maximum not in _PNM_MAXIMA:
        raise DataError(
            f"{path}: is a PNM file with the maximum value {maximum}; only 255 and 65535 are "
            "supported; convert it to JPEG or PNG"
        )


def _check_size_limit(path: str, format_name: str, content: bytes, error: str) -> None:
    """Raises DataError that names the limit, if OpenCV's error is that the image is too large."""
    limit = re.search("CV_(IO_MAX_IMAGE_(PIXELS|WIDTH|HEIGHT))", error)
    if not limit:
        return
    try:
        width, height = _PILLOW_CLASSES[format_name](io.BytesIO(content)).size
    except Exception:  # Pillow raises many types for a damaged header
        return
    size = {"PIXELS": width * height, "WIDTH": width, "HEIGHT": height}[limit[2]]
    variable = f"OPENCV_{limit[1]}"
    allowed = os.environ.get(variable, 2**20)  # OpenCV's default limit of a side
    raise DataError(
        f"{path}: has {width}x{height} pixels; the limit of {limit[2].lower()} is {allowed}; make "
        f"the image smaller, or raise the limit: set {variable}={size} in the environment"
    )


def _read_tiff_tags(content: bytes) -> Mapping[int, Any]:
    """Returns the tags of the first image of a TIFF file; none if they are damaged."""
    tiff = io.BytesIO(content)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(tiff.read(16 if b"+" in content[2:4] else 8))
        tiff.seek(tags.next)
        tags.load(tiff)
        return dict(tags)
    except Exception:  # Pillow raises many types for damaged tags
        return {}


def _check_tiff_numbers(path: str, tags: Mapping[int, Any]) -> None:
    """Raises DataError unless a TIFF file has unsigned numbers of 1 to 16 bits.

    OpenCV reports some other files as damaged, and cuts the numbers of others to 8 bits.
    """
    try:
        bits, sample_formats = (
            max(tags.get(_BITS_PER_SAMPLE, (1,))),
            set(tags.get(_SAMPLE_FORMAT, (1,))),
        )
        is_supported = bits <= _MOST_BITS and sample_formats <= _UNSIGNED
    except TypeError:  # a damaged tag is not a tuple of numbers
        return
    if not is_supported:
        raise DataError(
            f"{path}: is a TIFF file of signed, floating point or 32 bit numbers; convert it to "
            "JPEG or PNG"
        )


@contextmanager
def _print_tiff_messages() -> Iterator[None]:
    """Makes OpenCV print, within the block, the messages of libtiff and of libjpeg inside it.

    All threads share OpenCV's log level, so only one thread at a time is in the block.
    """
    with _log_level_lock:
        cv2.setLogLevel(_DEBUG)
        try:
            yield
        finally:
            cv2.setLogLevel(_SILENT)


def _check_with_pillow(path: str, format_name: str, content: bytes) -> None:
    """Raises DataError if Pillow finds the file damaged or does not support its variant."""
    try:
        _PILLOW_CLASSES[format_name](io.BytesIO(content)).load()
    except SyntaxError as error:  # Pillow raises this for a variant that it does not support
        raise DataError(
            f"{path}: is damaged, or a {format_name} file of a rare variant ({error}); replace the "
            "file, or convert it to JPEG or PNG"
        ) from None
    except Exception as error:  # Pillow raises OSError and other types for a damaged file
        raise DataError(f"{path}: is damaged (Pillow: {error}); replace the file") from None
