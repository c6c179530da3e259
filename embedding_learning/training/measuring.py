"""What a training step shows, once its log interval is over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedding_learning.evaluation import pair_distances
from embedding_learning.training.learner import Learner, Step


def pairs_of(
    learner: Learner, step: Step, embeddings: Sequence[np.ndarray], batch_k: int
) -> dict[str, np.ndarray]:
    """What `Learner.measure` returns, and `all_negative_distances`.

    `embeddings` are the step's, of each device (n, d).
    """
    shares = [pair_distances.negative_pair_distances(share, batch_k) for share in embeddings]
    return {**learner.measure(step), "all_negative_distances": np.concatenate(shares)}


def values_of(
    learner: Learner, pairs: dict[str, np.ndarray], boundaries: np.ndarray | float | None
) -> dict[str, float]:
    """What is recorded of the step in addition to its loss, by name.

    `pairs` are the step's, measured against the beta that its loss was computed with; `boundaries`
    are those after its update.
    """
    values = {
        "active_share": pairs["active"].mean(),
        "positive_distance": pairs["positive_distances"].mean(),
        "negative_distance": pairs["negative_distances"].mean(),
    }
    if boundaries is not None:
        values["beta_min"], values["beta_max"] = np.min(boundaries), np.max(boundaries)
        values["beta_median"] = np.median(boundaries)
    # The second trainer, where there is one, is beta's.
    for name, trainer in zip(("learning_rate", "learning_rate_beta"), learner.trainers):
        values[name] = trainer.learning_rate
    return {name: float(value) for name, value in values.items()}
