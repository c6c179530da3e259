"""A CSV file that lists the images: for a user's own data, with any split.

The header has ``path,label,split``, in any order, and may have ``x,y,width,height``, a box in
pixels; an image for which all four are empty is used whole. It may also have ``group``, any text,
or empty for an image without a group: see ImageSet. Other columns are ignored. A path is relative
to the folder of the file, and a label is any text. A split is train or test; or train, query or
gallery. Commas separate the columns, and a value with a comma stands in double quotes. The encoding
is UTF-8.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from embedding_learning.data.datasets.splits import PARTS, ListedImage, split_by_lists
from embedding_learning.data.datasets.text_files import (
    check_regular_file,
    parse_box,
    unreadable_text,
)
from embedding_learning.data.image_set import WHOLE_IMAGE, Split
from embedding_learning.errors import DataError

COLUMNS = ("path", "label", "split")
BOX_COLUMNS = ("x", "y", "width", "height")
GROUP_COLUMN = "group"


def read(file: Path, use_boxes: bool = True) -> Split:
    """Reads the images and their split; classes are ordered by their labels as texts.

    Raises DataError that names the line of an error.
    """
    rows = read_rows(file)
    number, header = next(rows, (1, []))
    columns = _find_columns(file, number, header)
    box_columns = _find_box_columns(file, number, header) if use_boxes else []
    group_column = _find_group_column(file, number, header)
    folder = os.path.dirname(file)

    images = []
    for number, row in rows:
        line = f"{file}:{number}"
        if len(row) != len(header):
            raise DataError(
                f"{line}: expected {len(header)} columns, as in the header, but found {len(row)}; "
                "put a value with a comma in double quotes"
            )
        path, label, part = (row[column] for column in columns)
        if not path or not label or part not in PARTS:
            raise DataError(
                f"{line}: expected a path, a label and one of {', '.join(PARTS)}, but found "
                f"{path!r}, {label!r}, {part!r}; correct the line"
            )
        values = [row[column] for column in box_columns]
        box = parse_box(values, line) if any(values) else None
        group = "" if group_column is None else row[group_column]
        images.append(
            ListedImage(os.path.join(folder, path), label, part, box, file, number, group)
        )
    if any(image.box for image in images):
        images = [image._replace(box=image.box or WHOLE_IMAGE) for image in images]
    return split_by_lists(file.name, file, images)


def read_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and stripped values of each row that is not blank."""
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
        raise DataError(f"{file}:{line}: is not CSV: {error}; correct the line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable_text(file, error) from None


def _find_columns(file: Path, line: int, header: list[str]) -> list[int]:
    """Returns the indices of path, label and split in the header."""
    if any(header.count(name) != 1 for name in COLUMNS):
        raise DataError(
            f"{file}:{line}: expected a header with {','.join(COLUMNS)}, each once and with commas "
            f"between them, but found {','.join(header)!r}; correct the line"
        )
    return [header.index(name) for name in COLUMNS]


def _find_group_column(file: Path, line: int, header: list[str]) -> int | None:
    """Returns the index of the group in the header; None if it has none."""
    if header.count(GROUP_COLUMN) > 1:
        raise DataError(
            f"{file}:{line}: expected the column {GROUP_COLUMN} once at most, but found "
            f"{','.join(header)!r}; correct the line"
        )
    return header.index(GROUP_COLUMN) if GROUP_COLUMN in header else None


def _find_box_columns(file: Path, line: int, header: list[str]) -> list[int]:
    """Returns the indices of the box in the header; an empty list if it has no box."""
    counts = {header.count(name) for name in BOX_COLUMNS}
    if counts not in ({0}, {1}):
        raise DataError(
            f"{file}:{line}: expected all of {','.join(BOX_COLUMNS)}, or none of them, but found "
            f"{','.join(header)!r}; add the others, or ignore the boxes with --no-bbox"
        )
    return [header.index(name) for name in BOX_COLUMNS if name in header]
