"""Image files to pixels: decoding, the box, the size, the crop."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from PIL.WebPImagePlugin import WebPImageFile

from embedding_learning.data.datasets import ImageSet
from embedding_learning.data.datasets.text_files import check_regular_file
from embedding_learning.data.decoding import decode_image
from embedding_learning.errors import DataError
from embedding_learning.runtime.progress import progress_bar

# Images are decoded by several threads at once; more threads inside each would only contend.
cv2.setNumThreads(1)

# As MXNet decodes: the EXIF orientation is not followed.
_DECODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_DECODE_UPRIGHT = cv2.IMREAD_COLOR
_EXIF_ORIENTATION = 0x0112
# What makes an image upright, by its EXIF orientation; 1 is upright already.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


class Preprocessing(NamedTuple):
    """How a file becomes a square, whatever its size; the defaults are the original's.

    Attributes
    ----------
    exif_orientation : bool
        Turn images upright as their EXIF data say. Boxes then count on the upright image.
    resize : str
        "linear" interpolates between neighboring pixels at any scale, so a side that shrinks to
        less than half skips pixels. "area" takes the mean of all pixels along a side that shrinks,
        and interpolates along one that grows.
    """

    exif_orientation: bool = False
    resize: str = "linear"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that a model's description or a run's flags name."""
        return cls(settings["exif_orientation"], settings["resize"])


ORIGINAL_PREPROCESSING = Preprocessing()


class Pixels(Protocol):
    """Images by their row, all of one size: an array in memory or on disk, or a PixelsFromFiles."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, size, size, 3)."""

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 (size, size, 3), RGB."""


class PixelsFromFiles:
    """Decodes an image each time it is asked for.

    Parameters
    ----------
    images : ImageSet
    size : int
        Side of the square that each image is resized to, in pixels.
    preprocessing : Preprocessing
    """

    def __init__(
        self, images: ImageSet, size: int, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING
    ) -> None:
        self._images = images
        self._preprocessing = preprocessing
        self.shape = (len(images), size, size, 3)

    def __getitem__(self, row: int) -> np.ndarray:
        boxes = self._images.boxes
        box = None if boxes is None else boxes[row]
        return read_square(self._images.paths[row], box, self.shape[1], self._preprocessing)


def read_square(
    path: str,
    box: np.ndarray | None,
    size: int,
    preprocessing: Preprocessing = ORIGINAL_PREPROCESSING,
) -> np.ndarray:
    """Decodes a file, crops it to its box and resizes that to a square.

    The aspect ratio is not kept, as in the original.

    Parameters
    ----------
    path : str
    box : ndarray of int (4,), optional
        x, y, width, height in pixels of the image as it is stored or, where the EXIF orientation
        is followed, of the upright image; what leaves the image is cut.
    size : int
        Side of the square in pixels.
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of uint8 (size, size, 3), RGB.

    Raises
    ------
    DataError
        If the file cannot be read, is no whole image, is damaged, too large or of a format that is
        not read, or the box lies outside of it.
    """
    image = read_full_image(path, preprocessing.exif_orientation)
    if box is not None:
        x, y, width, height = (int(value) for value in box)
        whole = image.shape
        image = image[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        if image.size == 0:
            raise DataError(
                f"{path}: the box {x, y, width, height} lies outside of the image, "
                f"{whole[1]}x{whole[0]} pixels"
            )
    return cv2.cvtColor(resize_to_square(image, size, preprocessing.resize), cv2.COLOR_BGR2RGB)


def read_full_image(path: str, exif_orientation: bool) -> np.ndarray:
    """Decodes a file; uint8 (height, width, 3), BGR. Raises DataError if that fails."""
    try:
        check_regular_file(path)
        with open(path, "rb") as file:
            encoded = file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    image = decode_image(path, encoded, _DECODE_UPRIGHT if exif_orientation else _DECODE)
    return _turn_webp(image, encoded) if exif_orientation else image


def resize_to_square(image: np.ndarray, size: int, how: str) -> np.ndarray:
    """A square of an image (height, width, 3); `how` is what `Preprocessing.resize` says."""
    if how == "area":
        height, width = image.shape[:2]
        # Along a side that grows, INTER_AREA would repeat pixels instead of interpolating.
        shrunk = min(width, size), min(height, size)
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def _turn_webp(image: np.ndarray, encoded: bytes) -> np.ndarray:
    """The image upright if the content is a WebP file: OpenCV passes over the EXIF data in these.

    In JPEG and PNG files it follows them.
    """
    if encoded[:4] != b"RIFF":
        return image
    orientation = None
    with suppress(Exception):  # whatever Pillow raises for EXIF data that are damaged
        orientation = WebPImageFile(io.BytesIO(encoded)).getexif().get(_EXIF_ORIENTATION)
    return _TURNS[orientation](image) if orientation in _TURNS else image


def write_crop(image: np.ndarray, top: int, left: int, flip: bool, out: np.ndarray) -> None:
    """Writes a square of an image (height, width, 3) into `out` (3, size, size), both uint8.

    `top` and `left` are pixels; with `flip` the square is mirrored left to right.
    """
    size = out.shape[-1]
    square = image[top : top + size, left : left + size]
    if flip:
        square = cv2.flip(square, 1)
    cv2.split(square, list(out))


def find_decodable(
    images: ImageSet, size: int, workers: int, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING
) -> np.ndarray:
    """Decodes every image; which of them can be, bool (n,). Names the others in warnings."""
    good = np.ones(len(images), bool)
    for row, fault in find_decoding_errors(images, size, workers, preprocessing).items():
        logging.warning("Skipped: %s", fault)
        good[row] = False
    return good


def find_decoding_errors(
    images: ImageSet, size: int, workers: int, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING
) -> dict[int, str]:
    """Decodes every image; the rows of those that fail, and why."""
    decoder = PixelsFromFiles(images, size, preprocessing)

    def fault(row: int) -> str | None:
        try:
            decoder[row]
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(fault, range(len(images)))
        bar = progress_bar(range(len(images)), "Checking images", "image")
        return {row: message for message, row in zip(found, bar) if message}
