"""Computes the embeddings of batches on one or several devices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import mxnet as mx
import numpy as np
from mxnet import gluon

from embedding_learning.data.batches import SequentialBatches
from embedding_learning.runtime.progress import progress_bar

# Batches that are queued in addition to the one that is computed.
_BATCHES_QUEUED = 2


def embed_all(
    embed: Callable[[mx.nd.NDArray], mx.nd.NDArray],
    devices: list[mx.Context],
    batches: SequentialBatches,
    after_batch: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns embeddings (n, d) and labels (n,) of all images, in the order of the batches.

    Blocks until all are computed, and calls `after_batch` after each batch. `embed` and the other
    parameters are those of `embed_each_batch`.
    """
    batches.reset()
    parts = []
    for part in progress_bar(embed_each_batch(embed, devices, batches), "Validation"):
        parts.append(part)
        after_batch()
    embeddings, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return embeddings, labels


def embed_each_batch(
    embed: Callable[[mx.nd.NDArray], mx.nd.NDArray],
    devices: list[mx.Context],
    batches: SequentialBatches,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields embeddings (b, d) and labels (b,) of each batch, from the next batch to the last.

    Memory is bounded: at most two batches are queued in addition to the one that is computed.

    Parameters
    ----------
    embed : callable
        Takes uint8 images (b, 3, crop, crop) on a device, and returns their embeddings there.
    devices : list of Context
        Each batch is divided among them.
    batches : SequentialBatches
    """
    queued: deque[tuple[list[mx.nd.NDArray], np.ndarray]] = deque()
    for batch in batches:
        images = gluon.utils.split_and_load(batch.data[0], devices)
        labels = batch.label[0].asnumpy()[: batches.batch_size - batch.pad]
        queued.append(([embed(x) for x in images], labels))
        if len(queued) > _BATCHES_QUEUED:
            yield _wait_for(*queued.popleft())
    while queued:
        yield _wait_for(*queued.popleft())


def _wait_for(parts: list[mx.nd.NDArray], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the devices' parts of a batch as one array, without the rows that only fill it."""
    return np.concatenate([part.asnumpy() for part in parts])[: len(labels)], labels
