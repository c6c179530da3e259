"""The data sets: paths, labels, boxes and the split into what trains and what tests.

A file per data set; no pixels, no MXNet.
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
    "load",
]

# What tests; the first is the default.
TEST_CHOICES = ("split", "all")


def load(
    data_path: str,
    cache_dir: str,
    train_classes: int | None = None,
    name: str | None = None,
    use_boxes: bool = True,
    test: str = TEST_CHOICES[0],
    default_train_classes: int | None = None,
) -> Split:
    """What trains, which may be nothing, and what tests.

    Whether the images are there is for ``ImageSet.read_file_stats``.

    Parameters
    ----------
    data_path : str
        The folder of a data set, a CSV file that lists one, or ``glyphs`` for the set that is drawn
        on first use.
    cache_dir : str
        Where drawn images are kept.
    train_classes : int, optional
        How many of the classes train, the first ones; by default half of them, rounded down. Only
        where no file decides it.
    name : str, optional
        One of NAMES; by default the data set is told by what the folder holds. With ``glyphs`` the
        path is not looked at.
    use_boxes : bool
        Whether to read boxes where there are any.
    test : str
        One of TEST_CHOICES; with "all" every image tests and none trains, whatever the split.
    default_train_classes : int, optional
        Stands in for half of the classes where `train_classes` is not given.

    Raises
    ------
    DataError
        If the data set cannot be told, a file is missing or wrong, nothing would test, the split is
        not for `train_classes` to decide, or the drawn set cannot be drawn.
    """
    try:
        if name == glyphs.NAME or (name is None and data_path == glyphs.NAME):
            layout, path = registry.GLYPHS, glyphs.find_or_draw(Path(cache_dir))
        else:
            path = Path(data_path)
            layout = registry.find_format(name) if name else registry.recognize_format(path)
        found = layout.read(path, use_boxes)
        if isinstance(found, Split):
            found = replace(found, recall_at=layout.recall_at)
    except OSError as error:
        # Readers name a list that is missing; this is a folder closed to us, or an impossible name.
        raise DataError(
            f"{error.filename or data_path}: cannot be read: {error.strerror}; name another folder "
            "with --data-path"
        ) from error
    if isinstance(found, ImageSet):
        title = layout.title or os.path.basename(os.path.abspath(path))
        if test == "all":
            return make_test_only_split(title, found)
        return split_by_class_order(title, path, found, train_classes, default_train_classes)
    if test == "all":
        return make_test_only_split(found.name, found)
    if train_classes is not None:
        raise DataError(
            f"--train-classes {train_classes}: the files of {path} decide the split "
            f"({found.name}); leave the flag out"
        )
    if not len(found.test):
        raise DataError(
            f"{path}: no image is listed as test; add some, or name other data with --data-path"
        )
    return found
