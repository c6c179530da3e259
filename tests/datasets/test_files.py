"""Images named one by one, by folders and by lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedding_learning.datasets import DataError, files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_inputs_come_in_their_order_and_folders_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "f/b.png", "f/a/2.JPG", "f/a/10.jpg", "f/notes.md", "f/.hidden.jpg")
    (tmp_path / "list.txt").write_text("f/b.png\n\n  z.jpg \n/nowhere/x.jpg\n")
    found = files.read([f"{tmp_path}/{name}" for name in ("z.jpg", "list.txt", "f//", "z.jpg")])
    names = [os.path.relpath(path, tmp_path) for path in found.paths]
    listed = ["f/b.png", "z.jpg", os.path.relpath("/nowhere/x.jpg", tmp_path)]
    assert names == ["z.jpg", *listed, "f/b.png", "f/a/10.jpg", "f/a/2.JPG", "z.jpg"]
    assert found.paths[4] == f"{tmp_path}/f/b.png"


def test_no_image_has_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "bird/1.jpg", "cat/2.jpg")
    found = files.read([str(tmp_path)])
    assert (len(found), found.boxes) == (2, None)
    assert {found.class_names[label] for label in found.labels} == {files.UNLABELLED}


def test_a_file_of_another_name_is_taken_for_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "photograph", "list.csv")
    paths = [f"{tmp_path}/photograph", f"{tmp_path}/list.csv"]
    assert files.read(paths).paths == paths


def test_the_current_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "list.TXT")
    (tmp_path / "list.TXT").write_text("a.jpg")
    monkeypatch.chdir(tmp_path)
    assert files.read(["."]).paths == ["./a.jpg"]
    assert files.read(["list.TXT"]).paths == ["a.jpg"]


@pytest.mark.parametrize(
    "name, told",
    [
        ("missing.jpg", "missing.jpg: no such file or folder"),
        ("missing.txt", "missing.txt: no such file or folder"),
        ("empty", "empty: holds no image"),
        ("empty.txt", "empty.txt: is empty"),
        ("latin.txt", "latin.txt: cannot be read as UTF-8"),
    ],
)
def test_what_holds_no_image_is_named(tmp_path: Path, name: str, told: str) -> None:
    touch(tmp_path, "empty/readme", "empty.txt", "sound.jpg")
    (tmp_path / "latin.txt").write_bytes(b"\xe4.jpg\n")
    with pytest.raises(DataError) as caught:
        files.read([f"{tmp_path}/sound.jpg", f"{tmp_path}/{name}"])
    assert told in str(caught.value)
