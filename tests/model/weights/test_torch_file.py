"""Files of torch.save, both layouts: read whole and as written, or refused."""

from __future__ import annotations

import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_learning.model.weights.torch_file import (
    LEGACY_START,
    read_state_dictionary,
    read_tensor,
)
from tests.helpers.torch_writer import (
    MAGIC,
    SYSTEM,
    Global,
    contents,
    old_parts,
    pickled,
    state_program,
    storage,
    tensor,
    write_old_pth,
    write_pth,
    write_zip,
)

RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "conv.weight": RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "conv.bias": RNG.normal(size=4).astype(np.float16),
    "norm.double": RNG.normal(size=(2, 3)),
    "norm.num_batches_tracked": np.array(7),
    "transposed": RNG.normal(size=(5, 3)).astype(np.float32).T,
    "channels last": np.moveaxis(RNG.normal(size=(2, 4, 4, 3)).astype(np.float32), 3, 1),
}
WRITERS = pytest.mark.parametrize("write", [write_pth, write_old_pth])


def read(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        state = read_state_dictionary(file)
        return {name: read_tensor(file, state, name) for name in state.tensors}


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught, open(path, "rb") as file:
        read_state_dictionary(file)
    assert type(caught.value) is ValueError
    assert str(caught.value).isprintable()
    return str(caught.value)


def assert_same(found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@WRITERS
def test_every_type_and_order_of_values_is_read(
    tmp_path: Path, write: Callable[[Path, dict[str, np.ndarray]], None]
) -> None:
    write(tmp_path / "net.pth", ARRAYS)
    assert_same(read(tmp_path / "net.pth"), ARRAYS)


def test_views_of_one_storage_are_read(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32)
    shared = storage("0", values)
    views = {
        "whole": tensor(shared, values),
        "row": tensor(shared, values[4:8], offset=4),
        "column": tensor(shared, values.reshape(3, 4)[:, 1], offset=1),
    }
    write_zip(tmp_path / "net.pth", pickled(views), [values.tobytes()])
    found = read(tmp_path / "net.pth")
    assert_same(found, {"whole": values, "row": values[4:8], "column": values[1::4]})


def test_names_of_the_folder_in_the_archive_do_not_matter(tmp_path: Path) -> None:
    arguments = state_program(ARRAYS), contents(ARRAYS)
    for root in ("net", "archive", "a b/c"):
        write_zip(tmp_path / "net.pth", *arguments, root=root)
        assert_same(read(tmp_path / "net.pth"), ARRAYS)


def test_the_start_of_the_old_layout_is_its_magic_number() -> None:
    assert pickled(MAGIC) == LEGACY_START


@pytest.mark.slow
@WRITERS
def test_a_file_that_was_cut_off_is_refused(
    tmp_path: Path, write: Callable[[Path, dict[str, np.ndarray]], None]
) -> None:
    path = tmp_path / "net.pth"
    write(path, ARRAYS)
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        assert "damaged" in refusal(path)


@pytest.mark.slow
def test_every_changed_byte_of_an_archive_is_noticed_or_of_no_consequence(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    write_pth(path, ARRAYS)
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            assert_same(read(path), ARRAYS)
        except ValueError as error:
            assert type(error) is ValueError
            refused += 1
    # What is not refused is in the fields for times and systems.
    assert refused > 0.7 * len(whole)


def test_a_value_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    write_pth(path, ARRAYS)
    whole = path.read_bytes()
    at = whole.index(ARRAYS["conv.weight"].tobytes())
    path.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 1]) + whole[at + 6 :])
    assert "damaged" in refusal(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", state_program(ARRAYS))
    assert refusal(tmp_path / "net.pth") == "is compressed, which torch.save does not do"


def test_an_archive_with_the_records_of_zip64_is_read(tmp_path: Path) -> None:
    """PyTorch writes them always."""
    path = tmp_path / "net.pth"
    write_pth(path, ARRAYS)
    whole = path.read_bytes()
    at = whole.rindex(b"PK\5\6")
    count, length, offset = struct.unpack("<HII", whole[at + 10 : at + 20])
    sizes = (count, count, length, offset)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, *sizes)
    place = struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    path.write_bytes(whole[:at] + record + place + whole[at:])
    assert_same(read(path), ARRAYS)


def test_a_name_in_the_directory_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    write_zip(path, state_program({}), [], **{"é": b""})
    whole = path.read_bytes()
    path.write_bytes(whole.replace("é".encode(), b"\xff\xff"))
    assert "damaged" in refusal(path)


def test_the_lengths_of_an_archive_are_not_believed(tmp_path: Path) -> None:
    """A directory of three megabytes, of a size that the file has."""
    path = tmp_path / "net.pth"
    write_zip(path, state_program({}), [bytes(3 * 2**20)])
    whole = bytearray(path.read_bytes())
    struct.pack_into("<II", whole, len(whole) - 10, 3 * 2**20, 100)
    path.write_bytes(whole)
    tracemalloc.start()
    assert "damaged" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
    tracemalloc.stop()


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("letter.txt", "Dear")
    assert "damaged" in refusal(tmp_path / "net.pth")


def test_two_programs_or_two_members_of_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    write_pth(path, ARRAYS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", state_program(ARRAYS))
    assert "damaged" in refusal(path)
    write_pth(path, ARRAYS)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", contents(ARRAYS)[0])
    assert "damaged" in refusal(path)


def test_a_member_of_two_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    write_pth(path, ARRAYS)
    whole = path.read_bytes()
    at = whole.rindex(b"PK\x01\x02") + 20  # the packed size
    path.write_bytes(whole[:at] + bytes([whole[at] + 1]) + whole[at + 1 :])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("change", [b"", b"\0\0\0\0", b"\0\0\0\0\0\0\0\0"])
def test_a_storage_of_another_size_is_refused(tmp_path: Path, change: bytes) -> None:
    values = contents(ARRAYS)
    longer = values[0][:-4] if change == b"" else values[0] + change
    write_zip(tmp_path / "net.pth", state_program(ARRAYS), [longer, *values[1:]])
    assert "damaged" in refusal(tmp_path / "net.pth")
    write_zip(tmp_path / "net.pth", state_program(ARRAYS), values[:-1])
    assert "damaged" in refusal(tmp_path / "net.pth")


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A thousand names for one long content would be read a thousand times."""
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", state_program({}))
        archive.writestr("a/data/0", bytes(100_000))
        entry = archive.getinfo("a/data/0")
        for key in range(1, 1000):
            copy = zipfile.ZipInfo(f"a/data/{key}")
            for field in ("header_offset", "CRC", "file_size", "compress_size"):
                setattr(copy, field, getattr(entry, field))
            archive.filelist.append(copy)
    assert "damaged" in refusal(path)


@pytest.mark.slow
def test_a_directory_has_a_most_of_members_and_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    for count, length in ((10_000, 1), (10_001, 1), (2000, 900), (2000, 1100)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", state_program({}))
            for number in range(count - 1):
                archive.writestr(f"a/data/{number:0{length}}", b"")
        if (count, length) in ((10_000, 1), (2000, 900)):
            assert read(path) == {}
        else:
            assert "damaged" in refusal(path)


def test_a_sparse_file_of_eight_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**33)
    if shutil.disk_usage(tmp_path).total < 2**33:
        pytest.skip("the file system holds no such file")
    tracemalloc.start()
    assert "damaged" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_file_of_another_byte_order_is_refused(tmp_path: Path) -> None:
    arguments = tmp_path / "net.pth", state_program(ARRAYS), contents(ARRAYS)
    write_zip(*arguments, byteorder=b"big")
    assert refusal(tmp_path / "net.pth") == "was written on a machine of another byte order"
    write_zip(*arguments, byteorder=b"")  # absent before PyTorch 2.1
    assert_same(read(tmp_path / "net.pth"), ARRAYS)


@pytest.mark.parametrize(
    "part, content, message",
    [
        (1, pickled(1000), "damaged"),
        (1, pickled(None), "damaged"),
        (2, pickled({**SYSTEM, "little_endian": False}), "another byte order"),
        (2, pickled([]), "another byte order"),
        (4, pickled([str(key) for key in range(len(ARRAYS) - 1)]), "damaged"),
        (4, pickled(["0"] * len(ARRAYS)), "damaged"),
        (4, pickled([*range(len(ARRAYS))]), "damaged"),
        (4, pickled({}), "damaged"),
        (5, struct.pack("<q", -1) + contents(ARRAYS)[0], "damaged"),
        (5, struct.pack("<q", 47) + contents(ARRAYS)[0], "damaged"),
        (5, struct.pack("<q", 2**62) + contents(ARRAYS)[0], "damaged"),
    ],
)
def test_a_wrong_part_of_the_old_layout_is_refused(
    tmp_path: Path, part: int, content: bytes, message: str
) -> None:
    parts = old_parts(ARRAYS)
    parts[part] = content
    (tmp_path / "net.pth").write_bytes(b"".join(parts))
    assert message in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "holds no state dictionary; save model.state_dict()"),
        (3, "holds no state dictionary; save model.state_dict()"),
        ({"epoch": 3, "state_dict": {}}, "holds epoch, which is no tensor"),
        ({"": tensor(storage("0", ARRAYS["conv.weight"]), ARRAYS["conv.weight"])}, "damaged"),
        ({"a\nb": 3}, "damaged"),
        (Global("torch.nn.modules.linear", "Linear"), "names torch.nn.modules.linear.Linear, "),
    ],
)
def test_what_is_no_state_dictionary_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    write_zip(tmp_path / "net.pth", pickled(value), contents(ARRAYS))
    assert message in refusal(tmp_path / "net.pth")
    parts = old_parts(ARRAYS)
    parts[3] = pickled(value)
    (tmp_path / "net.pth").write_bytes(b"".join(parts))
    assert message in refusal(tmp_path / "net.pth")


def test_brain_floats_are_refused_with_their_name(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    arrays = {"conv.bias": ARRAYS["conv.bias"]}
    program = state_program(arrays).replace(b"HalfStorage", b"BFloat16Storage")
    write_zip(path, program, contents(arrays))
    assert refusal(path) == "holds conv.bias as bfloat16; save it as float32 first"
