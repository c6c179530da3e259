"""The reader of pair lists, and the line that its errors name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_learning.data.datasets import pairs
from embedding_learning.errors import DataError

LFW = """2\t2
Ann_Lee\t1\t2
Bob\t3\t11
Ann_Lee\t1\tBob\t3
Cy\t1\tBob\t11
Cy\t1\t2
Ann_Lee\t2\t1
Cy\t2\tAnn_Lee\t1
Bob\t3\tCy\t1
"""
CSV = """first,second,type,fold
a.jpg,b.png,same,x
a.jpg,"c, d.jpg",different,x
b.png,a.jpg,same,y
sub/e.jpg,a.jpg,different,y
"""


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """The images that LFW above names, as empty files; one with another ending."""
    for name, numbers in {"Ann_Lee": [1, 2], "Bob": [3, 11], "Cy": [1, 2]}.items():
        (tmp_path / name).mkdir()
        for number in numbers:
            end = "png" if name == "Cy" else "jpg"
            (tmp_path / name / f"{name}_{number:04d}.{end}").touch()
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "b.png", "c, d.jpg", "sub/e.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def named(listed: pairs.PairList, folder: Path) -> list[tuple[str, str]]:
    """Returns the two images of each pair."""
    paths = [str(Path(path).relative_to(folder)) for path in listed.images.paths]
    return [(paths[a], paths[b]) for a, b in zip(listed.first, listed.second)]


@pytest.mark.parametrize("change", [str, lambda text: text.replace("\t", " ")])
def test_a_list_of_lfw_is_read(faces: Path, change: Callable[[str], str]) -> None:
    (faces / "pairs.txt").write_text(change(LFW))
    listed = pairs.read(faces / "pairs.txt")
    found = named(listed, faces)
    assert found[1] == ("Bob/Bob_0003.jpg", "Bob/Bob_0011.jpg")
    assert found[3] == ("Cy/Cy_0001.png", "Bob/Bob_0011.jpg")
    assert found[7] == ("Bob/Bob_0003.jpg", "Cy/Cy_0001.png")
    assert listed.is_same.tolist() == [True, True, False, False] * 2
    assert listed.folds is not None and listed.folds.tolist() == [0] * 4 + [1] * 4
    # Each image is embedded once.
    assert (len(listed), len(listed.images)) == (8, 6)


def test_the_images_may_be_in_another_folder(faces: Path) -> None:
    (faces / "lists").mkdir()
    file = faces / "lists" / "pairs.txt"
    file.write_text(LFW)
    assert named(pairs.read(file, faces), faces)[0] == (
        "Ann_Lee/Ann_Lee_0001.jpg",
        "Ann_Lee/Ann_Lee_0002.jpg",
    )
    with pytest.raises(DataError, match=r"pairs\.txt:2: .*/lists/Ann_Lee/Ann_Lee_0001\.jpg: no s"):
        pairs.read(file)


def test_a_list_of_lfw_for_development_has_no_folds(faces: Path) -> None:
    lines = LFW.splitlines(keepends=True)
    (faces / "pairsDevTest.txt").write_text("".join(["2\n", *lines[1:5]]))
    listed = pairs.read(faces / "pairsDevTest.txt")
    assert listed.folds is None
    assert listed.is_same.tolist() == [True, True, False, False]


def test_a_csv_is_read_with_and_without_folds(photos: Path) -> None:
    file = photos / "pairs.CSV"
    file.write_text(CSV)
    listed = pairs.read(file)
    assert named(listed, photos)[1] == ("a.jpg", "c, d.jpg")
    assert named(listed, photos)[3] == ("sub/e.jpg", "a.jpg")
    assert listed.is_same.tolist() == [True, False, True, False]
    assert listed.folds is not None and listed.folds.tolist() == [0, 0, 1, 1]
    file.write_text("note,type,second,first\n,same,a.jpg,b.png\n?,different,sub/e.jpg,b.png\n")
    listed = pairs.read(file)
    assert named(listed, photos) == [("b.png", "a.jpg"), ("b.png", "sub/e.jpg")]
    assert listed.is_same.tolist() == [True, False]
    assert listed.folds is None


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("2\t2\n", "2\t3\n", "1: '2\\t3' are 12 pairs, but 8 lines follow; the file is inc"),
        ("2\t2\n", "two\n", "1: expected the number of folds and the pairs of either type in each"),
        ("2\t2\n", "0\t2\n", "1: expected the number of folds"),
        ("2\t2\n", "2\t2\t2\n", "1: expected the number of folds"),
        ("2\t2\n", "2\t9999999999\n", "1: expected the number of folds"),
        ("2\t2\n", "1\t4\n", "4: expected NAME NUMBER NUMBER, but found 'Ann_Lee\\t1\\tBob\\t3'"),
        ("Bob\t3\t11", "Bob\t3\t3", "3: {folder}/Bob/Bob_0003.jpg is both images of the pair"),
        ("Bob\t3\t11", "Bob\t3", "3: expected NAME NUMBER NUMBER, but found 'Bob\\t3'"),
        ("Cy\t1\tBob", "Bob", "5: expected NAME NUMBER NAME NUMBER, but found"),
        ("Bob\t3\t11", "Bob\t3\tx", "3: expected an image number, but found 'x'"),
        ("Bob\t3\t11", "Bob\t3\t12", "3: {folder}/Bob/Bob_0012.jpg: no such file; name the folder"),
    ],
)
def test_a_wrong_line_of_lfw_is_named(faces: Path, old: str, new: str, message: str) -> None:
    file = faces / "pairs.txt"
    file.write_text(LFW.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        pairs.read(file)
    assert str(caught.value).startswith(f"{file}:{message.format(folder=faces)}")


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "first,",
            "one,",
            ":1: expected a header with first,second,type and, if there are folds, ",
        ),
        ("fold\n", "type\n", ":1: expected a header with first,second,type"),
        (
            "same,x",
            "alike,x",
            ":2: expected 4 columns, among them first, second, type, fold, where",
        ),
        ("same,x", "same", ":2: expected 4 columns"),
        ("same,x", "same,", ":2: expected 4 columns"),
        ("b.png,same", "z.png,same", ":2: {folder}/z.png: no such file; name the folder of the i"),
        ("b.png,same", "./a.jpg,same", ":2: {folder}/./a.jpg is both images of the pair; correct"),
        (CSV[CSV.index("\n") :], "\n", ": lists no pair; add some, or name another with --pairs"),
        ("y\n", "x\n", ": has a single fold, and the threshold of a fold is chosen on the others"),
        ("same,y", "different,y", ": all pairs that are same are in one fold, and the threshold"),
        ("different", "same", ": no pair is different; both types are needed"),
    ],
)
def test_a_wrong_line_of_a_csv_is_named(photos: Path, old: str, new: str, message: str) -> None:
    file = photos / "pairs.csv"
    file.write_text(CSV.replace(old, new, 9 if new in ("x\n", "same") else 1))
    with pytest.raises(DataError) as caught:
        pairs.read(file)
    assert str(caught.value).startswith(f"{file}{message.format(folder=photos)}")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("pairs.txt", "pairs.csv", "folder"):
        with pytest.raises(DataError, match=rf"{name}: no such file; name another with --pairs"):
            pairs.read(tmp_path / name)
