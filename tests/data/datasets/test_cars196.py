"""The reader of Cars196, on small files written as MATLAB's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from embedding_learning.data.datasets import cars196, load_dataset
from embedding_learning.errors import DataError

FIELDS = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
# In no order; nobody drives the third class.
CARS: list[tuple[Any, ...]] = [
    ("car_ims/000001.jpg", 112, 7, 853, 717, 4, 0),
    ("car_ims/000002.jpg", 1, 1, 1, 1, 1, 1),
    ("car_ims/000003.jpg", 200, 255, 256, 300, 2, 0),
    ("car_ims/000004.jpg", 4, 8, 5, 10, 1, 0),
]
NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL", "smart fortwo"]


def write(
    folder: Path,
    cars: list[tuple[Any, ...]],
    names: list[str] | None = None,
    fields: tuple[str, ...] = FIELDS,
    compressed: bool = True,
) -> Path:
    """cars_annos.mat, each number in the smallest type that holds it, as in the true file."""
    annotations = np.empty((1, len(cars)), [(field, object) for field in fields])
    for row, (path, *numbers) in enumerate(cars):
        sizes = [
            np.array([[n]], np.min_scalar_type(n)) if isinstance(n, int) else n for n in numbers
        ]
        annotations[0, row] = (path, *sizes)
    cells = np.empty((1, len(NAMES)), object)
    cells[0] = names or NAMES
    values = {"annotations": annotations, "class_names": cells}
    savemat(folder / "cars_annos.mat", values, do_compression=compressed)
    return folder / "cars_annos.mat"


def fault(folder: Path) -> str:
    """The message to which reading the folder leads."""
    with pytest.raises(DataError) as caught:
        cars196.read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'cars_annos.mat'}: ")
    return message


@pytest.mark.parametrize("compressed", [True, False])
def test_images_and_classes_are_those_of_the_file(tmp_path: Path, compressed: bool) -> None:
    write(tmp_path, CARS, compressed=compressed)
    images = cars196.read(tmp_path)
    assert images.paths == [f"{tmp_path}/{car[0]}" for car in CARS]
    assert images.labels.tolist() == [2, 0, 1, 0]
    assert images.labels.dtype == np.int32
    assert images.class_names == [NAMES[0], NAMES[1], NAMES[3]]


def test_corners_count_from_1_and_belong_to_the_box(tmp_path: Path) -> None:
    write(tmp_path, CARS)
    boxes = cars196.read(tmp_path).boxes
    assert boxes is not None
    assert boxes.dtype == np.int32
    assert boxes.tolist() == [[111, 6, 742, 711], [0, 0, 1, 1], [199, 254, 57, 46], [3, 7, 2, 3]]


def test_without_boxes_they_may_be_wrong(tmp_path: Path) -> None:
    write(tmp_path, [(*CARS[0][:3], 5, *CARS[0][4:]), *CARS[1:]])
    assert "annotations(1): the box is empty: '112 7 5 717'; correct it" in fault(tmp_path)
    assert cars196.read(tmp_path, use_boxes=False).boxes is None


def test_of_196_classes_98_train(tmp_path: Path) -> None:
    cars = [(f"car_ims/{n:06d}.jpg", 1, 1, 9, 9, n // 2 + 1, n % 2) for n in range(2 * 196)]
    cells = np.empty((1, 196), object)
    cells[0] = [f"Car {n}" for n in range(1, 197)]
    array = np.empty((1, 392), [(field, object) for field in FIELDS])
    array[0] = cars
    savemat(tmp_path / "cars_annos.mat", {"annotations": array, "class_names": cells})
    split = load_dataset(str(tmp_path), "nowhere")
    assert split.name == "Cars196"
    assert split.train.class_names == [f"Car {n}" for n in range(1, 99)]
    assert split.test.class_names == [f"Car {n}" for n in range(99, 197)]
    assert (len(split.train), len(split.test), split.gallery) == (196, 196, None)


@pytest.mark.parametrize(
    "car, message",
    [
        (("", 1, 1, 2, 2, 1, 0), "expected relative_im_path"),
        ((7, 1, 1, 2, 2, 1, 0), "expected relative_im_path, but found 7"),
        (("b.jpg", 1, 1, 2, 2, 0, 0), "expected a class from 1 to 4, but found 0"),
        (("b.jpg", 1, 1, 2, 2, 5, 0), "expected a class from 1 to 4, but found 5"),
        (("b.jpg", 1, 1, 2, 2, 1.5, 0), "expected a class from 1 to 4, but found 1.5"),
        (("b.jpg", 1, 1, 2, 2, "Audi", 0), "expected a class from 1 to 4, but found 'Audi'"),
        (("b.jpg", 1, 1, 2, np.zeros((0, 0)), 1, 0), "expected x_1, y_1, x_2 and y_2"),
        (("b.jpg", 1, 1, 2, np.nan, 1, 0), "expected x_1, y_1, x_2 and y_2, but found '1 1 2 nan'"),
        (("car_ims/000002.jpg", 1, 1, 2, 2, 1, 0), "car_ims/000002.jpg is listed a second time"),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path: Path, car: tuple[Any, ...], message: str) -> None:
    write(tmp_path, [*CARS[:2], car])
    assert fault(tmp_path).split(": ", 1)[1].startswith(f"annotations(3): {message}")


def test_the_annotations_of_the_classification_task_are_refused(tmp_path: Path) -> None:
    write(tmp_path, CARS, fields=("fname", *FIELDS[1:]))
    assert "has no valid annotations" in fault(tmp_path)


def test_a_file_without_class_names_is_refused(tmp_path: Path) -> None:
    write(tmp_path, CARS)
    savemat(tmp_path / "cars_annos.mat", {"annotations": {field: [1] for field in FIELDS}})
    assert "has no class_names" in fault(tmp_path)


@pytest.mark.parametrize("content", [b"", b"MATLAB 7.3 MAT-file" * 20, b"\x80\x04\x95pickle." * 50])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cars_annos.mat").write_bytes(content)
    assert "is damaged or not the right file" in fault(tmp_path)


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path)
    (tmp_path / "cars_annos.mat").mkdir()
    assert "is damaged or not the right file" in fault(tmp_path)
    (tmp_path / "cars_annos.mat").rmdir()
    (tmp_path / "cars_annos.mat").symlink_to("/dev/null")
    assert "it is not a regular file" in fault(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        cars196.read(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, compressed: bool) -> None:
    """A file that is cut off or changed anywhere raises nothing but DataError."""
    file = write(tmp_path, CARS, compressed=compressed)
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for trial in range(600):
        damaged = bytearray(whole)
        if trial % 3:
            places = rng.integers(0, len(whole), rng.integers(1, 4))
            for place in places:
                damaged[place] = rng.integers(256)
        else:
            del damaged[rng.integers(len(whole)) :]
        file.write_bytes(damaged)
        try:
            cars196.read(tmp_path)
        except DataError:
            refused += 1
    assert refused > 200


@pytest.mark.slow
@pytest.mark.shared
def test_the_whole_of_cars196_is_read(shared: Path) -> None:
    """The true file, read without its images and compared line by line with scipy's reader."""
    folder = shared / "data" / "cars_annotations"
    images = cars196.read(folder)

    variables = loadmat(folder / "cars_annos.mat", squeeze_me=True)
    lines = variables["annotations"]
    assert len(images) == len(lines) == 16185
    assert images.paths == [f"{folder}/{path}" for path in lines["relative_im_path"]]
    assert images.labels.tolist() == [number - 1 for number in lines["class"]]
    assert images.class_names == variables["class_names"].tolist()
    x1, y1, x2, y2 = (lines[f"bbox_{end}"].astype(int) for end in ("x1", "y1", "x2", "y2"))
    assert images.boxes is not None
    expected = np.stack([x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], axis=1)
    np.testing.assert_array_equal(images.boxes, expected)
    assert len(images.select_classes(0, 98)) == 8054
    assert len(images.select_classes(98, 196)) == 8131
