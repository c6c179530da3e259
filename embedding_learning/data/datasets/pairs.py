"""Lists of image pairs for verification: LFW's ``pairs.txt``, or a CSV file.

In ``pairs.txt`` the first line has the number of folds and, for either type, the number of pairs in
a fold; ``pairsDevTest.txt`` has only the latter. A fold has first its pairs of one person, ``NAME
NUMBER NUMBER``, and then those of two, ``NAME NUMBER NAME NUMBER``. Image 7 of A_Name is
``A_Name/A_Name_0007.jpg``.

The header of a CSV file has ``first,second,type``, in any order, and may have ``fold``. First and
second are the paths of two images, a type is ``same`` or ``different``, a fold is any text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.data.datasets import csv_file
from embedding_learning.data.datasets.image_folder import EXTENSIONS
from embedding_learning.data.datasets.text_files import parse_number, read_lines
from embedding_learning.data.image_set import ImageSet, number_classes
from embedding_learning.errors import DataError

COLUMNS, FOLD_COLUMN = ("first", "second", "type"), "fold"
SAME, DIFFERENT = TYPES = ("same", "different")
_COUNTS = "the number of folds and the pairs of either type in each, such as '10 300'"


@dataclass(frozen=True)
class PairList:
    """Pairs of images, and whether each is of one class.

    Attributes
    ----------
    images : ImageSet
        Each image once, n in all, without classes.
    first, second : int array (p,)
        The rows of the images of each pair.
    is_same : bool array (p,)
    folds : int array (p,), optional
        The fold of each pair, from 0; none is empty. None if the file has no folds.
    """

    images: ImageSet
    first: np.ndarray
    second: np.ndarray
    is_same: np.ndarray
    folds: np.ndarray | None

    def __len__(self) -> int:
        return len(self.is_same)


class _Pair(NamedTuple):
    line: int
    first: str
    second: str
    is_same: bool
    fold: str


def read(file: Path, folder: Path | None = None) -> PairList:
    """Reads a list of pairs: CSV if the file's name ends with .csv, else the layout of LFW.

    Parameters
    ----------
    file : Path
    folder : Path, optional
        The folder that the images' paths start from; by default that of the file.

    Raises
    ------
    DataError
        If the file cannot be read, a line is wrong, an image does not exist or is both images of
        a pair, or the pairs cannot be measured: both types are needed, and with folds also in the
        other folds of each.
    """
    if os.path.isdir(file) or not os.path.exists(file):
        raise DataError(f"{file}: no such file; name another with --pairs")
    folder = file.parent if folder is None else folder
    is_csv = file.suffix.lower() == ".csv"
    pairs = _read_csv(file) if is_csv else _read_lfw(file)
    find = _make_finder(file, folder, EXTENSIONS if not is_csv else ("",))
    rows: dict[str, int] = {}
    indices = []
    for pair in pairs:
        images = [find(name, pair.line) for name in (pair.first, pair.second)]
        # ./a.jpg is a.jpg, at a distance of 0 from itself.
        if os.path.normpath(images[0]) == os.path.normpath(images[1]):
            raise DataError(
                f"{file}:{pair.line}: {images[1]} is both images of the pair; correct the line"
            )
        indices.append([rows.setdefault(image, len(rows)) for image in images])
    first, second = np.array(indices, np.int64).T
    has_folds = any(pair.fold for pair in pairs)
    found = PairList(
        ImageSet(list(rows), np.zeros(len(rows), np.int32), [""]),
        first,
        second,
        np.array([pair.is_same for pair in pairs]),
        _number_folds(file, pairs) if has_folds else None,
    )
    _check_types(file, found)
    return found


def _read_lfw(file: Path) -> list[_Pair]:
    """Returns the pairs of LFW's format; their images are named without the ending."""
    (number, header), *lines = read_lines(file, "it lists pairs")
    counts = header.split()
    if len(counts) not in (1, 2) or not all(re.fullmatch("[1-9][0-9]{0,8}", c) for c in counts):
        raise DataError(f"{file}:{number}: expected {_COUNTS}, but found {header!r}")
    folds, of_type = (int(count) for count in ["1", *counts][-2:])
    if len(lines) != 2 * folds * of_type:
        raise DataError(
            f"{file}:{number}: {header!r} are {2 * folds * of_type} pairs, but {len(lines)} lines "
            "follow; the file is incomplete: fetch it again"
        )
    pairs = []
    for index, (number, line) in enumerate(lines):
        fold, place = divmod(index, 2 * of_type)
        is_same = place < of_type
        words = line.split("\t") if "\t" in line else line.split()
        if len(words) != (3 if is_same else 4):
            expected = "NAME NUMBER NUMBER" if is_same else "NAME NUMBER NAME NUMBER"
            raise DataError(f"{file}:{number}: expected {expected}, but found {line!r}")
        names = (words[0], words[0 if is_same else 2])
        first, second = (
            f"{name}/{name}_{parse_number(image, f'{file}:{number}', 'an image number'):04d}"
            for name, image in zip(names, (words[1], words[-1]))
        )
        fold_name = str(fold) if len(counts) == 2 else ""
        pairs.append(_Pair(number, first, second, is_same, fold_name))
    return pairs


def _read_csv(file: Path) -> list[_Pair]:
    rows = csv_file.read_rows(file)
    number, header = next(rows, (1, []))
    has_folds = FOLD_COLUMN in header
    names = (*COLUMNS, FOLD_COLUMN) if has_folds else COLUMNS
    if any(header.count(name) != 1 for name in names):
        raise DataError(
            f"{file}:{number}: expected a header with {','.join(COLUMNS)} and, if there are folds, "
            f"{FOLD_COLUMN}, each once, but found {','.join(header)!r}; correct the line"
        )
    columns = [header.index(name) for name in names]
    pairs = []
    for number, row in rows:
        values = [row[column] for column in columns] if len(row) == len(header) else []
        if not all(values) or not values or values[2] not in TYPES:
            raise DataError(
                f"{file}:{number}: expected {len(header)} columns, among them {', '.join(names)}, "
                f"where a type is {SAME} or {DIFFERENT}, but found {','.join(row)!r}"
            )
        first, second, type_, fold = [*values, ""][:4]
        pairs.append(_Pair(number, first, second, type_ == SAME, fold))
    if not pairs:
        raise DataError(f"{file}: lists no pair; add some, or name another with --pairs")
    return pairs


def _make_finder(file: Path, folder: Path, endings: Sequence[str]) -> Callable[[str, int], str]:
    """Returns a function that finds an image, given its name and the line that names it."""
    found: dict[str, str] = {}

    def find(name: str, line: int) -> str:
        if name not in found:
            start = os.path.join(folder, name)
            paths = [f"{start}{end}" for end in endings if os.path.isfile(f"{start}{end}")]
            if not paths:
                raise DataError(
                    f"{file}:{line}: {start}{endings[0]}: no such file; name the folder of the "
                    "images with --data-path"
                )
            found[name] = paths[0]
        return found[name]

    return find


def _number_folds(file: Path, pairs: Sequence[_Pair]) -> np.ndarray:
    folds, names = number_classes([pair.fold for pair in pairs])
    if len(names) < 2:
        raise DataError(
            f"{file}: has a single fold, and the threshold of a fold is chosen on the others; add "
            "folds, or leave them out: the column of a .csv file, the first number of a pairs.txt"
        )
    return folds


def _check_types(file: Path, pairs: PairList) -> None:
    """Raises DataError unless there are both types of pairs, also outside of each fold."""
    folds = range(0) if pairs.folds is None else range(pairs.folds.max() + 1)
    for kind, name in ((pairs.is_same, SAME), (~pairs.is_same, DIFFERENT)):
        if not kind.any():
            raise DataError(f"{file}: no pair is {name}; both types are needed")
        for fold in folds:
            if not kind[pairs.folds != fold].any():
                raise DataError(
                    f"{file}: all pairs that are {name} are in one fold, and the threshold of a "
                    "fold is chosen on the others; divide them among the folds"
                )
