"""Changes that know a file format: they keep its checksums right, or claim other sizes."""

from __future__ import annotations

import copy
import hashlib
import io
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from embedding_learning.training import checkpoint_file
from tests.fuzzing.mutations import mutate_bytes

_SIDES = (0, 1, 7, 4000, 11_000, 30_000, 65_000, 65_535, 2**31 - 1, 2**32 - 1)
_PNG = b"\x89PNG\r\n\x1a\n"
_MEGABYTE = 2**20
_NAMES = ("", "0", "-1", "99999", "../../x", "two\nlines", "\x1b[31m", "\0", "é" * 3000)
_VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"0": 0}, [0] * 1000),
    *("\ud800", *_NAMES),
)


def mutate_image(rng: Random, content: bytes) -> bytes:
    """Changes a PNG and its checksums, or the sizes in a JPEG or BMP; or else any bytes."""
    if content.startswith(_PNG):
        return _png(rng, content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(rng, content)
    if content.startswith(b"BM"):
        return content[:18] + struct.pack("<II", _side(rng), _side(rng)) + content[26:]
    return mutate_bytes(rng, content)


def _side(rng: Random) -> int:
    return rng.choice(_SIDES)


def _png(rng: Random, content: bytes) -> bytes:
    """Changes one chunk, or the image's size in the first one."""
    chunks = []
    at = len(_PNG)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(chunks))
    name, data = chunks[number]
    if name == b"IHDR" and rng.random() < 0.8:
        data = struct.pack(">II", _side(rng), _side(rng)) + data[8:]
    elif name == b"IDAT" and rng.random() < 0.3:
        data = compress_zeros(rng.choice((1, 40)) * _MEGABYTE)
    elif name == b"IDAT":
        data = zlib.compress(mutate_bytes(rng, zlib.decompress(data)))
    else:
        data = mutate_bytes(rng, data)
    chunks[number] = name, data
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return _PNG + b"".join(parts)


def _jpeg(rng: Random, content: bytes) -> bytes:
    """Changes the height and width, or another byte, after the marker of a frame."""
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    if rng.random() < 0.5:
        new = struct.pack(">HH", _side(rng) & 0xFFFF, _side(rng) & 0xFFFF)
        return content[: frame + 5] + new + content[frame + 9 :]
    at = frame + rng.randint(2, 18)
    return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]


def compress_zeros(count: int) -> bytes:
    """Returns a zlib stream of so many zero bytes, a multiple of a megabyte, in little time."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(_MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    blocks = b"\x78\xda" + block * (count // _MEGABYTE) + b"\x03\x00"
    return blocks + struct.pack(">I", (count % 65521) << 16 | 1)  # the checksum of zeros


def mutate_mat(rng: Random, content: bytes) -> bytes:
    """Changes an uncompressed MATLAB file and compresses it, or makes it claim too large sizes."""
    header, draw = content[:128], rng.random()
    end = 128 + 8 + struct.unpack_from("<I", content, 132)[0]
    first, others = content[128:end], content[end:]
    if draw < 0.5:
        new = bytearray(first)
        new[rng.randrange(len(new))] = rng.randrange(256)
        return header + _compressed(bytes(new)) + others
    if draw < 0.7:
        return header + _compressed(mutate_bytes(rng, first)) + others
    if draw < 0.8:
        stream = compress_zeros(rng.choice((64, 2048)) * _MEGABYTE)
        return header + struct.pack("<II", 15, len(stream)) + stream
    if draw < 0.9:
        return header + _compressed(_nested(rng))
    dimensions = struct.pack("<i", 2**31 - 1) * rng.choice((33, 300_000))
    flags = struct.pack("<IIII", 6, 8, rng.choice((1, 2, 4, 6)), 0)
    matrix = flags + struct.pack("<II", 5, len(dimensions)) + dimensions + bytes(8)
    return header + _compressed(struct.pack("<II", 14, len(matrix)) + matrix)


def _compressed(body: bytes) -> bytes:
    stream = zlib.compress(body)
    return struct.pack("<II", 15, len(stream)) + stream


def _nested(rng: Random) -> bytes:
    """Returns a row of cell arrays, each of which claims that the next ones are its content."""
    cells = rng.randint(2, 9)
    content = struct.pack("<IIII", 6, 8, 1, 0) + struct.pack("<IIii", 5, 8, 1, cells)
    content += struct.pack("<II", 1, 0)
    cell, empty = struct.pack("<II", 14, len(content)) + content, struct.pack("<II", 14, 0)
    return cell * rng.choice((50, 1000)) + empty * 1000


def mutate_params(rng: Random, content: bytes) -> bytes:
    """Changes a file that has a description and its checksum; or else any bytes."""
    start, end = content[:-67], content[-3:]
    if end != b'"}\n':
        return mutate_bytes(rng, content)
    # Anywhere, or in the description only.
    at = rng.choice((0, content.find(b"description of the network")))
    start = start[:at] + mutate_bytes(rng, start[at:])
    return start + hashlib.sha256(start).hexdigest().encode() + end


def mutate_weights(rng: Random, content: bytes) -> bytes:
    """Changes a member of an archive, mostly its pickle, and its checksum; or else any bytes."""
    if not content.startswith(b"PK"):
        return mutate_bytes(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(["archive/data.pkl", *members])
    members[name] = mutate_bytes(rng, members[name])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return packed.getvalue()


def mutate_checkpoint(rng: Random, content: bytes) -> bytes:
    """Changes arrays and values of a checkpoint; its checksum is right."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint"
        file.write_bytes(content)
        saved = checkpoint_file.read(file)
        arrays, state = dict(saved.arrays), saved.state
        for _ in range(rng.choice((1, 1, 2, 5))):
            if rng.random() < 0.3:
                _change_arrays(rng, arrays)
            else:
                _change_value(rng, state)
        checkpoint_file.write(file, arrays, state)
        return file.read_bytes()


def _change_arrays(rng: Random, arrays: dict[str, np.ndarray]) -> None:
    name = rng.choice(sorted(arrays))
    array = arrays.pop(name)
    flat = array.ravel()
    others = [
        *(array[None], flat, flat[:0], np.asarray(array.sum()), array * np.nan, np.inf + array),
        *(array.astype(dtype) for dtype in ("f2", "f8", "u1", "i8", "?")),
        np.zeros(rng.choice((1, 10**6)), array.dtype),
    ]
    if rng.random() < 0.8:
        new_name = name if rng.random() < 0.8 else rng.choice(_NAMES)
        arrays[new_name] = np.ascontiguousarray(rng.choice(others))


def _change_value(rng: Random, state: dict[str, Any]) -> None:
    """Replaces, drops or renames one value at any depth of the state."""
    entries: list[tuple[Any, Any]] = []
    nested: list[Any] = [state]
    for inner in nested:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        entries += [(inner, key) for key in keys]
        nested += [inner[key] for key in keys if isinstance(inner[key], (dict, list))]
    inner, key = rng.choice(entries)
    if isinstance(inner, dict) and rng.random() < 0.3:
        value = inner.pop(key)
        if rng.random() < 0.5:
            inner[rng.choice(_NAMES)] = value
    else:
        inner[key] = copy.deepcopy(rng.choice(_VALUES))
