"""The reader of CSV files, and the line that its errors name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from embedding_learning.data.datasets import Split, csv_file, load_dataset
from embedding_learning.data.datasets.splits import count_partners, list_recall_warnings
from embedding_learning.data.preprocessing import PixelsFromFiles
from embedding_learning.errors import DataError


def read(folder: Path, text: str | bytes, use_boxes: bool = True) -> Split:
    file = folder / "photos.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return csv_file.read(file, use_boxes)


def fault(folder: Path, text: str | bytes) -> str:
    """Returns the error message of reading, without the name of the file."""
    with pytest.raises(DataError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'photos.csv'}:")
    return message[len(f"{folder / 'photos.csv'}:") :]


ROWS = 'path,label,split\na.jpg,x,train\n"b, c.jpg",10,test\n/far/d.jpg,9,test\n'


def test_rows_become_images_with_paths_from_the_folder_of_the_file(tmp_path: Path) -> None:
    split = read(tmp_path, ROWS)
    assert (split.name, split.gallery) == ("photos.csv", None)
    assert split.train.paths == [f"{tmp_path}/a.jpg"]
    assert split.test.paths == [f"{tmp_path}/b, c.jpg", "/far/d.jpg"]
    assert (split.test.labels.tolist(), split.test.class_names) == ([0, 1], ["10", "9"])
    assert split.test.labels.dtype == np.int32
    assert split.test.boxes is None


@pytest.mark.parametrize(
    "text",
    [
        ROWS.replace("\n", "\r\n"),
        ROWS.replace("\n", "\n\n"),
        ROWS.replace(",", ", ").replace('"b,  c', '"b, c'),
        "\ufeff" + ROWS,
        ROWS.rstrip(),
        "note,label,path,split\n,x,a.jpg,train\n,10,'b,test\n".replace("'b", '"b, c.jpg"')
        + "?,9,/far/d.jpg,test\n",
    ],
    ids=["CRLF", "blank lines", "blanks", "byte order mark", "no last end", "other columns"],
)
def test_what_programs_write_otherwise_changes_nothing(tmp_path: Path, text: str) -> None:
    expected, found = read(tmp_path, ROWS), read(tmp_path, text)
    for images, others in ((expected.train, found.train), (expected.test, found.test)):
        assert (images.paths, images.class_names) == (others.paths, others.class_names)


def test_queries_are_searched_in_the_gallery(tmp_path: Path) -> None:
    rows = ["a,x,train", "b,y,query", "c,z,gallery", "d,y,gallery"]
    split = read(tmp_path, "\n".join(["path,label,split", *rows]))
    assert split.gallery is not None
    assert split.test.class_names == split.gallery.class_names == ["y", "z"]
    assert (split.test.labels.tolist(), split.gallery.labels.tolist()) == ([0], [1, 0])


BOXED = "split,x,y,width,height,label,path\ntrain,1.9,-2,30,40,x,a.jpg\ntest,5,6,7,8,y,b.jpg\n"


def test_boxes_are_read_where_there_are_any(tmp_path: Path) -> None:
    split = read(tmp_path, BOXED)
    assert split.train.boxes is not None and split.test.boxes is not None
    assert split.train.boxes.tolist() == [[1, -2, 30, 40]]
    assert split.test.boxes.tolist() == [[5, 6, 7, 8]]
    assert split.test.boxes.dtype == np.int32
    without = read(tmp_path, BOXED.replace("1.9,-2,30,40", ",,,").replace("5,6,7,8", " ,,,"))
    assert without.train.boxes is None and without.test.boxes is None
    wrong = BOXED.replace("30", "wide").replace("height", "depth")
    assert read(tmp_path, wrong, use_boxes=False).train.boxes is None


def test_an_image_without_a_box_among_others_with_one_is_used_whole(tmp_path: Path) -> None:
    """In the same part, and where no image of its part has a box."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    rows = ["a,x,train,,,,", "b,x,train,4,5,6,7", "c,y,test,,,,"]
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[..., ::-1])
    lines = ["path,label,split,x,y,width,height", *(row.replace(",", ".png,", 1) for row in rows)]
    split = read(tmp_path, "\n".join(lines))
    for images, row, expected in (
        (split.train, 0, pixels),
        (split.train, 1, pixels[5:12, 4:10]),
        (split.test, 0, pixels),
    ):
        resized = cv2.resize(np.ascontiguousarray(expected), (16, 16))
        np.testing.assert_array_equal(PixelsFromFiles(images, 16)[row], resized)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("split\n", "part\n", "1: expected a header with path,label,split"),
        ("path,label,split\n", "", "1: expected a header with path,label,split"),
        (
            "path,label,split\n",
            "path,label,split,path\n",
            "1: expected a header with path,label,split",
        ),
        ("path,label,split\n", "path;label;split\n", "1: expected a header with path,label,split"),
        ("a.jpg,x,train", "a.jpg,x", "2: expected 3 columns, as in the header, but found 2;"),
        ("a.jpg,x,train", "a,b.jpg,x,train", "2: expected 3 columns"),
        (
            "a.jpg,x,train",
            ",x,train",
            "2: expected a path, a label and one of train, test, query, gallery",
        ),
        ("a.jpg,x,train", "a.jpg,,train", "2: expected a path, a label and one of"),
        ("a.jpg,x,train", "a.jpg,x,Train", "2: expected a path, a label and one of"),
        ("/far/d.jpg", "a.jpg", "4: {folder}/a.jpg is listed a second time, after "),
        ("/far/d.jpg", "./x//../a.jpg", "4: {folder}/./x//../a.jpg is listed a second time, after"),
        ("10,test", "10,query", "4: test is mixed with query and gallery"),
        (",test", ",query", " no image is listed as gallery"),
        (",test", ",gallery", " no image is listed as query"),
        ("/far", '"/far', "4: is not CSV"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert fault(tmp_path, ROWS.replace(old, new)).startswith(message.format(folder=tmp_path))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("height", "h", "1: expected all of x,y,width,height, or none of them"),
        ("5,6,7,8", "5,6,,8", "3: expected x, y, width and height, but found '5 6  8'; correct it"),
        ("5,6,7,8", "5,6,0,8", "3: the box is empty: '5 6 0 8'; correct it"),
    ],
)
def test_a_wrong_box_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert fault(tmp_path, BOXED.replace(old, new)).startswith(message)


def test_a_file_that_is_empty_or_no_text_or_missing_is_named(tmp_path: Path) -> None:
    assert fault(tmp_path, "").startswith("1: expected a header with path,label,split")
    text = fault(tmp_path, ROWS.encode("utf-16"))
    assert text.startswith(" cannot be read as UTF-8 text: ")
    assert text.endswith("; save it as UTF-8")
    with pytest.raises(DataError, match=r"nowhere.csv: no such file; .*--data-path"):
        load_dataset(str(tmp_path / "nowhere.csv"), "nowhere")
    with pytest.raises(ValueError, match="test 'ALL': choose from split, all"):
        load_dataset(str(tmp_path / "nowhere.csv"), "nowhere", test="ALL")
    (tmp_path / "link.csv").symlink_to("/dev/null")
    with pytest.raises(DataError, match=r"link.csv: cannot be read: it is not a regular file"):
        load_dataset(str(tmp_path / "link.csv"), "nowhere")


def test_a_path_with_a_line_end_is_named_in_one_line(tmp_path: Path) -> None:
    rows = ROWS + '"two\nlines.jpg",9,test\n"two\nlines.jpg",9,test\n'
    assert f"{tmp_path}/two\\nlines.jpg is listed a second time" in fault(tmp_path, rows)


# Groups


GROUPED = (
    "group,split,label,path\nroom 2,train,x,a\n,query,y,b\nroom 2,query,y,c\nroom 10,gallery,y,d\n"
    "room 2,gallery,z,e\n"
)


def test_groups_have_the_same_numbers_in_all_parts(tmp_path: Path) -> None:
    split = read(tmp_path, GROUPED)
    assert split.gallery is not None
    names = split.test.group_names
    assert names == split.gallery.group_names == ["room 10", "room 2"]
    parts = (split.train, split.test, split.gallery)
    assert [part.groups.tolist() for part in parts] == [[1], [-1, 1], [0, 1]]
    assert split.title == "photos.csv, whole images, groups left out"
    # Of one class and not of its group there is an image to find for both queries.
    assert count_partners(split).tolist() == [1, 1]
    everything = load_dataset(str(tmp_path / "photos.csv"), "nowhere", test="all").test
    assert everything.groups.tolist() == [1, -1, 1, 0, 1]
    assert everything.take(np.array([3, 1])).groups.tolist() == [0, -1]


def test_a_part_without_a_group_has_none(tmp_path: Path) -> None:
    split = read(tmp_path, GROUPED.replace("room 2,gallery", ",gallery").replace("room 10,", ","))
    assert split.gallery is not None
    assert split.gallery.groups is None and split.test.groups is not None
    assert split.groups is None and split.title == "photos.csv, whole images"
    everything = load_dataset(str(tmp_path / "photos.csv"), "nowhere", test="all").test
    assert everything.groups.tolist() == [0, -1, 0, -1, -1]
    assert read(tmp_path, ROWS).train.groups is None


def test_images_whose_partners_are_all_of_their_group_are_counted(tmp_path: Path) -> None:
    split = read(
        tmp_path,
        "path,label,split,group\na,x,test,1\nb,x,test,1\nc,y,test,1\nd,y,test,\ne,y,test,2\n",
    )
    assert count_partners(split).tolist() == [0, 0, 2, 2, 2]
    (warning,) = list_recall_warnings(split)
    assert "2 of 5 test images have no partner" in warning
    assert "of their class outside their group;" in warning


def test_two_columns_of_groups_are_refused(tmp_path: Path) -> None:
    message = fault(tmp_path, "path,label,split,group,group\na,x,test,1,2\n")
    assert message.startswith("1: expected the column group once at most, but found 'path,")
