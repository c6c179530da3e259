"""Helpers of the readers: check folders and files, read lists, parse columns, numbers and boxes.

An error is one DataError that names the file, the line and the way out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embedding_learning.errors import DataError

# Larger than any list or photograph; smaller than the memory of a computer.
_MOST_BYTES = 2**29
_WIDTH_AND_HEIGHT, _CORNERS = "x, y, width and height", "x_1, y_1, x_2 and y_2"


def check_folder(folder: Path) -> None:
    """Raises DataError if the folder does not exist, OSError if it cannot be accessed."""
    try:
        # Since Python 3.14, is_dir() returns False for every OSError.
        if stat.S_ISDIR(folder.stat().st_mode):
            return
        error = "is not a folder"
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        error = "no such folder"
    raise DataError(
        f"{folder}: {error}; run ./get_cub200_data.sh, or name the folder of the images, "
        "or a .csv file, with --data-path (--data-path=glyphs needs no download)"
    )


def check_regular_file(file: str | Path) -> None:
    """Raises OSError unless this is a regular file of at most 512 MiB.

    A data set may contain a link to /dev/zero, which never ends, or a pipe, where reading blocks.
    """
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))
    if status.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {_MOST_BYTES >> 20} MiB", str(file))


def unreadable_text(source: str | Path, error: OSError | UnicodeDecodeError) -> DataError:
    """Returns the error of a text file that cannot be opened, or is not UTF-8."""
    if isinstance(error, OSError):
        return DataError(f"{source}: cannot be read: {error.strerror or error}")
    return DataError(f"{source}: cannot be read as UTF-8 text: {error.reason}; save it as UTF-8")


def read_lines(file: Path, layout: str) -> list[tuple[int, str]]:
    """Reads the lines of a file that are not blank; returns number (from 1) and text of each.

    `layout` says what the folder should hold; it is part of the message if the file is missing.
    """
    try:
        check_regular_file(file)
        with open(file, encoding="utf-8-sig") as lines:
            stripped = ((number, line.strip()) for number, line in enumerate(lines, start=1))
            numbered_lines = [(number, line) for number, line in stripped if line]
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file; {layout}; name another folder with --data-path, "
            "or the data set with --dataset"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable_text(file, error) from None
    if not numbered_lines:
        raise DataError(f"{file}: is empty; replace the file")
    return numbered_lines


def read_table(
    file: Path, header: str, layout: str, counted: bool = False
) -> list[tuple[int, list[str]]]:
    """Reads the lines below a given header; returns number and columns of each.

    White space separates the columns; the last one may contain some. With `counted`, the line
    before the header holds the number of lines that follow it.
    """
    lines = read_lines(file, layout)
    count = lines.pop(0) if counted else None
    columns = header.split()
    if not lines or lines[0][1].split() != columns:
        number, text = lines[0] if lines else (1, "")
        raise DataError(
            f"{file}:{number}: expected the header {header!r}, but found {text!r}; {layout}"
        )
    rows = [(number, text.split(None, len(columns) - 1)) for number, text in lines[1:]]
    for number, row in rows:
        if len(row) != len(columns):
            raise DataError(
                f"{file}:{number}: expected the columns {header!r}, but found {' '.join(row)!r}; "
                "correct the line"
            )
    if count and count[1] != str(len(rows)):
        raise DataError(
            f"{file}:{count[0]}: {len(rows)} lines follow the header, but the number here is "
            f"{count[1]!r}; the file is incomplete: fetch it again"
        )
    return rows


def check_no_duplicates(images: Sequence[str], find_line: Callable[[int], str]) -> None:
    """Raises DataError if a list names an image twice; ``find_line(row)`` names a row's line."""
    # ./a.jpg is a.jpg, which would find itself.
    names = [os.path.normpath(image) for image in images]
    if len(set(names)) == len(names):
        return
    first_rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in first_rows:
            raise DataError(
                f"{find_line(row)}: {images[row]} is listed a second time, after "
                f"{find_line(first_rows[name])}; remove one of the two"
            )
        first_rows[name] = row


def parse_number(value: str, line: str, what: str = "a class number") -> int:
    """Parses a whole number from 0. Error messages say `what` it is, and its file and `line`."""
    # A longer number does not fit into 64 bits, and Python refuses to read a very long one.
    if not value.isdecimal() or len(value) > 18:
        raise DataError(f"{line}: expected {what}, but found {value!r}; correct the line")
    return int(value)


def parse_box(values: Sequence[Any], line: str, corners: bool = False) -> list[int]:
    """Parses four numbers into x, y, width and height in pixels; takes their integer parts.

    With `corners` the numbers are the first column and row of the box and its last ones, counted
    from 1 as in MATLAB. `line` names the file and line in error messages.
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
    text = " ".join(map(str, values))
    expected = _CORNERS if corners else _WIDTH_AND_HEIGHT
    is_empty = len(box) == 4 and min(box[2:]) < 1
    fault = (
        f"the box is empty: {text!r}" if is_empty else f"expected {expected}, but found {text!r}"
    )
    raise DataError(f"{line}: {fault}; correct it, or ignore the boxes with --no-bbox")
