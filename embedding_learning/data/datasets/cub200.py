"""CUB-200-2011: Wah, Branson, Welinder, Perona, Belongie, The Caltech-UCSD Birds-200-2011 Dataset,
CNS-TR-2011-001, California Institute of Technology, 2011. Read is what its archive unpacks to.

Three files describe the images, one line each, in the same order: ``images.txt`` (id, path below
``images/``), ``image_class_labels.txt`` (id, class from 1) and ``bounding_boxes.txt`` (id, x, y,
width, height in pixels). Any folder in this layout is read, whatever its number of classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.data.datasets.text_files import (
    check_folder,
    check_no_duplicates,
    parse_box,
    parse_class_number,
    read_lines,
)
from embedding_learning.data.image_set import ImageSet
from embedding_learning.errors import DataError

IMAGES, LABELS, BOXES = "images.txt", "image_class_labels.txt", "bounding_boxes.txt"
_LAYOUT = (
    f"a folder in the layout of CUB-200-2011 holds {IMAGES}, {LABELS}, images/ and {BOXES} "
    "(not needed with --no-bbox)"
)


def read(folder: Path, use_boxes: bool = True) -> ImageSet:
    """All images of the folder, the classes numbered from 0 in the order of their numbers there.

    Without boxes their file is not read and may be missing.

    Raises DataError that names the file and the line where the files are wrong or disagree.
    """
    check_folder(folder)
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'images'}: no such folder; unpack the archive again")

    paths, labels = _lines(folder / IMAGES), _lines(folder / LABELS)
    boxes = _lines(folder / BOXES) if use_boxes else {}
    _check_same_ids(folder / IMAGES, paths, folder / LABELS, labels)
    if use_boxes:
        _check_same_ids(folder / IMAGES, paths, folder / BOXES, boxes)
    lines = list(paths.values())
    check_no_duplicates([line.value for line in lines], lambda row: lines[row].where)

    numbers = [parse_class_number(*labels[image]) for image in paths]
    classes, class_of_image = np.unique(numbers, return_inverse=True)
    boxes_in_order = [_box(boxes[image]) for image in paths] if use_boxes else None
    return ImageSet(
        paths=[f"{folder}/images/{line.value}" for line in lines],
        labels=class_of_image.astype(np.int32),
        class_names=_class_names(folder, classes),
        boxes=None if boxes_in_order is None else np.array(boxes_in_order, np.int32),
    )


class _Line(NamedTuple):
    """What follows the id, and where it stands: file:line."""

    value: str
    where: str


def _lines(file: Path) -> dict[str, _Line]:
    """The lines of a file by their ids."""
    found: dict[str, _Line] = {}
    for number, text in read_lines(file, _LAYOUT):
        # The original, too, takes any white space between the columns.
        image, *values = text.split(None, 1)
        where = f"{file}:{number}"
        if not image.isdecimal() or not values:
            raise DataError(f"{where}: an id and a value expected: {text!r}")
        if image in found:
            raise DataError(f"{where}: image {image} stands here a second time")
        found[image] = _Line(values[0], where)
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


def _box(line: _Line) -> list[int]:
    """x, y, width, height: their integer parts, as the original takes them."""
    return parse_box(line.value.split(), line.where)


def _class_names(folder: Path, classes: np.ndarray) -> list[str]:
    """From classes.txt where it is there, else the numbers."""
    file = folder / "classes.txt"
    names = _lines(file) if file.is_file() else {}
    return [names[n].value if n in names else n for n in map(str, classes)]
