"""Reads files of torch.save without PyTorch, and runs nothing that is in them.

Since version 1.6, torch.save writes a zip archive of uncompressed members: NAME/data.pkl, the
pickle of the state dictionary, in which a tensor is a view of a storage, and NAME/data/KEY, the
values of each storage. Older versions wrote five pickles one after the other (a number that marks
the format, the version, the system, the state dictionary, the list of the storages' keys) and then,
for each storage, the number of its values as int64 and the values.

Of zip archives, only what torch.save writes is accepted: uncompressed members. Sizes are compared
with the size of the file before they are used.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from embedding_learning.model.weights.binary_reader import BinaryReader, require
from embedding_learning.model.weights.torch_pickle import Storage, Tensor, read_pickle

ZIP_START = b"PK\x03\x04"
# The pickle of the number 0x1950a86a20f9469cfc6c.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# What zipfile raises for a damaged file; RuntimeError for a member that is marked as encrypted.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, RuntimeError, UnicodeDecodeError, struct.error)
# A member's local header; read are the lengths of the name and of the extra field, which follow it.
_LOCAL_HEADER = struct.Struct("<26xHH")
_MOST_MEMBERS = 10_000
# Bytes of the archive that are read at once; its directory has to be shorter.
_LONGEST_READ = 2**21
_LEGACY_VERSION = 1001
_DAMAGED = "is cut off, damaged or not as torch.save writes weights"


class _ByteRange(NamedTuple):
    """A part of the file."""

    offset: int
    length: int


class StateDictionary(NamedTuple):
    """A state dictionary's tensors by name, and where each storage's values begin in the file."""

    tensors: dict[str, Tensor]
    offsets: dict[str, int]


def read_state_dictionary(file: BinaryIO) -> StateDictionary:
    """Returns the tensors in the file, without values.

    Reads each storage once to compare its checksum, if the file has one.

    Raises ValueError with the reason if the file is refused; the reason fits into a line of text.
    """
    reader = BinaryReader(file, _DAMAGED)
    file.seek(0)
    is_zip = file.read(4) == ZIP_START
    state, ranges = _read_zip_archive(file) if is_zip else _read_legacy(reader)
    tensors = _check_tensors(state)
    for storage in {tensor.storage for tensor in tensors.values()}:
        reader.require(storage.key in ranges)
        reader.require(ranges[storage.key].length == _count_bytes(storage))
    return StateDictionary(tensors, {key: part.offset for key, part in ranges.items()})


def read_tensor(file: BinaryIO, state: StateDictionary, name: str) -> np.ndarray:
    """Returns the values of one tensor."""
    tensor = state.tensors[name]
    dtype = np.dtype(tensor.storage.dtype).newbyteorder("<")
    reader = BinaryReader(file, _DAMAGED)
    file.seek(state.offsets[tensor.storage.key] + tensor.offset * dtype.itemsize)
    values = np.frombuffer(reader.read(tensor.span * dtype.itemsize), dtype)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides).copy()


def _check_tensors(state: Any) -> dict[str, Tensor]:
    """Returns the state dictionary. Raises ValueError that says what the file holds instead."""
    if not isinstance(state, dict):
        raise ValueError("holds no state dictionary; save model.state_dict()")
    for name, value in state.items():
        require(bool(name) and name.isprintable(), _DAMAGED)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"holds {name}, which is no tensor: it is no state dictionary; save "
                "model.state_dict() alone"
            )
        if value.storage.dtype == "bfloat16":
            raise ValueError(f"holds {name} as bfloat16; save it as float32 first")
    return state


def _count_bytes(storage: Storage) -> int:
    return storage.size * np.dtype(storage.dtype).itemsize


# Zip archives


class _BoundedFile:
    """A file for zipfile, which does not check the lengths and offsets that it reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.tell, self.seekable = file.tell, file.seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        require(whence != os.SEEK_SET or 0 <= offset <= self._size, _DAMAGED)
        return self._file.seek(offset, whence)

    def read(self, length: int = -1) -> bytes:
        limit = _LONGEST_READ + 1
        data = self._file.read(limit if length < 0 else min(length, limit))
        require(len(data) < limit, _DAMAGED)
        return data


def _read_zip_archive(file: BinaryIO) -> tuple[Any, dict[str, _ByteRange]]:
    """Returns the object in data.pkl, and where each storage is."""
    try:
        with zipfile.ZipFile(_BoundedFile(file)) as archive:
            return _read_members(archive, BinaryReader(file, _DAMAGED))
    except _ZIP_ERRORS as error:
        raise ValueError(_DAMAGED) from error


def _read_members(
    archive: zipfile.ZipFile, reader: BinaryReader
) -> tuple[Any, dict[str, _ByteRange]]:
    members = {member.filename: member for member in archive.infolist()}
    reader.require(len(members) == len(archive.infolist()) <= _MOST_MEMBERS)
    left = reader.size
    for member in members.values():
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("is compressed, which torch.save does not do")
        reader.require(member.compress_size == member.file_size)
        # Members do not overlap, so no more is read than the file holds.
        left -= member.file_size
        reader.require(left >= 0)
        with archive.open(member) as content:
            while content.read(2**20):
                pass  # At its end zipfile compares the checksum.
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    reader.require(len(roots) == 1)
    root = roots[0]
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") not in (b"", b"little"):
        raise ValueError("was written on a machine of another byte order")
    program = archive.read(f"{root}data.pkl")
    start = f"{root}data/"
    ranges = {
        name[len(start) :]: _find_content(reader, member)
        for name, member in members.items()
        if name.startswith(start)
    }
    return read_pickle(io.BytesIO(program)), ranges


def _find_content(reader: BinaryReader, member: zipfile.ZipInfo) -> _ByteRange:
    """Returns where a member's data is: after its local header."""
    reader.file.seek(member.header_offset)
    lengths = _LOCAL_HEADER.unpack(reader.read(_LOCAL_HEADER.size))
    return _ByteRange(member.header_offset + _LOCAL_HEADER.size + sum(lengths), member.file_size)


# Before version 1.6


def _read_legacy(reader: BinaryReader) -> tuple[Any, dict[str, _ByteRange]]:
    """Returns the object in the state dictionary's pickle, and where each storage is."""
    file = reader.file
    file.seek(0)
    reader.require(reader.read(len(LEGACY_START)) == LEGACY_START)
    reader.require(read_pickle(file) == _LEGACY_VERSION)
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("was written on a machine of another byte order")
    state = read_pickle(file)
    storages = {tensor.storage.key: tensor.storage for tensor in _check_tensors(state).values()}
    keys = read_pickle(file)
    reader.require(isinstance(keys, list) and all(isinstance(key, str) for key in keys))
    ranges: dict[str, _ByteRange] = {}
    for key in keys:
        reader.require(key in storages)
        reader.require(reader.read_integers("q") == (storages[key].size,))
        ranges[key] = _ByteRange(file.tell(), _count_bytes(storages[key]))
        reader.skip(ranges[key].length)
    return state, ranges
