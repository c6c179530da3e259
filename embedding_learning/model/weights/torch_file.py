"""Files of torch.save, read without PyTorch and without running anything in them.

Since version 1.6 torch.save writes a zip archive of uncompressed members: NAME/data.pkl, the pickle
of the state dictionary, in which a tensor is a view of a storage, and NAME/data/KEY, the values of
each storage. Before, it wrote five pickles one behind the other (a number that marks the format,
the version, the system, the state dictionary, the list of the storages' keys) and then, for each
storage, the number of its values as int64 and the values.

Only what torch.save writes of a zip archive is read: members as they are. Sizes are compared with
that of the file before they are used.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from embedding_learning.model.weights.torch_pickle import Storage, Tensor, read_pickle

ZIP_START = b"PK\x03\x04"
# The pickle of the number 0x1950a86a20f9469cfc6c.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# What zipfile raises for damage; RuntimeError for a member that is marked as encrypted.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, RuntimeError, UnicodeDecodeError, struct.error)
# The header of a member: here, the lengths of its name and of what follows the name.
_LOCAL = struct.Struct("<26xHH")
_MOST_MEMBERS = 10_000
# Bytes of the archive that are read at a time; its directory has to be shorter.
_LONGEST_READ = 2**21
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


class _Bounded:
    """A file for zipfile, which believes the lengths and the places that it finds in one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.tell, self.seekable = file.tell, file.seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        _require(whence != os.SEEK_SET or 0 <= offset <= self._size)
        return self._file.seek(offset, whence)

    def read(self, length: int = -1) -> bytes:
        limit = _LONGEST_READ + 1
        data = self._file.read(limit if length < 0 else min(length, limit))
        _require(len(data) < limit)
        return data


def _zip_archive(file: BinaryIO) -> tuple[Any, dict[str, _Place]]:
    """What data.pkl holds, and where each storage is."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            return _members(archive, file)
    except _ZIP_ERRORS as error:
        raise ValueError(_DAMAGED) from error


def _members(archive: zipfile.ZipFile, file: BinaryIO) -> tuple[Any, dict[str, _Place]]:
    members = {member.filename: member for member in archive.infolist()}
    _require(len(members) == len(archive.infolist()) <= _MOST_MEMBERS)
    left = os.fstat(file.fileno()).st_size
    for member in members.values():
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("is compressed, which torch.save does not do")
        _require(member.compress_size == member.file_size)
        # Members do not overlap, so no more is read than the file holds.
        left -= member.file_size
        _require(left >= 0)
        with archive.open(member) as content:
            while content.read(2**20):
                pass  # At its end zipfile compares the checksum.
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    _require(len(roots) == 1)
    root = roots[0]
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") not in (b"", b"little"):
        raise ValueError("was written on a machine of another byte order")
    program = archive.read(f"{root}data.pkl")
    start = f"{root}data/"
    places = {
        name[len(start) :]: _content(file, member)
        for name, member in members.items()
        if name.startswith(start)
    }
    return read_pickle(io.BytesIO(program)), places


def _content(file: BinaryIO, member: zipfile.ZipInfo) -> _Place:
    """Where a member's values begin: after the header that it has of its own."""
    file.seek(member.header_offset)
    lengths = _LOCAL.unpack(_read(file, _LOCAL.size))
    return _Place(member.header_offset + _LOCAL.size + sum(lengths), member.file_size)


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
