"""Embeddings on disk: FILE.npy holds the vectors, FILE.csv says what its rows are of.

FILE.npy is float32 (n, d) and can be mapped into memory. FILE.csv has a header and a line for each
row, in order: row, path, label. A relative path is relative to the folder of the file; a label is
the name of a class, or empty if none is known. FILE.npy.json holds the digest of the model; vectors
of other programs, and of earlier versions of this one, have no such file.
"""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, Optional

import numpy as np

from embedding_learning.data.datasets.text_files import check_regular_file
from embedding_learning.errors import UsageError
from embedding_learning.runtime.atomic_files import atomic_write

COLUMNS = ["row", "path", "label"]
# Format 1.0 of numpy: 10 bytes, and then text up to a multiple of 64. Always as long, so that
# vectors can be written before their number is known.
HEADER_BYTES = 128

# Values looked at at once: 32 MB.
_VALUES = 2**23
# More than what rounding to float16 does to a length.
_UNIT_TOLERANCE = 1e-3


class Embeddings(NamedTuple):
    """Vectors and what is known of the images that they are of.

    Attributes
    ----------
    vectors : array (n, d)
        float32 or float64; may be mapped into memory.
    paths : list of str (n,)
        Absolute, or relative to the folder; empty where they are not known.
    labels : list of str (n,)
        The classes' names; empty where they are not known.
    folder : str
        Absolute, and no link: from there .. leads out of the folder, not of the link.
    model : str, optional
        The digest of the model that computed the vectors, if it is known.
    """

    vectors: np.ndarray
    paths: list[str]
    labels: list[str]
    folder: str
    model: Optional[str] = None

    def path(self, row: int) -> str | None:
        """The file of an image, as it is named from the current folder, if it is known."""
        path = self.paths[row]
        if not path or os.path.isabs(path):
            return path or None
        return os.path.relpath(os.path.join(self.folder, path))

    def label(self, row: int) -> str | None:
        """The class of an image, if it is known."""
        return self.labels[row] or None

    def find_rows(self, paths: Iterable[str | None]) -> list[list[int]]:
        """The rows that each of these files has, named from the current folder."""
        places: dict[str, list[list[int]]] = {}
        found: list[list[int]] = []
        for path in paths:
            found.append([])
            if path is not None:
                for name in (os.path.abspath(path), os.path.relpath(path, self.folder)):
                    places.setdefault(name, []).append(found[-1])
        for row, name in enumerate(self.paths):
            for place in places.get(name, ()):
                place.append(row)
        return found


def csv_path(path: str) -> str:
    """The file that tells what the rows of FILE.npy are of."""
    return os.path.splitext(path)[0] + ".csv"


def digest_path(path: str) -> str:
    """The file that holds the digest of the model of FILE.npy."""
    return f"{path}.json"


def read_embeddings(path: str, dimension: int | None) -> Embeddings:
    """The vectors, mapped into memory, and what FILE.csv tells of them if it is there.

    The dimension is the one that is expected; None: any.

    Both may come from a stranger: each value of the vectors is looked at, and nothing but numbers
    and text is read.

    Raises
    ------
    UsageError
        If a file cannot be read, holds no finite float32 or float64 vectors of this dimension, or
        one file does not fit the other.
    """
    # Opening a pipe would wait for a writer.
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such file")
    try:
        with np.errstate(over="ignore"):
            mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        # A header is text, and numpy lets a dozen kinds of errors through that it can cause.
        raise UsageError(f"{path}: cannot be read, or is no whole .npy file of numbers") from error
    # A plain array: each access to a memmap would make a memmap, in ten times the time.
    vectors = mapped.view(np.ndarray)
    if vectors.dtype not in (np.float32, np.float64):
        raise UsageError(f"{path}: holds {vectors.dtype}; float32 or float64 is expected")
    if vectors.ndim != 2 or dimension not in (None, vectors.shape[1]) or not vectors.size:
        raise UsageError(
            f"{path}: holds an array {vectors.shape}; vectors (n, {dimension or 'd'}) are "
            "expected, as the model gives them: embed the images with this model"
        )
    for start, some in _parts(vectors):
        with np.errstate(over="ignore"):
            finite = np.isfinite(some.astype(np.float32)).all(axis=1)
        if not finite.all():
            raise UsageError(
                f"{path}: row {start + int(np.argmin(finite))} is not finite in float32"
            )
    if os.path.lexists(csv_path(path)):
        rows = list(_csv_rows(csv_path(path)))
    else:
        rows = [("", "")] * len(vectors)
    if len(rows) != len(vectors):
        raise UsageError(
            f"{csv_path(path)}: names {len(rows)} images, but {path} holds {len(vectors)} vectors; "
            "embed them again, or remove the .csv file"
        )
    paths, labels = map(list, zip(*rows))
    folder = os.path.realpath(os.path.dirname(path))
    return Embeddings(vectors, paths, labels, folder, _read_model(digest_path(path)))


def find_non_unit_row(vectors: np.ndarray) -> int | None:
    """The first row whose length is not 1, within a thousandth; None if there is none."""
    for start, some in _parts(vectors):
        is_unit = np.abs(np.linalg.norm(some, axis=1) - 1) < _UNIT_TOLERANCE
        if not is_unit.all():
            return start + int(np.argmin(is_unit))
    return None


def write_digest(path: str, digest: str) -> None:
    """Writes FILE.npy.json, whole or not at all. Raises OSError."""
    with atomic_write(digest_path(path)) as partial:
        Path(partial).write_text(json.dumps({"model": digest}) + "\n", encoding="utf-8")


def write_csv(path: str, images: Iterable[tuple[str, str]]) -> None:
    """Writes FILE.csv whole or not at all: path, from the current folder, and label of each row.

    Raises OSError.
    """
    folder = os.path.realpath(os.path.dirname(path))
    with atomic_write(path) as partial, _opened(partial, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        # Before Python 3.13 a writer of such lines leaves a carriage return without quotes.
        quoting_writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        for row, (name, label) in enumerate(images):
            known = name if os.path.isabs(name) else os.path.relpath(name, folder)
            has_return = "\r" in known or "\r" in label
            (quoting_writer if has_return else writer).writerow([row, known, label])


def check_csv(path: str) -> None:
    """Raises UsageError if there is a file, and it is no list of embeddings."""
    if os.path.lexists(path):
        next(_csv_rows(path), None)


def npy_header(shape: tuple[int, int]) -> bytes:
    """What an .npy file of float32 values begins with, HEADER_BYTES."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    length = HEADER_BYTES - 10
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"
    )


def _parts(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each part of the vectors, and the part, so that memory is bounded."""
    at_once = max(1, _VALUES // vectors.shape[1])
    for start in range(0, len(vectors), at_once):
        yield start, vectors[start : start + at_once]


def _read_model(path: str) -> str | None:
    """The digest in FILE.npy.json; None if there is no such file.

    Raises UsageError if the file is not as it was written.
    """
    if not os.path.lexists(path):
        return None
    try:
        check_regular_file(path)
        digest = json.loads(Path(path).read_text(encoding="utf-8"))["model"]
        if not isinstance(digest, str):
            raise ValueError("no text")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path}: is damaged: it holds no digest of a model; embed the images again, or remove "
            "the file"
        ) from error
    return digest


def _csv_rows(path: str) -> Iterator[tuple[str, str]]:
    """Path and label of each row. Raises UsageError if one is not as it is written here."""
    number = 0
    known: dict[str, str] = {}  # one string for each label, not for each image
    try:
        check_regular_file(path)
        with _opened(path, "r") as file:
            lines = csv.reader(file, strict=True)
            if next(lines, None) != COLUMNS:
                raise ValueError(f"a header {','.join(COLUMNS)} is expected")
            for number, line in enumerate(lines):
                if len(line) != len(COLUMNS) or line[0] != str(number):
                    raise ValueError(f"row {number} is not as it was written")
                yield line[1], known.setdefault(line[2], line[2])
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{path}: is no list of embeddings: {reason}; embed the images again, or remove the "
            "file"
        ) from error


def _opened(path: str, mode: str) -> IO[str]:
    """Text whose line ends are left to the csv module; file names may be any bytes."""
    return open(path, mode, newline="", encoding="utf-8", errors="surrogateescape")
