"""Batches against their definition, with all ways to decode and from every starting point."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import mxnet as mx
import numpy as np
import pytest
from scipy import stats

from embedding_learning.data.batches import BalancedBatches, SequentialBatches
from embedding_learning.data.datasets import ImageSet, cub200
from embedding_learning.data.preprocessing import PixelsFromFiles, read_square
from embedding_learning.errors import DataError
from tests.helpers.limits import HANG_LIMIT

WORKERS = pytest.mark.parametrize("workers", [0, 1, 3])
SMALL = {"image_size": 8, "crop_size": 6, "workers": 0}
# Chance of a right program to fail; with fixed seeds it is decided once.
UNLIKELY = 1e-3


@pytest.fixture(scope="session")
def told_apart(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Six classes of 4 to 9 images; every pixel of an image is (row, label, 0).

    The classes stand mixed, so that a row says nothing of its label.
    """
    folder = tmp_path_factory.mktemp("told_apart")
    labels = np.repeat(np.arange(6), np.arange(4, 10)).astype(np.int32)
    np.random.default_rng(0).shuffle(labels)
    paths = []
    for row, label in enumerate(labels):
        paths.append(str(folder / f"{row}.png"))
        cv2.imwrite(paths[-1], np.full((8, 8, 3), (0, label, row), np.uint8))  # BGR
    return ImageSet(paths, labels, list("abcdef"))


@pytest.fixture(scope="session")
def birds(tiny_cub: Path) -> ImageSet:
    return cub200.read(tiny_cub)


@contextmanager
def balanced(images: ImageSet, **settings: Any) -> Iterator[BalancedBatches]:
    """Small training batches, closed in the end."""
    settings = {**{"batch_size": 12, "batch_k": 4, "seed": 0}, **SMALL, **settings}
    pixels = PixelsFromFiles(images, settings.pop("image_size"))
    batches = BalancedBatches(pixels, images.labels, **settings)
    try:
        yield batches
    finally:
        batches.close()


@contextmanager
def sequential(images: ImageSet, **settings: Any) -> Iterator[SequentialBatches]:
    """Small evaluation batches, closed in the end."""
    settings = {"batch_size": 10, **SMALL, **settings}
    pixels = PixelsFromFiles(images, settings.pop("image_size"))
    batches = SequentialBatches(pixels, images.labels, **settings)
    try:
        yield batches
    finally:
        batches.close()


def arrays(batch: mx.io.DataBatch) -> tuple[np.ndarray, np.ndarray]:
    return batch.data[0].asnumpy(), batch.label[0].asnumpy()


def rows_and_labels(batch: mx.io.DataBatch) -> tuple[np.ndarray, np.ndarray]:
    """Returns which images of `told_apart` a batch holds, read from its pixels, and its labels."""
    data, labels = arrays(batch)
    assert (data == data[:, :, :1, :1]).all()
    np.testing.assert_array_equal(data[:, 1, 0, 0], labels)
    return data[:, 0, 0, 0], labels


def assert_same(first: mx.io.DataBatch, second: mx.io.DataBatch) -> None:
    for one, other in zip(arrays(first), arrays(second)):
        np.testing.assert_array_equal(one, other)
    assert first.pad == second.pad


# Training batches


@pytest.mark.parametrize("batch_size, batch_k", [(12, 4), (24, 4), (6, 2), (12, 3)])
def test_a_batch_holds_distinct_images_of_distinct_classes(
    told_apart: ImageSet, batch_size: int, batch_k: int
) -> None:
    with balanced(told_apart, batch_size=batch_size, batch_k=batch_k) as batches:
        for _ in range(20):
            rows, labels = rows_and_labels(batches.next())
            by_class = labels.reshape(-1, batch_k)
            assert (by_class == by_class[:, :1]).all()
            assert len(set(by_class[:, 0])) == batch_size // batch_k
            assert len(set(rows)) == batch_size
            np.testing.assert_array_equal(told_apart.labels[rows], labels)


@pytest.mark.parametrize("batch_k", [5, 6, 13])
def test_a_class_of_too_few_images_gives_each_and_repeats_them_evenly(
    told_apart: ImageSet, batch_k: int
) -> None:
    sizes = np.bincount(told_apart.labels)
    with balanced(told_apart, batch_size=6 * batch_k, batch_k=batch_k) as batches:
        for _ in range(20):
            rows, labels = rows_and_labels(batches.next())
            np.testing.assert_array_equal(told_apart.labels[rows], labels)
            for group, label in zip(rows.reshape(-1, batch_k), labels[::batch_k].astype(int)):
                _, counts = np.unique(group, return_counts=True)
                assert len(counts) == min(batch_k, sizes[label])
                assert counts.max() - counts.min() <= 1


def test_images_are_cut_to_their_boxes_cropped_and_mirrored_as_planned(birds: ImageSet) -> None:
    assert birds.boxes is not None
    with balanced(birds, image_size=32, crop_size=20) as batches:
        mirrored = set()
        for number in range(4):
            plan = batches._plan(number)
            data, labels = arrays(batches.next())
            for place, row in enumerate(plan.rows):
                image = read_square(birds.paths[row], birds.boxes[row], 32)
                top, left = plan.crops[place]
                square = image[top : top + 20, left : left + 20]
                if plan.flips[place]:
                    square = square[:, ::-1]
                mirrored.add(bool(plan.flips[place]))
                np.testing.assert_array_equal(data[place], square.transpose(2, 0, 1))
                assert labels[place] == birds.labels[row]
        assert mirrored == {False, True}


@WORKERS
def test_workers_do_not_change_the_batches(birds: ImageSet, workers: int) -> None:
    size = {"image_size": 32, "crop_size": 20}
    with balanced(birds, **size) as plain, balanced(birds, workers=workers, **size) as batches:
        for _ in range(8):
            assert_same(plain.next(), batches.next())


@pytest.mark.slow
@WORKERS
@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_batch_depends_on_its_number_not_on_those_before(
    birds: ImageSet, workers: int, start: int
) -> None:
    with balanced(birds) as plain, balanced(birds, workers=workers) as batches:
        expected = [plain.next() for _ in range(8)]
        batches.next()  # the workers are then ahead
        batches.seek(start)
        for batch in expected[start:]:
            assert_same(batches.next(), batch)


def test_batches_and_seeds_differ(told_apart: ImageSet) -> None:
    seen = set()
    for seed in range(5):
        with balanced(told_apart, seed=seed) as batches:
            seen |= {tuple(rows_and_labels(batches.next())[0]) for _ in range(20)}
    assert len(seen) == 100


def test_seeds_do_not_share_batches_at_other_numbers(told_apart: ImageSet) -> None:
    """Seed 0 from batch 1 on is not seed 1 from its start."""
    with balanced(told_apart, seed=0) as zero, balanced(told_apart, seed=1) as one:
        zero.seek(1)
        assert not np.array_equal(rows_and_labels(zero.next())[0], rows_and_labels(one.next())[0])


@pytest.fixture(scope="module")
def plans(told_apart: ImageSet) -> dict[str, np.ndarray]:
    """Everything that 3,000 batches of 12 draw, each (3000, 12); nothing is decoded."""
    with balanced(told_apart, seed=7) as batches:
        plans = [batches._plan(number) for number in range(3000)]
    names = ("rows", "crops", "flips")
    drawn = {name: np.stack([getattr(plan, name) for plan in plans]) for name in names}
    tops, lefts = np.moveaxis(drawn.pop("crops"), -1, 0)
    return {**drawn, "tops": tops, "lefts": lefts}


def assert_uniform(counts: np.ndarray) -> None:
    assert stats.chisquare(counts).pvalue > UNLIKELY, counts


@pytest.mark.slow
def test_classes_are_drawn_equally_often_however_many_images_they_have(
    told_apart: ImageSet, plans: dict[str, np.ndarray]
) -> None:
    labels = told_apart.labels[plans["rows"][:, ::4]]
    for place in range(3):
        assert_uniform(np.bincount(labels[:, place], minlength=6))


def test_the_images_of_a_class_are_drawn_equally_often(
    told_apart: ImageSet, plans: dict[str, np.ndarray]
) -> None:
    counts = np.bincount(plans["rows"][:, 0], minlength=len(told_apart))
    for rows in told_apart.group_rows_by_class():
        assert_uniform(counts[rows])


@pytest.mark.parametrize("edge", ["tops", "lefts"])
def test_crops_begin_at_every_pixel_equally_often(plans: dict[str, np.ndarray], edge: str) -> None:
    counts = np.bincount(plans[edge].ravel())
    assert len(counts) == 3  # 0, 1 and 2: a square of 6 in one of 8
    assert_uniform(counts)


def test_half_of_the_images_are_mirrored(plans: dict[str, np.ndarray]) -> None:
    flips = plans["flips"]
    assert stats.binomtest(int(flips.sum()), flips.size).pvalue > UNLIKELY


def test_the_choices_for_an_image_are_independent(plans: dict[str, np.ndarray]) -> None:
    table = np.zeros((3, 3, 2))
    choices = (plans["tops"].ravel(), plans["lefts"].ravel(), plans["flips"].ravel().astype(int))
    np.add.at(table, choices, 1)
    assert stats.chi2_contingency(table).pvalue > UNLIKELY
    neighbors = np.corrcoef(plans["flips"][:, 0], plans["flips"][:, 1])[0, 1]
    assert abs(neighbors) < 4 / np.sqrt(len(plans["flips"]))


def test_without_room_the_whole_square_is_taken(told_apart: ImageSet) -> None:
    with balanced(told_apart, image_size=6, crop_size=6) as batches:
        plan = batches._plan(0)
    assert not plan.crops.any()


# Evaluation batches


@WORKERS
@pytest.mark.parametrize("batch_size", [1, 10, 13, 39, 40, 100])
def test_every_image_comes_once_and_in_order(
    told_apart: ImageSet, batch_size: int, workers: int
) -> None:
    count = len(told_apart)  # 39
    with sequential(told_apart, batch_size=batch_size, workers=workers) as batches:
        rows: list[int] = []
        for batch in batches:
            assert batch.data[0].shape[0] == batch_size
            rows += rows_and_labels(batch)[0][: batch_size - batch.pad].tolist()
        assert rows == list(range(count))
        assert batch.pad == -count % batch_size


def test_the_last_batch_is_filled_up_from_the_start(told_apart: ImageSet) -> None:
    with sequential(told_apart, batch_size=25) as batches:
        _, last = list(batches)
        assert last.pad == 11
        assert rows_and_labels(last)[0].tolist() == [*range(25, 39), *range(11)]


def test_the_centre_is_cut_out_unmirrored(birds: ImageSet) -> None:
    assert birds.boxes is not None
    for image_size, crop_size, margin in ((32, 20, 6), (33, 20, 6), (20, 20, 0)):
        with sequential(birds, image_size=image_size, crop_size=crop_size) as batches:
            data, _ = arrays(batches.next())
        for row in range(10):
            image = read_square(birds.paths[row], birds.boxes[row], image_size)
            square = image[margin : margin + crop_size, margin : margin + crop_size]
            np.testing.assert_array_equal(data[row], square.transpose(2, 0, 1))


@WORKERS
def test_reset_starts_again_in_the_middle_and_at_the_end(
    told_apart: ImageSet, workers: int
) -> None:
    with sequential(told_apart, workers=workers) as batches:
        batches.next()
        batches.reset()
        first = list(batches)
        with pytest.raises(StopIteration):
            batches.next()
        batches.reset()
        second = list(batches)
    assert len(first) == len(second) == 4
    for one, other in zip(first, second):
        assert_same(one, other)


# Both


@WORKERS
def test_an_array_of_pixels_gives_the_batches_that_decoding_gives(
    birds: ImageSet, workers: int
) -> None:
    decoder = PixelsFromFiles(birds, 32)
    array = np.stack([decoder[row] for row in range(len(birds))])
    sizes = {"batch_size": 12, "crop_size": 20, "workers": workers}
    for open_batches, batches in (
        (balanced, BalancedBatches(array, birds.labels, batch_k=4, seed=0, **sizes)),
        (sequential, SequentialBatches(array, birds.labels, **sizes)),
    ):
        try:
            with open_batches(birds, batch_size=12, image_size=32, crop_size=20) as plain:
                for _ in range(3):
                    assert_same(batches.next(), plain.next())
        finally:
            batches.close()


@pytest.mark.parametrize("open_batches", [balanced, sequential])
def test_what_is_provided_is_what_comes(told_apart: ImageSet, open_batches: Any) -> None:
    with open_batches(told_apart, batch_size=12) as batches:
        batch = batches.next()
        assert batches.batch_size == 12
        for found, described in (
            (batch.data, batches.provide_data),
            (batch.label, batches.provide_label),
        ):
            assert [(array.shape, array.dtype) for array in found] == [
                (description.shape, description.dtype) for description in described
            ]
        assert batches.provide_data[0].shape == (12, 3, 6, 6)
        assert batches.provide_label[0].shape == (12,)


@pytest.mark.parametrize("open_batches", [balanced, sequential])
@WORKERS
def test_global_random_numbers_are_left_alone(
    told_apart: ImageSet, open_batches: Any, workers: int
) -> None:
    def draw() -> tuple[Any, ...]:
        return random.random(), np.random.random(), mx.nd.random.uniform().asscalar()

    def seed() -> None:
        for start in (random.seed, np.random.seed, mx.random.seed):
            start(3)

    seed()
    expected = draw()
    seed()
    with open_batches(told_apart, batch_size=12, workers=workers) as batches:
        for _ in range(3):
            batches.next()
    assert draw() == expected


@pytest.fixture
def one_broken(birds: ImageSet, tiny_cub: Path, tmp_path: Path) -> ImageSet:
    """The birds, but the last image is no image."""
    images = cub200.read(shutil.copytree(tiny_cub, tmp_path / "one_broken"))
    Path(images.paths[-1]).write_bytes(b"not an image")
    return images


@WORKERS
def test_a_broken_image_stops_the_one_who_asks_for_its_batch(
    one_broken: ImageSet, workers: int
) -> None:
    threads = threading.active_count()
    with sequential(one_broken, workers=workers) as batches:
        for _ in range(3):
            batches.next()
        with pytest.raises(DataError) as caught:
            batches.next()
    assert str(caught.value).startswith(f"{one_broken.paths[-1]}: ")
    assert threading.active_count() == threads


@WORKERS
def test_a_broken_image_stops_training_when_it_is_drawn(one_broken: ImageSet, workers: int) -> None:
    with balanced(one_broken, workers=workers) as batches:
        with_broken = [31 in batches._plan(number).rows for number in range(100)]
        first = with_broken.index(True)
        for _ in range(first):
            batches.next()
        with pytest.raises(DataError):
            batches.next()


@WORKERS
def test_after_a_broken_image_one_can_go_elsewhere(one_broken: ImageSet, workers: int) -> None:
    with sequential(one_broken, workers=workers) as batches:
        expected = batches.next()
        batches.seek(3)
        with pytest.raises(DataError):
            batches.next()
        batches.reset()
        assert_same(batches.next(), expected)


def test_close_ends_the_workers_in_the_middle_of_their_work(birds: ImageSet) -> None:
    threads = threading.active_count()
    with balanced(birds, workers=3) as batches:
        batches.next()
        assert threading.active_count() > threads
    assert threading.active_count() == threads


class Counting:
    """Pixels that count how many images were asked for; each shows its row."""

    shape = (12, 8, 8, 3)

    def __init__(self, at_once: int = 1) -> None:
        self.asked = 0
        self.were_at_once = threading.Event()
        # The first images come back once that many are being read.
        self.barrier = threading.Barrier(at_once, self.were_at_once.set)
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> np.ndarray:
        with self._lock:
            self.asked += 1
        if not self.were_at_once.is_set():
            self.barrier.wait(HANG_LIMIT)
        return np.full((8, 8, 3), row, np.uint8)


@pytest.mark.parametrize("workers, most", [(0, 1), (1, 4), (4, 7), (8, 11), (9, 11), (100, 11)])
def test_the_batches_made_ahead_do_not_grow_with_the_workers(workers: int, most: int) -> None:
    """Counted with a consumer that takes a batch, then waits until nothing more is made."""
    pixels = Counting()
    batches = BalancedBatches(pixels, np.repeat([0, 1], 6), 3, 0, 6, 6, workers)
    try:
        for taken in range(1, 4):
            batches.next()
            for batch in batches._pending:
                wait(batch.tasks)
            # `most` counts the one that was just taken.
            assert pixels.asked == 6 * (taken - 1 + most)
            assert len(batches._pending) == most - 1
    finally:
        batches.close()


@pytest.mark.parametrize("workers, batch_size", [(1, 6), (4, 6), (8, 6), (9, 6), (30, 6), (30, 12)])
def test_all_workers_are_busy_at_the_same_time(workers: int, batch_size: int) -> None:
    """Each waits for its first image until all others wait for one too."""
    pixels, labels = Counting(at_once=workers), np.repeat([0, 1], 6)
    made = []
    for number in (workers, 0):
        batches = BalancedBatches(pixels, labels, batch_size // 2, 0, batch_size, 6, number)
        try:
            made.append(batches.next())
        except threading.BrokenBarrierError:
            pytest.fail("some workers were idle")
        finally:
            batches.close()
    assert_same(*made)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 0, 2, 2], "class 1 has no image; number the classes from 0"),
        ([0, 0, 0, 0], "2 classes expected in a batch, not 1"),
    ],
)
def test_classes_that_give_no_batch_are_refused(labels: list[int], message: str) -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        BalancedBatches(pixels, np.array(labels), 2, 0, batch_size=4, crop_size=6, workers=0)
