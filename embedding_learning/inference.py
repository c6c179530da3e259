"""Images to embeddings, with a network that is not being trained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import mxnet as mx
import numpy as np
from mxnet import gluon

from embedding_learning import reporting
from embedding_learning.iterators import SequentialBatches
from embedding_learning.model import MarginNet
from embedding_learning.monitoring import TrainingFault

# Batches queued beyond the one that is computed.
_BATCHES_QUEUED = 2


def embed_all(
    net: MarginNet,
    devices: list[mx.Context],
    batches: SequentialBatches,
    after_batch: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, d) and labels (n,) of all images of the batches."""
    batches.reset()
    embeddings: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    queued: deque[list[mx.nd.NDArray]] = deque()
    for batch in reporting.progress(batches, "Validation"):
        images = gluon.utils.split_and_load(batch.data[0], devices)
        queued.append([net.embed(x) for x in images])
        real = batches.batch_size - batch.pad
        labels.append(batch.label[0].asnumpy()[:real])
        if len(queued) > _BATCHES_QUEUED:
            embeddings += [part.asnumpy() for part in queued.popleft()]
        after_batch()
    embeddings += [part.asnumpy() for parts in queued for part in parts]
    all_labels = np.concatenate(labels)
    all_embeddings = np.concatenate(embeddings)[: len(all_labels)]
    if not np.isfinite(all_embeddings).all():
        raise TrainingFault(
            "the embeddings of the test images are not finite: training diverged; try a lower --lr"
        )
    return all_embeddings, all_labels
