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

# The file of Cars196 has some 8 MB, unpacked. A compressed one can claim a thousand times its size,
# and numbers take sixteen times theirs as Python's.
_MOST_BYTES = 2**25
_MOST_DIMENSIONS = 32

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
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    data = memoryview(file.read_bytes())
    order = _BYTE_ORDERS.get(bytes(data[_HEADER - 4 : _HEADER]))
    if order is None:
        raise ValueError("no header of a MATLAB file of version 5 to 7")
    try:
        return dict(_variables(data, order))
    except _DAMAGE as error:
        raise ValueError(str(error)) from error


class _Element(NamedTuple):
    """The next element begins at `after`, counted as the beginning of this one was."""

    kind: int
    content: memoryview
    after: int


def _element(data: memoryview, at: int, order: str) -> _Element:
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # small: the size and up to four bytes share the tag
        kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
        padding = 0 if kind == _COMPRESSED else -size % 8
        start, after = at + 8, at + 8 + size + padding
    if start + size > min(after, len(data)):
        raise ValueError(f"the element at byte {at} is cut off")
    return _Element(kind, data[start : start + size], after)


def _variables(data: memoryview, order: str) -> list[tuple[str, Any]]:
    found = []
    at, room = _HEADER, _MOST_BYTES
    while at < len(data):
        element = _element(data, at, order)
        at = element.after
        if element.kind == _COMPRESSED:
            unpacked = _unpacked(element.content, room)
            room -= len(unpacked)
            element = _element(unpacked, 0, order)
        found.append(_matrix(element, order))
    return found


def _unpacked(content: memoryview, room: int) -> memoryview:
    """The content of a compressed element; ValueError if that takes more bytes than there is room.

    All elements of a file share the room, as all that is unpacked is kept.
    """
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(content, room + 1)  # 0 would mean without bound
    if len(unpacked) > room:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB, unpacked")
    if not unpacker.eof:
        raise ValueError("a compressed element is cut off")
    return memoryview(unpacked)


def _matrix(matrix: _Element, order: str) -> tuple[str, Any]:
    """Name and value of a matrix, whose elements are flags, dimensions, name and content."""
    if matrix.kind != _MATRIX:
        raise ValueError(f"an element of type {matrix.kind} in place of a matrix")
    data = matrix.content
    if not data:
        return "", []
    flags = _element(data, 0, order)
    dimensions = _element(data, flags.after, order)
    name = _element(data, dimensions.after, order)
    (kind,) = struct.unpack_from(f"{order}I", flags.content)
    shape = _numbers(dimensions, order)
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a matrix of {len(shape)} dimensions")
    value = _value(data, name.after, order, kind & 0xFF, math.prod(shape))
    return str(name.content, "latin-1"), value


def _value(data: memoryview, at: int, order: str, kind: int, count: int) -> Any:
    """The content of a matrix of this class, with `count` items."""
    if kind == _CELL:
        return _matrices(data, at, order, count)
    if kind == _STRUCT:
        length = _element(data, at, order)
        names = _element(data, length.after, order)
        fields = _field_names(bytes(names.content), _numbers(length, order)[0])
        values = _matrices(data, names.after, order, count * len(fields))
        return {field: values[place :: len(fields)] for place, field in enumerate(fields)}
    content = _element(data, at, order)
    if kind == _CHAR:
        encoding = _ENCODINGS.get(content.kind, "")
        if encoding[3:] in ("-16", "-32"):
            encoding += "-le" if order == "<" else "-be"
        if not encoding:
            raise ValueError(f"a text of type {content.kind}")
        return str(content.content, encoding)
    if kind not in _NUMBERS:
        raise ValueError(f"a matrix of class {kind}")
    numbers = _numbers(content, order)
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _matrices(data: memoryview, at: int, order: str, count: int) -> list[Any]:
    values = []
    for _ in range(count):
        element = _element(data, at, order)
        values.append(_matrix(element, order)[1])
        at = element.after
    return values


def _numbers(element: _Element, order: str) -> tuple[Any, ...]:
    code = _FORMATS.get(element.kind)
    if code is None:
        raise ValueError(f"numbers of type {element.kind}")
    count = len(element.content) // struct.calcsize(code)
    return struct.unpack_from(f"{order}{count}{code}", element.content)


def _field_names(names: bytes, length: int) -> list[str]:
    """Names of `length` bytes each, filled up with zeros."""
    if length < 1:
        raise ValueError(f"field names of {length} bytes")
    starts = range(0, len(names), length)
    return [names[at : at + length].split(b"\0")[0].decode("latin-1") for at in starts]
