"""Reads and writes files of embeddings: vectors in FILE.npy, their images in FILE.csv.

FILE.npy is float32 (n, d) and can be mapped into memory. FILE.csv has a header and one line for
each row, in order: row, path, label, and group if the data set has groups. A relative path is
relative to the folder of the file; a label is the name of a class, or empty if it is not known; a
group is empty for an image without one. FILE.npy.json contains the digest of the model;
files of other programs, and of earlier versions of this one, do not have it.
"""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Optional

import numpy as np

from embedding_learning.data.datasets.text_files import check_regular_file
from embedding_learning.errors import UsageError
from embedding_learning.runtime.atomic_files import atomic_write, csv_row_writer

COLUMNS = ["row", "path", "label"]
GROUP_COLUMN = "group"
# Format 1.0 of numpy: 10 bytes, then text up to a multiple of 64. The length is fixed, so that
# vectors can be written before their number is known.
HEADER_BYTES = 128

# Values that are checked at once: 32 MB.
_VALUES = 2**23
# Characters of a wrong header in a message.
_QUOTED = 100
# Larger than the change of a length by rounding to float16.
_UNIT_TOLERANCE = 1e-3


class Embeddings(NamedTuple):
    """Vectors with the paths and labels of their images.

    Attributes
    ----------
    vectors : array (n, d)
        float32 or float64; may be mapped into memory.
    paths : list of str (n,)
        Absolute, or relative to the folder; empty if not known.
    labels : list of str (n,)
        Names of the classes; empty if not known.
    folder : str
        Absolute and not a link, so that .. leads out of the folder itself.
    model : str, optional
        Digest of the model that computed the vectors, if it is known.
    groups : list of str (n,), optional
        Names of the groups, of which no two images are matches; empty for an image without one.
    """

    vectors: np.ndarray
    paths: list[str]
    labels: list[str]
    folder: str
    model: Optional[str] = None
    groups: Optional[list[str]] = None

    def path(self, row: int) -> str | None:
        """Returns the file of an image, relative to the current folder, if it is known."""
        path = self.paths[row]
        if not path or os.path.isabs(path):
            return path or None
        return os.path.relpath(os.path.join(self.folder, path))

    def known_paths(self) -> Iterator[str]:
        """Yields the files of the images, as far as they are known, as `path` returns them."""
        return filter(None, map(self.path, range(len(self.paths))))

    def label(self, row: int) -> str | None:
        """Returns the class of an image, if it is known."""
        return self.labels[row] or None

    def find_rows(self, paths: Iterable[str | None]) -> list[list[int]]:
        """Returns the rows of each file, whose paths are relative to the current folder."""
        # The lists of rows that a name belongs to: a file may be asked for several times.
        lists_of: dict[str, list[list[int]]] = {}
        rows_of_each: list[list[int]] = []
        for path in paths:
            rows_of_each.append([])
            if path is not None:
                for name in (os.path.abspath(path), os.path.relpath(path, self.folder)):
                    lists_of.setdefault(name, []).append(rows_of_each[-1])
        for row, name in enumerate(self.paths):
            # A list of images may name them by ".." or with two slashes.
            for rows in lists_of.get(os.path.normpath(name), ()) if name else ():
                rows.append(row)
        return rows_of_each


def csv_path(path: str) -> str:
    """Returns the name of FILE.csv, which lists the images of the rows of FILE.npy."""
    return os.path.splitext(path)[0] + ".csv"


def digest_path(path: str) -> str:
    """Returns the name of the file that contains the digest of the model of FILE.npy."""
    return f"{path}.json"


def read_embeddings(path: str, dimension: int | None) -> Embeddings:
    """Reads FILE.npy, mapped into memory, and FILE.csv if it exists.

    Both may come from an untrusted source: each value of the vectors is checked, and nothing but
    numbers and text is read.

    Parameters
    ----------
    path : str
        FILE.npy.
    dimension : int, optional
        The expected dimension; None accepts any.

    Raises
    ------
    UsageError
        If a file cannot be read, does not hold finite float32 or float64 vectors of this dimension,
        or if the two files do not fit each other.
    """
    # Opening a pipe would wait for a writer.
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such file")
    try:
        with np.errstate(over="ignore"):
            mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        # A header is text, which can cause a dozen types of errors in numpy.
        raise UsageError(
            f"{path}: cannot be read, or is no complete .npy file of numbers"
        ) from error
    # A plain array: each access to a memmap creates a memmap, which takes ten times as long.
    vectors = mapped.view(np.ndarray)
    if vectors.dtype not in (np.float32, np.float64):
        raise UsageError(f"{path}: holds {vectors.dtype}; float32 or float64 is expected")
    if vectors.ndim != 2 or dimension not in (None, vectors.shape[1]) or not vectors.size:
        raise UsageError(
            f"{path}: holds an array {vectors.shape}; vectors (n, {dimension or 'd'}) are "
            "expected, as the model gives them: embed the images with this model"
        )
    for start, part in _split_rows(vectors):
        with np.errstate(over="ignore"):
            finite = np.isfinite(part.astype(np.float32)).all(axis=1)
        if not finite.all():
            raise UsageError(
                f"{path}: row {start + int(np.argmin(finite))} is not finite in float32"
            )
    if os.path.lexists(csv_path(path)):
        rows = list(_read_csv(csv_path(path)))
    else:
        rows = [("", "", "")] * len(vectors)
    if len(rows) != len(vectors):
        raise UsageError(
            f"{csv_path(path)}: names {len(rows)} images, but {path} holds {len(vectors)} vectors; "
            "embed them again, or remove the .csv file"
        )
    paths, labels, groups = map(list, zip(*rows))
    folder = os.path.realpath(os.path.dirname(path))
    digest = _read_digest(digest_path(path))
    return Embeddings(vectors, paths, labels, folder, digest, groups if any(groups) else None)


def find_non_unit_row(vectors: np.ndarray) -> int | None:
    """Returns the first row whose length differs from 1 by a thousandth or more, if any."""
    for start, part in _split_rows(vectors):
        is_unit = np.abs(np.linalg.norm(part, axis=1) - 1) < _UNIT_TOLERANCE
        if not is_unit.all():
            return start + int(np.argmin(is_unit))
    return None


def write_digest(path: str, digest: str) -> None:
    """Writes FILE.npy.json atomically. Raises OSError."""
    with atomic_write(digest_path(path)) as partial:
        Path(partial).write_text(json.dumps({"model": digest}) + "\n", encoding="utf-8")


def write_csv(path: str, images: Iterable[Sequence[str]], has_groups: bool = False) -> None:
    """Writes FILE.csv atomically from the path and label of each row. Raises OSError.

    The paths are absolute or relative to the current folder. If `has_groups`, each row has its
    group too.
    """
    folder = os.path.realpath(os.path.dirname(path))
    with atomic_write(path) as partial, _open(partial, "w") as file:
        write_row = csv_row_writer(file)
        write_row([*COLUMNS, GROUP_COLUMN] if has_groups else COLUMNS)
        for row, (name, *rest) in enumerate(images):
            stored_path = name if os.path.isabs(name) else os.path.relpath(name, folder)
            write_row([row, stored_path, *rest])


def check_csv(path: str) -> None:
    """Raises UsageError if the file exists and is no list of embeddings."""
    if os.path.lexists(path):
        next(_read_csv(path), None)


def npy_header(shape: tuple[int, int]) -> bytes:
    """Returns the header of an .npy file of float32 values, HEADER_BYTES long."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    length = HEADER_BYTES - 10
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"
    )


def _split_rows(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields parts of the vectors with the number of their first row; their size is bounded."""
    at_once = max(1, _VALUES // vectors.shape[1])
    for start in range(0, len(vectors), at_once):
        yield start, vectors[start : start + at_once]


def _read_digest(path: str) -> str | None:
    """Returns the digest in FILE.npy.json; None if the file does not exist.

    Raises UsageError if the file is damaged.
    """
    if not os.path.lexists(path):
        return None
    try:
        check_regular_file(path)
        digest = json.loads(Path(path).read_text(encoding="utf-8"))["model"]
        if not isinstance(digest, str):
            raise ValueError("the digest is not text")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path}: is damaged: it contains no digest of a model; embed the images again, or "
            "remove the file"
        ) from error
    return digest


def _read_csv(path: str) -> Iterator[tuple[str, str, str]]:
    """Yields path, label and group of each row; the group is empty if the file has no groups.

    Raises UsageError if the file is no list of embeddings.
    """
    number = 0
    texts: dict[str, str] = {}  # one string for each label and group, not for each image
    try:
        check_regular_file(path)
        with _open(path, "r") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, None)
            if header not in (COLUMNS, [*COLUMNS, GROUP_COLUMN]):
                found = ",".join(header or [])[:_QUOTED]
                raise ValueError(f"a header {','.join(COLUMNS)} is expected, not {found!r}")
            for number, line in enumerate(lines):
                if len(line) != len(header) or line[0] != str(number):
                    raise ValueError(f"row {number} is not as it was written")
                label, group, *_ = (texts.setdefault(text, text) for text in (*line[2:], ""))
                yield line[1], label, group
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{path}: is no list of embeddings: {reason}; embed the images again, or remove the "
            "file"
        ) from error


def _open(path: str, mode: str) -> IO[str]:
    """Opens a text file whose line ends the csv module handles; file names may be any bytes."""
    # Programs for spreadsheets begin a file with a mark, which is no part of the header.
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    return open(path, mode, newline="", encoding=encoding, errors="surrogateescape")
