"""Batches of images: which images, in which order; made in advance by worker threads.

A batch is planned from its number alone. So neither the number of workers nor the batches made
before change it. Worker threads make batches while the trainer computes. OpenCV does most of their
work, and it does not hold Python's global lock.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import mxnet as mx
import numpy as np

from embedding_learning.data.crops import CenterCrop, Crop, CropOfSquare
from embedding_learning.data.preprocessing import Pixels

# The most batches that are made at the same time. Normally a worker makes a whole batch. If there
# are more workers than this, several make one batch, so that the memory does not grow with them.
_MOST_BATCHES_IN_WORK = 8
# Batches made in advance in addition to those: enough for short delays of the trainer or a worker.
_BATCHES_READY = 2


@dataclass(frozen=True)
class _Plan:
    """The images of a batch (rows of the data) and what is cut out of them.

    Arrays of (batch_size,), and `crops` of (batch_size, j), the numbers that the crop draws.
    """

    rows: np.ndarray
    crops: np.ndarray
    flips: np.ndarray
    pad: int = 0


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that workers make: its plan, its images, and the tasks that write them."""

    plan: _Plan
    data: np.ndarray
    tasks: list[Future[None]]


class _BatchIter(mx.io.DataIter):
    """Makes the batches that a subclass plans: uint8 (batch_size, 3, crop, crop) and labels.

    The parameters are those of BalancedBatches. `batch_size` becomes that of the local batch.
    """

    # What is cut out of each image; a subclass sets it.
    _crop: Crop

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        batch_size: int,
        crop_size: int,
        workers: int,
        process: tuple[int, int] = (0, 1),
        targets: np.ndarray | None = None,
    ) -> None:
        self._rank, self._processes = process
        super().__init__(batch_size // self._processes)
        self.pixels = pixels
        self.labels = labels.astype(np.float32)
        self._targets = [self.labels]
        if targets is not None:
            self._targets.append(targets.astype(np.float32))
        self._pool = ThreadPoolExecutor(workers) if workers else None
        in_work = min(workers, _MOST_BATCHES_IN_WORK)
        self._batches_in_advance = in_work + _BATCHES_READY if workers else 0
        # Enough to keep all workers busy while `in_work` batches are made.
        self._tasks_per_batch = min(-(-workers // in_work), self.batch_size) if workers else 1
        self._pending: deque[_PendingBatch] = deque()
        self._next_number = 0
        shape = (self.batch_size, 3, crop_size, crop_size)
        self.provide_data = [mx.io.DataDesc("data", shape, np.uint8, "NCHW")]
        self.provide_label = [
            mx.io.DataDesc("label", (self.batch_size, *array.shape[1:]), np.float32, "N")
            for array in self._targets
        ]

    def _plan(self, number: int) -> _Plan | None:
        """Returns the plan of batch `number`, or None after the last batch."""
        raise NotImplementedError

    def reset(self) -> None:
        """Goes back to the first batch."""
        self.seek(0)

    def seek(self, number: int) -> None:
        """Makes batch `number` the next one; the first batch is 0."""
        for batch in self._pending:
            for task in batch.tasks:
                task.cancel()
        self._pending.clear()
        self._next_number = number

    def next(self) -> mx.io.DataBatch:
        """Returns the next batch. Blocks until it is made.

        Raises StopIteration after the last batch, DataError if one of its images cannot be decoded.
        """
        while len(self._pending) <= self._batches_in_advance:
            plan = self._plan(self._next_number)
            if plan is None:
                break
            self._pending.append(self._start(plan))
            self._next_number += 1
        if not self._pending:
            raise StopIteration
        batch = self._pending.popleft()
        for task in batch.tasks:
            task.result()
        # MXNet uses the memory of these arrays. A copy would wait in MXNet's queue until the
        # current training step is done, and take longer than making the batch did.
        data = mx.nd.from_numpy(batch.data, zero_copy=True)
        rows = batch.plan.rows
        label = [mx.nd.from_numpy(array[rows], zero_copy=True) for array in self._targets]
        return mx.io.DataBatch(data=[data], label=label, pad=batch.plan.pad)

    def _start(self, plan: _Plan) -> _PendingBatch:
        """Gives a batch to the workers. Without workers, makes it before it returns."""
        data = np.empty(self.provide_data[0].shape, np.uint8)
        if not self._pool:
            self._write_images(plan, data, 0, self.batch_size)
            return _PendingBatch(plan, data, [])
        count = self._tasks_per_batch
        ends = [self.batch_size * task // count for task in range(count + 1)]
        tasks = [
            self._pool.submit(self._write_images, plan, data, start, end)
            for start, end in zip(ends, ends[1:])
        ]
        return _PendingBatch(plan, data, tasks)

    def _write_images(self, plan: _Plan, data: np.ndarray, start: int, end: int) -> None:
        """Writes the images `start` to ``end - 1`` of a batch into `data`."""
        for index in range(start, end):
            image = self.pixels[plan.rows[index]]
            self._crop.write(image, plan.crops[index], plan.flips[index], out=data[index])

    def close(self) -> None:
        """Stops the workers and drops the batches that are not finished."""
        self.seek(0)
        if self._pool:
            self._pool.shutdown()


class BalancedBatches(_BatchIter):
    """Training batches without end: random classes, and `batch_k` images of each.

    A batch holds ``batch_size // batch_k`` classes, sampled without replacement, and `batch_k`
    images of each, sampled without replacement. The images of a class are consecutive. A class of
    fewer than `batch_k` images gives all of them, and repeats some. Each image is mirrored with
    probability 0.5 and cropped at random.

    Parameters
    ----------
    pixels : Pixels
        One image per label, n in all.
    labels : ndarray of int (n,)
        Classes from 0, at least ``batch_size // batch_k`` of them.
    batch_k : int
    seed : int
        The seed and the batch's number determine all random choices.
    batch_size : int
        Images in a batch, of all processes together.
    crop_size : int
        Side of the square crop, in pixels.
    workers : int
        Threads that make batches. With 0, the calling thread makes them.
    process : tuple of int
        The rank of this process and the number of processes. Processes that train together plan
        the same batches. Each makes its local batch: an equal part, whose classes the others do
        not have.
    targets : ndarray (n,) or (n, j), optional
        Labels that batches carry after the classes, as float32.
    crop : Crop, optional
        What is cut out of each image; by default a random square, if the images are squares.

    Attributes
    ----------
    class_count : int

    Raises
    ------
    ValueError
        If a class has no image, or there are too few classes for a batch.
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
        process: tuple[int, int] = (0, 1),
        targets: np.ndarray | None = None,
        crop: Crop | None = None,
    ) -> None:
        super().__init__(pixels, labels, batch_size, crop_size, workers, process, targets)
        self._crop = crop or CropOfSquare(pixels.shape[1] - crop_size)
        self._batch_k = batch_k
        self._seed = seed
        order = np.argsort(labels, kind="stable")
        self._rows_by_class = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        self.class_count = len(self._rows_by_class)
        needed = batch_size // batch_k
        if self.class_count < needed:
            raise ValueError(f"{needed} classes expected in a batch, not {self.class_count}")
        for label, rows in enumerate(self._rows_by_class):
            if not len(rows):
                raise ValueError(f"class {label} has no image; number the classes from 0")

    def _plan(self, number: int) -> _Plan:
        rng = np.random.default_rng((self._seed, number))
        total = self.batch_size * self._processes
        classes = rng.choice(len(self._rows_by_class), total // self._batch_k, replace=False)
        rows = [
            np.resize(rng.permutation(self._rows_by_class[label]), self._batch_k)
            for label in classes
        ]
        crops = self._crop.draw(rng, total)
        flips = np.less(rng.random(total), 0.5)
        local = slice(self._rank * self.batch_size, (self._rank + 1) * self.batch_size)
        return _Plan(np.concatenate(rows)[local], crops[local], flips[local])


class SequentialBatches(_BatchIter):
    """Evaluation batches: every image of this process once, in order, cropped to its center.

    Each process has a contiguous part of the images, which may be empty. The last batch is filled
    with other images; its `pad` is their number.
    """

    _crop = CenterCrop()

    def _plan(self, number: int) -> _Plan | None:
        count = len(self.labels)
        first, end = (count * rank // self._processes for rank in (self._rank, self._rank + 1))
        start = first + number * self.batch_size
        if start >= end:
            return None
        rows = np.arange(start, start + self.batch_size)
        nothing = np.empty((self.batch_size, 0))
        pad = max(0, start + self.batch_size - end)
        return _Plan(rows % count, nothing, np.zeros(self.batch_size, bool), pad)
