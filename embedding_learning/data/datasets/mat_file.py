"""Reads MATLAB files of version 5 to 7: the part of the format that lists of images use.

``scipy.io.loadmat`` is not used because its C code ends the whole process on some damaged files, so
that it would need a child process of its own. The format is described in The MathWorks, MAT-File
Format: after a header of 128 bytes, a file is a sequence of elements. Each has a tag (type, size),
and may contain other elements. A file contains only data; nothing in it is executed.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

# The file of Cars196 has about 8 MB, decompressed. A compressed file can grow to a thousand times
# its size, and numbers take sixteen times more memory as Python objects.
_MOST_BYTES = 2**25
_MOST_DIMENSIONS = 32

_HEADER = 128
_BYTE_ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}  # version 0x0100, then the letters MI
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)  # classes of matrices
_FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}

# The errors that damaged bytes cause, in addition to ValueError.
_DAMAGE_ERRORS = (
    *(struct.error, zlib.error, ArithmeticError, LookupError, TypeError),
    *(MemoryError, RecursionError),
)


def read(file: Path) -> dict[str, Any]:
    """Returns the variables of a file by their names.

    A struct array becomes a dictionary with a list for each field, a cell array a list, and a text
    a str. A single number stays a number, and several become a list. Arrays are flattened, columns
    first.

    Raises ValueError if the file is damaged or holds an unsupported element, OSError if it cannot
    be opened.
    """
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    data = memoryview(file.read_bytes())
    order = _BYTE_ORDERS.get(bytes(data[_HEADER - 4 : _HEADER]))
    if order is None:
        raise ValueError("no header of a MATLAB file of version 5 to 7")
    try:
        return dict(_read_variables(data, order))
    except _DAMAGE_ERRORS as error:
        raise ValueError(str(error)) from error


class _Element(NamedTuple):
    """An element, and the offset in the same bytes where the next element begins."""

    type: int
    content: memoryview
    end: int


def _read_element(data: memoryview, start: int, order: str) -> _Element:
    element_type, size = struct.unpack_from(f"{order}II", data, start)
    if element_type >> 16:  # a small element: the tag holds its size and up to four bytes
        element_type, size = element_type & 0xFFFF, element_type >> 16
        content_start, end = start + 4, start + 8
    else:
        padding = 0 if element_type == _COMPRESSED else -size % 8
        content_start, end = start + 8, start + 8 + size + padding
    if content_start + size > min(end, len(data)):
        raise ValueError(f"the element at byte {start} is cut off")
    return _Element(element_type, data[content_start : content_start + size], end)


def _read_variables(data: memoryview, order: str) -> list[tuple[str, Any]]:
    variables = []
    start, bytes_left = _HEADER, _MOST_BYTES
    while start < len(data):
        element = _read_element(data, start, order)
        start = element.end
        if element.type == _COMPRESSED:
            content = _decompress(element.content, bytes_left)
            bytes_left -= len(content)
            element = _read_element(content, 0, order)
        variables.append(_read_matrix(element, order))
    return variables


def _decompress(content: memoryview, most_bytes: int) -> memoryview:
    """Decompresses an element. Raises ValueError if the result is larger than `most_bytes`.

    The elements of a file share one limit, since all of them stay in memory.
    """
    decompressor = zlib.decompressobj()
    decompressed = decompressor.decompress(content, most_bytes + 1)  # 0 would mean without limit
    if len(decompressed) > most_bytes:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB, decompressed")
    if not decompressor.eof:
        raise ValueError("a compressed element is cut off")
    return memoryview(decompressed)


def _read_matrix(matrix: _Element, order: str) -> tuple[str, Any]:
    """Returns name and value of a matrix. Its elements are flags, dimensions, name and content."""
    if matrix.type != _MATRIX:
        raise ValueError(f"an element of type {matrix.type} instead of a matrix")
    data = matrix.content
    if not data:
        return "", []
    flags = _read_element(data, 0, order)
    dimensions = _read_element(data, flags.end, order)
    name = _read_element(data, dimensions.end, order)
    (class_and_flags,) = struct.unpack_from(f"{order}I", flags.content)
    shape = _read_numbers(dimensions, order)
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a matrix of {len(shape)} dimensions")
    value = _read_value(data, name.end, order, class_and_flags & 0xFF, math.prod(shape))
    return str(name.content, "latin-1"), value


def _read_value(data: memoryview, start: int, order: str, matrix_class: int, count: int) -> Any:
    """Returns the content of a matrix with `count` items."""
    if matrix_class == _CELL:
        return _read_matrices(data, start, order, count)
    if matrix_class == _STRUCT:
        length = _read_element(data, start, order)
        names = _read_element(data, length.end, order)
        fields = _split_names(bytes(names.content), _read_numbers(length, order)[0])
        values = _read_matrices(data, names.end, order, count * len(fields))
        return {field: values[column :: len(fields)] for column, field in enumerate(fields)}
    content = _read_element(data, start, order)
    if matrix_class == _CHAR:
        encoding = _ENCODINGS.get(content.type, "")
        if encoding[3:] in ("-16", "-32"):
            encoding += "-le" if order == "<" else "-be"
        if not encoding:
            raise ValueError(f"a text of type {content.type}")
        return str(content.content, encoding)
    if matrix_class not in _NUMBERS:
        raise ValueError(f"a matrix of class {matrix_class}")
    numbers = _read_numbers(content, order)
    return numbers[0] if len(numbers) == 1 else list(numbers)


def _read_matrices(data: memoryview, start: int, order: str, count: int) -> list[Any]:
    values = []
    for _ in range(count):
        element = _read_element(data, start, order)
        values.append(_read_matrix(element, order)[1])
        start = element.end
    return values


def _read_numbers(element: _Element, order: str) -> tuple[Any, ...]:
    code = _FORMATS.get(element.type)
    if code is None:
        raise ValueError(f"numbers of type {element.type}")
    count = len(element.content) // struct.calcsize(code)
    return struct.unpack_from(f"{order}{count}{code}", element.content)


def _split_names(names: bytes, length: int) -> list[str]:
    """Splits field names of `length` bytes each; zeros fill the rest of a name."""
    if length < 1:
        raise ValueError(f"field names of {length} bytes")
    starts = range(0, len(names), length)
    return [names[start : start + length].split(b"\0")[0].decode("latin-1") for start in starts]
