"""The test images, embedded and measured while a network trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embedding_learning.data.batches import SequentialBatches
from embedding_learning.data.build import Data
from embedding_learning.errors import TrainingError
from embedding_learning.evaluation.metrics import evaluate
from embedding_learning.inference.embedding_model import embed_all
from embedding_learning.training.learner import Learner


def evaluate_test(
    learner: Learner,
    data: Data,
    metrics: Sequence[str],
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], np.ndarray]:
    """The metrics of the test images, among each other or in the gallery, and their embeddings.

    Processes that make a step together each embed a part of the images. Only the first measures;
    the others get no metrics.
    """

    def embedded(batches: SequentialBatches) -> tuple[np.ndarray, np.ndarray]:
        parts = embed_all(learner.net, learner.devices, batches, after_batch)
        embeddings, labels = (learner.group.gather(part) for part in parts)
        if not np.isfinite(embeddings).all():
            raise TrainingError(
                "the embeddings of the test images are not finite: training diverged; try a lower "
                "--lr"
            )
        return embeddings, labels

    if learner.group.rank > 0 and learner.group.size == 1:
        return {}, np.empty((0, 0))
    queries, labels = embedded(data.test)
    gallery = embedded(data.gallery) if data.gallery else ()
    if learner.group.rank > 0:
        return {}, queries
    return evaluate(queries, labels, metrics, *gallery), queries
