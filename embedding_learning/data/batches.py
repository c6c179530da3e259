"""Batches: which images, in which order, made ahead of their use.

A batch is planned from its number alone, so that neither the number of workers nor what was
drawn before changes it. Worker threads make batches while the trainer computes; OpenCV, which does
their work, runs outside of Python's lock.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import mxnet as mx
import numpy as np

from embedding_learning.data.preprocessing import Pixels, write_crop

# Batches in work at once. A worker makes a whole batch; where there are more workers than this,
# several share a batch, so that the memory for batches does not grow with their number.
_BATCHES_IN_WORK = 8
# Batches in work or ready beyond those: bridges what delays the trainer or a worker.
_BATCHES_READY = 2


@dataclass(frozen=True)
class _Plan:
    """Which images make a batch, and their views; arrays of (batch_size,)."""

    rows: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray
    flips: np.ndarray
    pad: int = 0


@dataclass(frozen=True)
class _Batch:
    """A batch in work: what becomes of it, and the parts of it that workers make."""

    plan: _Plan
    data: np.ndarray
    parts: list[Future[None]]


class _BatchIter(mx.io.DataIter):
    """Carries out the plans of a subclass: data uint8 (batch_size, 3, crop, crop), its targets.

    Parameters are those of BalancedBatches.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        batch_size: int,
        crop_size: int,
        workers: int,
        part: tuple[int, int] = (0, 1),
        targets: np.ndarray | None = None,
    ) -> None:
        self._part, self._parts = part
        super().__init__(batch_size // self._parts)
        self.pixels = pixels
        self.labels = labels.astype(np.float32)
        self._targets = self.labels if targets is None else targets.astype(np.float32)
        self._crop_size = crop_size
        self._pool = ThreadPoolExecutor(workers) if workers else None
        in_work = min(workers, _BATCHES_IN_WORK)
        self._ahead = in_work + _BATCHES_READY if workers else 0
        # Enough for all workers to be busy while `in_work` batches are made.
        self._parts_of_batch = min(-(-workers // in_work), self.batch_size) if workers else 1
        self._planned: deque[_Batch] = deque()
        self._next_number = 0
        shape = (self.batch_size, 3, crop_size, crop_size)
        self.provide_data = [mx.io.DataDesc("data", shape, np.uint8, "NCHW")]
        shape = (self.batch_size, *self._targets.shape[1:])
        self.provide_label = [mx.io.DataDesc("label", shape, np.float32, "N")]

    def _plan(self, number: int) -> _Plan | None:
        """The plan of a batch, or None after the last."""
        raise NotImplementedError

    def reset(self) -> None:
        """Back to the first batch."""
        self.seek(0)

    def seek(self, number: int) -> None:
        """The next batch is `number`, counted from 0."""
        for batch in self._planned:
            for part in batch.parts:
                part.cancel()
        self._planned.clear()
        self._next_number = number

    def next(self) -> mx.io.DataBatch:
        """The next batch; raises DataError if one of its images cannot be decoded."""
        while len(self._planned) <= self._ahead:
            plan = self._plan(self._next_number)
            if plan is None:
                break
            self._planned.append(self._start(plan))
            self._next_number += 1
        if not self._planned:
            raise StopIteration
        batch = self._planned.popleft()
        for part in batch.parts:
            part.result()
        # The arrays take the memory over. A copy would queue behind the step that is computed, and
        # take longer than making the batch did.
        data = mx.nd.from_numpy(batch.data, zero_copy=True)
        label = mx.nd.from_numpy(self._targets[batch.plan.rows], zero_copy=True)
        return mx.io.DataBatch(data=[data], label=[label], pad=batch.plan.pad)

    def _start(self, plan: _Plan) -> _Batch:
        """Gives a batch to the workers, or makes it here if there are none."""
        data = np.empty(self.provide_data[0].shape, np.uint8)
        if not self._pool:
            self._make(plan, data, slice(None))
            return _Batch(plan, data, [])
        size, parts = self.batch_size, self._parts_of_batch
        ends = [size * part // parts for part in range(parts + 1)]
        places = map(slice, ends, ends[1:])
        return _Batch(plan, data, [self._pool.submit(self._make, plan, data, p) for p in places])

    def _make(self, plan: _Plan, data: np.ndarray, places: slice) -> None:
        """Writes the images of these places of a batch."""
        for place in range(*places.indices(len(data))):
            top, left, flip = plan.tops[place], plan.lefts[place], plan.flips[place]
            write_crop(self.pixels[plan.rows[place]], top, left, flip, out=data[place])

    def close(self) -> None:
        """Stops the workers; what they had begun is dropped."""
        self.seek(0)
        if self._pool:
            self._pool.shutdown()


class BalancedBatches(_BatchIter):
    """Training batches without end: some classes, and `batch_k` images of each.

    A batch holds ``batch_size // batch_k`` classes drawn without replacement and `batch_k` images
    of each drawn without replacement; the images of a class are consecutive. A class of fewer
    images gives all of them, some a second time. Each image is mirrored with probability 0.5 and
    cut to a random square.

    Parameters
    ----------
    pixels : Pixels
        One image per label, n in all, each uint8 (size, size, 3).
    labels : ndarray of int (n,)
        Classes from 0, at least ``batch_size // batch_k`` of them.
    batch_k : int
    seed : int
        With the batch's number it decides everything drawn.
    batch_size : int
    crop_size : int
        Side of the square cut out of an image, in pixels.
    workers : int
        Threads that make batches; 0 makes them in the caller's.
    part : tuple of int
        Which of how many equal parts of each batch is made here: where several processes train
        together, they make the parts of the same batch, whose classes differ.
    targets : ndarray (n,) or (n, j), optional
        What batches have as labels, as float32; by default the classes.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        batch_k: int,
        seed: int,
        batch_size: int,
        crop_size: int,
        workers: int,
        part: tuple[int, int] = (0, 1),
        targets: np.ndarray | None = None,
    ) -> None:
        super().__init__(pixels, labels, batch_size, crop_size, workers, part, targets)
        self._batch_k = batch_k
        self._seed = seed
        order = np.argsort(labels, kind="stable")
        self._rows_by_class = np.split(order, np.cumsum(np.bincount(labels))[:-1])

    def _plan(self, number: int) -> _Plan:
        rng = np.random.default_rng((self._seed, number))
        whole = self.batch_size * self._parts
        groups = whole // self._batch_k
        classes = rng.choice(len(self._rows_by_class), groups, replace=False)
        rows = [
            np.resize(rng.permutation(self._rows_by_class[label]), self._batch_k)
            for label in classes
        ]
        room = self.pixels.shape[1] - self._crop_size
        tops, lefts = rng.integers(0, room, (2, whole), endpoint=True)
        flips = np.less(rng.random(whole), 0.5)
        here = slice(self._part * self.batch_size, (self._part + 1) * self.batch_size)
        return _Plan(np.concatenate(rows)[here], tops[here], lefts[here], flips[here])


class SequentialBatches(_BatchIter):
    """Every image of this part once, in order, cut to its centre; a part may be empty.

    The last batch is filled up with images from the start; its `pad` tells how many.
    """

    def _plan(self, number: int) -> _Plan | None:
        count = len(self.labels)
        first, end = (count * part // self._parts for part in (self._part, self._part + 1))
        start = first + number * self.batch_size
        if start >= end:
            return None
        rows = np.arange(start, start + self.batch_size)
        centre = np.full(self.batch_size, (self.pixels.shape[1] - self._crop_size) // 2)
        pad = max(0, start + self.batch_size - end)
        return _Plan(rows % count, centre, centre, np.zeros(self.batch_size, bool), pad)
