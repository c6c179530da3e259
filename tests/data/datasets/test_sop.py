"""The reader of Stanford Online Products, and the file and line that its errors name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedding_learning.data.datasets import load_dataset, sop
from embedding_learning.errors import DataError

HEADER = "image_id class_id super_class_id path"
TRAIN = [
    "1 9 1 bicycle_final/111085122871_0.JPG",
    "2 9 1 bicycle_final/111085122871_1.JPG",
    "3 10 2 cabinet_final/a b.JPG",
]
TEST = ["4 12 1 bicycle_final/2_0.JPG", "5 11 3 chair_final/3_0.JPG", "6 12 1 bicycle_final/2.JPG"]


def write(folder: Path, name: str, lines: list[str], header: str = HEADER) -> None:
    (folder / name).write_text("".join(f"{line}\n" for line in [header, *lines]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "Ebay_train.txt", TRAIN)
    write(tmp_path, "Ebay_test.txt", TEST)
    return tmp_path


def fault(folder: Path) -> str:
    """The message to which reading the folder leads."""
    with pytest.raises(DataError) as caught:
        sop.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_files_decide_the_split(folder: Path) -> None:
    split = load_dataset(str(folder), "nowhere")
    assert (split.name, split.gallery) == ("Stanford Online Products", None)
    assert split.train.paths == [f"{folder}/{line.split(None, 3)[3]}" for line in TRAIN]
    assert split.test.paths == [f"{folder}/{line.split(None, 3)[3]}" for line in TEST]
    assert split.train.boxes is None and split.test.boxes is None


def test_classes_are_numbered_from_0_in_the_order_of_their_numbers(folder: Path) -> None:
    split = sop.read(folder)
    assert (split.train.labels.tolist(), split.train.class_names) == ([0, 0, 1], ["9", "10"])
    assert (split.test.labels.tolist(), split.test.class_names) == ([1, 0, 1], ["11", "12"])
    assert split.train.labels.dtype == np.int32


def test_a_class_may_stand_on_both_sides(folder: Path) -> None:
    write(folder, "Ebay_test.txt", ["4 9 1 c.JPG"])
    split = sop.read(folder)
    assert split.train.class_names[0] == split.test.class_names[0] == "9"


@pytest.mark.parametrize("name", ["Ebay_train.txt", "Ebay_test.txt"])
@pytest.mark.parametrize(
    "line, message",
    [
        (
            "7 8 9",
            "expected the columns 'image_id class_id super_class_id path', but found '7 8 9'",
        ),
        ("7 eight 9 c.JPG", "expected a class number, but found 'eight'"),
        ("7 8.5 9 c.JPG", "expected a class number, but found '8.5'"),
        ("7 -8 9 c.JPG", "expected a class number, but found '-8'"),
        (f"7 {'8' * 5000} 9 c.JPG", "expected a class number, but found '8888"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, name: str, line: str, message: str) -> None:
    write(folder, name, ["", TRAIN[0], line])
    assert fault(folder).startswith(f"{folder / name}:4: {message}")


def test_an_image_that_is_listed_twice_is_named(folder: Path) -> None:
    write(folder, "Ebay_test.txt", [*TEST, "9 13 1 cabinet_final/a b.JPG"])
    message = fault(folder)
    assert message.startswith(f"{folder}/Ebay_test.txt:5: {folder}/cabinet_final/a b.JPG is")
    assert f"after {folder}/Ebay_train.txt:4" in message


@pytest.mark.parametrize("name", ["Ebay_train.txt", "Ebay_test.txt"])
def test_an_empty_a_headless_and_a_missing_file_are_named(folder: Path, name: str) -> None:
    write(folder, name, [])
    assert fault(folder).startswith(f"{folder / name}: lists no image")
    write(folder, name, TRAIN[1:], header=TRAIN[0])
    assert fault(folder).startswith(f"{folder / name}:1: expected the header '{HEADER}'")
    (folder / name).write_text("")
    assert fault(folder) == f"{folder / name}: is empty; replace the file"
    (folder / name).write_bytes(b"\xff\xfe")
    assert fault(folder).startswith(f"{folder / name}: cannot be read as UTF-8")
    (folder / name).unlink()
    message = fault(folder)
    assert message.startswith(f"{folder / name}: no such file; ") and "--dataset" in message


@pytest.mark.slow
def test_a_list_of_the_real_size_is_read(tmp_path: Path) -> None:
    for name, first in (("Ebay_train.txt", 0), ("Ebay_test.txt", 60000)):
        images = range(first, first + 60000)
        write(tmp_path, name, [f"{i + 1} {i // 5 + 1} 1 sofa_final/{i}.JPG" for i in images])
    split = sop.read(tmp_path)
    assert len(split.train) == len(split.test) == 60000
    assert len(split.train.class_names) == 12000
