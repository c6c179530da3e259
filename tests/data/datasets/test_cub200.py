"""The reader of the layout of CUB-200-2011, and the file and line that its errors name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedding_learning.data.datasets import cub200, text_files
from embedding_learning.errors import DataError

# Three classes whose numbers have gaps and are not in order, names with spaces, fractional boxes.
FILES = {
    "images.txt": [
        "1 010.Great Auk/auk one.jpg",
        "2 010.Great Auk/auk.two.jpg",
        "3 002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
        "4 200.Common_Yellowthroat/a.png",
        "5 002.Laysan_Albatross/b.jpg",
    ],
    "image_class_labels.txt": ["1 10", "2 10", "3 2", "4 200", "5 2"],
    "bounding_boxes.txt": [
        "1 60.0 27.0 325.0 304.0",
        "2 139.9 30.5 153.999 264.1",
        "3 0.0 0.0 1.0 1.0",
        "4 -3.7 -0.9 10.2 20.8",
        "5 14 112 388 186",
    ],
}
CLASSES = ["2 002.Laysan_Albatross", "5 005.Crested_Auklet", "10 010.Great Auk", "200 200.Common"]


def write(folder: Path, name: str, lines: list[str], end: str = "\n") -> None:
    (folder / name).write_bytes("".join(line + end for line in lines).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files above in a folder whose name has a space; no image."""
    folder = tmp_path / "my birds"
    (folder / "images").mkdir(parents=True)
    for name, lines in FILES.items():
        write(folder, name, lines)
    return folder


def fault(folder: Path) -> str:
    """The message to which reading the folder leads."""
    with pytest.raises(DataError) as caught:
        cub200.read(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("gap", ["\t", " \t", "   "])
def test_columns_may_be_parted_by_any_white_space(folder: Path, gap: str) -> None:
    """The original accepts them too; names keep their own white space."""
    expected = cub200.read(folder)
    for name, lines in {**FILES, "classes.txt": CLASSES}.items():
        write(folder, name, [line.replace(" ", gap, 1) for line in lines])
    write(folder, "bounding_boxes.txt", [gap.join(b.split()) for b in FILES["bounding_boxes.txt"]])
    found = cub200.read(folder)
    assert found.paths == expected.paths
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.class_names == ["002.Laysan_Albatross", "010.Great Auk", "200.Common"]


def test_paths_lie_below_the_images_in_the_order_of_the_file(folder: Path) -> None:
    paths = [line.split(" ", 1)[1] for line in FILES["images.txt"]]
    assert cub200.read(folder).paths == [str(folder / "images" / path) for path in paths]


def test_classes_are_numbered_from_0_in_the_order_of_their_numbers(folder: Path) -> None:
    images = cub200.read(folder)
    assert images.labels.tolist() == [1, 1, 0, 2, 0]
    assert images.labels.dtype == np.int32


def test_classes_are_named_by_their_numbers_without_classes_txt(folder: Path) -> None:
    assert cub200.read(folder).class_names == ["2", "10", "200"]


def test_classes_have_the_names_of_classes_txt_or_else_their_numbers(folder: Path) -> None:
    write(folder, "classes.txt", CLASSES[:-1])
    assert cub200.read(folder).class_names == ["002.Laysan_Albatross", "010.Great Auk", "200"]


def test_of_a_box_the_integer_part_is_taken(folder: Path) -> None:
    boxes = cub200.read(folder).boxes
    assert boxes is not None
    assert boxes.dtype == np.int32
    assert boxes.tolist() == [
        [60, 27, 325, 304],
        [139, 30, 153, 264],
        [0, 0, 1, 1],
        [-3, 0, 10, 20],
        [14, 112, 388, 186],
    ]


@pytest.mark.parametrize("end", ["\r\n", " \n", "\n\n"], ids=["CRLF", "space", "blank"])
def test_line_ends_and_blank_lines_change_nothing(folder: Path, end: str) -> None:
    expected = cub200.read(folder)
    for name, lines in FILES.items():
        write(folder, name, lines, end)
    found = cub200.read(folder)
    assert found.paths == expected.paths
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_the_last_line_needs_no_end(folder: Path) -> None:
    for name in FILES:
        (folder / name).write_bytes((folder / name).read_bytes().rstrip())
    assert len(cub200.read(folder)) == 5


def test_lines_belong_together_by_their_ids(folder: Path) -> None:
    expected = cub200.read(folder)
    for name in ("image_class_labels.txt", "bounding_boxes.txt"):
        write(folder, name, FILES[name][::-1])
    found = cub200.read(folder)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes, expected.boxes)


@pytest.mark.parametrize(
    "name, line, text, message",
    [
        ("images.txt", 2, "2", "expected an id and a value, but found '2'"),
        ("images.txt", 2, "two b.jpg", "expected an id and a value, but found 'two b.jpg'"),
        ("images.txt", 3, "2 b.jpg", "image 2 is listed a second time"),
        (
            "images.txt",
            4,
            "4 010.Great Auk/auk one.jpg",
            "010.Great Auk/auk one.jpg is listed a ",
        ),
        ("image_class_labels.txt", 4, "4", "expected an id and a value"),
        ("image_class_labels.txt", 4, "4 -2", "expected a class number, but found '-2'"),
        ("image_class_labels.txt", 4, "4 2.5", "expected a class number, but found '2.5'"),
        ("image_class_labels.txt", 4, "4 ²", "expected a class number, but found '²'"),
        (
            "image_class_labels.txt",
            4,
            f"4 {2**63}",
            f"expected a class number, but found '{2**63}'",
        ),
        # More digits than int() takes.
        (
            "image_class_labels.txt",
            4,
            f"4 {'9' * 5000}",
            "expected a class number, but found '9999",
        ),
        ("image_class_labels.txt", 4, "4 2 2", "expected a class number, but found '2 2'"),
        ("image_class_labels.txt", 4, "3 2", "image 3 is listed a second time"),
        ("image_class_labels.txt", 4, "44 2", "image 44 is not listed in"),
        ("bounding_boxes.txt", 5, "5 1 2 3", "expected x, y, width and height, but found '1 2 3'"),
        ("bounding_boxes.txt", 5, "5 1 2 3 4 5", "expected x, y, width and height"),
        ("bounding_boxes.txt", 5, "5 1 2 3 wide", "expected x, y, width and height"),
        ("bounding_boxes.txt", 5, "5 1 2 nan 4", "expected x, y, width and height"),
        ("bounding_boxes.txt", 5, "5 1 2 3 inf", "expected x, y, width and height"),
        ("bounding_boxes.txt", 5, "5 1 2 3 3e9", "expected x, y, width and height"),
        ("bounding_boxes.txt", 5, "5 1 2 0.9 4", "the box is empty: '1 2 0.9 4'"),
        ("bounding_boxes.txt", 5, "5 1 2 3 -4", "the box is empty"),
        ("bounding_boxes.txt", 5, "55 1 2 3 4", "image 55 is not listed in"),
    ],
)
@pytest.mark.parametrize("blank_lines", [0, 2])
def test_a_wrong_line_is_named(
    folder: Path, name: str, line: int, text: str, message: str, blank_lines: int
) -> None:
    lines = list(FILES[name])
    lines[line - 1] = text
    if "is not listed" in message:  # next to the lines that belong there
        lines.append(FILES[name][line - 1])
    write(folder, name, [""] * blank_lines + lines)
    assert fault(folder).startswith(f"{folder / name}:{line + blank_lines}: {message}")


@pytest.mark.parametrize("name", ["image_class_labels.txt", "bounding_boxes.txt"])
def test_a_line_that_is_missing_is_named(folder: Path, name: str) -> None:
    write(folder, name, FILES[name][:2] + FILES[name][3:])
    message = fault(folder)
    assert message.startswith(f"{folder / name}: has no line for image 3 ")
    assert f"{folder / 'images.txt'}:3" in message


@pytest.mark.parametrize("name", ["image_class_labels.txt", "bounding_boxes.txt"])
def test_a_line_too_many_is_named(folder: Path, name: str) -> None:
    write(folder, "images.txt", FILES["images.txt"][:4])
    other = {"image_class_labels.txt": "bounding_boxes.txt"}.get(name, "image_class_labels.txt")
    write(folder, other, FILES[other][:4])
    assert fault(folder).startswith(f"{folder / name}:5: image 5 is not listed in")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert fault(folder).startswith(f"{folder / name}: no such file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\n \r\n"])
def test_an_empty_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert fault(folder) == f"{folder / name}: is empty; replace the file"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_text_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"1 \xff\xfe\x00\n")
    assert fault(folder).startswith(f"{folder / name}: cannot be read")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert fault(folder).startswith(f"{folder / name}: cannot be read")


def test_a_missing_folder_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    message = fault(tmp_path / "CUB_200_2011")
    assert message.startswith(f"{tmp_path / 'CUB_200_2011'}: no such folder")
    assert "get_cub200_data.sh" in message


def test_a_missing_folder_of_images_is_named(folder: Path) -> None:
    (folder / "images").rmdir()
    assert fault(folder).startswith(f"{folder / 'images'}: no such folder")


@pytest.mark.slow
@pytest.mark.shared
def test_the_whole_of_cub_200_2011_is_read(shared: Path, tmp_path: Path) -> None:
    """The true files, read without their images and compared line by line."""
    annotations = shared / "data" / "cub_annotations"
    for file in annotations.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "images").mkdir()

    images = cub200.read(tmp_path)

    rows = {
        name: [line.split() for line in (annotations / name).read_text().splitlines()]
        for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "classes.txt")
    }
    assert len(images) == 11788
    assert images.paths == [str(tmp_path / "images" / row[1]) for row in rows["images.txt"]]
    assert images.labels.tolist() == [int(row[1]) - 1 for row in rows["image_class_labels.txt"]]
    assert images.class_names == [row[1] for row in rows["classes.txt"]]
    assert images.boxes is not None
    expected = [[int(float(value)) for value in row[1:]] for row in rows["bounding_boxes.txt"]]
    assert images.boxes.tolist() == expected
    assert len(images.select_classes(0, 100)) == 5864
    assert len(images.select_classes(100, 200)) == 5924


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_plain_file_or_too_large_is_not_read(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to /dev/zero would never end; /dev/null, which ends at once, stands for it."""
    monkeypatch.setattr(text_files, "_MOST_BYTES", 1000)
    (folder / name).write_bytes((folder / name).read_bytes().ljust(1000, b"\n"))
    assert len(cub200.read(folder)) == 5
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    with pytest.raises(DataError, match=f"{name}: cannot be read: it is larger than"):
        cub200.read(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/null")
    with pytest.raises(DataError, match=f"{name}: cannot be read: it is not a regular file"):
        cub200.read(folder)
