"""Files of embeddings: numpy reads them, and untrusted content is checked."""

from __future__ import annotations

import csv
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_learning.errors import UsageError
from embedding_learning.inference import embedding_file
from embedding_learning.inference.embedding_file import (
    HEADER_BYTES,
    Embeddings,
    check_csv,
    csv_path,
    find_non_unit_row,
    npy_header,
    read_embeddings,
    write_csv,
    write_digest,
)

VECTORS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
ODD_NAMES = [
    "a,b.jpg",
    'say "x".jpg',
    "two\nlines.jpg",
    "return\rhere.jpg",
    " spaces .jpg",
    "ü鳥.jpg",
    os.fsdecode(b"latin\xe4.jpg"),
    "-1.jpg",
]


def write(folder: Path, vectors: Any = VECTORS, images: Any = None, name: str = "e.npy") -> str:
    """Writes an .npy file, and the .csv file next to it if images are given."""
    np.save(folder / name, vectors)
    if images is not None:
        write_csv(csv_path(str(folder / name)), images)
    return str(folder / name)


def fault(path: str, dimension: int = 3) -> str:
    with pytest.raises(UsageError) as caught:
        read_embeddings(path, dimension)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (3569, 128), (10**12, 4096), (10**17, 99999), (0, 7)]
)
def test_numpy_reads_the_header(tmp_path: Path, shape: tuple[int, int]) -> None:
    written = npy_header(shape)
    assert len(written) == HEADER_BYTES
    (tmp_path / "e.npy").write_bytes(written)
    with open(tmp_path / "e.npy", "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        found = np.lib.format.read_array_header_1_0(file)
        assert file.tell() == HEADER_BYTES
    assert found == (shape, False, np.dtype("<f4"))


def test_vectors_are_mapped_and_named(tmp_path: Path) -> None:
    images = [(f"{tmp_path}/{row}.jpg", "ab"[row % 2]) for row in range(5)]
    found = read_embeddings(write(tmp_path, VECTORS, images), 3)
    np.testing.assert_array_equal(found.vectors, VECTORS)
    assert not found.vectors.flags.owndata
    assert not found.vectors.flags.writeable
    assert type(found.vectors) is np.ndarray
    assert [found.path(row) for row in range(5)] == [path for path, _ in images]
    assert [found.label(row) for row in range(5)] == list("ababa")


def test_without_a_list_nothing_is_known_of_the_images(tmp_path: Path) -> None:
    found = read_embeddings(write(tmp_path), 3)
    assert [found.path(row) for row in range(5)] == [None] * 5
    assert [found.label(row) for row in range(5)] == [None] * 5
    assert found.find_rows([None, f"{tmp_path}/0.jpg"]) == [[], []]


@pytest.mark.parametrize("dtype", ["<f8", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_layouts_of_numpy_are_read(tmp_path: Path, dtype: str, order: Any) -> None:
    vectors = np.asarray(VECTORS, dtype, order=order)
    found = read_embeddings(write(tmp_path, vectors), 3).vectors
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, vectors)


def test_any_name_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = np.zeros((len(ODD_NAMES), 3), np.float32)
    labels = [name.encode(errors="replace").decode() for name in reversed(ODD_NAMES)]
    path = write(tmp_path, vectors, zip(ODD_NAMES, labels))
    found = read_embeddings(path, 3)
    assert [found.path(row) for row in range(len(ODD_NAMES))] == ODD_NAMES
    assert found.labels == labels
    with open(tmp_path / "e.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ODD_NAMES
    assert [int(row["row"]) for row in rows] == list(range(len(ODD_NAMES)))


def test_lines_end_in_line_feeds_and_are_read_with_either_end(tmp_path: Path) -> None:
    images = [("/a.jpg", "wren"), ("/re\rturn.jpg", "two\nlines")]
    path = write(tmp_path, VECTORS[:2], images)
    content = (tmp_path / "e.csv").read_bytes()
    assert content == b'row,path,label\n0,/a.jpg,wren\n"1","/re\rturn.jpg","two\nlines"\n'
    (tmp_path / "e.csv").write_bytes(b"row,path,label\r\n0,/a.jpg,wren\r\n1,/b.jpg,\r\n")
    assert read_embeddings(path, 3).paths == ["/a.jpg", "/b.jpg"]


def test_groups_are_a_fourth_column(tmp_path: Path) -> None:
    images = [("/a.jpg", "wren", "room 1"), ("/b.jpg", "wren", "re\rturn"), ("/c.jpg", "", "")]
    path = write(tmp_path, VECTORS[:3])
    write_csv(csv_path(path), images, has_groups=True)
    content = (tmp_path / "e.csv").read_bytes()
    assert content.startswith(b"row,path,label,group\n0,/a.jpg,wren,room 1\n")
    found = read_embeddings(path, 3)
    assert found.groups == ["room 1", "re\rturn", ""]
    assert (found.paths, found.labels) == (["/a.jpg", "/b.jpg", "/c.jpg"], ["wren", "wren", ""])
    write_csv(csv_path(path), [(*image[:2], "") for image in images], has_groups=True)
    assert read_embeddings(path, 3).groups is None


def test_any_dimension_can_be_read(tmp_path: Path) -> None:
    assert read_embeddings(write(tmp_path), None).vectors.shape == (5, 3)
    with pytest.raises(UsageError, match=r"holds an array \(5, 0\); vectors \(n, d\) are expected"):
        read_embeddings(write(tmp_path, VECTORS[:, :0]), None)


# The model


def test_the_model_is_known_where_it_was_written_down(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert read_embeddings(path, 3).model is None
    write_digest(path, "abc")
    assert read_embeddings(path, 3).model == "abc"


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"model": 3}', "[" * 5000, "\udce4"])
def test_a_damaged_digest_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path)
    Path(f"{path}.json").write_bytes(os.fsencode(text))
    assert fault(path) == (
        f"{path}.json: is damaged: it contains no digest of a model; embed the images again, or "
        "remove the file"
    )


@pytest.mark.parametrize("row", [None, 0, 4])
def test_the_first_row_that_is_not_of_unit_length_is_found(
    monkeypatch: pytest.MonkeyPatch, row: int | None
) -> None:
    monkeypatch.setattr(embedding_file, "_VALUES", 6)
    vectors = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    vectors = vectors.astype(np.float16).astype(np.float32)  # rounding is no fault
    if row is not None:
        vectors[row:] *= 1.01
    assert find_non_unit_row(vectors) == row


def test_relative_paths_lead_there_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos", "real/deep", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "photos" / "a.jpg").write_text("a")
    monkeypatch.chdir(tmp_path)
    for folder in (".", "photos", "link", "real/deep", str(tmp_path / "link")):
        path = os.path.join(folder, "e.npy")
        np.save(path, VECTORS[:2])
        write_csv(csv_path(path), [("photos/a.jpg", ""), (str(tmp_path / "photos/a.jpg"), "")])
        for here in (".", "elsewhere", "real/deep"):
            monkeypatch.chdir(tmp_path / here)
            found = read_embeddings(os.path.relpath(tmp_path / path), 3)
            for row in (0, 1):
                name = found.path(row)
                assert name is not None
                assert Path(name).read_text() == "a"
            assert os.path.isabs(str(found.path(1)))
            assert not os.path.isabs(str(found.path(0)))
            for query in (os.path.relpath(tmp_path / "photos/a.jpg"), f"{tmp_path}/photos/a.jpg"):
                assert found.find_rows([query, None, "b.jpg"]) == [[0, 1], [], []]
            monkeypatch.chdir(tmp_path)


def test_files_that_moved_together_find_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "photos").mkdir(parents=True)
    (tmp_path / "a" / "photos" / "x.jpg").write_text("x")
    monkeypatch.chdir(tmp_path / "a")
    write(tmp_path / "a", VECTORS[:1], [("photos/x.jpg", "")])
    monkeypatch.chdir(tmp_path)
    os.rename("a", "b")
    assert Path(str(read_embeddings("b/e.npy", 3).path(0))).read_text() == "x"


def test_a_query_that_is_named_twice_gets_its_rows_twice() -> None:
    gallery = Embeddings(VECTORS, ["/x/a", "/x/b", "/x/a", "c", ""], [""] * 5, "/y")
    found = gallery.find_rows(["/x/a", "/y/c", "/x/a", None, "/x/c"])
    assert found == [[0, 2], [3], [0, 2], [], []]


def test_a_file_is_found_however_the_list_spells_its_path() -> None:
    paths = ["/x/lists/../a", "/x//b", "./c", "d/../c", ""]
    gallery = Embeddings(VECTORS, paths, [""] * 5, "/y")
    assert gallery.find_rows(["/x/a", "/x/b", "/y/c", "/y"]) == [[0], [1], [2, 3], []]


# What a stranger hands over


def spoiled(content: bytes) -> dict[str, bytes]:
    """Returns files that are not .npy files of numbers, by their fault."""

    def with_header(text: str, version: bytes = b"\x01\x00") -> bytes:
        size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
        return b"\x93NUMPY" + version + size + text.encode("latin1") + bytes(64)

    shape = "'shape': (5, 3), "
    return {
        "empty": b"",
        "cut in the header": content[:40],
        "cut in the values": content[:-1],
        "text": b"no array\n" * 30,
        "zip": b"PK\x03\x04" + content,
        "pickle": b"\x80\x04\x95.",
        "objects": with_header("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n"),
        "huge": with_header(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 3), }\n"
        ),
        "negative": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 3), }\n"),
        "nested": with_header("(" * 9000 + "\n"),
        "no header": with_header("\n"),
        "version 9": with_header("{}\n", b"\x09\x00"),
        "call": with_header("__import__('os').getcwd()\n"),
        "keys": with_header("{'descr': '<f4'}\n"),
        "type": with_header("{'descr': {}, 'fortran_order': False, " + shape + "}\n"),
        "empty type": with_header("{'descr': (), 'fortran_order': False, " + shape + "}\n"),
        "unended": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5,\n"),
    }


@pytest.mark.parametrize("kind", spoiled(b""))
def test_what_is_no_array_is_reported(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path)
    Path(path).write_bytes(spoiled(Path(path).read_bytes())[kind])
    assert fault(path).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "vectors, expected",
    [
        (VECTORS.astype(np.float16), "holds float16"),
        (VECTORS.astype(">f4"), "holds >f4"),
        (np.ones((5, 3), np.int64), "holds int64"),
        (np.zeros(5, [("a", "<f4")]), "float32 or float64 is expected"),
        (VECTORS[0], r"an array (3,); vectors (n, 3)"),
        (VECTORS[:, :2], r"an array (5, 2); vectors (n, 3)"),
        (VECTORS[None], r"an array (1, 5, 3)"),
        (VECTORS[:0], r"(0, 3)"),
        (np.float32(3), "an array ()"),
        (np.where(np.arange(5)[:, None] == 3, np.nan, VECTORS), "row 3 is not finite"),
        (np.where(np.arange(5)[:, None] == 1, -np.inf, VECTORS), "row 1 is not finite"),
        (np.where(np.arange(5)[:, None] == 4, 1e300, VECTORS.astype("f8")), "row 4 is not finite"),
    ],
)
def test_what_are_no_vectors_of_the_model_is_reported(
    tmp_path: Path, vectors: Any, expected: str
) -> None:
    assert expected in fault(write(tmp_path, vectors))


def test_the_row_that_is_not_finite_is_found_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_file, "_VALUES", 6)
    for row in range(5):
        vectors = VECTORS.copy()
        vectors[row, row % 3] = np.inf
        assert f"row {row} is not finite" in fault(write(tmp_path, vectors))


def test_what_is_no_file_is_reported(tmp_path: Path) -> None:
    assert fault(f"{tmp_path}/missing.npy") == f"{tmp_path}/missing.npy: no such file"
    os.mkfifo(tmp_path / "pipe.npy")
    assert "no such file" in fault(f"{tmp_path}/pipe.npy")
    assert "no such file" in fault(str(tmp_path))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "a header row,path,label is expected, not ''"),
        ("row;path;label\n0;a;b\n", "a header row,path,label is expected, not 'row;path;label'"),
        ("path,label,split\na.jpg,b,train\n", "a header row,path,label is expected"),
        ("row,path,label\n0,a,b\n1,a,b\n2,a,b\n3,a,b\n", "names 4 images, but"),
        ("row,path,label\n" + "".join(f"{i},a,b\n" for i in range(6)), "names 6 images, but"),
        ("row,path,label\n0,a,b\n2,a,b\n", "row 1 is not as it was written"),
        ("row,path,label\n0,a\n", "row 0 is not as it was written"),
        ("row,path,label\n0,a,b,c\n", "row 0 is not as it was written"),
        ('row,path,label\n0,"a,b\n', "unexpected end of data"),
        ('row,path,label\n0,"a"x,b\n', "',' expected after '\"'"),
        ("row,path,label\n0," + "a" * 200_000 + ",b\n", "larger than field limit"),
    ],
)
def test_a_list_that_does_not_fit_is_reported(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path)
    (tmp_path / "e.csv").write_text(text)
    message = fault(path)
    assert message.startswith(f"{tmp_path}/e.csv: ")
    assert expected in message


def test_a_list_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    path = write(tmp_path, VECTORS, [(f"{tmp_path}/{row}.jpg", f"ü{row}") for row in range(5)])
    expected = read_embeddings(path, 3)
    lines = (tmp_path / "e.csv").read_bytes()
    (tmp_path / "e.csv").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    found = read_embeddings(path, 3)
    assert (found.paths, found.labels) == (expected.paths, expected.labels)


def test_a_list_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "e.csv").symlink_to("/dev/zero")
    assert "it is not a regular file" in fault(path)
    (tmp_path / "e.csv").unlink()
    (tmp_path / "e.csv").symlink_to("nowhere")
    assert "No such file" in fault(path)


def test_only_lists_of_embeddings_pass(tmp_path: Path) -> None:
    check_csv(f"{tmp_path}/missing.csv")
    write_csv(f"{tmp_path}/e.csv", [("a", "b")])
    check_csv(f"{tmp_path}/e.csv")
    write_csv(f"{tmp_path}/e.csv", [])
    check_csv(f"{tmp_path}/e.csv")
    (tmp_path / "data.csv").write_text("path,label,split\na,b,train\n")
    with pytest.raises(UsageError, match=r"data\.csv: is no list of embeddings"):
        check_csv(f"{tmp_path}/data.csv")
