"""Files of torch.save, read without PyTorch and without running anything in them.

Since version 1.6 torch.save writes a zip archive of uncompressed members: NAME/data.pkl, the pickle
of the state dictionary, in which a tensor is a view of a storage, and NAME/data/KEY, the values of
each storage. Before, it wrote five pickles one behind the other (a number that marks the format,
the version, the system, the state dictionary, the list of the storages' keys) and then, for each
storage, the number of its values as int64 and the values.

Of a zip archive, only what torch.save writes is read: the directory at the end (PKWARE's APPNOTE,
4.3.12 and 4.3.16) and members as they are. Sizes are held against that of the file before they are
used.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from embedding_learning.torch_pickles import Storage, Tensor, read_pickle

ZIP_START = b"PK\x03\x04"
# The pickle of the number 0x1950a86a20f9469cfc6c.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_END = struct.Struct("<4s4xHHII2x")
_ENTRY = struct.Struct("<4s6xH4xIIIHHH8xI")
_LOCAL = struct.Struct("<4s22xHH")
_STORED = 0
_MOST_MEMBERS = 10_000
_LONGEST_DIRECTORY = 2**21  # bytes
_LEGACY_VERSION = 1001
_DAMAGED = "is cut off, damaged or not as torch.save writes weights"


class _Place(NamedTuple):
    """Where bytes are in the file."""

    offset: int
    length: int


class StateDictionary(NamedTuple):
    """A state dictionary's tensors by name, and where each storage's values begin in the file."""

    tensors: dict[str, Tensor]
    offsets: dict[str, int]


def read_state_dictionary(file: BinaryIO) -> StateDictionary:
    """What tensors there are. Reads each storage once, for its checksum, where it has one.

    Raises ValueError that says why the file is refused, in a part of a line that can be shown.
    """
    file.seek(0)
    is_zip = file.read(4) == ZIP_START
    found, places = _zip_archive(file) if is_zip else _legacy(file)
    tensors = _tensors(found)
    for storage in {tensor.storage for tensor in tensors.values()}:
        _require(storage.key in places and places[storage.key].length == _size(storage))
    return StateDictionary(tensors, {key: place.offset for key, place in places.items()})


def read_values(file: BinaryIO, state: StateDictionary, name: str) -> np.ndarray:
    """The values of one tensor."""
    tensor = state.tensors[name]
    dtype = np.dtype(tensor.storage.dtype).newbyteorder("<")
    file.seek(state.offsets[tensor.storage.key] + tensor.offset * dtype.itemsize)
    values = np.frombuffer(_read(file, tensor.span * dtype.itemsize), dtype)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides).copy()


def _tensors(found: Any) -> dict[str, Tensor]:
    """The state dictionary, or an error that tells what it is instead."""
    if not isinstance(found, dict):
        raise ValueError("holds no state dictionary; save model.state_dict()")
    for name, value in found.items():
        _require(bool(name) and name.isprintable())
        if not isinstance(value, Tensor):
            raise ValueError(
                f"holds {name}, which is no tensor: it is no state dictionary; save "
                "model.state_dict() alone"
            )
        if value.storage.dtype == "bfloat16":
            raise ValueError(f"holds {name} as bfloat16; save it as float32 first")
    return found


def _size(storage: Storage) -> int:
    return storage.size * np.dtype(storage.dtype).itemsize


# Zip archives


def _zip_archive(file: BinaryIO) -> tuple[Any, dict[str, _Place]]:
    """What data.pkl holds, and where each storage is."""
    members = _members(file)
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    _require(len(roots) == 1)
    root = roots[0]
    order = members.get(f"{root}byteorder", _Place(0, 0))
    if order.length and _bytes(file, order, most=10) != b"little":
        raise ValueError("was written on a machine of another byte order")
    program = _bytes(file, members[f"{root}data.pkl"], most=2**20)
    start = f"{root}data/"
    places = {name[len(start) :]: at for name, at in members.items() if name.startswith(start)}
    return read_pickle(io.BytesIO(program)), places


def _members(file: BinaryIO) -> dict[str, _Place]:
    """Where each member's content is, their checksums having been found right."""
    size = os.fstat(file.fileno()).st_size
    _require(size >= _END.size)
    file.seek(size - _END.size)
    mark, count, all_disks, length, offset = _END.unpack(_read(file, _END.size))
    _require(mark == b"PK\x05\x06" and count == all_disks <= _MOST_MEMBERS)
    _require(length <= _LONGEST_DIRECTORY and offset + length <= size)
    file.seek(offset)
    directory = io.BytesIO(_read(file, length))
    members: dict[str, _Place] = {}
    total = 0
    for _ in range(count):
        mark, method, checksum, packed, length, *lengths, local = _ENTRY.unpack(
            _read(directory, _ENTRY.size)
        )
        name = _read(directory, lengths[0]).decode(errors="replace")
        _read(directory, lengths[1] + lengths[2])
        _require(mark == b"PK\x01\x02" and name not in members)
        if method != _STORED:
            raise ValueError("is compressed, which torch.save does not do")
        # Members do not overlap, so no more is read below than the file holds.
        total += length
        _require(packed == length and total <= size)
        members[name] = _content(file, local, length, size)
        _require(_checksum(file, members[name]) == checksum)
    return members


def _content(file: BinaryIO, local: int, length: int, size: int) -> _Place:
    """Behind the header that a member has of its own."""
    _require(local + _LOCAL.size <= size)
    file.seek(local)
    mark, *lengths = _LOCAL.unpack(_read(file, _LOCAL.size))
    place = _Place(local + _LOCAL.size + sum(lengths), length)
    _require(mark == ZIP_START and place.offset + length <= size)
    return place


def _checksum(file: BinaryIO, place: _Place) -> int:
    file.seek(place.offset)
    checksum = 0
    for begin in range(0, place.length, 2**20):
        checksum = zlib.crc32(_read(file, min(2**20, place.length - begin)), checksum)
    return checksum


def _bytes(file: BinaryIO, place: _Place, most: int) -> bytes:
    _require(place.length <= most)
    file.seek(place.offset)
    return _read(file, place.length)


# Before version 1.6


def _legacy(file: BinaryIO) -> tuple[Any, dict[str, _Place]]:
    """What the state dictionary's pickle holds, and where each storage is."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    _require(_read(file, len(LEGACY_START)) == LEGACY_START)
    _require(read_pickle(file) == _LEGACY_VERSION)
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("was written on a machine of another byte order")
    found = read_pickle(file)
    storages = {tensor.storage.key: tensor.storage for tensor in _tensors(found).values()}
    keys = read_pickle(file)
    _require(isinstance(keys, list) and all(isinstance(key, str) for key in keys))
    places: dict[str, _Place] = {}
    for key in keys:
        _require(key in storages)
        (count,) = struct.unpack("<q", _read(file, 8))
        _require(count == storages[key].size)
        places[key] = _Place(file.tell(), _size(storages[key]))
        file.seek(places[key].length, os.SEEK_CUR)
        _require(file.tell() <= size)
    return found, places


def _read(file: BinaryIO, length: int) -> bytes:
    """The next bytes of the file. The caller has bounded their number."""
    data = file.read(length)
    _require(len(data) == length)
    return data


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError(_DAMAGED)
