"""A checkpoint file: written atomically, read to the byte, refused if anything changed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from embedding_learning.training import checkpoint_file
from embedding_learning.training.checkpoint_file import FORMAT, DamagedError

STATE = {"format": FORMAT, "flags": {"lr": 0.1, "model": "é\n\u2028"}, "steps": [1, None, True]}
ARRAYS = {"beta": np.float32([1.2, 1.3]), "network/w": np.arange(6, dtype=np.float32)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small checkpoint."""
    path = tmp_path / "checkpoint-0003-000000.safetensors"
    checkpoint_file.write(path, ARRAYS, STATE)
    return path


@pytest.mark.parametrize(
    "array",
    [
        *(np.arange(-3, 4).astype(t) for t in ("<f2", "<f4", "<f8", "i1", "<i2", "<i4", "<i8")),
        *(np.arange(7).astype(t) for t in ("u1", "<u2", "<u4", "<u8", "?")),
        np.array(2.5, np.float32),
        np.zeros((0, 3), np.float32),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(10, dtype=np.float32)[::-2],
        np.float32([np.nan, np.inf, -0.0, 1e-45]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back_to_the_byte(tmp_path: Path, array: np.ndarray) -> None:
    checkpoint_file.write(tmp_path / "c", {"a/b.c": array, "other": np.ones(1)}, STATE)
    checkpoint = checkpoint_file.read(tmp_path / "c")
    assert checkpoint.arrays.keys() == {"a/b.c", "other"}
    back = checkpoint.arrays["a/b.c"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_the_state_comes_back_and_needs_no_arrays(tmp_path: Path) -> None:
    checkpoint_file.write(tmp_path / "c", {}, STATE)
    checkpoint = checkpoint_file.read(tmp_path / "c")
    assert (checkpoint.state, checkpoint.arrays, checkpoint.path) == (STATE, {}, tmp_path / "c")


def test_what_cannot_be_written_leaves_the_former_content(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError):
        checkpoint_file.write(file, ARRAYS, {"format": FORMAT, "no JSON": {1, 2}})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_file_cut_off_anywhere_is_damaged(file: Path) -> None:
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(DamagedError):
            checkpoint_file.read(file)


@pytest.mark.slow
def test_a_file_with_any_bit_flipped_is_damaged(file: Path) -> None:
    content = file.read_bytes()
    for index in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[index] ^= 1 << bit
            file.write_bytes(flipped)
            with pytest.raises(DamagedError):
                checkpoint_file.read(file)


def test_a_file_with_more_at_its_end_is_damaged(file: Path) -> None:
    for more in (b"\0", b"\0" * 8, file.read_bytes()):
        file.write_bytes(file.read_bytes() + more)
        with pytest.raises(DamagedError):
            checkpoint_file.read(file)


def test_a_file_of_another_program_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "resnet.safetensors")
    with pytest.raises(DamagedError, match=r"^it is no checkpoint of this program$"):
        checkpoint_file.read(tmp_path / "resnet.safetensors")


def test_arrays_swapped_are_noticed(tmp_path: Path) -> None:
    """With the checksum of the file that they were taken from."""
    a, b = np.float32([1, 2]), np.float32([3, 4])
    text = json.dumps(STATE)
    metadata = {"state": text, "sha256": checkpoint_file._digest({"a": a, "b": b}, text)}
    save_file({"a": a, "b": b}, tmp_path / "c", metadata=metadata)
    assert checkpoint_file.read(tmp_path / "c").arrays.keys() == {"a", "b"}
    for arrays in ({"a": b, "b": a}, {"b": a, "c": b}, {"a": a[:, None], "b": b}, {"a": a}):
        save_file(arrays, tmp_path / "c", metadata=metadata)
        with pytest.raises(DamagedError, match="checksum"):
            checkpoint_file.read(tmp_path / "c")


def write_sealed(path: Path, text: str) -> None:
    """Writes a file without arrays whose checksum is right, as an untrusted source can."""
    metadata = {"state": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    save_file({}, path, metadata=metadata)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"format": 0}', "another version"),
        (json.dumps({"format": FORMAT + 1}), "another version"),
        ('{"format": "1"}', "another version"),
        ('{"format": null}', "another version"),
        ('{"format": [1]}', "another version"),
        ("{}", "another version"),
        ("[1]", "another version"),
        ('"format"', "another version"),
        ("null", "another version"),
        ("", "cannot be read"),
        ('{"format": 1', "cannot be read"),
        ("1" * 5000, "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"a":' * 20_000, "cannot be read"),
        (json.dumps({"format": FORMAT, "long": "x" * 2**20}), "no checkpoint of this program"),
    ],
    ids=lambda value: value[:20],
)
def test_a_state_that_no_run_writes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_sealed(tmp_path / "c", json.dumps(STATE))
    assert checkpoint_file.read(tmp_path / "c").state == STATE
    write_sealed(tmp_path / "c", text)
    with pytest.raises(DamagedError, match=message):
        checkpoint_file.read(tmp_path / "c")


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def array_entry(dtype: str, shape: list[int], length: int) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, length]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 2**64 - 1) + b"{}",
        with_header([]),
        with_header({}),
        with_header({"__metadata__": {"state": 3}}),
        with_header({"__metadata__": {"sha256": "0"}}),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        with_header(array_entry("F8_E4M3", [2], 2), b"12"),
        with_header(array_entry("F8_E8M0", [2], 2), b"12"),
        with_header(array_entry("F4", [2], 1), b"1"),
        with_header(array_entry("BF16", [1], 2), b"12"),
        with_header(array_entry("U8", [1] * 40, 1), b"1"),
        with_header(array_entry("F32", [2**62, 2**62], 0)),
        with_header(array_entry("F32", [0, 2**62, 5], 0)),
        with_header(array_entry("U8", [2**64], 0)),
        with_header(array_entry("U8", [-1], 0)),
        with_header(array_entry("U8", [2**40], 2**40)),
    ],
)
def test_a_header_with_absurd_numbers_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(DamagedError):
        checkpoint_file.read(tmp_path / "c")


def test_numbers_of_a_type_that_another_package_has_added_are_damaged(tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes", reason="onnx brings it from Python 3.14 on")
    header = b'{"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}'
    (tmp_path / "c").write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with pytest.raises(DamagedError):
        checkpoint_file.read(tmp_path / "c")


def test_a_huge_file_of_nothing_is_damaged(tmp_path: Path) -> None:
    with open(tmp_path / "c", "wb") as file:
        file.truncate(2**36)
    with pytest.raises(DamagedError):
        checkpoint_file.read(tmp_path / "c")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "x" * 1001])
def test_names_that_a_message_could_not_show_are_refused(tmp_path: Path, name: str) -> None:
    checkpoint_file.write(tmp_path / "c", {name: np.ones(1)}, STATE)
    with pytest.raises(DamagedError, match="no checkpoint of this program"):
        checkpoint_file.read(tmp_path / "c")


def test_too_many_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_file, "_MOST_ARRAYS", 3)
    checkpoint_file.write(tmp_path / "c", dict.fromkeys("abc", np.ones(1)), STATE)
    assert len(checkpoint_file.read(tmp_path / "c").arrays) == 3
    checkpoint_file.write(tmp_path / "c", dict.fromkeys("abcd", np.ones(1)), STATE)
    with pytest.raises(DamagedError):
        checkpoint_file.read(tmp_path / "c")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(DamagedError, match="no file"):
            checkpoint_file.read(path)


def test_a_file_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("missing", "missing/file", "loop"):
        with pytest.raises(OSError):
            checkpoint_file.read(tmp_path / name)
