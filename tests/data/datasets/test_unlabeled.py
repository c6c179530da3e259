"""Images named one by one, by folders and by lists."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.data.datasets import unlabeled
from embedding_learning.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_inputs_come_in_their_order_and_folders_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "f/b.png", "f/a/2.JPG", "f/a/10.jpg", "f/notes.md", "f/.hidden.jpg")
    (tmp_path / "list.txt").write_text("f/b.png\n\n  z.jpg \n/nowhere/x.jpg\n")
    found = unlabeled.read([f"{tmp_path}/{name}" for name in ("z.jpg", "list.txt", "f//", "z.jpg")])
    names = [os.path.relpath(path, tmp_path) for path in found.paths]
    listed = ["f/b.png", "z.jpg", os.path.relpath("/nowhere/x.jpg", tmp_path)]
    assert names == ["z.jpg", *listed, "f/b.png", "f/a/10.jpg", "f/a/2.JPG", "z.jpg"]
    assert found.paths[4] == f"{tmp_path}/f/b.png"


def classes(*names: str) -> list[str]:
    """The class of each image of these inputs."""
    found = unlabeled.read(names)
    return [found.class_names[label] for label in found.labels]


def test_images_in_class_folders_have_the_folders_names(tmp_path: Path) -> None:
    touch(tmp_path, "birds/wren/1.jpg", "birds/wren/2.jpg", "birds/auk/1.jpg", "birds/notes.txt")
    touch(tmp_path, "more/tit/1.jpg", "more/auk/1.jpg", "one.jpg")
    inputs = [f"{tmp_path}/birds/", f"{tmp_path}/one.jpg", f"{tmp_path}/more"]
    assert classes(*inputs) == ["auk", "wren", "wren", "", "auk", "tit"]
    found = unlabeled.read(inputs)
    assert found.class_names == ["", "auk", "tit", "wren"]
    assert (found.labels.dtype, found.boxes) == (np.int32, None)


@pytest.mark.parametrize(
    "names",
    [
        ["1.jpg", "2.jpg"],
        ["wren/1.jpg", "wren/2.jpg"],
        ["wren/1.jpg", "auk/1.jpg", "cover.jpg"],
        ["train/wren/1.jpg", "train/auk/1.jpg", "val/wren/2.jpg", "val/auk/2.jpg"],
        ["wren/1.jpg", "auk/young/1.jpg"],
    ],
)
def test_images_in_other_folders_have_no_class(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    assert set(classes(str(tmp_path))) == {unlabeled.UNLABELED}


def test_class_folders_named_one_by_one_give_no_class(tmp_path: Path) -> None:
    touch(tmp_path, "wren/1.jpg", "auk/1.jpg")
    assert classes(f"{tmp_path}/wren", f"{tmp_path}/auk") == ["", ""]


def test_class_folders_of_the_current_folder_and_of_odd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(b"latin\xe4")
    touch(tmp_path, "a b/1.jpg", f"{odd}/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert classes(".") == classes("./") == ["a b", odd]


# Lists


def test_a_comment_in_a_list_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# birds\n  #2.jpg\n./#1.jpg\na#b.jpg\n")
    assert unlabeled.read([f"{tmp_path}/list.txt"]).paths == [
        f"{tmp_path}/./#1.jpg",
        f"{tmp_path}/a#b.jpg",
    ]


class Input:
    """A standard input of these bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_a_list_comes_from_the_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "\ufeff# from find\r\nbirds/ü.jpg\r\n\n/abs/2.jpg\u2028.jpg\n./-\n".encode()
    monkeypatch.setattr("sys.stdin", Input(content))
    found = unlabeled.read(["-"])
    assert found.paths == ["birds/ü.jpg", "/abs/2.jpg\u2028.jpg", "./-"]
    assert found.class_names == [unlabeled.UNLABELED]


@pytest.mark.parametrize(
    "given, message",
    [
        (Input(b"# nothing\n\n"), "standard input: names no image; write the path"),
        (Input(b"\xe4.jpg\n"), "standard input: cannot be read as UTF-8"),
        (None, "standard input: names no image"),
    ],
)
def test_a_standard_input_without_a_list_is_named(
    monkeypatch: pytest.MonkeyPatch, given: Input | None, message: str
) -> None:
    monkeypatch.setattr("sys.stdin", given)
    with pytest.raises(DataError, match=re.escape(message)):
        unlabeled.read(["-"])


def test_a_file_of_another_name_is_taken_for_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "photograph", "list.csv")
    paths = [f"{tmp_path}/photograph", f"{tmp_path}/list.csv"]
    assert unlabeled.read(paths).paths == paths


def test_the_current_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "list.TXT")
    (tmp_path / "list.TXT").write_text("a.jpg")
    monkeypatch.chdir(tmp_path)
    assert unlabeled.read(["."]).paths == ["./a.jpg"]
    assert unlabeled.read(["list.TXT"]).paths == ["a.jpg"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing.jpg", "missing.jpg: no such file or folder"),
        ("missing.txt", "missing.txt: no such file or folder"),
        ("empty", "empty: holds no image"),
        ("empty.txt", "empty.txt: is empty"),
        ("comments.txt", "comments.txt: names no image"),
        ("latin.txt", "latin.txt: cannot be read as UTF-8"),
    ],
)
def test_what_holds_no_image_is_named(tmp_path: Path, name: str, message: str) -> None:
    touch(tmp_path, "empty/readme", "empty.txt", "sound.jpg")
    (tmp_path / "comments.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4.jpg\n")
    with pytest.raises(DataError) as caught:
        unlabeled.read([f"{tmp_path}/sound.jpg", f"{tmp_path}/{name}"])
    assert message in str(caught.value)


def test_a_text_is_not_taken_for_a_list_of_names_of_one_character() -> None:
    with pytest.raises(ValueError, match="a list of inputs expected, not 'photographs' alone"):
        unlabeled.read("photographs")
