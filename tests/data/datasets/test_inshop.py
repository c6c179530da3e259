"""The reader of In-Shop Clothes Retrieval, and the file and line of whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedding_learning.data.datasets import inshop, load
from embedding_learning.errors import DataError

HEADER = "image_name item_id evaluation_status"
BOX_HEADER = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
IMAGES = [f"img/WOMEN/Dresses/id_{item}/0{view}_1_front.jpg" for item in "2134" for view in (1, 2)]
ITEMS = ["id_2", "id_2", "id_1", "id_1", "id_3", "id_3", "id_4", "id_4"]
PARTS = ["train"] * 4 + ["query", "gallery", "gallery", "query"]
# Filled up with blanks, as the true file is.
LINES = [f"{image:70} {item} {part:10} " for image, item, part in zip(IMAGES, ITEMS, PARTS)]
BOXES = [f"{image:70} 3 1 065 045 233 {number:03d}" for number, image in enumerate(IMAGES, 46)]


def write(file: Path, lines: list[str], header: str = HEADER, count: object = None) -> None:
    file.parent.mkdir(exist_ok=True)
    count = len(lines) if count is None else count
    file.write_text("".join(f"{line}\n" for line in [count, header, *lines]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    write(tmp_path / "list_eval_partition.txt", LINES)
    return tmp_path


def fault(folder: Path) -> str:
    """The message to which reading the folder leads."""
    with pytest.raises(DataError) as caught:
        inshop.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_queries_are_searched_in_the_gallery(folder: Path) -> None:
    split = load(str(folder), "nowhere")
    assert split.name == "In-Shop Clothes Retrieval"
    assert split.gallery is not None
    for part, images in (
        ("train", split.train),
        ("query", split.test),
        ("gallery", split.gallery),
    ):
        expected = [f"{folder}/{image}" for image, of in zip(IMAGES, PARTS) if of == part]
        assert images.paths == expected
        assert images.boxes is None


def test_queries_and_gallery_are_numbered_together(folder: Path) -> None:
    split = inshop.read(folder)
    assert split.gallery is not None
    assert (split.train.labels.tolist(), split.train.class_names) == (
        [1, 1, 0, 0],
        ["id_1", "id_2"],
    )
    assert split.test.class_names == split.gallery.class_names == ["id_3", "id_4"]
    assert (split.test.labels.tolist(), split.gallery.labels.tolist()) == ([0, 1], [0, 1])


def test_the_folders_of_the_archive_serve_too(tmp_path: Path) -> None:
    (tmp_path / "Img" / "img").mkdir(parents=True)
    write(tmp_path / "Eval" / "list_eval_partition.txt", LINES)
    write(tmp_path / "Anno" / "list_bbox_inshop.txt", BOXES, BOX_HEADER)
    split = load(str(tmp_path), "nowhere")
    assert split.train.paths[0] == f"{tmp_path}/Img/{IMAGES[0]}"
    assert split.test.boxes is not None


def test_boxes_are_found_by_the_names_of_the_images(folder: Path) -> None:
    write(folder / "list_bbox_inshop.txt", BOXES[::-1], BOX_HEADER)
    split = inshop.read(folder)
    assert split.train.boxes is not None and split.gallery is not None
    assert split.train.boxes.tolist() == [[64, 44, 169, height] for height in (2, 3, 4, 5)]
    assert split.gallery.boxes is not None
    assert split.gallery.boxes.tolist() == [[64, 44, 169, 7], [64, 44, 169, 8]]
    assert inshop.read(folder, use_boxes=False).train.boxes is None


@pytest.mark.parametrize(
    "line, message",
    [
        ("img/a.jpg id_9", f"expected the columns '{HEADER}', but found 'img/a.jpg id_9'"),
        ("img/a.jpg id_9 val", "expected one of train, query, gallery, but found 'val'"),
        ("img/a.jpg id_9 train x", "expected one of train, query, gallery, but found 'train x'"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, line: str, message: str) -> None:
    file = folder / "list_eval_partition.txt"
    write(file, [LINES[0], line, *LINES[1:]])
    assert fault(folder).startswith(f"{file}:4: {message}")


def test_an_image_that_is_listed_twice_is_named(folder: Path) -> None:
    file = folder / "list_eval_partition.txt"
    write(file, [*LINES, f"{IMAGES[4]} id_3 gallery"])
    message = fault(folder)
    assert message.startswith(f"{file}:11: {folder}/{IMAGES[4]} is listed a second time")
    assert f"after {file}:7" in message


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_a_part_without_images_is_named(folder: Path, part: str) -> None:
    file = folder / "list_eval_partition.txt"
    write(file, [line for line, of in zip(LINES, PARTS) if of != part])
    assert fault(folder).startswith(f"{file}: no image is listed as {part}")


def test_a_list_that_is_not_whole_is_refused(folder: Path) -> None:
    file = folder / "list_eval_partition.txt"
    write(file, LINES, count=52712)
    assert fault(folder).startswith(
        f"{file}:1: 8 lines follow the header, but the number here is '52712'"
    )
    write(file, LINES, count="many")
    assert fault(folder).startswith(
        f"{file}:1: 8 lines follow the header, but the number here is 'many'"
    )
    file.write_text("8\n")
    assert fault(folder).startswith(f"{file}:1: expected the header '{HEADER}'")


def test_the_list_of_another_benchmark_of_deepfashion_is_refused(folder: Path) -> None:
    file = folder / "list_eval_partition.txt"
    header = "image_pair_name_1 image_pair_name_2 item_id evaluation_status"
    write(file, LINES, header)
    assert fault(folder).startswith(
        f"{file}:2: expected the header '{HEADER}', but found '{header}'"
    )


def test_wrong_boxes_are_named_with_the_way_to_do_without(folder: Path) -> None:
    file = folder / "list_bbox_inshop.txt"
    write(file, [*BOXES[:2], f"{IMAGES[2]} 3 1 9 9 8 9", *BOXES[3:]], BOX_HEADER)
    assert fault(folder).startswith(f"{file}:5: the box is empty: '9 9 8 9'; correct it")
    write(file, [*BOXES[:2], f"{IMAGES[2]} 3 1 9 9 x 9", *BOXES[3:]], BOX_HEADER)
    assert fault(folder).startswith(
        f"{file}:5: expected x_1, y_1, x_2 and y_2, but found '9 9 x 9'"
    )
    write(file, [*BOXES, BOXES[0]], BOX_HEADER)
    assert fault(folder).startswith(f"{file}:11: {IMAGES[0]} is listed a second time")
    write(file, BOXES[:-1], BOX_HEADER)
    message = fault(folder)
    assert message.startswith(f"{file}: has no line for {IMAGES[-1]}") and "--no-bbox" in message


def test_missing_lists_and_images_are_named(folder: Path) -> None:
    (folder / "img").rmdir()
    assert fault(folder).startswith(f"{folder / 'img'}: no such folder; unpack img.zip")
    (folder / "list_eval_partition.txt").unlink()
    message = fault(folder)
    assert message.startswith(f"{folder / 'list_eval_partition.txt'}: no such file")
    assert "--dataset" in message
