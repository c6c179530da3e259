"""Cars196: Krause, Stark, Deng, Fei-Fei, 3D Object Representations for Fine-Grained Categorization,
3dRR workshop at ICCV 2013.

The folder holds ``car_ims/`` and ``cars_annos.mat``. Its struct array ``annotations`` has a struct
for each image: ``relative_im_path``; ``bbox_x1``, ``bbox_y1``, ``bbox_x2``, ``bbox_y2`` (the pixels
of the corners, counted from 1; both are in the box); ``class`` (from 1; its name is in
``class_names``); and ``test``. The field ``test`` splits the images of every class for
classification, and is not used. Metric learning trains on the first 98 classes (8,054 images) and
tests on the other 98 (8,131), as in Oh Song et al., CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embedding_learning.data.datasets import mat_file
from embedding_learning.data.datasets.text_files import (
    check_folder,
    check_no_duplicates,
    check_regular_file,
    parse_box,
)
from embedding_learning.data.image_set import ImageSet
from embedding_learning.errors import DataError

ANNOTATIONS = "cars_annos.mat"
_FIELDS = ("relative_im_path", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_LAYOUT = (
    f"{ANNOTATIONS} of Cars196 holds class_names and annotations with {', '.join(_FIELDS)}; "
    "fetch it again"
)


def read(folder: Path, use_boxes: bool = True) -> ImageSet:
    """Reads all images of the folder. Classes are numbered from 0, in the order of the file.

    Raises DataError if the file is damaged or of another data set, or an annotation is invalid.
    """
    check_folder(folder)
    file = folder / ANNOTATIONS
    annotations, class_names = _read_mat(file)

    def find_line(row: int) -> str:
        return f"{file}: annotations({row + 1})"

    paths, numbers, *corners = (annotations[field] for field in _FIELDS)
    if not paths:
        raise DataError(f"{file}: holds no image; {_LAYOUT}")
    for row, (path, number) in enumerate(zip(paths, numbers)):
        _check_annotation(path, number, class_names, find_line(row))
    check_no_duplicates(paths, find_line)

    classes, class_of_image = np.unique([int(number) for number in numbers], return_inverse=True)
    boxes = None
    if use_boxes:
        rows = enumerate(zip(*corners))
        boxes = np.array([parse_box(box, find_line(row), corners=True) for row, box in rows])
    return ImageSet(
        paths=[f"{folder}/{path}" for path in paths],
        labels=class_of_image.astype(np.int32),
        class_names=[str(class_names[number - 1]) for number in classes],
        boxes=None if boxes is None else boxes.astype(np.int32),
    )


def _read_mat(file: Path) -> tuple[dict[str, list[Any]], list[Any]]:
    """Returns the annotations, a list for each field, and the names of the classes."""
    try:
        check_regular_file(file)
        variables = mat_file.read(file)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; {_LAYOUT}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: is damaged or not the right file ({reason}); {_LAYOUT}") from None
    annotations, names = variables.get("annotations"), variables.get("class_names")
    if not isinstance(annotations, dict) or not annotations.keys() >= set(_FIELDS):
        raise DataError(f"{file}: has no valid annotations; {_LAYOUT}")
    if not isinstance(names, list):
        raise DataError(f"{file}: has no class_names; {_LAYOUT}")
    return annotations, names


def _check_annotation(path: Any, number: Any, class_names: list[Any], line: str) -> None:
    if not isinstance(path, str) or not path:
        raise DataError(f"{line}: expected relative_im_path, but found {path!r}; {_LAYOUT}")
    is_class = isinstance(number, (int, float)) and number in range(1, len(class_names) + 1)
    if not is_class:
        raise DataError(
            f"{line}: expected a class from 1 to {len(class_names)}, but found {number!r}; "
            f"{_LAYOUT}"
        )
