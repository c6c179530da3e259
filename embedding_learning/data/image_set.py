"""ImageSet and Split: image files with their classes and boxes, as every data set is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from embedding_learning.config import COMMON_RECALL_RANKS
from embedding_learning.errors import DataError
from embedding_learning.evaluation.groups import Groups, number_groups

_MISSING = (-1, -1)
# The box of an image that is not cropped, in a set where others are. What lies outside is cut off.
WHOLE_IMAGE = [0, 0, 2**31 - 1, 2**31 - 1]


@dataclass(frozen=True)
class ImageSet:
    """Image files with their classes and, if known, their boxes and groups.

    Attributes
    ----------
    paths : list of str
        One file per image, n in all.
    labels : ndarray of int32, (n,)
        Class of each image, 0 to ``len(class_names) - 1``.
    class_names : list of str
    boxes : ndarray of int32, (n, 4), optional
        x, y, width and height in pixels of the part that shows the object; `WHOLE_IMAGE` for an
        image without a box, if others have one.
    groups : ndarray of int32, (n,), optional
        Index in the group names, or -1 for an image without a group: images of a query's group are
        not searched for it. The parts of a split have the same numbers.
    group_names : list of str
    """

    paths: list[str]
    labels: np.ndarray
    class_names: list[str]
    boxes: np.ndarray | None = None
    groups: np.ndarray | None = None
    group_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A Path would not come into a list of images as text.
        object.__setattr__(self, "paths", [os.fspath(path) for path in self.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def group_rows_by_class(self) -> list[np.ndarray]:
        """Returns the rows of each class, in order."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=len(self.class_names)))
        return np.split(order, ends[:-1])

    def select_classes(self, first: int, last: int) -> ImageSet:
        """Returns the images of the classes first to last - 1, with these numbered from 0."""
        selected = self.take(np.flatnonzero((self.labels >= first) & (self.labels < last)))
        names = self.class_names[first:last]
        return replace(selected, labels=selected.labels - np.int32(first), class_names=names)

    def leave_out_classes(self, first: int, last: int) -> ImageSet:
        """Returns the images of all classes but first to last - 1, with these numbered from 0."""
        is_kept = (self.labels < first) | (self.labels >= last)
        kept = self.take(np.flatnonzero(is_kept))
        shift = np.where(kept.labels < last, 0, last - first).astype(np.int32)
        names = self.class_names[:first] + self.class_names[last:]
        return replace(kept, labels=kept.labels - shift, class_names=names)

    def take(self, rows: np.ndarray) -> ImageSet:
        """Returns the images of these rows; the classes keep their numbers."""
        return ImageSet(
            paths=[self.paths[row] for row in rows],
            labels=self.labels[rows],
            class_names=self.class_names,
            boxes=None if self.boxes is None else self.boxes[rows],
            groups=None if self.groups is None else self.groups[rows],
            group_names=self.group_names,
        )

    def read_file_stats(self, missing_ok: bool = False) -> np.ndarray:
        """Reads the size in bytes and the time of change in nanoseconds of each file; int64 (n, 2).

        With `missing_ok` both are -1 for a missing file. Otherwise DataError names the first one.
        """
        stats = [_read_file_stat(path) for path in self.paths]
        missing = [path for path, file_stat in zip(self.paths, stats) if file_stat == _MISSING]
        if missing and not missing_ok:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"{missing[0]}{more}: listed, but missing or not readable; unpack the images "
                "again, or name another folder with --data-path"
            )
        return np.array(stats, np.int64).reshape(-1, 2)


def number_classes(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Numbers classes from 0 in the order of their names; `names` has the class of each image.

    Returns the number of each image's class, int32 (n,), and the name of each class.
    """
    class_names = sorted(set(names))
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[name] for name in names], np.int32), class_names


def _read_file_stat(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return _MISSING
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else _MISSING


@dataclass(frozen=True)
class Split:
    """A data set split into training images, test images and, for some, a gallery.

    Attributes
    ----------
    name : str
        The name of the data set in logs and messages.
    train : ImageSet
    test : ImageSet
        The queries. They are searched in the gallery, or among each other if there is none.
    gallery : ImageSet, optional
        Its classes have the same numbers as those of `test`.
    is_tested_on_validation_classes : bool
        Whether `test` is held-out training classes instead of the data set's own test classes.
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
        """The training images, the test images, and the gallery if there is one."""
        return [self.train, self.test, *([self.gallery] if self.gallery else [])]

    @property
    def searched(self) -> ImageSet:
        """The images that are searched: the gallery, or the test images themselves."""
        return self.test if self.gallery is None else self.gallery

    @property
    def groups(self) -> Groups | None:
        """The groups of the test images and of those that are searched, if both have some."""
        if self.test.groups is None or self.searched.groups is None:
            return None
        return number_groups(self.test.groups, self.searched.groups)

    @property
    def title(self) -> str:
        """The data set and the crop of its images. Only equal titles can be compared."""
        title = f"{self.name}, {'whole images' if self.test.boxes is None else 'cropped to boxes'}"
        if self.groups is not None:
            title += ", groups left out"
        if self.is_tested_on_all_classes:
            return f"{title}, tested on all classes"
        return (
            f"{title}, tested on held-out training classes"
            if self.is_tested_on_validation_classes
            else title
        )
