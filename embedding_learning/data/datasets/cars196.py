"""Cars196: Krause, Stark, Deng, Fei-Fei, 3D Object Representations for Fine-Grained Categorization,
3dRR workshop at ICCV 2013.

The folder holds ``car_ims/`` and ``cars_annos.mat``, whose struct array ``annotations`` has a
struct an image: ``relative_im_path``, ``bbox_x1``, ``bbox_y1``, ``bbox_x2``, ``bbox_y2`` (the
corners' pixels, counted from 1, both in the box), ``class`` (from 1, its name in
``class_names``) and ``test``. That last one splits the images of every class for classification;
metric learning trains on the first 98 classes (8,054 images) and tests on the other 98 (8,131), as
in Oh Song et al., CVPR 2016.
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
    """All images of the folder, the classes numbered from 0 in the order of their numbers there.

    Raises DataError if the file is damaged or not this one, or an annotation is wrong.
    """
    check_folder(folder)
    file = folder / ANNOTATIONS
    annotations, class_names = _read_mat(file)

    def place(row: int) -> str:
        return f"{file}: annotations({row + 1})"

    paths, numbers, *corners = (annotations[field] for field in _FIELDS)
    if not paths:
        raise DataError(f"{file}: holds no image; {_LAYOUT}")
    for row, (path, number) in enumerate(zip(paths, numbers)):
        _check(path, number, class_names, place(row))
    check_no_duplicates(paths, place)

    classes, class_of_image = np.unique([int(number) for number in numbers], return_inverse=True)
    boxes = None
    if use_boxes:
        rows = enumerate(zip(*corners))
        boxes = np.array([parse_box(box, place(row), corners=True) for row, box in rows])
    return ImageSet(
        paths=[f"{folder}/{path}" for path in paths],
        labels=class_of_image.astype(np.int32),
        class_names=[str(class_names[number - 1]) for number in classes],
        boxes=None if boxes is None else boxes.astype(np.int32),
    )


def _read_mat(file: Path) -> tuple[dict[str, list[Any]], list[Any]]:
    """annotations, a list for each field, and class_names."""
    try:
        check_regular_file(file)
        found = mat_file.read(file)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; {_LAYOUT}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is damaged or another file ({error}); {_LAYOUT}") from None
    annotations, names = found.get("annotations"), found.get("class_names")
    if not isinstance(annotations, dict) or not annotations.keys() >= set(_FIELDS):
        raise DataError(f"{file}: has no annotations as expected; {_LAYOUT}")
    if not isinstance(names, list):
        raise DataError(f"{file}: has no class_names; {_LAYOUT}")
    return annotations, names


def _check(path: Any, number: Any, class_names: list[Any], place: str) -> None:
    if not isinstance(path, str) or not path:
        raise DataError(f"{place}: relative_im_path expected: {path!r}; {_LAYOUT}")
    whole = isinstance(number, (int, float)) and number in range(1, len(class_names) + 1)
    if not whole:
        raise DataError(
            f"{place}: a class from 1 to {len(class_names)} expected: {number!r}; {_LAYOUT}"
        )
