"""A CSV file that lists the images: one's own data, with any split.

The header is ``path,label,split``, in any order, and may go on with ``x,y,width,height``, a box in
pixels; other columns are passed over. A path is relative to the folder of the file, a label is any
text, and a split is train or test, or train, query or gallery. Commas part the columns, and a
value that holds one stands in double quotes. The encoding is UTF-8.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from embedding_learning.data.datasets.splits import PARTS, ListedImage, split_by_lists
from embedding_learning.data.datasets.text_files import check_regular_file, parse_box
from embedding_learning.data.image_set import Split
from embedding_learning.errors import DataError

COLUMNS = ("path", "label", "split")
BOX_COLUMNS = ("x", "y", "width", "height")


def read(file: Path, use_boxes: bool = True) -> Split:
    """The images as the file splits them, the classes in the order of their labels as texts.

    Raises DataError that names the line of whatever is wrong.
    """
    rows = _rows(file)
    line, header = next(rows, (1, []))
    columns = _columns(file, line, header)
    box_columns = _box_columns(file, line, header) if use_boxes else []
    folder = os.path.dirname(file)

    entries = []
    for line, row in rows:
        place = f"{file}:{line}"
        if len(row) != len(header):
            raise DataError(
                f"{place}: {len(header)} columns expected, as in the header, but these are "
                f"{len(row)}; a value with a comma needs double quotes"
            )
        path, label, part = (row[column] for column in columns)
        if not path or not label or part not in PARTS:
            raise DataError(
                f"{place}: a path, a label and one of {', '.join(PARTS)} expected: "
                f"{path!r}, {label!r}, {part!r}"
            )
        box = parse_box([row[column] for column in box_columns], place) if box_columns else None
        entries.append(ListedImage(os.path.join(folder, path), label, part, box, file, line))
    return split_by_lists(file.name, file, entries)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped values of each row that is not blank."""
    reader = None
    try:
        check_regular_file(file)
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, skipinitialspace=True, strict=True)
            for row in reader:
                values = [value.strip() for value in row]
                if any(values):
                    yield reader.line_num, values
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; name another with --data-path") from None
    except csv.Error as error:
        line = reader.line_num if reader else 1
        raise DataError(f"{file}:{line}: is not CSV: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from None


def _columns(file: Path, line: int, header: list[str]) -> list[int]:
    """The places of path, label and split in the header."""
    if any(header.count(name) != 1 for name in COLUMNS):
        raise DataError(
            f"{file}:{line}: a header with {','.join(COLUMNS)} expected, once each and with commas "
            f"between them: {','.join(header)!r}"
        )
    return [header.index(name) for name in COLUMNS]


def _box_columns(file: Path, line: int, header: list[str]) -> list[int]:
    """The places of the box in the header; none if it has no box."""
    counts = {header.count(name) for name in BOX_COLUMNS}
    if counts not in ({0}, {1}):
        raise DataError(
            f"{file}:{line}: all of {','.join(BOX_COLUMNS)} expected, or none: "
            f"{','.join(header)!r}; --no-bbox does without the boxes"
        )
    return [header.index(name) for name in BOX_COLUMNS if name in header]
