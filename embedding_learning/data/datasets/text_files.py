"""What the readers share: files and lists that may be missing or wrong, columns, classes, boxes.

A fault is one DataError that names the file, the line and the way out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embedding_learning.errors import DataError

# Far above any list and any photograph; below what would fill the memory.
_MOST_BYTES = 2**29
_WIDTH_AND_HEIGHT, _CORNERS = "x, y, width and height", "x_1, y_1, x_2 and y_2"


def check_folder(folder: Path) -> None:
    """Raises DataError if there is no such folder, OSError if it cannot be looked at."""
    try:
        # From Python 3.14 on, is_dir() says False to every OSError.
        if stat.S_ISDIR(folder.stat().st_mode):
            return
        what = "is not a folder"
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        what = "no such folder"
    raise DataError(
        f"{folder}: {what}; run ./get_cub200_data.sh, or name the folder of the images, "
        "or a .csv file, with --data-path (--data-path=glyphs needs no download)"
    )


def check_regular_file(file: str | Path) -> None:
    """Raises OSError unless this is a plain file of at most 512 MiB.

    A data set may hold a link to /dev/zero, which never ends, or a pipe, at which reading waits.
    """
    found = os.stat(file)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file", str(file))
    if found.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {_MOST_BYTES >> 20} MiB", str(file))


def read_lines(file: Path, layout: str) -> list[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank.

    `layout` tells what the folder should hold, for the message where the file is missing.
    """
    try:
        check_regular_file(file)
        with open(file, encoding="utf-8-sig") as lines:
            stripped = ((number, line.strip()) for number, line in enumerate(lines, start=1))
            found = [(number, line) for number, line in stripped if line]
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file; {layout}; name another folder with --data-path, "
            "or its layout with --dataset"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from None
    if not found:
        raise DataError(f"{file}: is empty")
    return found


def read_table(
    file: Path, header: str, layout: str, counted: bool = False
) -> list[tuple[int, list[str]]]:
    """Number and columns of each line below a header that must be as given.

    Columns are parted by white space; the last one may hold some itself. With `counted` the line
    before the header tells how many lines follow it.
    """
    lines = read_lines(file, layout)
    count = lines.pop(0) if counted else None
    columns = header.split()
    if not lines or lines[0][1].split() != columns:
        number, text = lines[0] if lines else (1, "")
        raise DataError(f"{file}:{number}: the header {header!r} expected: {text!r}; {layout}")
    rows = [(number, text.split(None, len(columns) - 1)) for number, text in lines[1:]]
    for number, row in rows:
        if len(row) != len(columns):
            raise DataError(f"{file}:{number}: {header!r} expected: {' '.join(row)!r}")
    if count and count[1] != str(len(rows)):
        raise DataError(
            f"{file}:{count[0]}: {len(rows)} lines follow the header, not {count[1]!r}; "
            "the file is not whole, fetch it again"
        )
    return rows


def check_no_duplicates(images: Sequence[str], place: Callable[[int], str]) -> None:
    """Raises DataError where a list names an image again; `place` tells where a row stands."""
    if len(set(images)) == len(images):
        return
    first: dict[str, int] = {}
    for row, image in enumerate(images):
        if image in first:
            raise DataError(
                f"{place(row)}: {image} stands here a second time, after {place(first[image])}; "
                "remove one of the two"
            )
        first[image] = row


def parse_class_number(value: str, place: str) -> int:
    """The number of a class; `place` tells where it stands."""
    # Longer ones do not fit into 64 bits, and Python refuses to read the longest.
    if not value.isdecimal() or len(value) > 18:
        raise DataError(f"{place}: a class number expected: {value!r}; correct the line")
    return int(value)


def parse_box(values: Sequence[Any], place: str, corners: bool = False) -> list[int]:
    """x, y, width and height in pixels: the integer parts of four numbers.

    With `corners` the numbers are the first column and row of the box and its last ones, counted
    from 1, as MATLAB does.
    """
    try:
        box = [int(float(value)) for value in values]
        if corners:
            left, top, right, bottom = box
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    except (TypeError, ValueError, OverflowError):
        box = []
    if len(box) == 4 and min(box[2:]) >= 1 and max(map(abs, box)) < 2**31:
        return box
    told = " ".join(map(str, values))
    expected = _CORNERS if corners else _WIDTH_AND_HEIGHT
    fault = "the box is empty" if len(box) == 4 and min(box[2:]) < 1 else f"{expected} expected"
    raise DataError(f"{place}: {fault}: {told!r}; --no-bbox does without the boxes")
