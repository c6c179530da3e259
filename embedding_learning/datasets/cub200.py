"""Caltech-UCSD Birds-200-2011: the folder that its archive unpacks to.

Three files describe the images, one line each, in the same order: ``images.txt`` (id, path below
``images/``), ``image_class_labels.txt`` (id, class from 1) and ``bounding_boxes.txt`` (id, x, y,
width, height in pixels). Any folder in this layout is read, whatever its number of classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.datasets.image_set import DataError, ImageSet

IMAGES, LABELS, BOXES = "images.txt", "image_class_labels.txt", "bounding_boxes.txt"


def read(folder: Path) -> ImageSet:
    """All images of the folder, the classes numbered from 0 in the order of their numbers there.

    Raises DataError that names the file and the line where the three files are wrong or disagree.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; run ./get_cub200_data.sh, or name the folder of the images "
            "with --data-path (--data-path=glyphs needs no download)"
        )
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'images'}: no such folder; unpack the archive again")

    paths, labels, boxes = (_lines(folder / name) for name in (IMAGES, LABELS, BOXES))
    for name, lines in ((LABELS, labels), (BOXES, boxes)):
        _check_same_ids(folder / IMAGES, paths, folder / name, lines)

    numbers = [_class_number(labels[image]) for image in paths]
    classes, class_of_image = np.unique(numbers, return_inverse=True)
    return ImageSet(
        paths=[str(folder / "images" / line.value) for line in paths.values()],
        labels=class_of_image.astype(np.int32),
        class_names=_class_names(folder, classes),
        boxes=np.array([_box(boxes[image]) for image in paths], np.int32),
    )


class _Line(NamedTuple):
    """What follows the id, and where it stands: file:line."""

    value: str
    where: str


def _lines(file: Path) -> dict[str, _Line]:
    """The lines of a file by their ids."""
    found: dict[str, _Line] = {}
    try:
        with open(file, encoding="utf-8") as lines:
            for number, text in enumerate(lines, start=1):
                image, _, value = text.strip().partition(" ")
                where = f"{file}:{number}"
                if not image:
                    continue
                if not image.isdecimal() or not value:
                    raise DataError(f"{where}: an id and a value expected: {text.strip()!r}")
                if image in found:
                    raise DataError(f"{where}: image {image} stands here a second time")
                found[image] = _Line(value.strip(), where)
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file; a folder in the layout of CUB-200-2011 holds {IMAGES}, "
            f"{LABELS}, {BOXES} and images/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    if not found:
        raise DataError(f"{file}: is empty")
    return found


def _check_same_ids(
    file: Path, lines: dict[str, _Line], other: Path, others: dict[str, _Line]
) -> None:
    """Both files name the same images."""
    for image, line in lines.items():
        if image not in others:
            raise DataError(f"{other}: has no line for image {image} ({line.where})")
    for image, line in others.items():
        if image not in lines:
            raise DataError(f"{line.where}: image {image} does not stand in {file}")


def _class_number(line: _Line) -> int:
    if not line.value.isdecimal():
        raise DataError(f"{line.where}: a class number expected: {line.value!r}")
    return int(line.value)


def _box(line: _Line) -> list[int]:
    """x, y, width, height: their integer parts, as the original takes them."""
    try:
        box = [int(float(value)) for value in line.value.split()]
    except (ValueError, OverflowError):
        box = []
    if len(box) != 4 or max(map(abs, box)) >= 2**31:
        raise DataError(f"{line.where}: x, y, width and height expected: {line.value!r}")
    if box[2] < 1 or box[3] < 1:
        raise DataError(f"{line.where}: the box is empty: {line.value!r}")
    return box


def _class_names(folder: Path, classes: np.ndarray) -> list[str]:
    """From classes.txt where it is there, else the numbers."""
    file = folder / "classes.txt"
    names = _lines(file) if file.is_file() else {}
    return [names[n].value if n in names else n for n in map(str, classes)]
