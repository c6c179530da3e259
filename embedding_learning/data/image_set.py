"""What every data set becomes: image files with a class and, where known, a box."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedding_learning.config import COMMON_RECALL_RANKS
from embedding_learning.errors import DataError

_MISSING = (-1, -1)


@dataclass(frozen=True)
class ImageSet:
    """Images of labelled classes.

    Attributes
    ----------
    paths : list of str
        One file per image, n in all.
    labels : ndarray of int32, (n,)
        Class of each image, 0 to ``len(class_names) - 1``.
    class_names : list of str
    boxes : ndarray of int32, (n, 4), optional
        x, y, width and height in pixels of the part that shows the object.
    """

    paths: list[str]
    labels: np.ndarray
    class_names: list[str]
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def group_rows_by_class(self) -> list[np.ndarray]:
        """The rows of each class, in order."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=len(self.class_names)))
        return np.split(order, ends[:-1])

    def select_classes(self, first: int, last: int) -> ImageSet:
        """The images of classes first to last - 1, these renumbered from 0."""
        some = self.take(np.flatnonzero((self.labels >= first) & (self.labels < last)))
        names = self.class_names[first:last]
        return replace(some, labels=some.labels - np.int32(first), class_names=names)

    def take(self, rows: np.ndarray) -> ImageSet:
        """The images of these rows, the classes as they are."""
        return ImageSet(
            paths=[self.paths[row] for row in rows],
            labels=self.labels[rows],
            class_names=self.class_names,
            boxes=None if self.boxes is None else self.boxes[rows],
        )

    def read_file_stats(self, missing_ok: bool = False) -> np.ndarray:
        """Size in bytes and time of change in nanoseconds of each file; int64, (n, 2).

        A file that is not there has -1 for both if that is allowed; else DataError names the first.
        """
        stats = [_file_stat(path) for path in self.paths]
        missing = [path for path, found in zip(self.paths, stats) if found == _MISSING]
        if missing and not missing_ok:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"{missing[0]}{more}: listed but not there, or not to be read; unpack the images "
                "again, or name another folder with --data-path"
            )
        return np.array(stats, np.int64).reshape(-1, 2)


def number_classes(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Numbers the classes that images name, in the order of the names.

    Returns the class of each image, int32 (n,), and the name of each class.
    """
    class_names = sorted(set(names))
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[name] for name in names], np.int32), class_names


def _file_stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return _MISSING
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else _MISSING


@dataclass(frozen=True)
class Split:
    """What trains, and what is searched in what.

    Attributes
    ----------
    name : str
        Of the data set, for what is printed.
    train : ImageSet
    test : ImageSet
        The queries; searched among each other unless there is a gallery.
    gallery : ImageSet, optional
        Its labels count as test's do: the same number is the same class.
    is_tested_on_validation_classes : bool
        Whether `test` is held-out training classes in place of the data set's own.
    is_tested_on_all_classes : bool
        Whether `test` is all images of the data set.
    recall_at : tuple of int
        The ranks K of the Recall@K that papers report for the data set.
    """

    name: str
    train: ImageSet
    test: ImageSet
    gallery: ImageSet | None = None
    is_tested_on_validation_classes: bool = False
    is_tested_on_all_classes: bool = False
    recall_at: tuple[int, ...] = COMMON_RECALL_RANKS

    @property
    def parts(self) -> list[ImageSet]:
        """What trains, the queries, and the gallery if there is one."""
        return [self.train, self.test, *([self.gallery] if self.gallery else [])]

    @property
    def title(self) -> str:
        """The data set, and what is seen of each image; results are comparable under one title."""
        title = f"{self.name}, {'whole images' if self.test.boxes is None else 'cropped to boxes'}"
        if self.is_tested_on_all_classes:
            return f"{title}, tested on all classes"
        return (
            f"{title}, tested on held-out training classes"
            if self.is_tested_on_validation_classes
            else title
        )
