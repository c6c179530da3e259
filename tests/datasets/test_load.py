"""The split into training and test classes, and what is checked before any image is decoded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.datasets import DataError, ImageSet, cub200, glyphs, load


@pytest.fixture(scope="module")
def seven_classes(tmp_path_factory: pytest.TempPathFactory, write_cub: Callable[..., Path]) -> Path:
    """Classes of 1, 2, 3, 1, 2, 3 and 1 images."""
    return write_cub(tmp_path_factory.mktemp("data") / "seven", [1, 2, 3, 1, 2, 3, 1], (8, 8))


def refusal(data_path: Path, train_classes: int | None = None) -> str:
    """The message to which loading the folder leads."""
    with pytest.raises(DataError) as caught:
        load(str(data_path), "nowhere", train_classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("train_classes, trains", [(None, 3), (1, 1), (3, 3), (6, 6)])
def test_the_first_classes_train_by_default_half_rounded_down(
    seven_classes: Path, train_classes: int | None, trains: int
) -> None:
    whole = cub200.read(seven_classes)
    train, test = load(str(seven_classes), "nowhere", train_classes)
    assert train.class_names + test.class_names == whole.class_names
    assert len(train.class_names) == trains
    assert train.paths + test.paths == whole.paths


def test_half_of_an_even_number_of_classes_trains(tiny_cub: Path) -> None:
    train, test = load(str(tiny_cub), "nowhere")
    assert (len(train.class_names), len(test.class_names)) == (4, 4)


def test_each_part_numbers_its_classes_from_0_and_keeps_its_boxes(seven_classes: Path) -> None:
    for part in load(str(seven_classes), "nowhere"):
        for path, label in zip(part.paths, part.labels):
            assert Path(path).parent.name == part.class_names[label]
        assert part.labels.min() == 0
        assert part.boxes is not None
        assert part.boxes.shape == (len(part), 4)


@pytest.mark.parametrize("train_classes", [7, 8])
def test_a_test_half_without_classes_is_refused(seven_classes: Path, train_classes: int) -> None:
    message = refusal(seven_classes, train_classes)
    assert message.startswith(f"--train-classes {train_classes}: {seven_classes} holds 7 classes")
    assert "1 to 6" in message


def test_a_single_class_is_refused(tmp_path: Path, write_cub: Callable[..., Path]) -> None:
    folder = write_cub(tmp_path / "one", [3], (8, 8))
    assert refusal(folder).startswith(f"{folder}: holds 1 class; two are needed")


def test_the_first_image_that_is_not_there_is_named(tiny_cub: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_cub, tmp_path / "copy")
    images = cub200.read(folder).paths
    Path(images[30]).unlink()
    assert refusal(folder).startswith(f"{images[30]}: listed but not there")
    Path(images[5]).unlink()
    assert refusal(folder).startswith(f"{images[5]} and 1 more: listed but not there")


def test_glyphs_are_read_from_the_cache(
    tiny_cub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(glyphs, "cached", lambda cache_dir: asked.append(cache_dir) or tiny_cub)
    train, _ = load("glyphs", str(tmp_path))
    assert asked == [tmp_path]
    assert train.paths[0].startswith(str(tiny_cub))


def test_rows_by_class_are_the_rows_with_each_label() -> None:
    labels = np.array([2, 0, 2, 3, 0, 2], np.int32)
    images = ImageSet(paths=list("abcdef"), labels=labels, class_names=list("wxyz"))
    assert [rows.tolist() for rows in images.rows_by_class()] == [[1, 4], [], [0, 2, 5], [3]]


def test_of_classes_without_boxes_has_none() -> None:
    images = ImageSet(paths=["a", "b"], labels=np.array([0, 1], np.int32), class_names=["x", "y"])
    part = images.of_classes(1, 2)
    assert (part.paths, part.labels.tolist(), part.class_names) == (["b"], [0], ["y"])
    assert part.boxes is None
