"""Gluon parameter files: written atomically, and read as files from an untrusted source.

The format is that of MXNet 1.9.1 (src/ndarray/ndarray.cc), in which Gluon has saved its networks
since 2017, little-endian and without gaps:

    uint64 0x112, uint64 0, uint64 count, then each array, uint64 count, then each name:
    uint64 length and UTF-8.

    An array is its version (uint32), its storage (int32; only in versions 2 and 3), the number of
    its dimensions (int32), the dimensions (int64), the device it was on (two int32), the code of
    its type (int32) and its values. Before version 1, the number of dimensions took the place of
    the version, and the dimensions were uint32.

MXNet's own reader checks none of these numbers, so a damaged file can end the process. Here each
is compared with the size of the file before it is used. MXNet ignores everything after the names.
`save_parameters` can put a description of the network there: a marker line, then JSON up to the
end of the file, {"description": {...}, "sha256": "..."}. The SHA-256 is that of all bytes before
it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from typing import Any, BinaryIO, NamedTuple

import mxnet as mx
import numpy as np

from embedding_learning.errors import UsageError
from embedding_learning.model.weights.binary_reader import (
    LONGEST_NAME,
    MOST_DIMENSIONS,
    BinaryReader,
    open_untrusted,
    require,
)
from embedding_learning.runtime.atomic_files import atomic_write

# The first bytes of a file.
PARAMS_START = struct.pack("<QQ", 0x112, 0)
_VERSION_1, _VERSION_2 = 0xF993FAC8, 0xF993FAC9
_VERSION_3 = 0xF993FACA  # numpy's shapes: only here can an array have no dimension
_DENSE = 0  # the storage of ordinary arrays
_CPU = 1  # the device type
# In the order of their codes.
_DTYPES = (np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64, np.bool_)
_DTYPE_CODES = {np.dtype(dtype): code for code, dtype in enumerate(_DTYPES)}

# Limits far above any network. The largest backbones have some 1,500 arrays; each needs memory in
# addition to its values. MXNet has at most 2**31 - 1 values in an array.
_MOST_ARRAYS = 10_000
_MOST_VALUES = 2**31 - 1

_MARKER = b"\nembedding_learning description of the network\n"
_END = b'"}\n'  # after the SHA-256
_LONGEST_DESCRIPTION = 2**20  # bytes
# Each bracket may be one level of the parser's recursion; Python allows a thousand.
_MOST_BRACKETS = 500

_OTHER_NETWORK = "it belongs to a network of other flags (--model, --embed-dim, --feat-dim)"
_FAULT = "a parameter file does not hold this"


class _ArrayInFile(NamedTuple):
    """An array in the file: where its values begin and how many bytes they have."""

    dtype: type[np.generic]
    shape: tuple[int, ...]
    offset: int
    length: int


def save_parameters(
    net: mx.gluon.Block, path: str, description: dict[str, Any] | None = None
) -> None:
    """Writes the network's parameters atomically; the former file stays until the new is complete.

    Parameters
    ----------
    net : Block
        Its arrays get the names that the original example's network has, which loads the file too;
        for that, float16 becomes float32.
    path : str
    description : dict, optional
        Everything that is needed to build the network again; JSON must be able to hold it.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If the description could not be read back. In both cases the former file is untouched, and
        no other file is left next to it.
    """
    # A forward pass may still change the running statistics after its output is complete: see
    # learner_state.
    mx.nd.waitall()
    parameters = net._collect_params_with_prefix()
    if description is not None:
        _parse_description(_format_description(description, "0" * 64), "0" * 64)
    with atomic_write(path) as partial, open(partial, "w+b") as file:
        file.write(PARAMS_START + struct.pack("<Q", len(parameters)))
        for parameter in parameters.values():
            _write_array(file, _to_numpy(parameter))
        file.write(struct.pack("<Q", len(parameters)))
        for name in parameters:
            file.write(struct.pack("<Q", len(name.encode())) + name.encode())
        if description is not None:
            file.write(_MARKER + _format_description(description, "")[: -len(_END)])
            written = BinaryReader(file, _FAULT)
            file.write(_sha256(written, written.size).encode() + _END)


def read_parameters(path: str, flag: str) -> dict[str, mx.nd.NDArray]:
    """Returns the arrays of a Gluon parameter file by name, on the CPU.

    The prefixes arg: and aux: of the names in exported files are removed. At its peak this takes
    as much memory as the file and its largest array together.

    Raises UsageError that names the flag if the file is missing, has another format, or its
    checksum is wrong.
    """
    with open_untrusted(path, flag) as file:
        reader = BinaryReader(file, _FAULT)
        arrays = _read_index(reader)
        _read_description(reader)
        return {name: _load_array(reader, array) for name, array in arrays.items()}


def read_names(path: str, flag: str) -> set[str]:
    """Returns the names of the arrays. Raises UsageError as `read_parameters` does."""
    with open_untrusted(path, flag) as file:
        return set(_read_index(BinaryReader(file, _FAULT)))


def read_description(path: str, flag: str) -> dict[str, Any] | None:
    """Returns the description that was saved with the network; None if the file has none.

    It may come from an untrusted source: the caller has to check that a key exists and what type
    its value has.

    Raises UsageError as `read_parameters` does.
    """
    with open_untrusted(path, flag) as file:
        reader = BinaryReader(file, _FAULT)
        _read_index(reader)
        return _read_description(reader)


def set_parameters(
    parameters: dict[str, mx.gluon.Parameter],
    arrays: dict[str, mx.nd.NDArray],
    source: str,
    devices: list[mx.Context],
) -> None:
    """Sets every parameter to the array of its name, on all devices.

    Raises UsageError that names the first parameter without a finite array of its shape, or the
    first array without a parameter; then nothing is changed. The message begins with `source`, the
    flag and the file.
    """
    surplus = arrays.keys() - parameters.keys()
    if surplus:
        raise UsageError(f"{source}: has {min(surplus)}, which the network lacks; {_OTHER_NETWORK}")
    for name, parameter in parameters.items():
        if name not in arrays:
            raise UsageError(f"{source}: has no {name}; {_OTHER_NETWORK}")
        # A size of 0 is not known before the first batch.
        needed, shape = parameter.shape, arrays[name].shape
        fits = len(needed) == len(shape) and all(n in (0, size) for n, size in zip(needed, shape))
        if not fits:
            shown = re.sub(r"\b0\b", "?", str(needed))
            raise UsageError(
                f"{source}: {name} has the shape {shape}, the network needs {shown}; "
                f"{_OTHER_NETWORK}"
            )
        # A float64 may be too large for the parameter's type.
        if not np.isfinite(arrays[name].astype(parameter.dtype, copy=False).asnumpy()).all():
            raise UsageError(f"{source}: {name} holds values that are not finite")
    for name, parameter in parameters.items():
        parameter.shape = arrays[name].shape
        parameter.initialize(mx.init.Zero(), ctx=devices, force_reinit=True)
        parameter.set_data(arrays[name].astype(parameter.dtype))


def _to_numpy(parameter: mx.gluon.Parameter) -> np.ndarray:
    """Returns the parameter's values, float16 as float32.

    A learned parameter is the same on every device; running statistics are averaged over them.
    """
    null = parameter.grad_req == "null"
    values = (parameter._reduce() if null else parameter.list_data()[0]).asnumpy()
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _write_array(file: BinaryIO, values: np.ndarray) -> None:
    file.write(struct.pack("<Iii", _VERSION_2, _DENSE, values.ndim))
    file.write(struct.pack(f"<{values.ndim}q", *values.shape))
    file.write(struct.pack("<iii", _CPU, 0, _DTYPE_CODES[values.dtype]))
    file.write(values.data)


def _read_index(reader: BinaryReader) -> dict[str, _ArrayInFile]:
    """Returns where each named array is. Ends after the names."""
    reader.require(reader.read(len(PARAMS_START)) == PARAMS_START)
    (count,) = reader.read_integers("Q")
    reader.require(1 <= count <= _MOST_ARRAYS)
    arrays = [_skip_array(reader) for _ in range(count)]
    reader.require(reader.read_integers("Q") == (count,))
    named = {_read_name(reader): array for array in arrays}
    reader.require(len(named) == count)
    return named


def _skip_array(reader: BinaryReader) -> _ArrayInFile:
    """Returns where the array is that begins here. Ends after it."""
    (version,) = reader.read_integers("I")
    if version in (_VERSION_2, _VERSION_3):
        reader.require(reader.read_integers("i") == (_DENSE,))
    dimensions, size = version, "I"
    if version in (_VERSION_1, _VERSION_2, _VERSION_3):
        (dimensions,), size = reader.read_integers("i"), "q"
    # An array without values has no dimension before version 3, and a size of 0 since then.
    reader.require((version != _VERSION_3) <= dimensions <= MOST_DIMENSIONS)
    shape = reader.read_integers(f"{dimensions}{size}")
    _, _, code = reader.read_integers("iii")
    reader.require(min(shape, default=1) >= 1 and math.prod(shape) <= _MOST_VALUES)
    reader.require(0 <= code < len(_DTYPES))
    length = math.prod(shape) * np.dtype(_DTYPES[code]).itemsize
    array = _ArrayInFile(_DTYPES[code], shape, reader.file.tell(), length)
    reader.skip(length)
    return array


def _read_name(reader: BinaryReader) -> str:
    """Returns the name that begins here; a message can show it. Ends after it."""
    (length,) = reader.read_integers("Q")
    reader.require(length <= LONGEST_NAME)
    name = reader.read(length).decode()
    if name.startswith(("arg:", "aux:")):
        name = name[4:]
    reader.require(bool(name) and name.isprintable())
    return name


def _load_array(reader: BinaryReader, array: _ArrayInFile) -> mx.nd.NDArray:
    reader.file.seek(array.offset)
    values = np.frombuffer(reader.read(array.length), array.dtype).reshape(array.shape)
    return mx.nd.array(values, ctx=mx.cpu(), dtype=array.dtype)


def _read_description(reader: BinaryReader) -> dict[str, Any] | None:
    """Returns the description after the names, checked; None if the file ends there."""
    left = reader.count_left()
    if not left:
        return None
    reader.require(left <= _LONGEST_DESCRIPTION and reader.read(len(_MARKER)) == _MARKER)
    line = reader.read(reader.count_left())
    return _parse_description(line, _sha256(reader, reader.size - 64 - len(_END)))


def _format_description(description: dict[str, Any], digest: str) -> bytes:
    """Returns the description and the SHA-256 of all bytes before it, as the file has them."""
    text = json.dumps({"description": description, "sha256": digest}, allow_nan=False)
    return f"{text}\n".encode()


def _parse_description(line: bytes, digest: str) -> dict[str, Any]:
    """Returns the description in the line. Raises ValueError unless both are as written."""
    require(len(_MARKER) + len(line) <= _LONGEST_DESCRIPTION, _FAULT)
    require(line.count(b"[") + line.count(b"{") <= _MOST_BRACKETS, _FAULT)
    try:
        description = json.loads(line)["description"]
        # Formatted again it is the same: no key occurs twice, and no number is infinite.
        is_same = isinstance(description, dict) and _format_description(description, digest) == line
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(_FAULT) from error
    require(is_same, _FAULT)
    return description


def _sha256(reader: BinaryReader, length: int) -> str:
    """Returns the SHA-256 of the file's first bytes. Ends after them."""
    total = hashlib.sha256()
    reader.file.seek(0)
    for begin in range(0, length, 2**20):
        total.update(reader.read(min(2**20, length - begin)))
    return total.hexdigest()
