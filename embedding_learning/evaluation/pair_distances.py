"""Distances between points of the unit sphere: those of a batch's pairs, counted, and in theory."""

from __future__ import annotations

import numpy as np

# No two points of the unit sphere are farther apart than its diameter.
MAX_DISTANCE = 2.0
# Bins of a histogram of distances, equal parts of [0, 2].
HISTOGRAM_BINS = 80
HISTOGRAM_EDGES = np.linspace(0.0, MAX_DISTANCE, HISTOGRAM_BINS + 1)


def negative_pair_distances(embeddings: np.ndarray, batch_k: int) -> np.ndarray:
    """Distances of all pairs of different classes, each pair once.

    Embeddings (n, d), the first `batch_k` rows of one class and so on -> float64 (pairs,).
    """
    row_class = np.arange(len(embeddings)) // batch_k
    return pairwise_distances(embeddings)[row_class[:, None] < row_class]


def pairwise_distances(embeddings: np.ndarray) -> np.ndarray:
    """Distances of all pairs: embeddings (n, d) -> float64 (n, n)."""
    x = embeddings.astype(np.float64)
    squares = np.einsum("nd,nd->n", x, x)
    # Rounding makes the squares of equal embeddings' distances negative.
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0))


def histogram(distances: np.ndarray) -> list[int]:
    """How many distances lie in each bin; 2 and what rounding makes of it in the last."""
    counts, _ = np.histogram(np.minimum(distances, MAX_DISTANCE), HISTOGRAM_EDGES)
    return counts.tolist()
