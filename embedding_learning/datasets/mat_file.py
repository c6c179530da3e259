"""MATLAB files of version 5 to 7: as much of the format as lists of images use.

Read here and not by SciPy because that one, written in C, ends the whole process on some damaged
files. The format is described in The MathWorks, MAT-File Format: after a header of 128 bytes, a
file is a row of elements, each with a tag (type, size), and an element may hold others. It holds
data alone; nothing in it is executed.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

_HEADER = 128
_BYTE_ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}  # version 0x0100, then the letters MI
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)  # classes of matrices
_FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}

# What damaged bytes lead to, beside ValueError.
_DAMAGE = (
    *(struct.error, zlib.error, ArithmeticError, LookupError, TypeError),
    *(MemoryError, RecursionError),
)


def read(file: Path) -> dict[str, Any]:
    """The variables of a file by their names.

    A struct array becomes a dictionary of lists, one list a field; a cell array a list; a text a
    str; numbers a number, or a list if they are several. Arrays are flattened, columns first.

    Raises ValueError if the file is damaged, or holds what is not read here; OSError if it cannot
    be opened.
    """
    data = file.read_bytes()
    order = _BYTE_ORDERS.get(data[_HEADER - 4 : _HEADER])
    if order is None:
        raise ValueError("no header of a MATLAB file of version 5 to 7")
    try:
        return dict(_variables(data, order))
    except _DAMAGE as error:
        raise ValueError(str(error)) from error


class _Element(NamedTuple):
    """What the bytes from start to end are; the next element begins at `after`."""

    kind: int
    start: int
    end: int
    after: int


def _element(data: bytes, at: int, order: str) -> _Element:
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # small: the size and up to four bytes share the tag
        found = _Element(kind & 0xFFFF, at + 4, at + 4 + (kind >> 16), at + 8)
    else:
        padding = 0 if kind == _COMPRESSED else -size % 8
        found = _Element(kind, at + 8, at + 8 + size, at + 8 + size + padding)
    if found.end > min(found.after, len(data)):
        raise ValueError(f"the element at byte {at} is cut off")
    return found


def _variables(data: bytes, order: str) -> list[tuple[str, Any]]:
    found = []
    at = _HEADER
    while at < len(data):
        element = _element(data, at, order)
        at = element.after
        if element.kind == _COMPRESSED:
            unpacked = zlib.decompress(data[element.start : element.end])
            found.append(_matrix(unpacked, _element(unpacked, 0, order), order))
        else:
            found.append(_matrix(data, element, order))
    return found


def _matrix(data: bytes, matrix: _Element, order: str) -> tuple[str, Any]:
    """Name and value of a matrix, whose elements are flags, dimensions, name and content."""
    if matrix.kind != _MATRIX:
        raise ValueError(f"an element of type {matrix.kind} in place of a matrix")
    if matrix.start == matrix.end:
        return "", []
    flags = _element(data, matrix.start, order)
    dimensions = _element(data, flags.after, order)
    name = _element(data, dimensions.after, order)
    (kind,) = struct.unpack_from(f"{order}I", data, flags.start)
    shape = _numbers(data, dimensions, order)
    value = _value(data, name.after, order, kind & 0xFF, math.prod(shape))
    return data[name.start : name.end].decode("latin-1"), value


def _value(data: bytes, at: int, order: str, kind: int, count: int) -> Any:
    """The content of a matrix of this class, with `count` items."""
    if kind == _CELL:
        return _matrices(data, at, order, count)
    if kind == _STRUCT:
        length = _element(data, at, order)
        names = _element(data, length.after, order)
        fields = _field_names(data[names.start : names.end], _numbers(data, length, order)[0])
        values = _matrices(data, names.after, order, count * len(fields))
        return {field: values[place :: len(fields)] for place, field in enumerate(fields)}
    content = _element(data, at, order)
    if kind == _CHAR:
        encoding = _ENCODINGS.get(content.kind, "")
        if encoding[3:] in ("-16", "-32"):
            encoding += "-le" if order == "<" else "-be"
        if not encoding:
            raise ValueError(f"a text of type {content.kind}")
        return data[content.start : content.end].decode(encoding)
    if kind not in _NUMBERS:
        raise ValueError(f"a matrix of class {kind}")
    numbers = _numbers(data, content, order)
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _matrices(data: bytes, at: int, order: str, count: int) -> list[Any]:
    values = []
    for _ in range(count):
        element = _element(data, at, order)
        values.append(_matrix(data, element, order)[1])
        at = element.after
    return values


def _numbers(data: bytes, element: _Element, order: str) -> tuple[Any, ...]:
    code = _FORMATS.get(element.kind)
    if code is None:
        raise ValueError(f"numbers of type {element.kind}")
    count = (element.end - element.start) // struct.calcsize(code)
    return struct.unpack_from(f"{order}{count}{code}", data, element.start)


def _field_names(names: bytes, length: int) -> list[str]:
    """Names of `length` bytes each, filled up with zeros."""
    if length < 1:
        raise ValueError(f"field names of {length} bytes")
    starts = range(0, len(names), length)
    return [names[at : at + length].split(b"\0")[0].decode("latin-1") for at in starts]
