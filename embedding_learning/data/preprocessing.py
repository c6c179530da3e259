"""Turns an image file and a box into pixels: decode, cut to the box, resize, crop."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from PIL.WebPImagePlugin import WebPImageFile

from embedding_learning.config import RESIZE_TO
from embedding_learning.data.datasets import ImageSet
from embedding_learning.data.datasets.text_files import check_regular_file
from embedding_learning.data.decoding import decode_image
from embedding_learning.errors import DataError
from embedding_learning.runtime.progress import progress_bar

# Several threads decode images at the same time. More threads inside each would slow them down.
cv2.setNumThreads(1)

# MXNet ignores the EXIF orientation, so the default here ignores it too.
_DECODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_DECODE_UPRIGHT = cv2.IMREAD_COLOR
_EXIF_ORIENTATION = 0x0112
# By EXIF orientation: the function that turns an image upright. With 1 it is upright already.
_TURN_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}

# What images are resized to: as the flag names it, and for training crops of their own size.
SQUARE, SHORTER_SIDE = RESIZE_TO
AT_MOST = "at-most"
# With `SHORTER_SIDE` the longer side is at most so many times the other; more is cut off.
_LONGEST = 4


class Preprocessing(NamedTuple):
    """How an image is decoded and resized; the defaults are those of the original.

    Attributes
    ----------
    exif_orientation : bool
        Turn images upright as their EXIF data say. Boxes then refer to the upright image.
    resize : str
        "linear" interpolates between neighboring pixels at any scale, so a side that shrinks to
        less than half skips pixels. "area" takes the mean of all pixels along a side that shrinks,
        and interpolates along a side that grows.
    resize_to : str
        `SQUARE`: a square, so the aspect ratio changes. `SHORTER_SIDE`: the aspect ratio stays, and
        the shorter side gets the size; of an image more than four times as long as the other side
        only the middle is used. `AT_MOST`: the image stays as it is, unless it has more pixels than
        a square of the size; then it shrinks to that number.
    """

    exif_orientation: bool = False
    resize: str = "linear"
    resize_to: str = SQUARE

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Preprocessing:
        """Returns the preprocessing that a model's description or a run's flags contain."""
        return cls(settings["exif_orientation"], settings["resize"], settings["resize_to"])

    def most_pixels(self, size: int) -> int:
        """Returns how many pixels an image can have that is resized to a size."""
        return size * size * (_LONGEST if self.resize_to == SHORTER_SIDE else 1)

    def is_result(self, height: int, width: int, size: int) -> bool:
        """Returns whether an image that is resized to a size can have this height and width."""
        least = 1 if self.resize_to == AT_MOST else size
        return min(height, width) >= least and height * width <= self.most_pixels(size)


ORIGINAL_PREPROCESSING = Preprocessing()


class Pixels(Protocol):
    """Images that are read by row: an array in memory or on disk, or PixelsFromFiles."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n, size, size, 3) of squares; (n,) if the images differ in size."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns an image, uint8 (height, width, 3), RGB."""


class PixelsFromFiles:
    """Pixels that are decoded from the image file at every access.

    Parameters
    ----------
    images : ImageSet
    size : int
        The size that each image is resized to, in pixels.
    preprocessing : Preprocessing
    """

    def __init__(
        self, images: ImageSet, size: int, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING
    ) -> None:
        self._images = images
        self._size = size
        self._preprocessing = preprocessing
        self.shape = shape_of(len(images), size, preprocessing)

    def __getitem__(self, row: int) -> np.ndarray:
        boxes = self._images.boxes
        box = None if boxes is None else boxes[row]
        return read_image(self._images.paths[row], box, self._size, self._preprocessing)


def shape_of(count: int, size: int, preprocessing: Preprocessing) -> tuple[int, ...]:
    """Returns `Pixels.shape` of so many images that are resized to a size."""
    return (count, size, size, 3) if preprocessing.resize_to == SQUARE else (count,)


def read_square(
    path: str,
    box: np.ndarray | None,
    size: int,
    preprocessing: Preprocessing = ORIGINAL_PREPROCESSING,
) -> np.ndarray:
    """Reads an image as `read_image` does, and returns the square in the middle of it."""
    return center_square(read_image(path, box, size, preprocessing))


def center_square(image: np.ndarray) -> np.ndarray:
    """Returns the largest square in the middle of an image (height, width, 3)."""
    height, width = image.shape[:2]
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def read_image(
    path: str,
    box: np.ndarray | None,
    size: int,
    preprocessing: Preprocessing = ORIGINAL_PREPROCESSING,
) -> np.ndarray:
    """Decodes an image file, cuts it to its box and resizes the result.

    Parameters
    ----------
    path : str
    box : ndarray of int (4,), optional
        x, y, width, height in pixels of the image as stored in the file or, with EXIF orientation,
        of the upright image. The part outside of the image is cut off.
    size : int
        The size that `Preprocessing.resize_to` refers to, in pixels.
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of uint8 (height, width, 3), RGB. By default height and width are the size.

    Raises
    ------
    DataError
        If the file cannot be read, is incomplete or damaged, too large or of an unsupported format,
        or the box lies outside of the image.
    """
    image = read_full_image(path, preprocessing.exif_orientation)
    if box is not None:
        image = cut_to_box(image, box, path, "correct it, or ignore the boxes with --no-bbox")
    return cv2.cvtColor(resize_image(image, size, preprocessing), cv2.COLOR_BGR2RGB)


def cut_to_box(image: np.ndarray, box: np.ndarray, name: str, way_out: str) -> np.ndarray:
    """Returns the part of an image (height, width, 3) in its box; what lies outside is cut off.

    Raises DataError if nothing is left; it begins with the image's `name` and ends with `way_out`.
    """
    x, y, width, height = (int(value) for value in box)
    part = image[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    if not part.size:
        full_height, full_width = image.shape[:2]
        raise DataError(
            f"{name}: the box {x, y, width, height} lies outside of the image, "
            f"{full_width}x{full_height} pixels; {way_out}"
        )
    return part


def read_full_image(path: str, exif_orientation: bool) -> np.ndarray:
    """Decodes an image file; returns uint8 (height, width, 3), BGR. Raises DataError on failure."""
    try:
        check_regular_file(path)
        with open(path, "rb") as file:
            encoded = file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    image = decode_image(path, encoded, _DECODE_UPRIGHT if exif_orientation else _DECODE)
    return _turn_webp_upright(image, encoded) if exif_orientation else image


def resize_image(image: np.ndarray, size: int, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes an image (height, width, 3) as `Preprocessing` says."""
    method, resize_to = preprocessing.resize, preprocessing.resize_to
    if resize_to == SQUARE:
        return resize_to_square(image, size, method)
    if resize_to == SHORTER_SIDE:
        image = _cut_to_longest(image)
        height, width = image.shape[:2]
        shorter = min(height, width)
        return _resize(image, size * height // shorter, size * width // shorter, method)
    height, width = image.shape[:2]
    scale = size / math.sqrt(height * width)
    if scale >= 1:
        return image
    # The limits are for images of a single row or column of pixels.
    height, width = (min(max(1, int(side * scale)), size * size) for side in (height, width))
    return _resize(image, height, width, method)


def resize_to_square(image: np.ndarray, size: int, method: str) -> np.ndarray:
    """Resizes an image (height, width, 3); `method` is one of `Preprocessing.resize`."""
    return _resize(image, size, size, method)


def _resize(image: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    if method == "area":
        # Along a side that grows, INTER_AREA would repeat pixels instead of interpolating.
        shrunk_size = min(image.shape[1], width), min(image.shape[0], height)
        image = cv2.resize(image, shrunk_size, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _cut_to_longest(image: np.ndarray) -> np.ndarray:
    """Returns the middle of an image that is too long or too high for `SHORTER_SIDE`."""
    longest = _LONGEST * min(image.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in image.shape[:2])
    return image[top : top + longest, left : left + longest]


def _turn_webp_upright(image: np.ndarray, encoded: bytes) -> np.ndarray:
    """Turns the image of a WebP file upright; leaves other images as they are.

    OpenCV follows the EXIF orientation in JPEG and PNG files, but ignores it in WebP files.
    """
    if encoded[:4] != b"RIFF":
        return image
    orientation = None
    with suppress(Exception):  # Pillow raises many types for damaged EXIF data
        orientation = WebPImageFile(io.BytesIO(encoded)).getexif().get(_EXIF_ORIENTATION)
    return _TURN_UPRIGHT[orientation](image) if orientation in _TURN_UPRIGHT else image


def write_crop(image: np.ndarray, top: int, left: int, flip: bool, out: np.ndarray) -> None:
    """Writes a square crop of an image (height, width, 3) to `out` (3, size, size), both uint8.

    `top` and `left` are in pixels. With `flip` the square is mirrored left to right.
    """
    size = out.shape[-1]
    square = image[top : top + size, left : left + size]
    if flip:
        square = cv2.flip(square, 1)
    cv2.split(square, list(out))


def find_decodable(
    images: ImageSet, size: int, workers: int, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING
) -> np.ndarray:
    """Decodes every image; returns which succeed, bool (n,). Logs a warning for each other one."""
    is_decodable = np.ones(len(images), bool)
    for row, message in find_decoding_errors(images, size, workers, preprocessing).items():
        logging.warning("Skipped: %s", message)
        is_decodable[row] = False
    return is_decodable


def find_decoding_errors(
    images: ImageSet, size: int, workers: int, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING
) -> dict[int, str]:
    """Decodes every image; returns the error message of each row that fails."""
    pixels = PixelsFromFiles(images, size, preprocessing)

    def find_error(row: int) -> str | None:
        try:
            pixels[row]
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        messages = pool.map(find_error, range(len(images)))
        bar = progress_bar(range(len(images)), "Checking images", "image")
        return {row: message for message, row in zip(messages, bar) if message}
