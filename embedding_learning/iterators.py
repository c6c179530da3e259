"""Batches: which images, in which order, decoded ahead of their use.

A batch is planned from its number alone, so that neither the number of workers nor what was
drawn before changes it. Worker threads decode (OpenCV works outside of Python's lock) while the
trainer computes.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import mxnet as mx
import numpy as np

from embedding_learning.datasets import ImageSet
from embedding_learning.images import crop, read_image

# Batches in work beyond the one asked for: enough to bridge an evaluation's or a slow file's wait.
_BATCHES_AHEAD = 3


@dataclass(frozen=True)
class _Plan:
    """Which images make a batch, and their views; arrays of (batch_size,)."""

    rows: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray
    flips: np.ndarray
    pad: int = 0


class _BatchIter(mx.io.DataIter):
    """Carries out the plans of a subclass: data uint8 (batch_size, 3, crop, crop), label (n,)."""

    def __init__(
        self, images: ImageSet, batch_size: int, image_size: int, crop_size: int, workers: int
    ) -> None:
        super().__init__(batch_size)
        self._images = images
        self._image_size = image_size
        self._crop_size = crop_size
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._planned: deque[tuple[_Plan, np.ndarray, list[Future[None]]]] = deque()
        self._next_number = 0
        shape = (batch_size, 3, crop_size, crop_size)
        self.provide_data = [mx.io.DataDesc("data", shape, np.uint8, "NCHW")]
        self.provide_label = [mx.io.DataDesc("label", (batch_size,), np.float32, "N")]

    def _plan(self, number: int) -> _Plan | None:
        """The plan of a batch, or None after the last."""
        raise NotImplementedError

    def reset(self) -> None:
        """Back to the first batch."""
        self.seek(0)

    def seek(self, number: int) -> None:
        """The next batch is `number`, counted from 0."""
        for _, _, decoding in self._planned:
            for image in decoding:
                image.cancel()
        self._planned.clear()
        self._next_number = number

    def next(self) -> mx.io.DataBatch:
        """The next batch; raises DataError if one of its images cannot be decoded."""
        while len(self._planned) <= _BATCHES_AHEAD * bool(self._pool):
            plan = self._plan(self._next_number)
            if plan is None:
                break
            self._start(plan)
        if not self._planned:
            raise StopIteration
        plan, pixels, decoding = self._planned.popleft()
        for image in decoding:
            image.result()
        data = mx.nd.array(pixels, dtype=np.uint8)
        label = mx.nd.array(self._images.labels[plan.rows], dtype=np.float32)
        return mx.io.DataBatch(data=[data], label=[label], pad=plan.pad)

    def _start(self, plan: _Plan) -> None:
        """Gives the images of a batch to the workers, or decodes them here if there are none."""
        pixels = np.empty(self.provide_data[0].shape, np.uint8)
        decoding = []
        for place in range(self.batch_size):
            if self._pool:
                decoding.append(self._pool.submit(self._load, plan, place, pixels))
            else:
                self._load(plan, place, pixels)
        self._planned.append((plan, pixels, decoding))
        self._next_number += 1

    def _load(self, plan: _Plan, place: int, pixels: np.ndarray) -> None:
        row = plan.rows[place]
        box = None if self._images.boxes is None else self._images.boxes[row]
        image = read_image(self._images.paths[row], box, self._image_size)
        crop(image, plan.tops[place], plan.lefts[place], plan.flips[place], out=pixels[place])

    def close(self) -> None:
        """Stops the workers; what they had begun is dropped."""
        self.seek(0)
        if self._pool:
            self._pool.shutdown()


class BalancedBatches(_BatchIter):
    """Training batches without end: some classes, and `batch_k` images of each.

    A batch holds ``batch_size // batch_k`` classes drawn without replacement and `batch_k` images
    of each drawn without replacement; the images of a class are consecutive. Each image is
    mirrored with probability 0.5 and cut to a random square.

    Parameters
    ----------
    images : ImageSet
        At least ``batch_size // batch_k`` classes, each of at least `batch_k` images.
    batch_size, batch_k : int
    image_size, crop_size : int
        Pixels: the side to resize to, and that of the square cut out of it.
    seed : int
        With the batch's number it decides everything drawn.
    workers : int
        Threads that decode; 0 decodes in the caller's.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        batch_k: int,
        image_size: int = 256,
        crop_size: int = 224,
        seed: int = 0,
        workers: int = 4,
    ) -> None:
        super().__init__(images, batch_size, image_size, crop_size, workers)
        self._batch_k = batch_k
        self._seed = seed
        self._rows_by_class = images.rows_by_class()

    def _plan(self, number: int) -> _Plan:
        rng = np.random.default_rng((self._seed, number))
        groups = self.batch_size // self._batch_k
        classes = rng.choice(len(self._rows_by_class), groups, replace=False)
        rows = [
            rng.choice(self._rows_by_class[label], self._batch_k, replace=False)
            for label in classes
        ]
        room = self._image_size - self._crop_size
        tops, lefts = rng.integers(0, room, (2, self.batch_size), endpoint=True)
        flips = np.less(rng.random(self.batch_size), 0.5)
        return _Plan(np.concatenate(rows), tops, lefts, flips)


class SequentialBatches(_BatchIter):
    """Every image once, in order, cut to its centre.

    The last batch is filled up with images from the start; its `pad` tells how many.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        image_size: int = 256,
        crop_size: int = 224,
        workers: int = 4,
    ) -> None:
        super().__init__(images, batch_size, image_size, crop_size, workers)

    def _plan(self, number: int) -> _Plan | None:
        start, count = number * self.batch_size, len(self._images)
        if start >= count:
            return None
        rows = np.arange(start, start + self.batch_size)
        centre = np.full(self.batch_size, (self._image_size - self._crop_size) // 2)
        pad = max(0, start + self.batch_size - count)
        return _Plan(rows % count, centre, centre, np.zeros(self.batch_size, bool), pad)
