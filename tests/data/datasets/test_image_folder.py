"""The readers of class folders, split or not, against the order in which ImageFolder reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.data.datasets import image_folder, load_dataset, train_val, unlabeled
from embedding_learning.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    """Empty files below the folder, which is returned."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def fault(folder: Path, read: object = image_folder.read) -> str:
    """The message to which reading the folder leads."""
    with pytest.raises(DataError) as caught:
        read(folder)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def below(folder: Path, paths: list[str]) -> list[str]:
    return [os.path.relpath(path, folder) for path in paths]


def test_a_folder_is_a_class_and_files_at_any_depth_are_its_images(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/10.jpg", "A b/x/y/1.png", "A b/x/0.png", "ä/1.bmp")
    images = image_folder.read(tmp_path)
    expected = ["A b/x/0.png", "A b/x/y/1.png", "b/10.jpg", "b/2.jpg", "ä/1.bmp"]
    assert below(tmp_path, images.paths) == expected
    assert (images.labels.tolist(), images.class_names) == ([0, 0, 1, 1, 2], ["A b", "b", "ä"])
    assert images.labels.dtype == np.int32
    assert images.boxes is None


def test_images_come_in_the_order_of_imagefolder(tmp_path: Path) -> None:
    names = [
        "a/x.png",
        "a/b/x.png",
        "a/b-c/x.png",
        "a/b/c/x.png",
        "a/b.png",
        "a/B/x.png",
        "b/1.png",
    ]
    touch(tmp_path, *names)
    # torchvision walks each class like this.
    expected = [
        os.path.join(root, name)
        for target in ("a", "b")
        for root, _, files in sorted(os.walk(tmp_path / target, followlinks=True))
        for name in sorted(files)
    ]
    assert image_folder.read(tmp_path).paths == expected


def test_images_are_recognized_by_their_extension_in_any_case(tmp_path: Path) -> None:
    images = [f"a/{n}.{end}" for n, end in enumerate(["jpg", "JPG", "jpeg", "Png", "bmp", "tif"])]
    images += ["a/6.TIFF", "a/7.webp", "a/8.ppm", "a/9.pgm"]
    touch(tmp_path, *images, "a/notes.txt", "a/jpg", "a/b.jpg.part", "a/._1.jpg", "a/.b/1.jpg")
    touch(tmp_path, "readme.txt", "photo.jpg", ".cache/1.jpg")
    found = image_folder.read(tmp_path)
    assert below(tmp_path, found.paths) == sorted(images)
    assert found.class_names == ["a"]


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path, "far/1.jpg", "data/a/2.jpg")
    data = tmp_path / "data"
    (data / "b").symlink_to(tmp_path / "far")
    (data / "a" / "3.jpg").symlink_to(tmp_path / "gone.jpg")
    found = image_folder.read(data)
    assert below(data, found.paths) == ["a/2.jpg", "a/3.jpg", "b/1.jpg"]
    with pytest.raises(DataError, match=r"a/3\.jpg: listed, but missing"):
        found.read_file_stats()
    (data / "a" / "up").symlink_to(data)
    assert fault(data).startswith(f"{data}/a/up: links to a folder that contains it")


def test_a_link_to_itself_is_like_a_link_to_nowhere(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    for name in ("loop", "a/2.jpg", "a/loop"):
        (tmp_path / name).symlink_to(os.path.basename(name))
    assert image_folder.has_images(tmp_path)
    found = image_folder.read(tmp_path)
    assert below(tmp_path, found.paths) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert found.class_names == ["a", "b"]
    with pytest.raises(DataError, match=r"a/2\.jpg: listed, but missing"):
        found.read_file_stats()
    assert below(tmp_path, unlabeled.read([str(tmp_path)]).paths) == below(tmp_path, found.paths)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_link_whose_target_cannot_be_accessed_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "data/a/1.jpg", "locked/b/1.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "locked" / "b")
    (tmp_path / "locked").chmod(0)
    assert fault(tmp_path / "data").startswith(f"{tmp_path}/data/b: cannot be read: Permission")


def test_links_that_multiply_the_paths_are_refused(tmp_path: Path) -> None:
    """Two folders that link to each other, and doubled links in a chain: 2**30 paths to a file."""
    touch(tmp_path / "ring", "a/1.jpg", "b/1.jpg")
    for one, other in ("ab", "ba"):
        (tmp_path / "ring" / one / "x").symlink_to(tmp_path / "ring" / other)
    assert fault(tmp_path / "ring").startswith(f"{tmp_path}/ring/a/x/x/x: links to ")
    for number in range(30):
        folder = tmp_path / "chain" / f"{number}"
        folder.mkdir(parents=True)
        for name in ("x", "y"):
            (folder / name).symlink_to(tmp_path / "chain" / f"{number + 1}")
    touch(tmp_path / "chain", "30/1.jpg")
    assert fault(tmp_path / "chain").startswith(f"{tmp_path}/chain/0/")


def test_the_first_half_of_the_classes_trains(tmp_path: Path) -> None:
    touch(tmp_path / "photos", *(f"{name}/1.jpg" for name in "edcba"))
    split = load_dataset(str(tmp_path / "photos"), "nowhere")
    assert split.name == "photos"
    assert (split.train.class_names, split.test.class_names) == (["a", "b"], ["c", "d", "e"])
    assert load_dataset(str(tmp_path / "photos"), "nowhere", 4).train.class_names == list("abcd")


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.txt")
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path / 'b'}: holds no image (.jpg .jpeg .png")
    assert fault(tmp_path / "a").startswith(f"{tmp_path / 'a'}: holds no class folders")
    assert fault(tmp_path / "c").startswith(f"{tmp_path / 'c'}: no such folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a").chmod(0)
    assert fault(tmp_path).startswith(f"{tmp_path / 'a'}: cannot be read: Permission denied")


@pytest.mark.parametrize("test", ["val", "test"])
def test_train_and_val_are_read_apart(tmp_path: Path, test: str) -> None:
    touch(tmp_path / "p", "train/a/1.jpg", "train/c/1.jpg", f"{test}/b/x/2.jpg", f"{test}/c/2.jpg")
    split = load_dataset(str(tmp_path / "p"), "nowhere")
    assert split.name == f"p (train/ and {test}/)"
    assert split.gallery is None
    assert (split.train.class_names, split.train.labels.tolist()) == (["a", "c"], [0, 1])
    assert (split.test.class_names, split.test.labels.tolist()) == (["b", "c"], [0, 1])
    assert below(tmp_path / "p" / test, split.test.paths) == ["b/x/2.jpg", "c/2.jpg"]


def test_val_goes_before_test(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "val/b/1.jpg", "test/c/1.jpg")
    assert train_val.read(tmp_path).test.class_names == ["b"]


def test_what_is_missing_of_train_and_val_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg")
    message = fault(tmp_path, train_val.read)
    assert message.startswith(f"{tmp_path / 'val'}: no such folder") and "--dataset" in message
    touch(tmp_path, "test/1.jpg")
    assert fault(tmp_path, train_val.read).startswith(
        f"{tmp_path / 'test'}: holds no class folders"
    )
    (tmp_path / "train").rename(tmp_path / "Train")
    assert fault(tmp_path, train_val.read).startswith(f"{tmp_path / 'train'}: no such folder")


def test_jpeg_and_pnm_files_of_rarer_endings_are_images(tmp_path: Path) -> None:
    names = ["a/1.jfif", "a/2.JPE", "a/3.pbm", "a/4.pnm", "a/5.dib"]
    touch(tmp_path, *names)
    assert below(tmp_path, image_folder.read(tmp_path).paths) == names


def test_pictures_of_other_formats_are_counted_by_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.HEIC", "a/x/3.heic", "b/4.gif", "b/5.png", "b/notes.txt", "b/6")
    assert len(image_folder.read(tmp_path)) == 2
    assert caplog.messages == [
        f"{tmp_path}: 3 files were skipped: 2 .heic, 1 .gif; convert them to JPEG or PNG."
    ]


def test_nothing_is_said_where_nothing_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "b/.3.gif", "b/__MACOSX/4.gif", "readme.pdf")
    image_folder.read(tmp_path)
    assert caplog.messages == []


def test_a_class_of_only_unsupported_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.avif", "a/2.avif", "b/3.jpg")
    assert "holds no image (.jpg" in fault(tmp_path)
    assert " but 2 .avif; " in fault(tmp_path)
    (tmp_path / "b/3.jpg").rename(tmp_path / "b/3.heic")
    with pytest.raises(DataError, match=r"a: holds no image .* but 2 \.avif"):
        load_dataset(str(tmp_path), "nowhere")


def test_what_macos_adds_to_a_zip_file_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/._1.jpg", "a/__MACOSX/1.jpg", "__MACOSX/a/._1.jpg")
    touch(tmp_path, "__MACOSX/2.jpg")
    images = image_folder.read(tmp_path)
    assert (below(tmp_path, images.paths), images.class_names) == (["a/1.jpg"], ["a"])
