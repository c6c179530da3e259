"""The table of the data sets. A new data set needs a file with its reader, and a row here.

A row is chosen by its name (--dataset), or else by the files in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from embedding_learning.config import COMMON_RECALL_RANKS
from embedding_learning.data.datasets import (
    cars196,
    csv_file,
    cub200,
    glyphs,
    image_folder,
    inshop,
    sop,
    train_val,
)
from embedding_learning.data.datasets.text_files import check_folder
from embedding_learning.data.image_set import ImageSet, Split
from embedding_learning.errors import DataError


class DatasetFormat(NamedTuple):
    """A row of FORMATS: a data set, or a layout of files that several data sets share.

    Attributes
    ----------
    name : str
        The value of --dataset.
    read : callable
        Takes the path and whether to read boxes. Returns a Split if the files contain the split, or
        an ImageSet if the first classes train and the others test.
    recognized_by : sequence of tuples of str
        A folder is recognized if it contains all names of any one of these tuples. A name is a file
        in the folder, or a folder if it ends with a slash.
    title : str, optional
        The name of the data set in logs if `read` returns an ImageSet; by default the folder's.
    recall_at : tuple of int
        The ranks K of the Recall@K that papers report for the data set.
    """

    name: str
    read: Callable[[Path, bool], ImageSet | Split]
    recognized_by: Sequence[tuple[str, ...]] = ()
    title: str | None = None
    recall_at: tuple[int, ...] = COMMON_RECALL_RANKS


def _without_boxes(read: Callable[[Path], ImageSet | Split]) -> Callable[..., ImageSet | Split]:
    """Adapts the reader of a data set that has no boxes."""
    return lambda path, use_boxes: read(path)


# Not recognized by names of files: class folders if nothing else fits, a CSV file by its ending,
# and the glyphs because they need no path.
FOLDERS = DatasetFormat(name="folders", read=_without_boxes(image_folder.read))
CSV = DatasetFormat(name="csv", read=csv_file.read)
GLYPHS = DatasetFormat(name=glyphs.NAME, read=cub200.read, title=glyphs.NAME)
FORMATS = (
    DatasetFormat(
        name="cub200",
        read=cub200.read,
        recognized_by=[(cub200.IMAGES,), (cub200.LABELS,), (cub200.BOXES,)],
        title="CUB-200-2011",
    ),
    DatasetFormat(
        name="cars196",
        read=cars196.read,
        recognized_by=[(cars196.ANNOTATIONS,)],
        title="Cars196",
    ),
    DatasetFormat(
        name="sop",
        read=_without_boxes(sop.read),
        recognized_by=[(sop.TRAIN,), (sop.TEST,)],
        recall_at=(1, 10, 100, 1000),
    ),
    DatasetFormat(
        name="inshop",
        read=inshop.read,
        recognized_by=[(inshop.PARTITION,), (f"Eval/{inshop.PARTITION}",)],
        recall_at=(1, 10, 20, 30, 40, 50),
    ),
    DatasetFormat(
        name="train-val",
        read=_without_boxes(train_val.read),
        recognized_by=[("train/", "val/"), ("train/", "test/")],
    ),
    FOLDERS,
    CSV,
    GLYPHS,
)
NAMES = tuple(row.name for row in FORMATS)


def find_format(name: str) -> DatasetFormat:
    """Returns the row with this name. Raises DataError if there is none."""
    for row in FORMATS:
        if row.name == name:
            return row
    raise DataError(f"--dataset {name}: unknown; choose one of {', '.join(NAMES)}")


def recognize_format(path: Path) -> DatasetFormat:
    """Returns the row that the files at `path` fit. Raises DataError if several fit, or none."""
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return CSV
    check_folder(path)
    matches = [(row, names) for row in FORMATS if (names := _find_names(row, path))]
    if len(matches) > 1:
        candidates = " or ".join(f"{row.name} ({_join(names)})" for row, names in matches)
        raise DataError(f"{path}: could be {candidates}; choose one with --dataset")
    if matches:
        return matches[0][0]
    if image_folder.has_images(path):
        return FOLDERS
    expected = [
        f"{' or '.join(map(_join, row.recognized_by))} ({row.name})"
        for row in FORMATS
        if row.recognized_by
    ]
    raise DataError(
        f"{path}: no data set is recognized; looked for {', '.join(expected)} and class folders "
        "with images (folders); name another folder, or a .csv file, with --data-path, or the data "
        "set with --dataset"
    )


def _find_names(row: DatasetFormat, folder: Path) -> tuple[str, ...] | None:
    """Returns the first tuple of `recognized_by` whose names are all in the folder."""
    for names in row.recognized_by:
        if all(_exists(f"{folder}/{name}") for name in names):
            return names
    return None


def _exists(path: str) -> bool:
    return os.path.isdir(path) if path.endswith("/") else os.path.isfile(path)


def _join(names: tuple[str, ...]) -> str:
    return " and ".join(names)
