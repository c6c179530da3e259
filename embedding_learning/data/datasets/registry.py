"""Which reader reads a folder: by the name of the data set, or by what the folder holds."""

from __future__ import annotations

import os
from collections.abc import Callable
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
    """A data set, what gives it away, and its reader.

    ``traces`` are files, or folders if they end in a slash, below the data path; any one is enough,
    and of names joined by "+" all are needed. The reader takes the path and whether to use boxes,
    and leaves the split open (an ImageSet) where the order of the classes decides it.
    """

    name: str
    traces: tuple[str, ...]
    read: Callable[[Path, bool], ImageSet | Split]
    title: str | None = None  # where the reader does not know it; else the folder's name
    recall_at: tuple[int, ...] = COMMON_RECALL_RANKS  # the ranks that papers report


CSV = DatasetFormat("csv", (), csv_file.read)
FOLDERS = DatasetFormat("folders", (), lambda folder, _: image_folder.read(folder))
GLYPHS = DatasetFormat(glyphs.NAME, (), cub200.read, glyphs.NAME)
FORMATS = (
    DatasetFormat(
        "cub200", (cub200.IMAGES, cub200.LABELS, cub200.BOXES), cub200.read, "CUB-200-2011"
    ),
    DatasetFormat("cars196", (cars196.ANNOTATIONS,), cars196.read, "Cars196"),
    DatasetFormat(
        "sop",
        (sop.TRAIN, sop.TEST),
        lambda folder, _: sop.read(folder),
        recall_at=(1, 10, 100, 1000),
    ),
    DatasetFormat(
        "inshop",
        (inshop.PARTITION, f"Eval/{inshop.PARTITION}"),
        inshop.read,
        recall_at=(1, 10, 20, 30, 40, 50),
    ),
    DatasetFormat(
        "train-val", ("train/+val/", "train/+test/"), lambda folder, _: train_val.read(folder)
    ),
    FOLDERS,
    CSV,
    GLYPHS,
)
NAMES = tuple(layout.name for layout in FORMATS)


def find_format(name: str) -> DatasetFormat:
    """Raises DataError if there is no such name."""
    for layout in FORMATS:
        if layout.name == name:
            return layout
    raise DataError(f"--dataset {name}: unknown; choose of {', '.join(NAMES)}")


def recognize_format(path: Path) -> DatasetFormat:
    """Class folders are what a folder holds if nothing gives it away as something else.

    Raises DataError if it could be several data sets, or none.
    """
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return CSV
    check_folder(path)
    found = [(layout, trace) for layout in FORMATS if (trace := _trace(layout, path))]
    if len(found) > 1:
        told = " or ".join(f"{layout.name} ({trace})" for layout, trace in found)
        raise DataError(f"{path}: could be {told}; say which with --dataset")
    if found:
        return found[0][0]
    if image_folder.has_images(path):
        return FOLDERS
    looked_for = [f"{' or '.join(item.traces)} ({item.name})" for item in FORMATS if item.traces]
    raise DataError(
        f"{path}: no data set is recognized; looked for {', '.join(looked_for)} and class folders "
        "with images (folders); name another folder, or a .csv file, with --data-path, or the data "
        "set with --dataset"
    )


def _trace(layout: DatasetFormat, folder: Path) -> str | None:
    """The first trace of the layout that the folder holds."""
    for trace in layout.traces:
        names = trace.split("+")
        if all(_is_there(f"{folder}/{name}") for name in names):
            return trace
    return None


def _is_there(path: str) -> bool:
    return os.path.isdir(path) if path.endswith("/") else os.path.isfile(path)
