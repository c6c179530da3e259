"""Caltech-UCSD Birds-200-2011: the folder that its archive unpacks to.

Three files describe the images, one line each, in the same order: ``images.txt`` (id, path below
``images/``), ``image_class_labels.txt`` (id, class from 1) and ``bounding_boxes.txt`` (id, x, y,
width, height in pixels). Any folder in this layout is read, whatever its number of classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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

    paths = dict(_lines(folder / IMAGES))
    labels = dict(_lines(folder / LABELS))
    boxes = dict(_lines(folder / BOXES))
    for name, entries in ((LABELS, labels), (BOXES, boxes)):
        _check_same_ids(folder / IMAGES, paths, folder / name, entries)

    numbers = np.array(
        [_class_number(folder / LABELS, image, text) for image, text in labels.items()], np.int32
    )
    classes, class_of = np.unique(numbers, return_inverse=True)
    by_id = dict(zip(labels, class_of))
    return ImageSet(
        paths=[str(folder / "images" / path) for path in paths.values()],
        labels=np.array([by_id[image] for image in paths], np.int32),
        class_names=_class_names(folder, classes),
        boxes=np.array([_box(folder / BOXES, image, boxes[image]) for image in paths], np.int32),
    )


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The id and the rest of each line."""
    seen: set[str] = set()
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                image, _, rest = line.strip().partition(" ")
                if not image and not rest:
                    continue
                if not image.isdigit() or not rest:
                    raise DataError(
                        f"{file}:{number}: an id and a value expected: {line.strip()!r}"
                    )
                if image in seen:
                    raise DataError(f"{file}:{number}: image {image} stands here a second time")
                seen.add(image)
                yield image, rest.strip()
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file; a folder in the layout of CUB-200-2011 holds {IMAGES}, "
            f"{LABELS}, {BOXES} and images/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    if not seen:
        raise DataError(f"{file}: is empty")


def _check_same_ids(file: Path, ids: dict[str, str], other: Path, others: dict[str, str]) -> None:
    """Both files name the same images."""
    for line, image in enumerate(ids, start=1):
        if image not in others:
            raise DataError(f"{other}: has no line for image {image} ({file}:{line})")
    for line, image in enumerate(others, start=1):
        if image not in ids:
            raise DataError(f"{other}:{line}: image {image} does not stand in {file}")


def _class_number(file: Path, image: str, text: str) -> int:
    if not text.isdigit():
        raise DataError(f"{file}: image {image}: a class number expected: {text!r}")
    return int(text)


def _box(file: Path, image: str, text: str) -> list[int]:
    """x, y, width, height: their integer parts, as the original takes them."""
    try:
        box = [int(float(value)) for value in text.split()]
    except (ValueError, OverflowError):
        box = []
    if len(box) != 4 or max(map(abs, box)) >= 2**31:
        raise DataError(f"{file}: image {image}: x, y, width and height expected: {text!r}")
    if box[2] < 1 or box[3] < 1:
        raise DataError(f"{file}: image {image}: the box is empty: {text!r}")
    return box


def _class_names(folder: Path, classes: np.ndarray) -> list[str]:
    """From classes.txt where it is there, else the numbers."""
    names: dict[str, str] = {}
    if (folder / "classes.txt").is_file():
        names = dict(_lines(folder / "classes.txt"))
    return [names.get(str(number), str(number)) for number in classes]
