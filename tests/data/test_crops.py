"""Crops against torchvision's definition, and their distributions."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import stats

from embedding_learning.data.batches import BalancedBatches
from embedding_learning.data.crops import (
    ATTEMPTS,
    CenterCrop,
    CropOfPhotograph,
    RandomResizedCrop,
    photograph_size,
    random_region,
)

# Chance of a right program to fail; with fixed seeds it is decided once.
UNLIKELY = 1e-3
COUNT = 6000


class Given:
    """Gives numbers in [0, 1) one after another, in place of torch's generator."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers = list(numbers)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.numbers.pop(0)

    def randint(self, low: int, high: int) -> int:
        return low + int(self.numbers.pop(0) * (high - low))


def by_torchvision(
    height: int, width: int, generator: Any, places: Any
) -> tuple[int, int, int, int]:
    """The steps of torchvision.transforms.RandomResizedCrop.get_params, written down once more."""
    scale, ratio = (0.16, 1.0), (3.0 / 4.0, 4.0 / 3.0)
    for _ in range(10):
        target_area = height * width * generator.uniform(*scale)
        aspect_ratio = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            i = places.randint(0, height - h + 1)
            j = places.randint(0, width - w + 1)
            return i, j, h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w = width
        h = height
    i = (height - h) // 2
    j = (width - w) // 2
    return i, j, h, w


@pytest.mark.parametrize(
    "height, width",
    [(375, 500), (500, 375), (256, 256), (100, 1000), (1000, 100), (1, 1), (1, 9), (7, 1), (2, 3)],
)
def test_the_part_of_a_photograph_follows_torchvision_s_definition(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        numbers = rng.random(2 * ATTEMPTS + 2)
        expected = by_torchvision(
            height, width, Given(numbers[:-2].tolist()), Given(numbers[-2:].tolist())
        )
        assert random_region(height, width, numbers) == expected


def regions(height: int, width: int, seed: int) -> np.ndarray:
    """(COUNT, 4): top, left, height and width of what the batches' numbers choose."""
    numbers = RandomResizedCrop("linear").draw(np.random.default_rng(seed), COUNT)
    return np.array([random_region(height, width, row) for row in numbers])


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(3000, 4000), (4000, 1000)])
def test_areas_aspects_and_places_have_torchvision_s_distribution(height: int, width: int) -> None:
    """Against the definition with numpy's own generator; parts that do not fit are drawn again."""
    found, rng = regions(height, width, seed=1), np.random.default_rng(2)

    class Numpy:
        uniform = rng.uniform
        randint = rng.integers

    expected = np.array([by_torchvision(height, width, Numpy, Numpy) for _ in range(COUNT)])

    def features(parts: np.ndarray) -> list[np.ndarray]:
        top, left, h, w = parts.T.astype(float)
        areas, logarithms = h * w / (height * width), np.log(w / h)
        places = [top / np.maximum(height - h, 1), left / np.maximum(width - w, 1)]
        return [areas, logarithms, *places]

    for one, other in zip(features(found), features(expected)):
        edges = np.unique(np.quantile(other, np.linspace(0, 1, 21)))
        edges[0], edges[-1] = -np.inf, np.inf
        counts = [np.histogram(values, edges)[0] for values in (one, other)]
        assert stats.chi2_contingency(counts).pvalue > UNLIKELY, counts


def test_where_every_part_fits_area_and_logarithm_of_the_aspect_are_uniform() -> None:
    """In a square up to 3/4 of the area: there no attempt is drawn again."""
    _, _, height, width = regions(4000, 4000, seed=3).T.astype(float)
    areas, logarithms = height * width / 4000**2, np.log(width / height)
    fits = areas < 0.75
    for values, low, high in (
        (areas[fits], 0.16, 0.75),
        (logarithms[fits], math.log(3 / 4), math.log(4 / 3)),
    ):
        counts, _ = np.histogram(values, np.linspace(low, high, 21))
        # Rounding to whole pixels moves a few parts over the ends.
        assert counts.sum() > 0.998 * fits.sum()
        assert stats.chisquare(counts).pvalue > UNLIKELY, counts
    assert areas.max() > 0.99


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("method", ["linear", "area"])
def test_the_part_is_resized_and_mirrored(flip: bool, method: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    crop, out = RandomResizedCrop(method), np.empty((3, 24, 24), np.uint8)
    (numbers,) = crop.draw(rng, 1)
    crop.write(image, numbers, flip, out)
    top, left, height, width = random_region(90, 130, numbers)
    part = image[top : top + height, left : left + width]
    assert min(height, width) > 24
    interpolation = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}[method]
    expected = cv2.resize(np.ascontiguousarray(part), (24, 24), interpolation=interpolation)
    expected = expected[:, ::-1] if flip else expected
    np.testing.assert_array_equal(out, expected.transpose(2, 0, 1))


def numbered(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are: row, column, 0."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2)


@pytest.mark.slow
def test_a_photograph_is_cropped_from_each_place_equally_often() -> None:
    crop, image = CropOfPhotograph(), numbered(8, 11)
    counts = np.zeros((3, 6), int)
    out = np.empty((3, 6, 6), np.uint8)
    for numbers in crop.draw(np.random.default_rng(0), 9000):
        crop.write(image, numbers, False, out)
        top, left = int(out[0, 0, 0]), int(out[1, 0, 0])
        expected = image[top : top + 6, left : left + 6]
        np.testing.assert_array_equal(out, expected.transpose(2, 0, 1))
        counts[top, left] += 1
    assert stats.chisquare(counts.ravel()).pvalue > UNLIKELY, counts


@pytest.mark.parametrize("height, width, top, left", [(6, 11, 0, 2), (9, 6, 1, 0), (6, 6, 0, 0)])
def test_the_middle_of_a_photograph_is_cut_out(
    height: int, width: int, top: int, left: int
) -> None:
    out = np.empty((3, 6, 6), np.uint8)
    CenterCrop().write(numbered(height, width), np.empty(0), False, out)
    expected = numbered(height, width)[top : top + 6, left : left + 6]
    np.testing.assert_array_equal(out, expected.transpose(2, 0, 1))


def test_the_smallest_part_of_the_largest_photograph_has_the_pixels_of_the_crop() -> None:
    for crop_size in (1, 112, 224, 227):
        area = 0.16 * photograph_size(crop_size) ** 2
        assert crop_size**2 <= area < 1.1 * crop_size**2 + 1


# Batches of such crops


class Photographs:
    """Images of unequal sizes in memory."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        sizes = rng.integers(20, 50, (12, 2))
        self.images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]
        self.shape = (12,)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.images[row]


LABELS = np.repeat(np.arange(4), 3)
CROPS = pytest.mark.parametrize("crop", [RandomResizedCrop("linear"), CropOfPhotograph()])


def batches_of(crop: Any, workers: int, process: tuple[int, int] = (0, 1)) -> BalancedBatches:
    return BalancedBatches(
        Photographs(), LABELS, 2, 7, 8, 16, workers=workers, process=process, crop=crop
    )


@CROPS
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("start", [0, 5])
def test_a_batch_depends_on_its_number_alone(crop: Any, workers: int, start: int) -> None:
    plain, batches = batches_of(crop, 0), batches_of(crop, workers)
    try:
        expected = [plain.next() for _ in range(8)]
        batches.next()
        batches.seek(start)
        for batch in expected[start:]:
            found = batches.next()
            np.testing.assert_array_equal(found.data[0].asnumpy(), batch.data[0].asnumpy())
            np.testing.assert_array_equal(found.label[0].asnumpy(), batch.label[0].asnumpy())
    finally:
        batches.close()


@CROPS
def test_each_image_of_a_batch_has_its_own_crop(crop: Any) -> None:
    batches, out = batches_of(crop, 0), np.empty((3, 16, 16), np.uint8)
    plan = batches._plan(3)
    batches.seek(3)
    data = batches.next().data[0].asnumpy()
    assert len(np.unique(plan.crops, axis=0)) == 8
    for image, row, numbers, flip in zip(data, plan.rows, plan.crops, plan.flips):
        crop.write(Photographs()[row], numbers, flip, out)
        np.testing.assert_array_equal(image, out)


@CROPS
def test_workers_that_train_together_make_the_parts_of_one_batch(crop: Any) -> None:
    whole = batches_of(crop, 0).next().data[0].asnumpy()
    parts = [batches_of(crop, 0, (rank, 2)).next().data[0].asnumpy() for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_by_default_batches_are_drawn_as_before_there_were_other_crops() -> None:
    pixels = np.zeros((12, 20, 20, 3), np.uint8)
    plan = BalancedBatches(pixels, LABELS, 2, 7, 8, 16, workers=0)._plan(3)
    rng = np.random.default_rng((7, 3))
    classes = rng.choice(4, 4, replace=False)
    rows = [rng.permutation(np.flatnonzero(label == LABELS))[:2] for label in classes]
    tops, lefts = rng.integers(0, 4, (2, 8), endpoint=True)
    np.testing.assert_array_equal(plan.rows, np.concatenate(rows))
    np.testing.assert_array_equal(plan.crops, np.stack([tops, lefts], axis=1))
    np.testing.assert_array_equal(plan.flips, rng.random(8) < 0.5)
