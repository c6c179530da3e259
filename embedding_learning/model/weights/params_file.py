"""Files of named parameters: written whole or not at all, read without trust.

The layout is that of MXNet 1.9.1 (src/ndarray/ndarray.cc), in which Gluon has saved its networks
since 2017, little-endian and without gaps:

    uint64 0x112, uint64 0, uint64 count, then each array, uint64 count, then each name:
    uint64 length and UTF-8.

    An array is its version (uint32), its storage (int32; only in versions 2 and 3), the number of
    its dimensions (int32), the dimensions (int64), the device it was on (two int32), the code of
    its type (int32) and its values. Before version 1 the number of dimensions stood in place of
    the version, and the dimensions were uint32.

MXNet's own reader believes all of these numbers, so a damaged file can end the process. Here each
is held against the size of the file before it is used. MXNet passes over what follows the names;
`save_parameters` may put a description of the network there, which begins with a line of its own
and goes on to the end of the file as JSON: {"description": {...}, "sha256": "..."}, the sum being
that of all bytes before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import mxnet as mx
import numpy as np

from embedding_learning.errors import UsageError
from embedding_learning.runtime.atomic_files import atomic_write

_START = struct.pack("<QQ", 0x112, 0)
_VERSION_1, _VERSION_2 = 0xF993FAC8, 0xF993FAC9
_VERSION_3 = 0xF993FACA  # numpy's shapes: only here can an array have no dimension
_DENSE = 0  # the storage of ordinary arrays
_CPU = 1  # the device type
# By code.
_DTYPES = (np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64, np.bool_)
_DTYPE_CODES = {np.dtype(dtype): code for code, dtype in enumerate(_DTYPES)}

# What no network comes near. The largest backbones have some 1,500 arrays; each costs memory beside
# its values. numpy 1 has at most 32 dimensions, MXNet at most 2**31 - 1 values in an array.
_MOST_ARRAYS = 10_000
_MOST_DIMENSIONS = 32
_MOST_VALUES = 2**31 - 1
_LONGEST_NAME = 1000  # bytes

_MARKER = b"\nembedding_learning description of the network\n"
_END = b'"}\n'  # behind the sum
_LONGEST_DESCRIPTION = 2**20  # bytes
# Each bracket may be a level that the parser descends; Python ends at a thousand.
_MOST_BRACKETS = 500

_OTHER = "it belongs to a network of other flags (--model, --embed-dim, --feat-dim)"


class _Stored(NamedTuple):
    """An array in the file: where its values begin and how many bytes they are."""

    dtype: type[np.generic]
    shape: tuple[int, ...]
    offset: int
    length: int


def save_parameters(
    net: mx.gluon.Block, path: str, description: dict[str, Any] | None = None
) -> None:
    """Writes the network's parameters; the file's former content stays until the new is complete.

    The names in the file are those of the original example's network, which loads it too; for that
    float16 becomes float32. The description, of what JSON can hold, says what is needed to build
    the network again.

    Raises OSError if the file cannot be written, ValueError if the description cannot be read
    back; the former file is untouched then, and nothing is left beside it.
    """
    # What a forward pass does to its weights goes on after its output is there: see learner_state.
    mx.nd.waitall()
    parameters = net._collect_params_with_prefix()
    if description is not None:
        _parsed(_described(description, "0" * 64), "0" * 64)
    with atomic_write(path) as partial, open(partial, "w+b") as file:
        file.write(_START + struct.pack("<Q", len(parameters)))
        for parameter in parameters.values():
            _write_array(file, _values(parameter))
        file.write(struct.pack("<Q", len(parameters)))
        for name in parameters:
            file.write(struct.pack("<Q", len(name.encode())) + name.encode())
        if description is not None:
            file.write(_MARKER + _described(description, "")[: -len(_END)])
            file.write(_sha256(file, file.tell()).encode() + _END)


def read_parameters(path: str, flag: str) -> dict[str, mx.nd.NDArray]:
    """The named arrays of a Gluon parameter file, on the CPU.

    The arg: and aux: before the names in exported files are left out. At its peak this takes the
    size of the file and that of its largest array again.

    Raises UsageError that names the flag if the file is missing, is no such file, or its checksum
    is wrong.
    """
    with open_file(path, flag) as file:
        arrays = _arrays(file)
        _description(file)
        return {name: _loaded(file, array) for name, array in arrays.items()}


def read_description(path: str, flag: str) -> dict[str, Any] | None:
    """What was saved as the network's description; None if the file has none.

    It may come from a stranger: that a key is there, and of what type its value is, is for the
    caller to check.

    Raises UsageError as `read_parameters` does.
    """
    with open_file(path, flag) as file:
        _arrays(file)
        return _description(file)


def set_parameters(
    parameters: dict[str, mx.gluon.Parameter],
    arrays: dict[str, mx.nd.NDArray],
    source: str,
    devices: list[mx.Context],
) -> None:
    """Gives every parameter the array of its name, on all devices.

    Raises UsageError that names the first parameter without a finite array of its shape, or the
    first array without a parameter, and changes nothing then. `source` (flag and file) begins the
    message.
    """
    surplus = arrays.keys() - parameters.keys()
    if surplus:
        raise UsageError(f"{source}: has {min(surplus)}, which the network lacks; {_OTHER}")
    for name, parameter in parameters.items():
        if name not in arrays:
            raise UsageError(f"{source}: has no {name}; {_OTHER}")
        # A size of 0 is not known before the first batch.
        wanted, found = parameter.shape, arrays[name].shape
        fits = len(wanted) == len(found) and all(w in (0, f) for w, f in zip(wanted, found))
        if not fits:
            needed = re.sub(r"\b0\b", "?", str(wanted))
            raise UsageError(
                f"{source}: {name} has the shape {found}, the network needs {needed}; {_OTHER}"
            )
        # A float64 may be too large for the parameter's type.
        if not np.isfinite(arrays[name].astype(parameter.dtype, copy=False).asnumpy()).all():
            raise UsageError(f"{source}: {name} holds values that are not finite")
    for name, parameter in parameters.items():
        parameter.shape = arrays[name].shape
        parameter.initialize(mx.init.Zero(), ctx=devices, force_reinit=True)
        parameter.set_data(arrays[name].astype(parameter.dtype))


def _values(parameter: mx.gluon.Parameter) -> np.ndarray:
    """What is learned is the same on every device; statistics of batches are averaged."""
    null = parameter.grad_req == "null"
    values = (parameter._reduce() if null else parameter.list_data()[0]).asnumpy()
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _write_array(file: BinaryIO, values: np.ndarray) -> None:
    file.write(struct.pack("<Iii", _VERSION_2, _DENSE, values.ndim))
    file.write(struct.pack(f"<{values.ndim}q", *values.shape))
    file.write(struct.pack("<iii", _CPU, 0, _DTYPE_CODES[values.dtype]))
    file.write(values.data)


@contextmanager
def open_file(path: str, flag: str, kind: str = "Gluon parameter file") -> Iterator[BinaryIO]:
    """The file, for reading; what is wrong with it becomes a UsageError."""
    try:
        # Opening a pipe would wait for a writer.
        if not os.path.isfile(path):
            raise FileNotFoundError(path)
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UsageError(f"{flag} {path}: no such file, or it cannot be read") from error
    except ValueError as error:
        raise UsageError(f"{flag} {path}: is damaged or not a {kind}") from error


def _arrays(file: BinaryIO) -> dict[str, _Stored]:
    """Where each named array is. Leaves the file at the end of the names."""
    _require(_read(file, len(_START)) == _START)
    (count,) = _integers(file, "Q")
    _require(1 <= count <= _MOST_ARRAYS)
    arrays = [_passed_over(file) for _ in range(count)]
    _require(_integers(file, "Q") == (count,))
    named = {_name(file): array for array in arrays}
    _require(len(named) == count)
    return named


def _passed_over(file: BinaryIO) -> _Stored:
    """The array that begins here. Leaves the file behind it."""
    (version,) = _integers(file, "I")
    if version in (_VERSION_2, _VERSION_3):
        _require(_integers(file, "i") == (_DENSE,))
    dimensions, size = version, "I"
    if version in (_VERSION_1, _VERSION_2, _VERSION_3):
        (dimensions,), size = _integers(file, "i"), "q"
    # Before version 3 no dimension, and ever since a size of 0, means an array without values.
    _require((version != _VERSION_3) <= dimensions <= _MOST_DIMENSIONS)
    shape = _integers(file, f"{dimensions}{size}")
    _, _, code = _integers(file, "iii")
    _require(min(shape, default=1) >= 1 and math.prod(shape) <= _MOST_VALUES)
    _require(0 <= code < len(_DTYPES))
    length = math.prod(shape) * np.dtype(_DTYPES[code]).itemsize
    _require(length <= _left(file))
    array = _Stored(_DTYPES[code], shape, file.tell(), length)
    file.seek(length, os.SEEK_CUR)
    return array


def _name(file: BinaryIO) -> str:
    """The name that begins here, fit to be shown in a message. Leaves the file behind it."""
    (length,) = _integers(file, "Q")
    _require(length <= _LONGEST_NAME)
    name = _read(file, length).decode()
    if name.startswith(("arg:", "aux:")):
        name = name[4:]
    _require(bool(name) and name.isprintable())
    return name


def _loaded(file: BinaryIO, array: _Stored) -> mx.nd.NDArray:
    file.seek(array.offset)
    values = np.frombuffer(_read(file, array.length), array.dtype).reshape(array.shape)
    return mx.nd.array(values, ctx=mx.cpu(), dtype=array.dtype)


def _description(file: BinaryIO) -> dict[str, Any] | None:
    """What follows the names, checked; None if nothing does."""
    if not _left(file):
        return None
    _require(_left(file) <= _LONGEST_DESCRIPTION and _read(file, len(_MARKER)) == _MARKER)
    line = _read(file, _left(file))
    return _parsed(line, _sha256(file, file.tell() - 64 - len(_END)))


def _described(description: dict[str, Any], digest: str) -> bytes:
    """The description and the sum of all bytes before that sum, as they stand in the file."""
    text = json.dumps({"description": description, "sha256": digest}, allow_nan=False)
    return f"{text}\n".encode()


def _parsed(line: bytes, digest: str) -> dict[str, Any]:
    """The description in the line. Raises ValueError if it or its sum is not as written."""
    _require(len(_MARKER) + len(line) <= _LONGEST_DESCRIPTION)
    _require(line.count(b"[") + line.count(b"{") <= _MOST_BRACKETS)
    try:
        description = json.loads(line)["description"]
        # Written again it is the same: so no key is there twice and no number is infinite.
        _require(isinstance(description, dict) and _described(description, digest) == line)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("the description is not as it was written") from error
    return description


def _sha256(file: BinaryIO, length: int) -> str:
    """Of the first bytes of the file. Leaves it behind them."""
    total = hashlib.sha256()
    file.seek(0)
    for begin in range(0, length, 2**20):
        total.update(_read(file, min(2**20, length - begin)))
    return total.hexdigest()


def _integers(file: BinaryIO, layout: str) -> tuple[int, ...]:
    """The next integers of the file, little-endian."""
    return struct.unpack(f"<{layout}", _read(file, struct.calcsize(f"<{layout}")))


def _read(file: BinaryIO, length: int) -> bytes:
    """The next bytes of the file. The caller has bounded their number."""
    data = file.read(length)
    _require(len(data) == length)
    return data


def _left(file: BinaryIO) -> int:
    """Bytes from here to the end of the file."""
    return os.fstat(file.fileno()).st_size - file.tell()


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("a parameter file does not hold this")
