"""Embeds and measures the test images while a network trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from embedding_learning.data.batches import SequentialBatches
from embedding_learning.data.build import Data
from embedding_learning.errors import TrainingError
from embedding_learning.evaluation.metrics import evaluate
from embedding_learning.inference.batched import embed_all
from embedding_learning.inference.embedding_graph import EmbeddingGraph
from embedding_learning.training.learner import Learner


def evaluate_test(
    learner: Learner,
    data: Data,
    metrics: Sequence[str],
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], np.ndarray]:
    """Returns the metrics of the test images and their embeddings (n, d).

    The images are searched among each other or in the gallery. Workers that make a step together
    each embed a part of the images. Only the first worker measures; the others get no metrics.

    Raises TrainingError if an embedding is not finite.
    """
    # A new one for each evaluation, since it keeps what it computes from the weights.
    graph = EmbeddingGraph(learner.net)

    def embed(batches: SequentialBatches) -> tuple[np.ndarray, np.ndarray]:
        parts = embed_all(graph, learner.devices, batches, after_batch)
        embeddings, labels = (learner.group.gather(part) for part in parts)
        if not np.isfinite(embeddings).all():
            raise TrainingError(
                "the embeddings of the test images are not finite: training diverged; try a lower "
                "--lr"
            )
        return embeddings, labels

    # With dist_async each worker's group has size 1, whatever its rank.
    if learner.group.rank > 0 and learner.group.size == 1:
        return {}, np.empty((0, 0))
    queries, labels = embed(data.test)
    gallery, gallery_labels = embed(data.gallery) if data.gallery else (None, None)
    if learner.group.rank > 0:
        return {}, queries
    # The workers' parts are in the order of the images.
    values = evaluate(queries, labels, metrics, gallery, gallery_labels, data.groups)
    return values, queries


def criterion(metrics: dict[str, float]) -> float:
    """Returns the Recall@1 that networks are compared by; 0 where it is not defined (NaN)."""
    recall = metrics["recall@1"]
    return 0.0 if math.isnan(recall) else recall
