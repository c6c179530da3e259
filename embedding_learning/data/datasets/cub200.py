"""CUB-200-2011: Wah, Branson, Welinder, Perona, Belongie, The Caltech-UCSD Birds-200-2011 Dataset,
CNS-TR-2011-001, California Institute of Technology, 2011.

The folder is the unpacked archive. Three files have one line per image, in the same order:
``images.txt`` (id, path in ``images/``), ``image_class_labels.txt`` (id, class from 1) and
``bounding_boxes.txt`` (id, x, y, width, height in pixels). Any folder in this layout can be read,
with any number of classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.data.datasets.text_files import (
    check_folder,
    check_no_duplicates,
    parse_box,
    parse_number,
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
    """Reads all images of the folder. Classes are numbered from 0, in the order of the files.

    Without `use_boxes`, the file of boxes is not read and may be missing.

    Raises DataError that names the file and the line if a line is invalid or the files disagree.
    """
    check_folder(folder)
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'images'}: no such folder; unpack the archive again")

    paths, labels = _read_lines_by_id(folder / IMAGES), _read_lines_by_id(folder / LABELS)
    boxes = _read_lines_by_id(folder / BOXES) if use_boxes else {}
    _check_same_ids(folder / IMAGES, paths, folder / LABELS, labels)
    if use_boxes:
        _check_same_ids(folder / IMAGES, paths, folder / BOXES, boxes)
    lines = list(paths.values())
    check_no_duplicates([line.value for line in lines], lambda row: lines[row].line)

    numbers = [parse_number(*labels[image]) for image in paths]
    classes, class_of_image = np.unique(numbers, return_inverse=True)
    boxes_in_order = [_parse_box(boxes[image]) for image in paths] if use_boxes else None
    return ImageSet(
        paths=[f"{folder}/images/{line.value}" for line in lines],
        labels=class_of_image.astype(np.int32),
        class_names=_read_class_names(folder, classes),
        boxes=None if boxes_in_order is None else np.array(boxes_in_order, np.int32),
    )


class _Line(NamedTuple):
    """The text after the id, and the line of the file, such as "images.txt:7"."""

    value: str
    line: str


def _read_lines_by_id(file: Path) -> dict[str, _Line]:
    """Returns the lines of a file by their ids."""
    lines: dict[str, _Line] = {}
    for number, text in read_lines(file, _LAYOUT):
        # Like the original, any white space separates the columns.
        image, *values = text.split(None, 1)
        line = f"{file}:{number}"
        if not image.isdecimal() or not values:
            raise DataError(
                f"{line}: expected an id and a value, but found {text!r}; correct the line"
            )
        if image in lines:
            raise DataError(
                f"{line}: image {image} is listed a second time; remove one of the lines"
            )
        lines[image] = _Line(values[0], line)
    return lines


def _check_same_ids(
    file: Path, lines: dict[str, _Line], other: Path, others: dict[str, _Line]
) -> None:
    """Raises DataError unless both files list the same images."""
    for image, line in lines.items():
        if image not in others:
            raise DataError(f"{other}: has no line for image {image} ({line.line}); add a line")
    for image, line in others.items():
        if image not in lines:
            raise DataError(f"{line.line}: image {image} is not listed in {file}; remove the line")


def _parse_box(line: _Line) -> list[int]:
    """Returns the integer parts of x, y, width and height, like the original."""
    return parse_box(line.value.split(), line.line)


def _read_class_names(folder: Path, classes: np.ndarray) -> list[str]:
    """Reads the names in classes.txt; without that file, or a name in it, returns the numbers."""
    file = folder / "classes.txt"
    names = _read_lines_by_id(file) if file.is_file() else {}
    return [names[n].value if n in names else n for n in map(str, classes)]
