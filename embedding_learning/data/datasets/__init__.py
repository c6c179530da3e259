"""The data sets: image paths, labels, boxes, and the split into training and test images.

Each data set is one file and one row in registry.py. Nothing here reads pixels or imports MXNet.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from embedding_learning.data.datasets import glyphs, registry
from embedding_learning.data.datasets.registry import NAMES
from embedding_learning.data.datasets.splits import (
    hold_out_validation_classes,
    make_test_only_split,
    split_by_class_order,
)
from embedding_learning.data.image_set import ImageSet, Split
from embedding_learning.errors import DataError

__all__ = [
    "NAMES",
    "TEST_CHOICES",
    "DataError",
    "ImageSet",
    "Split",
    "hold_out_validation_classes",
    "load_dataset",
]

# Which images test: those of the split (the default), or all.
TEST_CHOICES = ("split", "all")


def load_dataset(
    data_path: str,
    cache_dir: str,
    train_classes: int | None = None,
    name: str | None = None,
    use_boxes: bool = True,
    test: str = TEST_CHOICES[0],
    default_train_classes: int | None = None,
) -> Split:
    """Reads the split of a data set. Its training images may be empty.

    Does not check that the image files exist; ``ImageSet.read_file_stats`` does.

    Parameters
    ----------
    data_path : str
        The folder of a data set, a CSV file that lists one, or ``glyphs`` for the built-in set,
        which is drawn on first use.
    cache_dir : str
        The folder for drawn images.
    train_classes : int, optional
        The number of classes that train, the first ones; by default half of them, rounded down.
        Only for data sets whose files do not contain the split.
    name : str, optional
        One of NAMES; by default the data set is recognized by the files in the folder. With
        ``glyphs`` the path is not used.
    use_boxes : bool
        Whether to read boxes, if there are any.
    test : str
        One of TEST_CHOICES; with "all" every image tests and none trains, whatever the split.
    default_train_classes : int, optional
        Replaces half of the classes if `train_classes` is not given.

    Raises
    ------
    ValueError
        If `test` is another word.
    DataError
        If the data set is not recognized, a file is missing or invalid, no image would test,
        `train_classes` is given although the files contain the split, or the glyphs cannot be
        drawn.
    """
    if test not in TEST_CHOICES:
        raise ValueError(f"test {test!r}: choose from {', '.join(TEST_CHOICES)}")
    try:
        if name == glyphs.NAME or (name is None and data_path == glyphs.NAME):
            row, path = registry.GLYPHS, glyphs.find_or_draw(Path(cache_dir))
        else:
            path = Path(data_path)
            row = registry.find_format(name) if name else registry.recognize_format(path)
        data = row.read(path, use_boxes)
        if isinstance(data, Split):
            data = replace(data, recall_at=row.recall_at)
    except OSError as error:
        # Readers raise DataError for a missing list. This is a folder that may not be read, or an
        # impossible name.
        raise DataError(
            f"{error.filename or data_path}: cannot be read: {error.strerror}; name another folder "
            "with --data-path"
        ) from error
    if isinstance(data, ImageSet):
        title = row.title or os.path.basename(os.path.abspath(path))
        if test == "all":
            return make_test_only_split(title, data)
        return split_by_class_order(title, path, data, train_classes, default_train_classes)
    if test == "all":
        return make_test_only_split(data.name, data)
    if train_classes is not None:
        raise DataError(
            f"--train-classes {train_classes}: the files of {path} decide the split "
            f"({data.name}); leave the flag out"
        )
    if not len(data.test):
        raise DataError(
            f"{path}: no image is listed as test; add some, or name other data with --data-path"
        )
    return data
