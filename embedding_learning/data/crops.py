"""Which part of an image becomes the square that the network sees.

Each crop is of two steps. `draw` makes the random numbers of all images of a batch, without the
images, so that a batch is planned from its number alone. `write` cuts one image by its numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from embedding_learning.data.preprocessing import resize_to_square, write_crop

# Of `RandomResizedCrop`: its part of the image's area, its width divided by its height, and how
# often it is drawn again because it is higher or wider than the image.
AREAS = (0.16, 1.0)
ASPECTS = (3 / 4, 4 / 3)
ATTEMPTS = 10
_LOG_ASPECTS = (math.log(ASPECTS[0]), math.log(ASPECTS[1]))


class Region(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Crop(Protocol):
    """A way to cut a square out of an image."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws the numbers that decide about `count` images; returns an array (count, j)."""

    def write(self, image: np.ndarray, numbers: np.ndarray, flip: bool, out: np.ndarray) -> None:
        """Cuts a square by its numbers (j,) out of an image (height, width, 3).

        Writes it to `out` (3, size, size), with `flip` mirrored left to right. All are uint8.
        """


class CropOfSquare:
    """A random crop of squares of one size, as in the original.

    `largest_offset` is the side of the image minus that of the crop, in pixels.
    """

    def __init__(self, largest_offset: int) -> None:
        self._largest_offset = largest_offset

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, self._largest_offset, (2, count), endpoint=True).T

    def write(self, image: np.ndarray, numbers: np.ndarray, flip: bool, out: np.ndarray) -> None:
        top, left = numbers
        write_crop(image, top, left, flip, out)


class CropOfPhotograph:
    """A random crop of images of unequal sizes, each at least as large as the crop."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 2))

    def write(self, image: np.ndarray, numbers: np.ndarray, flip: bool, out: np.ndarray) -> None:
        size = out.shape[-1]
        top, left = (_offset(number, side, size) for number, side in zip(numbers, image.shape[:2]))
        write_crop(image, top, left, flip, out)


class RandomResizedCrop:
    """A random part of an image, resized: torchvision's ``RandomResizedCrop(scale=(0.16, 1))``.

    The part has 0.16 to 1 of the image's area and the aspect ratio 3/4 to 4/3, of which the
    logarithm is uniform. `method` is how it is resized, one of `Preprocessing.resize`.
    """

    def __init__(self, method: str) -> None:
        self._method = method

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 2 * ATTEMPTS + 2))

    def write(self, image: np.ndarray, numbers: np.ndarray, flip: bool, out: np.ndarray) -> None:
        full_height, full_width = image.shape[:2]
        top, left, height, width = random_region(full_height, full_width, numbers)
        part = image[top : top + height, left : left + width]
        write_crop(resize_to_square(part, out.shape[-1], self._method), 0, 0, flip, out)


class CenterCrop:
    """The middle of an image, for evaluation; nothing is random."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.empty((count, 0))

    def write(self, image: np.ndarray, numbers: np.ndarray, flip: bool, out: np.ndarray) -> None:
        top, left = ((side - out.shape[-1]) // 2 for side in image.shape[:2])
        write_crop(image, top, left, flip, out)


def random_region(height: int, width: int, numbers: np.ndarray) -> Region:
    """Returns the part of an image that `RandomResizedCrop` cuts out.

    Parameters
    ----------
    height, width : int
        Of the image, in pixels.
    numbers : ndarray (2 * ATTEMPTS + 2,)
        In [0, 1): an area and an aspect ratio for each attempt, then the place from top and left.
    """
    *shapes, down, right = numbers.tolist()
    for area_number, aspect_number in zip(shapes[::2], shapes[1::2]):
        area = height * width * _between(AREAS, area_number)
        aspect = math.exp(_between(_LOG_ASPECTS, aspect_number))
        part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            top, left = _offset(down, height, part_height), _offset(right, width, part_width)
            return Region(top, left, part_height, part_width)
    # The image is too long or too high: its middle, as long or as high as is allowed.
    part_width = min(width, round(height * ASPECTS[1]))
    part_height = min(height, round(width / ASPECTS[0]))
    return Region((height - part_height) // 2, (width - part_width) // 2, part_height, part_width)


def photograph_size(crop_size: int) -> int:
    """Returns how large a photograph has to be for `RandomResizedCrop`: the side of a square.

    Of so many pixels the smallest part has about as many as the crop, so that more would not help.
    """
    return math.ceil(crop_size / math.sqrt(AREAS[0]))


def _between(ends: tuple[float, float], number: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * number


def _offset(number: float, side: int, part: int) -> int:
    """Returns where a part begins, from 0 to ``side - part``, for a number in [0, 1)."""
    return int(number * (side - part + 1))
