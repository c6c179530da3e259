"""From the flags to batches: their images and labels, with pixels from files and from the cache."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import HybridBlock

from embedding_learning.cli.train_flags import parse
from embedding_learning.config import TrainConfig
from embedding_learning.data import preprocessing
from embedding_learning.data.batches import SequentialBatches
from embedding_learning.data.build import Data, digest, open_data, read_split
from embedding_learning.data.datasets import ImageSet, Split, cub200
from embedding_learning.data.preprocessing import read_square
from embedding_learning.errors import DataError, UsageError
from tests.helpers.tiny_networks import recalls

CACHES = pytest.mark.parametrize("cache", ["pixels", "none"])
# Label and part of each image, for `photos`: training classes of 4, 2, 5 and 1 images, mixed.
UNEVEN = [
    *[("a", "train"), ("c", "train"), ("b", "train"), ("c", "train"), ("d", "train")],
    *[("c", "train"), ("a", "train"), ("a", "train"), ("b", "train"), ("c", "train")],
    *[("a", "train"), ("c", "train"), ("y", "test"), ("x", "test"), ("y", "test")],
]
# Three training classes of 4 images each.
EVEN = [(label, "train") for label in "abcabcabcabc"]
GALLERY = [
    *[("y", "query"), ("x", "gallery"), ("z", "gallery"), ("x", "query"), ("y", "gallery")],
    *[("x", "gallery"), ("y", "query"), ("y", "gallery")],
]


def photos(folder: Path, lines: Sequence[tuple[str, str]]) -> Path:
    """A CSV file and its images; every pixel of an image is its line's number, from 0."""
    folder.mkdir()
    rows = ["path,label,split"]
    for number, (label, part) in enumerate(lines):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((10, 9, 3), number, np.uint8))
        rows.append(f"{number}.png,{label},{part}")
    file = folder / "photos.csv"
    file.write_text("\n".join(rows))
    return file


@pytest.fixture
def flags(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A function that reads flags, with small images and a cache of the test's own."""

    def read(data: Path, *further: str) -> TrainConfig:
        return parse([
            f"--data-path={data}", f"--cache-dir={tmp_path / 'cache'}", "--workers=2",
            "--image-size=8", "--crop-size=6", "--batch-size=6", "--batch-k=3", *further,
        ])  # fmt: skip

    return read


@contextmanager
def opened(options: TrainConfig) -> Iterator[tuple[Split, Data]]:
    """Opens the data and its batches, and closes them at the end."""
    split = read_split(options)
    data = open_data(split, options)
    try:
        yield split, data
    finally:
        data.close()


class Batch(NamedTuple):
    numbers: list[int]  # of the images
    labels: list[int]


def batch_of(batch: mx.io.DataBatch) -> Batch:
    """Returns which images of `photos` a batch holds, without those that fill it up."""
    data = batch.data[0].asnumpy()
    assert (data == data[:, :1, :1, :1]).all()
    real = len(data) - batch.pad
    labels = batch.label[0].asnumpy().astype(int)
    return Batch(data[:real, 0, 0, 0].tolist(), labels[:real].tolist())


def joined(batches: Iterable[mx.io.DataBatch]) -> Batch:
    whole = Batch([], [])
    for batch in map(batch_of, batches):
        whole.numbers.extend(batch.numbers)
        whole.labels.extend(batch.labels)
    return whole


def collect(data: Data, count: int = 30) -> Batch:
    """All images of some training batches."""
    return joined(data.train.next() for _ in range(count))


def searched(batches: SequentialBatches | None) -> Batch:
    """All test or gallery images, in order."""
    assert batches is not None
    batches.reset()
    return joined(batches)


def assert_labels(lines: Sequence[tuple[str, str]], found: Batch, names: Sequence[str]) -> None:
    """Every image has the number of its own class."""
    assert [lines[number][0] for number in found.numbers] == [names[i] for i in found.labels]


def numbers_of(lines: Sequence[tuple[str, str]], label: str) -> set[int]:
    return {number for number, (its_label, _) in enumerate(lines) if its_label == label}


def break_file(data: Path, number: int) -> None:
    (data.parent / f"{number}.png").write_bytes(b"not an image")


# Small classes


def test_a_small_class_is_refused_by_default_and_named(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    data = photos(tmp_path / "data", UNEVEN)
    for further in ([], ["--small-classes=error"]):
        with pytest.raises(DataError) as caught:
            read_split(flags(data, *further))
        message = str(caught.value)
        assert message.startswith("class b: has 2 images, fewer than --batch-k 3; ")
        assert "--small-classes" in message


@pytest.mark.parametrize("choice", ["error", "drop", "repeat"])
def test_classes_that_are_large_enough_are_left_as_they_are(
    tmp_path: Path, flags: Callable[..., TrainConfig], choice: str
) -> None:
    data = photos(tmp_path / "data", [*EVEN, ("x", "test")])
    split = read_split(flags(data, f"--small-classes={choice}", "--batch-k=2"))
    assert split.train.class_names == ["a", "b", "c"]
    assert split.train.paths == [str(data.parent / f"{number}.png") for number in range(12)]
    assert split.train.labels.tolist() == [0, 1, 2] * 4


@CACHES
def test_dropped_classes_are_in_no_batch_and_the_others_numbered_from_0(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str
) -> None:
    data = photos(tmp_path / "data", UNEVEN)
    with opened(flags(data, "--small-classes=drop", f"--cache={cache}")) as (split, batches):
        assert split.train.class_names == ["a", "c"]
        assert len(batches.beta_terms) == 2
        found = collect(batches)
        assert_labels(UNEVEN, found, ["a", "c"])
        assert set(found.numbers) == numbers_of(UNEVEN, "a") | numbers_of(UNEVEN, "c")


@CACHES
def test_a_class_of_two_fills_its_place_in_a_batch_with_each_of_them(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str
) -> None:
    data = photos(tmp_path / "data", UNEVEN)
    options = flags(data, "--small-classes=repeat", "--batch-size=12", f"--cache={cache}")
    names = ["a", "b", "c", "d"]
    with opened(options) as (split, batches):
        assert (split.train.class_names, len(batches.beta_terms)) == (names, 4)
        for _ in range(10):
            found = batch_of(batches.train.next())
            assert_labels(UNEVEN, found, names)
            for start in range(0, 12, 3):
                (label,) = set(found.labels[start : start + 3])
                distinct = set(found.numbers[start : start + 3])
                of_class = numbers_of(UNEVEN, names[label])
                assert len(distinct) == min(3, len(of_class))
                assert distinct <= of_class


@pytest.mark.parametrize("choice", ["drop", "repeat"])
def test_small_classes_test_all_the_same(
    tmp_path: Path, flags: Callable[..., TrainConfig], choice: str
) -> None:
    data = photos(tmp_path / "data", UNEVEN)
    with opened(flags(data, f"--small-classes={choice}")) as (split, batches):
        assert split.test.class_names == ["x", "y"]
        assert searched(batches.test) == ([12, 13, 14], [1, 0, 1])


@pytest.mark.parametrize("choice, classes", [("drop", 2), ("repeat", 4)])
def test_the_number_of_classes_is_checked_without_those_that_are_dropped(
    tmp_path: Path, flags: Callable[..., TrainConfig], choice: str, classes: int
) -> None:
    data = photos(tmp_path / "data", UNEVEN)
    read_split(flags(data, f"--small-classes={choice}", f"--classes={classes}"))
    with pytest.raises(UsageError, match=f"--classes 3: the data has {classes} classes"):
        read_split(flags(data, f"--small-classes={choice}", "--classes=3"))


@pytest.mark.parametrize("batch_k, left", [(5, 1), (6, 0)])
def test_too_few_classes_left_to_fill_a_batch_are_refused(
    tmp_path: Path, flags: Callable[..., TrainConfig], batch_k: int, left: int
) -> None:
    data = photos(tmp_path / "data", UNEVEN)
    options = flags(
        data, "--small-classes=drop", f"--batch-k={batch_k}", f"--batch-size={2 * batch_k}"
    )
    with pytest.raises(UsageError, match=f": {left} class.* but 2 have to, two for each device"):
        read_split(options)


def test_the_log_counts_training_images_without_the_classes_that_are_dropped(
    tmp_path: Path, flags: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    read_split(flags(photos(tmp_path / "data", UNEVEN), "--small-classes=drop"))
    assert caplog.messages[0] == (
        "photos.csv, whole images: 9 images of 2 classes train, 3 of 2 test."
    )
    assert "1 of 3 test images have no partner" in caplog.messages[1]


def test_classes_that_are_too_small_are_counted_and_the_ways_out_are_ways_out(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    lines = [line for line in UNEVEN if line[0] != "d"]  # the smallest class has two images
    data = photos(tmp_path / "data", lines)
    with pytest.raises(DataError, match=r"lower --batch-k to 2, .* 1 of 3 classes are so small"):
        read_split(flags(data))
    for further in (["--batch-k=2"], ["--small-classes=drop"], ["--small-classes=repeat"]):
        read_split(flags(data, *further))


def test_no_batch_k_is_proposed_that_none_can_have(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    """One image in a class; --batch-k 1 would be refused."""
    data = photos(tmp_path / "data", UNEVEN)
    with pytest.raises(DataError, match="2 of 4 classes are so small") as caught:
        read_split(flags(data))
    assert "lower --batch-k" not in str(caught.value)


# Too few classes


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("batch_k, size", [(2, 40), (3, 30), (4, 40)])
@pytest.mark.parametrize("is_total", [False, True])
def test_the_largest_batch_proposed_is_taken(
    tmp_path: Path,
    flags: Callable[..., TrainConfig],
    devices: int,
    batch_k: int,
    size: int,
    is_total: bool,
) -> None:
    """The data has seven classes; a device's part of a batch holds whole classes."""
    lines = [*[(label, "train") for label in "abcdefg" * 4], ("x", "test")]
    data = photos(tmp_path / "data", lines)
    given = [f"--cpu-contexts={devices}", f"--batch-k={batch_k}"]
    total = [f"--total-batch-size={devices * size}"] if is_total else [f"--batch-size={size}"]
    with pytest.raises(UsageError, match="but only 7 train") as caught:
        read_split(flags(data, *given, *total))
    flag = "--total-batch-size" if is_total else "--batch-size"
    (most,) = re.findall(rf" {flag} (\d+)", str(caught.value))
    read_split(flags(data, *given, f"{flag}={most}"))
    more = int(most) + batch_k * (devices if is_total else 1)
    with pytest.raises(UsageError, match="but only 7 train"):
        read_split(flags(data, *given, f"{flag}={more}"))


def test_one_training_class_is_refused_whatever_the_batch(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    data = photos(tmp_path / "data", [*[("a", "train")] * 6, ("x", "test")])
    for size in (6, 9, 300):
        with pytest.raises(UsageError) as caught:
            read_split(flags(data, f"--batch-size={size}"))
        assert str(caught.value).startswith(f"{data}: 1 class trains, but 2 have to, two for each")
        for other in ("--held-out", "--batch-k", "fewer devices", "--batch-size"):
            assert other not in str(caught.value)


@pytest.mark.parametrize(
    "given, way, instead",
    [
        (["--held-out=0.5"], "leave --held-out out", []),
        (["--small-classes=drop", "--batch-k=5"], "lower --batch-k", ["--batch-k=3"]),
        (["--cpu-contexts=2"], "use fewer devices", ["--cpu-contexts=1"]),
    ],
)
def test_each_way_to_more_training_classes_is_one(
    tmp_path: Path,
    flags: Callable[..., TrainConfig],
    given: list[str],
    way: str,
    instead: list[str],
) -> None:
    """Three classes of four images."""
    data = photos(tmp_path / "data", [*EVEN, ("x", "test")])
    size = "--batch-size=10" if "--batch-k=5" in given else "--batch-size=6"
    with pytest.raises(UsageError, match=f"two for each device.*{way}"):
        read_split(flags(data, size, *given))
    read_split(flags(data, *instead))


def test_of_three_class_folders_two_can_train(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    folder = tmp_path / "data"
    for label in "abc":
        (folder / label).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(folder / label / f"{number}.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UsageError, match=r"1 class trains, but 2 have to.* by --train-classes"):
        read_split(flags(folder))
    read_split(flags(folder, "--train-classes=2"))


def test_data_in_which_nothing_trains_is_refused(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    data = photos(tmp_path / "data", [("x", "test"), ("x", "test"), ("y", "test")])
    with pytest.raises(DataError) as caught:
        read_split(flags(data, "--held-out=0.5"))
    assert str(caught.value).startswith(f"{data}: none of its images train; two classes at least")


# Bad images


@CACHES
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_good_images_only_with_their_own_labels(
    tmp_path: Path,
    flags: Callable[..., TrainConfig],
    caplog: pytest.LogCaptureFixture,
    cache: str,
    workers: int,
) -> None:
    lines = EVEN + GALLERY
    data = photos(tmp_path / "data", lines)
    for number in (0, 13, 15):
        break_file(data, number)
    options = flags(data, "--skip-bad-images", f"--cache={cache}", f"--workers={workers}")
    for again in (False, True):  # a pixel cache remembers them
        caplog.clear()
        with opened(options) as (_, batches):
            named = sorted(line for line in caplog.messages if line.startswith("Skipped: "))
            if not again:
                files = [data.parent / f"{number}.png" for number in (0, 13, 15)]
                assert [line.split(": ")[1] for line in named] == list(map(str, files))
            expected = [line for line in caplog.messages if "left out" in line]
            assert expected == ["3 images that cannot be decoded are left out."]
            found = collect(batches)
            assert set(found.numbers) == set(range(1, 12))
            assert_labels(lines, found, "abc")
            assert len(batches.beta_terms) == 3
            assert searched(batches.test).numbers == [12, 18]
            assert_labels(lines, searched(batches.test), "xyz")
            assert searched(batches.gallery).numbers == [14, 16, 17, 19]
            assert_labels(lines, searched(batches.gallery), "xyz")


@CACHES
def test_without_bad_images_none_are_said_to_be_left_out(
    tmp_path: Path, flags: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture, cache: str
) -> None:
    data = photos(tmp_path / "data", EVEN + GALLERY)
    with opened(flags(data, "--skip-bad-images", f"--cache={cache}")) as (split, batches):
        assert "left out" not in caplog.text
        assert set(collect(batches).numbers) == set(range(12))
        assert len(searched(batches.test).numbers) == len(split.test)


@CACHES
def test_a_class_that_bad_images_leave_too_small_is_refused_by_default(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str
) -> None:
    data = photos(tmp_path / "data", [*EVEN, ("x", "test")])
    for number in (1, 4):
        break_file(data, number)
    options = flags(data, "--skip-bad-images", f"--cache={cache}")
    with pytest.raises(DataError, match=r"class b: has 2 images, fewer than --batch-k 3; "):
        open_data(read_split(options), options)


@CACHES
def test_a_class_that_bad_images_leave_too_small_is_dropped(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str
) -> None:
    data = photos(tmp_path / "data", [*EVEN, ("x", "test")])
    for number in (0, 3):
        break_file(data, number)
    options = flags(data, "--skip-bad-images", "--small-classes=drop", f"--cache={cache}")
    with opened(options) as (_, batches):
        found = collect(batches)
        assert len(batches.beta_terms) == 2
        assert_labels(EVEN, found, "bc")
        assert set(found.numbers) == numbers_of(EVEN, "b") | numbers_of(EVEN, "c")


@CACHES
def test_a_class_that_bad_images_leave_too_small_is_repeated_and_an_empty_one_dropped(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str
) -> None:
    data = photos(tmp_path / "data", [*EVEN, ("x", "test")])
    for number in (0, 3, 6, 9, 1, 4, 7):  # all of a, all but one of b
        break_file(data, number)
    options = flags(data, "--skip-bad-images", "--small-classes=repeat", f"--cache={cache}")
    with opened(options) as (_, batches):
        found = collect(batches)
        assert len(batches.beta_terms) == 2
        assert_labels(EVEN, found, "bc")
        assert set(found.numbers) == {10} | numbers_of(EVEN, "c")


@CACHES
def test_bad_images_that_leave_too_few_classes_are_refused(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str
) -> None:
    data = photos(tmp_path / "data", [*EVEN, ("x", "test")])
    for number in (0, 3, 1, 4):
        break_file(data, number)
    options = flags(data, "--skip-bad-images", "--small-classes=drop", f"--cache={cache}")
    with pytest.raises(UsageError, match="1 class trains, but 2 have to, two for each device"):
        open_data(read_split(options), options)


@CACHES
@pytest.mark.parametrize("part", ["train", "query", "gallery"])
def test_a_part_with_nothing_but_bad_images_is_refused(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str, part: str
) -> None:
    lines = EVEN + GALLERY
    data = photos(tmp_path / "data", lines)
    for number, (_, its_part) in enumerate(lines):
        if its_part == part:
            break_file(data, number)
    options = flags(data, "--skip-bad-images", f"--cache={cache}")
    with pytest.raises(DataError, match=r"^photos\.csv: none of the \d+ images .* can be decoded"):
        open_data(read_split(options), options)


def test_a_bad_image_is_named_when_the_cache_is_built(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    data = photos(tmp_path / "data", EVEN + GALLERY)
    break_file(data, 13)
    options = flags(data)
    split = read_split(options)
    with pytest.raises(DataError, match=r"13\.png: is a text file"):
        open_data(split, options)


def test_without_a_cache_a_bad_image_is_named_by_the_batch_that_needs_it(
    tmp_path: Path, flags: Callable[..., TrainConfig]
) -> None:
    data = photos(tmp_path / "data", EVEN + GALLERY)
    break_file(data, 13)
    with opened(flags(data, "--cache=none")) as (_, batches):
        collect(batches, 5)
        searched(batches.test)
        with pytest.raises(DataError, match=r"13\.png: is a text file"):
            searched(batches.gallery)


@CACHES
def test_a_missing_image_is_named_before_any_is_decoded(
    tmp_path: Path, flags: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    data = photos(tmp_path / "data", EVEN + GALLERY)
    (data.parent / "16.png").unlink()
    monkeypatch.setattr(preprocessing, "read_image", lambda *_: pytest.fail("an image was decoded"))
    options = flags(data, f"--cache={cache}")
    with pytest.raises(DataError, match=r"16\.png: listed, but missing"):
        open_data(read_split(options), options)


# Where pixels come from


def all_batches(options: TrainConfig) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Some training batches and all test batches: pixels, labels and the images that fill up."""
    with opened(options) as (_, data):
        batches = [data.train.next() for _ in range(10)]
        for part in (data.test, data.gallery):
            batches += part or []
        return [(b.data[0].asnumpy(), b.label[0].asnumpy(), b.pad) for b in batches]


@pytest.fixture
def birds_options(tiny_cub: Path, flags: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """A function that reads flags for photographs, cut out of a somewhat larger square."""

    def read(*further: str) -> TrainConfig:
        return flags(tiny_cub, "--image-size=32", "--crop-size=24", *further)

    return read


@pytest.mark.slow
@pytest.mark.parametrize("box", ["--bbox", "--no-bbox"])
def test_batches_are_the_same_with_and_without_a_cache(
    birds_options: Callable[..., TrainConfig], tmp_path: Path, box: str
) -> None:
    expected = all_batches(birds_options(box, "--cache=none"))
    assert not (tmp_path / "cache").exists()
    assert len(expected) == 13
    for further in (["--workers=0"], ["--workers=3"], ["--skip-bad-images"]):
        assert_same(all_batches(birds_options(box, *further)), expected)
        assert_same(all_batches(birds_options(box, "--cache=none", *further)), expected)
    assert len(list((tmp_path / "cache" / "pixels").iterdir())) == 1


def assert_same(
    found: list[tuple[np.ndarray, np.ndarray, int]],
    expected: list[tuple[np.ndarray, np.ndarray, int]],
) -> None:
    assert len(found) == len(expected)
    for (data, labels, pad), (expected_data, expected_labels, expected_pad) in zip(found, expected):
        np.testing.assert_array_equal(data, expected_data)
        np.testing.assert_array_equal(labels, expected_labels)
        assert pad == expected_pad


def test_batches_are_the_same_where_the_cache_has_no_room(
    birds_options: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = all_batches(birds_options("--cache=none"))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert_same(all_batches(birds_options()), expected)
    assert "No space left on device" in caplog.text


def test_only_what_a_run_lacks_is_decoded_for_it(
    birds_options: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def decoding(*further: str) -> list[str]:
        caplog.clear()
        all_batches(birds_options(*further))
        return [line.split(" into ")[0] for line in caplog.messages if "Decoding" in line]

    assert decoding() == ["Decoding 32 of 32 images"]
    # Neither the seed nor the crop nor the split's location is part of the pixel cache.
    for further in ([], ["--seed=3"], ["--crop-size=20"], ["--train-classes=3"]):
        assert decoding(*further) == []
    assert decoding("--image-size=30") == ["Decoding 32 of 32 images"]
    assert decoding("--no-bbox") == ["Decoding 32 of 32 images"]


@CACHES
@pytest.mark.parametrize("boxed", [True, False])
def test_images_are_cut_to_their_boxes_unless_they_are_left_whole(
    birds_options: Callable[..., TrainConfig], tiny_cub: Path, cache: str, boxed: bool
) -> None:
    options = birds_options("--bbox" if boxed else "--no-bbox", f"--cache={cache}")
    birds = cub200.read(tiny_cub)
    assert birds.boxes is not None
    with opened(options) as (split, data):
        for part in (split.train, split.test):
            assert (part.boxes is not None) == boxed
        found = np.concatenate([batch.data[0].asnumpy() for batch in data.test])
    for row in range(16):
        box = birds.boxes[16 + row] if boxed else None
        center = read_square(birds.paths[16 + row], box, 32)[4:28, 4:28]
        np.testing.assert_array_equal(found[row], center.transpose(2, 0, 1))


def test_close_ends_all_workers(tmp_path: Path, flags: Callable[..., TrainConfig]) -> None:
    threads = threading.active_count()
    options = flags(photos(tmp_path / "data", EVEN + GALLERY))
    with opened(options) as (_, data):
        data.train.next()
        data.test.next()
        assert data.gallery is not None
        data.gallery.next()
        assert threading.active_count() > threads
    assert threading.active_count() == threads


# A gallery


class MeanColor(HybridBlock):
    """The parts of a network that an evaluation needs."""

    def embed(self, x: Any) -> Any:
        return x.astype("float32").mean(axis=(2, 3))


def noisy_photos(folder: Path, counts: Sequence[int], classes: int) -> ImageSet:
    """Images in shades of their class's color, so alike that some are nearer to another class."""
    rng = np.random.default_rng(5)
    folder.mkdir()
    labels = np.concatenate([rng.permutation(np.arange(count) % classes) for count in counts])
    colors = rng.integers(60, 200, (classes, 3))
    paths = []
    for number, label in enumerate(labels):
        pixels = colors[label] + rng.normal(0, 30, 3) + rng.normal(0, 20, (14, 12, 3))
        paths.append(str(folder / f"{number}.png"))
        cv2.imwrite(paths[-1], np.clip(pixels, 0, 255).astype(np.uint8))
    names = [f"class {label}" for label in range(classes)]
    return ImageSet(paths, labels.astype(np.int32), names)


def mean_colors(some: ImageSet) -> np.ndarray:
    """Embeds the center of each image, (n, 3)."""
    decoded = [read_square(path, None, 8)[1:7, 1:7] for path in some.paths]
    return np.stack([pixels.astype(np.float64).mean(axis=(0, 1)) for pixels in decoded])


def recalls_by_hand(queries: ImageSet, gallery: ImageSet | None) -> dict[int, float]:
    where = queries if gallery is None else gallery
    colors = mean_colors(where)
    ranks = []
    for row, (color, label) in enumerate(zip(mean_colors(queries), queries.labels)):
        order = np.argsort(((colors - color) ** 2).sum(axis=1), kind="stable")
        if gallery is None:
            order = order[order != row]
        if queries.groups is not None and where.groups is not None:
            order = order[(where.groups[order] != queries.groups[row]) | (where.groups[order] < 0)]
        hits = np.flatnonzero(where.labels[order] == label)
        ranks.append(hits[0] if len(hits) else len(order))
    return {k: float(np.mean(np.array(ranks) < k)) for k in (1, 2, 4, 8, 16)}


@CACHES
@pytest.mark.parametrize("devices", [1, 2])
def test_queries_are_searched_in_the_gallery(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str, devices: int
) -> None:
    everything = noisy_photos(tmp_path / "data", [12, 21, 33], 4)
    parts = np.split(np.arange(len(everything)), [12, 33])
    split = Split("Clothes", *(everything.take(rows) for rows in parts))
    assert split.gallery is not None
    # A class that the gallery lacks, whose queries can only miss.
    split.gallery.labels[split.gallery.labels == 3] = 2
    data = open_data(split, flags(tmp_path, f"--cache={cache}"))
    try:
        found = recalls(MeanColor(), [mx.cpu(i) for i in range(devices)], data)
        assert found == recalls_by_hand(split.test, split.gallery)
        assert 0 < found[1] < found[4] < found[16] < 1
        assert found != recalls_by_hand(split.test, None)
    finally:
        data.close()


@CACHES
def test_without_a_gallery_test_images_are_searched_among_each_other(
    tmp_path: Path, flags: Callable[..., TrainConfig], cache: str
) -> None:
    everything = noisy_photos(tmp_path / "data", [12, 21], 4)
    parts = np.split(np.arange(len(everything)), [12])
    split = Split("Clothes", *(everything.take(rows) for rows in parts))
    data = open_data(split, flags(tmp_path, f"--cache={cache}"))
    try:
        assert data.gallery is None
        found = recalls(MeanColor(), [mx.cpu()], data)
        assert found == recalls_by_hand(split.test, None)
        assert 0 < found[1] < found[4] < 1
    finally:
        data.close()


@pytest.mark.parametrize("has_gallery", [False, True])
def test_validation_leaves_out_groups_and_bad_images(
    tmp_path: Path, flags: Callable[..., TrainConfig], has_gallery: bool
) -> None:
    everything = noisy_photos(tmp_path / "data", [12, 21, 33], 4)
    groups = np.random.default_rng(6).integers(-1, 3, len(everything)).astype(np.int32)
    everything = dataclasses.replace(everything, groups=groups)
    train, test, gallery = (
        everything.take(rows) for rows in np.split(np.arange(len(everything)), [12, 33])
    )
    split = Split("Clothes", train, test, gallery if has_gallery else None)
    Path(test.paths[4]).write_text("no image")
    data = open_data(split, flags(tmp_path, "--skip-bad-images"))
    try:
        found = recalls(MeanColor(), [mx.cpu()], data)
        good = test.take(np.delete(np.arange(len(test)), 4))
        assert found == recalls_by_hand(good, split.gallery)
        ungrouped = dataclasses.replace(good, groups=None)
        assert found != recalls_by_hand(ungrouped, split.gallery)
    finally:
        data.close()


def test_paths_may_be_path_objects() -> None:
    """A list that `embed` writes and what a run is known by have them as text."""
    both = [ImageSet([name], np.int32([0]), ["x"]) for name in ("a/b", Path("a") / "b")]
    assert [images.paths for images in both] == [["a/b"]] * 2
    assert digest([both[0]]) == digest([both[1]])


def test_a_run_is_continued_with_its_groups_alone() -> None:
    """Without groups the digest is that of earlier versions."""
    images = ImageSet(["a", "b"], np.int32([0, 1]), ["x", "y"])
    grouped = dataclasses.replace(images, groups=np.int32([0, 0]), group_names=["g"])
    others = dataclasses.replace(images, groups=np.int32([0, -1]), group_names=["g"])
    assert len({digest([part]) for part in (images, grouped, others)}) == 3


def test_a_gallery_of_a_list_is_read_and_logged(
    tmp_path: Path, flags: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lines = EVEN + GALLERY
    options = flags(photos(tmp_path / "data", lines))
    with opened(options) as (split, data):
        expected = (
            "photos.csv, whole images: 12 images of 3 classes train, 3 of 2 test against a gallery "
            "of 5."
        )
        assert caplog.messages[0] == expected
        assert split.test.class_names == ["x", "y", "z"]
        assert searched(data.test).numbers == [12, 15, 18]
        assert searched(data.gallery).numbers == [13, 14, 16, 17, 19]
        for part in (data.test, data.gallery):
            assert_labels(lines, searched(part), "xyz")


def test_test_images_of_a_list_are_logged_without_a_gallery(
    tmp_path: Path, flags: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lines = [*EVEN, ("y", "test"), ("x", "test"), ("y", "test")]
    with opened(flags(photos(tmp_path / "data", lines))) as (_, data):
        expected = "photos.csv, whole images: 12 images of 3 classes train, 3 of 2 test."
        assert caplog.messages[0] == expected
        assert data.gallery is None
        assert searched(data.test) == ([12, 13, 14], [1, 0, 1])


def test_held_out_classes_are_read_in_place_of_the_test_classes(
    tmp_path: Path, flags: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """No image of the test classes is opened, and the log names the tested images."""
    caplog.set_level("INFO")
    lines = [*EVEN, *[(label, "train") for label in "dddd"], *GALLERY]
    data = photos(tmp_path / "data", lines)
    for number, (_, part) in enumerate(lines):
        if part != "train":
            (data.parent / f"{number}.png").unlink()
    options = flags(data, "--held-out=0.5", "--batch-k=2", "--batch-size=4")
    opened = open_data(read_split(options), options)
    assert opened.gallery is None and len(opened.train.labels) == 8
    assert sorted(opened.test.labels.tolist()) == [0] * 4 + [1] * 4
    opened.close()
    expected = "tested on held-out training classes: 8 images of 2 classes train, 8 of 2 test."
    assert expected in caplog.text
    line = (
        "Recall among these 2 held-out classes cannot be compared with recall among the test clas"
    )
    assert line in caplog.text
    options = flags(data, "--held-out=0.5", "--held-out-fold=2", "--batch-k=2", "--batch-size=4")
    second = open_data(read_split(options), options)
    # The classes have changed places.
    assert second.test.pixels.shape[0] == 8 and second.digest != opened.digest
    second.close()
    options = flags(data, "--held-out=0.5", "--batch-k=2", "--batch-size=4", "--classes=4")
    with pytest.raises(UsageError, match="--classes 4: the data has 2 classes to train"):
        read_split(options)
