"""Writes files as torch.save does, from the description of the formats alone."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4}}


class Global(NamedTuple):
    """A function or type by name."""

    module: str
    name: str


class Call(NamedTuple):
    """A function's result."""

    function: Global
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    """A persistent id: an object that is stored outside the pickle."""

    persistent_id: tuple[Any, ...]


ORDERED = Global("collections", "OrderedDict")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def pickled(value: Any) -> bytes:
    """Returns a value as protocol 2 writes it, without references to earlier values."""
    return b"\x80\x02" + _written(value) + b"."


def _written(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        length = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return _written(value.function) + _written(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return _written(value.persistent_id) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_written, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_written, value)) + b"e"
    assert isinstance(value, dict)
    return b"}" + items(value)


def items(value: Mapping[str, Any]) -> bytes:
    """Returns instructions that put items into the dictionary on the stack."""
    return b"(" + b"".join(_written(part) for pair in value.items() for part in pair) + b"u"


def storage(key: str, array: np.ndarray, *more: Any) -> Persistent:
    """Returns the id of the array's values; `more` is only in the old format."""
    kind = Global("torch", _STORAGES[array.dtype.name])
    return Persistent(("storage", kind, key, "cpu", array.size, *more))


def tensor(stored: Persistent, array: np.ndarray, offset: int = 0) -> Call:
    """A view of a storage, with the array's shape and strides."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Call(REBUILD, (stored, offset, array.shape, strides, False, Call(ORDERED, ())))


def state_program(arrays: Mapping[str, np.ndarray], *more: Any) -> bytes:
    """The pickle of a state dictionary, with the versions of layers that PyTorch adds."""
    tensors = {
        name: tensor(storage(str(key), array, *more), array)
        for key, (name, array) in enumerate(arrays.items())
    }
    versions = {"_metadata": {"": {"version": 1}}}
    return b"\x80\x02" + _written(Call(ORDERED, ())) + items(tensors) + _written(versions) + b"b."


def contents(arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    """Each storage's, in the order of memory."""
    return [array.ravel("K").tobytes() for array in arrays.values()]


def write_zip(
    path: Path, program: bytes, storages: list[bytes], root: str = "archive", **more: bytes
) -> None:
    """Writes the format of PyTorch 1.6 and later."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", program)
        for name, content in {"byteorder": b"little", **more}.items():
            archive.writestr(f"{root}/{name}", content)
        for key, content in enumerate(storages):
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", b"3\n")


def write_pth(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    write_zip(path, state_program(arrays), contents(arrays))


def old_parts(arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    """The pieces of a file as before PyTorch 1.6."""
    keys = [str(key) for key in range(len(arrays))]
    start = [pickled(MAGIC), pickled(VERSION), pickled(SYSTEM)]
    values = [
        struct.pack("<q", array.size) + content
        for array, content in zip(arrays.values(), contents(arrays))
    ]
    return [*start, state_program(arrays, None), pickled(keys), *values]


def write_old_pth(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.write_bytes(b"".join(old_parts(arrays)))
