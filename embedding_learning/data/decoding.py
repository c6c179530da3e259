"""The content of an image file to 8 bits of blue, green and red a pixel, or the reason why not."""

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

# What OpenCV and Pillow print of a file does not name it, and what matters of it is raised.
_SILENT, _DEBUG = 0, 5
cv2.setLogLevel(_SILENT)
_one_at_a_time = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")

# Classes of Pillow, for `Image.open` has a limit of pixels of its own.
_OPENERS: dict[str, type[ImageFile]] = {
    JPEG: JpegImagePlugin.JpegImageFile,
    PNG: PngImagePlugin.PngImageFile,
    BMP: BmpImagePlugin.BmpImageFile,
    TIFF: TiffImagePlugin.TiffImageFile,
    WEBP: WebPImagePlugin.WebPImageFile,
    PNM: PpmImagePlugin.PpmImageFile,
}
_PNG_SIGNATURE_BYTES = 8
# The chunks that make an animation of a PNG file; without them it is its still picture.
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
# OpenCV does not notice damage in these formats, but Pillow does; in JPEG neither of them notices
# most of it, but libjpeg prints it.
_CHECKED_BY_PILLOW = {TIFF, WEBP} if library_messages.CAN_COLLECT else {TIFF, WEBP, JPEG}
# A few bytes left over before the marker that ends a picture (0xd9) are padding that cameras and
# editors write, and nothing is lost. Damage that ends the decoding early leaves more.
_DAMAGE = re.compile(
    r"(?:Corrupt JPEG data: (?!\d extraneous bytes before marker 0xd9)|Premature end)[^\n]*"
)
# Tags of TIFF. Numbers without a sign are of format 1, or 4 where nobody has said.
_BITS, _COMPRESSION, _SAMPLE_FORMAT = 258, 259, 339
_JPEG_IN_TIFF = (6, 7)
_MOST_BITS, _UNSIGNED = 16, {1, 4}
_PNM_NUMBER = rb"(?:\s|#[^\n]*\n)+(\d+)"
_PNM_HEADER = re.compile(rb"P[2356]" + 3 * _PNM_NUMBER)
_PNM_MAXIMA = (255, 65535)
_NOT_WHOLE = "is not a whole image that can be decoded; replace the file"


def decode_image(path: str, content: bytes, flags: int) -> np.ndarray:
    """The pixels as OpenCV decodes them, of a file that is known to be sound as far as can be told.

    Parameters
    ----------
    path : str
        For the message of an error.
    content : bytes
        The whole file.
    flags : int
        For ``cv2.imdecode``: color, with or without the camera's note to turn the image.

    Returns
    -------
    ndarray of uint8 (height, width, 3), BGR.

    Raises
    ------
    DataError
        If the format is not read, the file is cut off or damaged, or the image is too large.
    """
    name = identify_format(content)
    if name not in READABLE:
        raise DataError(f"{path}: {describe_unreadable(content)}")
    if name == PNG:
        content = _still_png(path, content)
    elif name == PNM:
        _check_maximum(path, content)
        content += b"\n"  # in a file of text OpenCV looks for the end of the last number
    tags = _tiff_tags(content) if name == TIFF else {}
    _check_numbers(path, tags)
    image = _heard(path, name, content, flags, tags.get(_COMPRESSION) in _JPEG_IN_TIFF)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{path}: has pixels of {image.dtype}, not of 8 bits a channel; convert it to JPEG or "
            "PNG of 8 bits"
        )
    return image


def _heard(path: str, name: str, content: bytes, flags: int, is_jpeg_in_tiff: bool) -> np.ndarray:
    """What OpenCV decodes. Raises DataError if it cannot, or a library finds the file damaged."""
    with library_messages.collect_messages() as printed:
        try:
            with _tiff_messages() if is_jpeg_in_tiff else nullcontext():
                image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error as error:
            _check_size(path, name, content, str(error))
            image = None
        if image is None:
            raise DataError(f"{path}: {_NOT_WHOLE}")
        if name in _CHECKED_BY_PILLOW:
            _check_by_pillow(path, name, content)
    damage = _DAMAGE.search("".join(printed))
    if damage and (name == JPEG or is_jpeg_in_tiff):
        raise DataError(f"{path}: is damaged (libjpeg: {damage.group()}); replace the file")
    return image


def _still_png(path: str, content: bytes) -> bytes:
    """A PNG file without its animation, of which OpenCV gives 16 bits where the file has them.

    Raises DataError if a chunk would end beyond the file: OpenCV takes the memory for it, up to
    4 GB, before it looks for the bytes.
    """
    kept, at = [content[:_PNG_SIGNATURE_BYTES]], _PNG_SIGNATURE_BYTES
    name = b""
    while at < len(content) and name != b"IEND":
        name = content[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")  # size, name, content, sum
        if end > len(content):
            raise DataError(f"{path}: {_NOT_WHOLE}")
        if name not in _ANIMATION:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _check_maximum(path: str, content: bytes) -> None:
    """Raises DataError for a PNM file of which OpenCV would take white for a dark gray."""
    header = _PNM_HEADER.match(content[:4096])
    if header and int(header[3][:9]) not in _PNM_MAXIMA:
        raise DataError(
            f"{path}: is a PNM file whose white is {int(header[3][:9])}, of which only 255 and "
            "65535 are read; convert it to JPEG or PNG"
        )


def _check_size(path: str, name: str, content: bytes, error: str) -> None:
    """Raises DataError that names the limit if OpenCV's error is that the image is beyond one."""
    limit = re.search("CV_(IO_MAX_IMAGE_(PIXELS|WIDTH|HEIGHT))", error)
    if not limit:
        return
    try:
        width, height = _OPENERS[name](io.BytesIO(content)).size
    except Exception:  # whatever Pillow raises for a header that is damaged
        return
    size = {"PIXELS": width * height, "WIDTH": width, "HEIGHT": height}[limit[2]]
    variable = f"OPENCV_{limit[1]}"
    allowed = os.environ.get(variable, 2**20)  # OpenCV's own limit of a side
    raise DataError(
        f"{path}: has {width}x{height} pixels; the limit of {limit[2].lower()} is {allowed}; "
        f"shrink it, or raise the limit by setting {variable}={size} in the environment"
    )


def _tiff_tags(content: bytes) -> Mapping[int, Any]:
    """The tags of the first picture of a TIFF file; none if they are damaged."""
    tiff = io.BytesIO(content)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(tiff.read(16 if b"+" in content[2:4] else 8))
        tiff.seek(tags.next)
        tags.load(tiff)
        return dict(tags)
    except Exception:  # whatever Pillow raises for damage
        return {}


def _check_numbers(path: str, tags: Mapping[int, Any]) -> None:
    """Raises DataError for a TIFF file that does not hold 1 to 16 bits without a sign.

    OpenCV refuses some of them as damaged, and cuts the numbers of others down to 8 bits.
    """
    try:
        bits, formats = max(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
        is_color = bits <= _MOST_BITS and formats <= _UNSIGNED
    except TypeError:  # of a damaged tag, which is not a row of numbers
        return
    if not is_color:
        raise DataError(
            f"{path}: is a TIFF file of signed, floating point or 32 bit numbers; convert it to "
            "JPEG or PNG"
        )


@contextmanager
def _tiff_messages() -> Iterator[None]:
    """Within the block OpenCV prints what libtiff, and libjpeg in it, say of a file.

    The level of OpenCV's messages is one for all threads, so one at a time.
    """
    with _one_at_a_time:
        cv2.setLogLevel(_DEBUG)
        try:
            yield
        finally:
            cv2.setLogLevel(_SILENT)


def _check_by_pillow(path: str, name: str, content: bytes) -> None:
    """Raises DataError if Pillow finds the file damaged, or does not know its kind."""
    try:
        _OPENERS[name](io.BytesIO(content)).load()
    except SyntaxError as error:  # Pillow's way to say that it does not know
        raise DataError(
            f"{path}: is damaged, or a {name} file of a rare kind ({error}); replace the file, or "
            "convert it to JPEG or PNG"
        ) from None
    except Exception as error:  # OSError, and what else Pillow raises for a damaged file
        raise DataError(f"{path}: is damaged (Pillow: {error}); replace the file") from None
