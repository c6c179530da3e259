"""Image files to pixels: decoding, the box, the size, the crop."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import cv2
import numpy as np

from embedding_learning import reporting
from embedding_learning.datasets import DataError, ImageSet
from embedding_learning.datasets.lists import check_plain
from embedding_learning.decoding import decode

# Images are decoded by several threads at once; more threads inside each would only contend.
cv2.setNumThreads(1)

# As MXNet decodes: a camera's note to turn the image is not followed, nor do boxes count on it.
_DECODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


class Pixels(Protocol):
    """Images by their row, all of one size: an array in memory or on disk, or a Decoder."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, size, size, 3)."""

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 (size, size, 3), RGB."""


class Decoder:
    """Decodes an image each time it is asked for.

    Parameters
    ----------
    images : ImageSet
    size : int
        Side of the square that each image is resized to, in pixels.
    """

    def __init__(self, images: ImageSet, size: int) -> None:
        self._images = images
        self.shape = (len(images), size, size, 3)

    def __getitem__(self, row: int) -> np.ndarray:
        boxes = self._images.boxes
        box = None if boxes is None else boxes[row]
        return read_image(self._images.paths[row], box, self.shape[1])


def read_image(path: str, box: np.ndarray | None, size: int) -> np.ndarray:
    """Decodes a file, crops it to its box and resizes that to a square.

    The aspect ratio is not kept, as in the original.

    Parameters
    ----------
    path : str
    box : ndarray of int (4,), optional
        x, y, width, height in pixels; what leaves the image is cut.
    size : int
        Side of the square in pixels.

    Returns
    -------
    ndarray of uint8 (size, size, 3), RGB.

    Raises
    ------
    DataError
        If the file cannot be read, is no whole image, is damaged, too large or of a format that is
        not read, or the box lies outside of it.
    """
    try:
        check_plain(path)
        with open(path, "rb") as file:
            encoded = file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    image = decode(path, encoded, _DECODE)
    if box is not None:
        x, y, width, height = (int(value) for value in box)
        whole = image.shape
        image = image[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        if image.size == 0:
            raise DataError(
                f"{path}: the box {x, y, width, height} lies outside of the image, "
                f"{whole[1]}x{whole[0]} pixels"
            )
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def crop(image: np.ndarray, top: int, left: int, flip: bool, out: np.ndarray) -> None:
    """Writes a square of an image (height, width, 3) into `out` (3, size, size), both uint8.

    `top` and `left` are pixels; with `flip` the square is mirrored left to right.
    """
    size = out.shape[-1]
    square = image[top : top + size, left : left + size]
    if flip:
        square = cv2.flip(square, 1)
    cv2.split(square, list(out))


def decodable(images: ImageSet, size: int, workers: int) -> np.ndarray:
    """Decodes every image; which of them can be, bool (n,). Names the others in warnings."""
    good = np.ones(len(images), bool)
    for row, fault in find_faults(images, size, workers).items():
        logging.warning("Skipped: %s", fault)
        good[row] = False
    return good


def find_faults(images: ImageSet, size: int, workers: int) -> dict[int, str]:
    """Decodes every image; the rows of those that fail, and why."""
    decoder = Decoder(images, size)

    def fault(row: int) -> str | None:
        try:
            decoder[row]
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(fault, range(len(images)))
        bar = reporting.progress(range(len(images)), "Checking images", "image")
        return {row: message for message, row in zip(found, bar) if message}
