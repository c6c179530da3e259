"""MATLAB files, against what SciPy wrote into them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from embedding_learning.data.datasets import mat_file

VALUES: list[tuple[Any, Any]] = [
    *((np.array([[7]], kind), 7) for kind in "bBhHiIqQfd"),
    (np.array([[1.5, 2.5], [3.5, 4.5]]), [1.5, 3.5, 2.5, 4.5]),
    ("Citroën ☃", "Citroën ☃"),
    ("", ""),
    (np.array([["a", np.array([[1, 2]])]], object), ["a", [1, 2]]),
    ({"one": 1, "a_longer_name": "x"}, {"one": [1], "a_longer_name": ["x"]}),
    (np.zeros((0, 0)), []),
]


@pytest.mark.parametrize("compressed", [True, False])
def test_what_was_written_is_read(tmp_path: Path, compressed: bool) -> None:
    written = {f"v{number}": value for number, (value, _) in enumerate(VALUES)}
    savemat(tmp_path / "a.mat", written, do_compression=compressed)
    found = mat_file.read(tmp_path / "a.mat")
    assert found == {f"v{number}": value for number, (_, value) in enumerate(VALUES)}


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    flags = element(6, struct.pack(">II", 6, 0))
    matrix = flags + element(5, struct.pack(">ii", 1, 2)) + element(1, b"pair")
    matrix += element(4, struct.pack(">HH", 3, 258))
    file = tmp_path / "a.mat"
    file.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + element(14, matrix))
    assert mat_file.read(file) == {"pair": [3, 258]}


@pytest.mark.parametrize("value", [np.array([[True]]), np.array([[1 + 2j]])])
def test_other_matrices_do_no_harm(tmp_path: Path, value: np.ndarray) -> None:
    savemat(tmp_path / "a.mat", {"other": value, "one": 1})
    assert mat_file.read(tmp_path / "a.mat")["one"] == 1


def test_version_4_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"one": 1}, format="4")
    with pytest.raises(ValueError, match="no header"):
        mat_file.read(tmp_path / "a.mat")


def test_nested_without_end_is_refused(tmp_path: Path) -> None:
    """A matrix that claims to hold itself, many times over."""
    content = b""
    for _ in range(3000):
        flags = struct.pack("<IIII", 6, 8, 1, 0) + struct.pack("<IIii", 5, 8, 1, 1)
        content = struct.pack("<II", 1, 0) + content
        content = struct.pack("<II", 14, len(flags) + len(content)) + flags + content
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + content)
    with pytest.raises(ValueError):
        mat_file.read(tmp_path / "a.mat")


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content


def written(folder: Path, body: bytes) -> Path:
    (folder / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + body)
    return folder / "a.mat"


def test_a_cell_array_does_not_read_past_its_end(tmp_path: Path) -> None:
    """If it did, a row of these would be read by each before it: the last some 2**40 times."""
    flags = element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<ii", 1, 2))
    cell, empty = element(14, flags + element(1, b"")), element(14, b"")
    file = written(tmp_path, cell * 60 + empty * 60)
    with pytest.raises(ValueError):
        mat_file.read(file)


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 9])
def test_what_decompresses_to_more_than_the_memory_is_refused(tmp_path: Path, streams: int) -> None:
    """One stream of zeros, and several that take too much together."""
    flags = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", 1, 1))
    zeros = bytes(2**25 // streams)
    matrix = element(14, flags + element(1, b"a" * 8) + element(1, zeros))
    file = written(tmp_path, element(15, zlib.compress(matrix)) * streams)
    assert file.stat().st_size < 2**20
    with pytest.raises(ValueError, match="more than 32 MiB, decompressed"):
        mat_file.read(file)


def test_a_file_beyond_all_sense_is_not_read(tmp_path: Path) -> None:
    file = written(tmp_path, b"")
    with open(file, "r+b") as grown:
        grown.truncate(2**25 + 1)
    with pytest.raises(ValueError, match="more than 32 MiB"):
        mat_file.read(file)


def test_the_product_of_countless_dimensions_is_not_computed(tmp_path: Path) -> None:
    dimensions = element(5, struct.pack("<i", 2**31 - 1) * 500_000)
    flags = element(6, struct.pack("<II", 6, 0))
    matrix = element(14, flags + dimensions + element(1, b"") + element(1, b""))
    with pytest.raises(ValueError, match="a matrix of 500000 dimensions"):
        mat_file.read(written(tmp_path, matrix))


def test_a_compressed_variable_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "whole.mat", {"one": np.arange(1000.0)}, do_compression=True)
    body = (tmp_path / "whole.mat").read_bytes()[136:]
    mat_file.read(written(tmp_path, element(15, body)))
    with pytest.raises(ValueError, match="cut off"):
        mat_file.read(written(tmp_path, element(15, body[:-1])))
