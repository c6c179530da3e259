"""Recognizing data sets, the split into training and test classes, and the check of the files."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.data.datasets import (
    NAMES,
    ImageSet,
    Split,
    cub200,
    glyphs,
    hold_out_validation_classes,
    load_dataset,
)
from embedding_learning.errors import DataError, TrainingError, UsageError


@pytest.fixture(scope="module")
def seven_classes(tmp_path_factory: pytest.TempPathFactory, write_cub: Callable[..., Path]) -> Path:
    """Classes of 1, 2, 3, 1, 2, 3 and 1 images."""
    return write_cub(tmp_path_factory.mktemp("data") / "seven", [1, 2, 3, 1, 2, 3, 1], (8, 8))


def refusal(data_path: Path, train_classes: int | None = None, name: str | None = None) -> str:
    """The message to which loading the folder leads."""
    with pytest.raises(DataError) as caught:
        load_dataset(str(data_path), "nowhere", train_classes, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("train_classes, trains", [(None, 3), (1, 1), (3, 3), (6, 6)])
def test_the_first_classes_train_by_default_half_rounded_down(
    seven_classes: Path, train_classes: int | None, trains: int
) -> None:
    whole = cub200.read(seven_classes)
    split = load_dataset(str(seven_classes), "nowhere", train_classes)
    train, test = split.train, split.test
    assert (split.name, split.gallery) == ("CUB-200-2011", None)
    assert train.class_names + test.class_names == whole.class_names
    assert len(train.class_names) == trains
    assert train.paths + test.paths == whole.paths


def test_half_of_an_even_number_of_classes_trains(tiny_cub: Path) -> None:
    split = load_dataset(str(tiny_cub), "nowhere")
    assert (len(split.train.class_names), len(split.test.class_names)) == (4, 4)


def test_each_part_numbers_its_classes_from_0_and_keeps_its_boxes(seven_classes: Path) -> None:
    split = load_dataset(str(seven_classes), "nowhere")
    for part in (split.train, split.test):
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


def test_a_single_class_tests(tmp_path: Path, write_cub: Callable[..., Path]) -> None:
    folder = write_cub(tmp_path / "one", [3], (8, 8))
    split = load_dataset(str(folder), "nowhere")
    assert (len(split.train), split.train.class_names, len(split.test)) == (0, [], 3)
    assert "one has to test, and two to train a network" in refusal(folder, 1)


def test_the_number_of_classes_that_a_model_was_trained_with_is_the_usual_one(
    seven_classes: Path,
) -> None:
    folder = str(seven_classes)
    split = load_dataset(folder, "nowhere", default_train_classes=5)
    assert len(split.train.class_names) == 5
    split = load_dataset(folder, "nowhere", 2, default_train_classes=5)
    assert len(split.train.class_names) == 2
    with pytest.raises(DataError, match=r"7 classes, but the model was trained on the first 7 "):
        load_dataset(folder, "nowhere", default_train_classes=7)


def test_every_class_of_a_folder_tests(seven_classes: Path) -> None:
    split, whole = (
        load_dataset(str(seven_classes), "nowhere", test="all"),
        cub200.read(seven_classes),
    )
    assert (split.test.paths, split.test.class_names) == (whole.paths, whole.class_names)
    assert split.test.labels.tolist() == whole.labels.tolist()
    assert split.test.boxes is not None and split.test.boxes.shape == (13, 4)
    assert (len(split.train), split.gallery) == (0, None)
    assert split.title == "CUB-200-2011, cropped to boxes, tested on all classes"


def test_every_class_of_a_list_tests_and_a_name_in_several_parts_is_one_class(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.csv"
    lines = ["1.jpg,b,train", "2.jpg,a,query", "3.jpg,b,gallery", "4.jpg,c,train", "5.jpg,a,query"]
    file.write_text("\n".join(["path,label,split", *lines]))
    # Files decide the split, whatever a model was trained with.
    split = load_dataset(str(file), "nowhere", test="all", default_train_classes=9)
    names = [split.test.class_names[label] for label in split.test.labels]
    found = dict(zip((Path(path).name for path in split.test.paths), names))
    assert found == {"1.jpg": "b", "2.jpg": "a", "3.jpg": "b", "4.jpg": "c", "5.jpg": "a"}
    assert len(split.test.class_names) == 3
    assert (len(split.train), split.gallery, split.test.boxes) == (0, None, None)


def test_a_list_need_not_name_images_that_train_but_some_that_test(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("path,label,split,x,y,width,height\n1.jpg,b,test,0,0,2,2\n")
    split = load_dataset(str(file), "nowhere")
    assert (len(split.train), split.train.boxes, len(split.test)) == (0, None, 1)
    assert split.title == "a.csv, cropped to boxes"
    file.write_text("path,label,split\n1.jpg,b,train\n")
    assert refusal(file).startswith(f"{file}: no image is listed as test")
    assert len(load_dataset(str(file), "nowhere", test="all").test) == 1


def test_file_stats_are_size_and_time_of_each_file(tiny_cub: Path) -> None:
    images = cub200.read(tiny_cub)
    stats = images.read_file_stats()
    assert stats.dtype == np.int64
    found = [os.stat(path) for path in images.paths]
    assert stats.tolist() == [[stat.st_size, stat.st_mtime_ns] for stat in found]
    nothing = ImageSet([], np.zeros(0, np.int32), [])
    assert nothing.read_file_stats().shape == (0, 2)


def test_the_first_image_that_is_not_there_is_named(tiny_cub: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_cub, tmp_path / "copy")
    images = cub200.read(folder)

    def read_error() -> str:
        with pytest.raises(DataError) as caught:
            images.read_file_stats()
        return str(caught.value)

    Path(images.paths[30]).unlink()
    assert read_error().startswith(f"{images.paths[30]}: listed, but missing")
    Path(images.paths[5]).unlink()
    Path(images.paths[5]).mkdir()
    assert read_error().startswith(f"{images.paths[5]} and 1 more: listed, but missing")
    images.paths[3] += "\0"
    assert read_error().startswith(f"{images.paths[3][:-1]}\\x00 and 2 more: listed, but missing")


def test_glyphs_are_read_from_the_cache(
    tiny_cub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        glyphs, "find_or_draw", lambda cache_dir: asked.append(cache_dir) or tiny_cub
    )
    split = load_dataset("glyphs", str(tmp_path))
    assert asked == [tmp_path]
    assert split.name == "glyphs"
    assert split.train.paths[0].startswith(str(tiny_cub))
    assert load_dataset("elsewhere", str(tmp_path), name="glyphs").train.paths == split.train.paths
    assert load_dataset("glyphs", str(tmp_path), 2, use_boxes=False).train.boxes is None


def test_a_folder_called_glyphs_can_be_named(
    tiny_cub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glyphs").symlink_to(tiny_cub)
    monkeypatch.chdir(tmp_path)
    assert load_dataset("glyphs", "nowhere", name="cub200").name == "CUB-200-2011"
    assert load_dataset("./glyphs", "nowhere").name == "CUB-200-2011"


# Files that identify a data set, and the message of its reader if the folder has nothing else.
TRACES = [
    ("cub200", ["images.txt"], "images: no such folder"),
    ("cub200", ["image_class_labels.txt"], "images: no such folder"),
    ("cub200", ["bounding_boxes.txt", "images/"], "images.txt: no such file"),
    ("cars196", ["cars_annos.mat"], "cars_annos.mat: is damaged or not the right file"),
    ("sop", ["Ebay_train.txt"], "Ebay_train.txt: is empty"),
    ("sop", ["Ebay_test.txt", "chair_final/1.JPG"], "Ebay_train.txt: no such file"),
    ("inshop", ["list_eval_partition.txt"], "list_eval_partition.txt: is empty"),
    ("inshop", ["Eval/list_eval_partition.txt"], "Eval/list_eval_partition.txt: is empty"),
    ("train-val", ["train/", "val/"], "train: holds no class folders"),
    ("train-val", ["train/", "test/", "a/1.jpg"], "train: holds no class folders"),
    ("folders", ["a/1.jpg", "b/"], "b: holds no image"),
    ("folders", ["train/a/1.jpg", "b/"], "b: holds no image"),
]


def lay_out(folder: Path, names: list[str]) -> Path:
    """Empty files, and folders where the name ends in a slash."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return folder


@pytest.mark.parametrize("name, names, expected", TRACES)
def test_a_data_set_is_recognized_by_its_files(
    tmp_path: Path, name: str, names: list[str], expected: str
) -> None:
    folder = lay_out(tmp_path, names)
    message = refusal(folder)
    assert message.startswith(f"{folder}/{expected}")
    assert refusal(folder, name=name) == message


def test_a_folder_that_could_be_two_data_sets_is_refused_until_one_is_named(
    tiny_cub: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_cub, tmp_path / "both")
    lay_out(folder, ["train/a/1.jpg", "val/b/1.jpg", "Ebay_test.txt"])
    message = refusal(folder)
    expected = "cub200 (images.txt) or sop (Ebay_test.txt) or train-val (train/ and val/)"
    assert message == f"{folder}: could be {expected}; choose one with --dataset"
    assert load_dataset(str(folder), "nowhere", name="cub200").train.class_names[0] == "001.Bird_1"
    assert load_dataset(str(folder), "nowhere", name="train-val").train.class_names == ["a"]
    images = folder / "images"
    assert load_dataset(str(images), "nowhere").train.class_names[0] == "001.Bird_1"


@pytest.mark.parametrize("names", [[], ["1.jpg", "notes.txt"], ["a/notes.txt", ".b/1.jpg"]])
def test_a_folder_that_is_no_data_set_is_refused_with_all_that_was_looked_for(
    tmp_path: Path, names: list[str]
) -> None:
    message = refusal(lay_out(tmp_path, names))
    assert message.startswith(f"{tmp_path}: no data set is recognized; looked for images.txt")
    for name in (*(name for name in NAMES if name not in ("csv", "glyphs")), ".csv", "--dataset"):
        assert name in message


def test_paths_that_are_no_folder_and_names_that_are_no_data_set_are_refused(
    tmp_path: Path,
) -> None:
    assert refusal(tmp_path / "gone").startswith(f"{tmp_path}/gone: no such folder; run ./get_cub")
    (tmp_path / "cars.zip").touch()
    for name in (None, *NAMES[:-2]):
        message = refusal(tmp_path / "cars.zip", name=name)
        assert message.startswith(f"{tmp_path}/cars.zip: is not a folder")
    message = refusal(tmp_path, name="imagenet")
    assert message == f"--dataset imagenet: unknown; choose one of {', '.join(NAMES)}"


def test_a_csv_file_is_recognized_by_its_name_or_the_flag(tmp_path: Path) -> None:
    rows = "path,label,split\na.jpg,x,train\nb.jpg,y,test\n"
    for name in ("a.csv", "A.CSV", "list.txt"):
        (tmp_path / name).write_text(rows)
    assert load_dataset(str(tmp_path / "a.csv"), "nowhere").name == "a.csv"
    assert load_dataset(str(tmp_path / "A.CSV"), "nowhere").name == "A.CSV"
    assert load_dataset(str(tmp_path / "list.txt"), "nowhere", name="csv").name == "list.txt"
    folder = lay_out(tmp_path / "folder.csv", ["a/1.jpg", "b/1.jpg"])
    assert load_dataset(str(folder), "nowhere").name == "folder.csv"


def test_train_classes_is_refused_where_files_decide_the_split(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label,split\na.jpg,x,train\nb.jpg,y,test\n")
    message = refusal(tmp_path / "a.csv", train_classes=1)
    assert message.startswith(f"--train-classes 1: the files of {tmp_path}/a.csv decide the split")
    folder = lay_out(tmp_path / "f", ["train/a/1.jpg", "val/b/1.jpg"])
    assert refusal(folder, train_classes=1).startswith(f"--train-classes 1: the files of {folder}")


def test_boxes_can_be_left_out(tiny_cub: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_cub, tmp_path / "copy")
    (folder / "bounding_boxes.txt").unlink()
    assert "--no-bbox" in refusal(folder)
    split = load_dataset(str(folder), "nowhere", use_boxes=False)
    assert split.train.boxes is None and split.test.boxes is None
    assert split.train.paths == [
        path.replace(str(tiny_cub), str(folder))
        for path in load_dataset(str(tiny_cub), "").train.paths
    ]


def test_rows_by_class_are_the_rows_with_each_label() -> None:
    labels = np.array([2, 0, 2, 3, 0, 2], np.int32)
    images = ImageSet(paths=list("abcdef"), labels=labels, class_names=list("wxyz"))
    assert [rows.tolist() for rows in images.group_rows_by_class()] == [[1, 4], [], [0, 2, 5], [3]]


def test_of_classes_without_boxes_has_none() -> None:
    images = ImageSet(paths=["a", "b"], labels=np.array([0, 1], np.int32), class_names=["x", "y"])
    part = images.select_classes(1, 2)
    assert (part.paths, part.labels.tolist(), part.class_names) == (["b"], [0], ["y"])
    assert part.boxes is None


def test_a_path_that_cannot_be_accessed_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: File name too long; name another folder"):
        load_dataset(str(tmp_path / ("x" * 300)), str(tmp_path))


def test_a_folder_without_permission_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(DataError, match=r"birds: cannot be read: Permission denied"):
        load_dataset(str(tmp_path / "birds"), str(tmp_path))


@pytest.mark.parametrize("error", [DataError, UsageError, TrainingError])
def test_a_message_is_one_line_that_no_terminal_obeys(error: type[Exception]) -> None:
    text = str(error("naïve 日本.jpg\n\x1b[2J\u2028\x85\0\udcff: wrong"))
    assert text == r"naïve 日本.jpg\n\x1b[2J\u2028\x85\x00\udcff: wrong"
    text.encode("utf-8")


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    text = str(DataError(f"list.txt:1: {'x' * 10**6}; fetch it again"))
    assert text.startswith("list.txt:1: xxx") and text.endswith("xxx; fetch it again")
    assert " … " in text and len(text) < 1100


def sets(n_classes: int, per_class: int = 3) -> ImageSet:
    """Classes of images whose names contain the class, mixed."""
    labels = np.tile(np.arange(n_classes, dtype=np.int32), per_class)
    names = [f"c{label}" for label in range(n_classes)]
    paths = [f"c{label}/{row}" for row, label in enumerate(labels)]
    return ImageSet(paths, labels, names, np.arange(4 * len(labels)).reshape(-1, 4))


@pytest.mark.parametrize(
    "share, classes, held_out",
    [(0.2, 10, 2), (0.25, 10, 2), (0.3, 10, 3), (0.01, 10, 2), (0.9, 10, 9), (0.5, 3, 2)],
)
def test_the_last_training_classes_are_held_out_in_place_of_the_test(
    share: float, classes: int, held_out: int
) -> None:
    train = sets(classes)
    split = hold_out_validation_classes(Split("birds", train, sets(4), gallery=sets(4)), share)
    assert split.is_tested_on_validation_classes and split.gallery is None and len(split.parts) == 2
    assert split.train.class_names == train.class_names[: classes - held_out]
    assert split.test.class_names == train.class_names[classes - held_out :]
    assert {*split.train.paths} | {*split.test.paths} == {*train.paths}
    for part in split.parts:
        assert len(part) == 3 * len(part.class_names)
        for path, label, box in zip(part.paths, part.labels, part.boxes):
            assert path.split("/")[0] == part.class_names[label]
            assert box.tolist() == train.boxes[train.paths.index(path)].tolist()
    assert split.title == "birds, cropped to boxes, tested on held-out training classes"


@pytest.mark.parametrize("classes, folds", [(10, 5), (10, 3), (11, 4), (100, 7), (4, 2), (98, 30)])
def test_the_folds_hold_out_each_class_once(classes: int, folds: int) -> None:
    train = sets(classes)
    held_out: list[str] = []
    for fold in range(1, folds + 1):
        split = hold_out_validation_classes(Split("birds", train, sets(4)), 1 / folds, fold)
        assert abs(len(split.test.class_names) - classes / folds) < 1
        held_out = [*split.test.class_names, *held_out]
        rest = [name for name in train.class_names if name not in split.test.class_names]
        assert split.train.class_names == rest
        for part in split.parts:
            assert part.labels.dtype == np.int32
            assert [path.split("/")[0] for path in part.paths] == [
                part.class_names[label] for label in part.labels
            ]
            assert len(part) == 3 * len(part.class_names)
    assert held_out == train.class_names


@pytest.mark.parametrize("classes, share, fold", [(10, 0.2, 6), (5, 0.25, 2), (5, 0.3, 2)])
def test_there_are_only_so_many_folds(classes: int, share: float, fold: int) -> None:
    split = Split("birds", sets(classes), sets(4))
    start = rf"^--held-out-fold {fold}: {classes} classes train in birds, which are too few for so"
    with pytest.raises(DataError, match=start):
        hold_out_validation_classes(split, share, fold)


def test_nothing_held_out_leaves_all_as_it_is() -> None:
    split = Split("birds", sets(3), sets(4), gallery=sets(4))
    assert hold_out_validation_classes(split, 0.0) is split
    assert not split.is_tested_on_validation_classes and split.title == "birds, cropped to boxes"


@pytest.mark.parametrize("share, classes", [(0.1, 2), (0.99, 10), (0.5, 1), (0.9, 4), (0.99, 7)])
def test_held_out_classes_have_to_leave_some_to_train(share: float, classes: int) -> None:
    split = Split("birds", sets(classes), sets(4))
    start = rf"^--held-out {share}: {classes} classes train in birds"
    with pytest.raises(DataError, match=start) as caught:
        hold_out_validation_classes(split, share)
    proposed = re.search(r"([\d.]+) is the most$", str(caught.value))
    if classes < 4:
        assert str(caught.value).endswith("leave the flag out")
    else:
        assert (
            proposed
            and len(hold_out_validation_classes(split, float(proposed[1])).train.class_names) >= 2
        )
