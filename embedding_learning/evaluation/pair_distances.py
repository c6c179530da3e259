"""Distances between the unit-length embeddings of a batch, and their histogram."""

from __future__ import annotations

import numpy as np

# The largest distance between two points of the unit sphere: its diameter.
MAX_DISTANCE = 2.0
# A histogram has equal bins over [0, 2]. The records of runs contain histograms of this size.
HISTOGRAM_BINS = 80
HISTOGRAM_EDGES = np.linspace(0.0, MAX_DISTANCE, HISTOGRAM_BINS + 1)


def negative_pair_distances(embeddings: np.ndarray, batch_k: int) -> np.ndarray:
    """Computes the distances of all pairs of different classes, each pair once: float64 (pairs,).

    Each `batch_k` consecutive rows of the embeddings (n, d) are of one class.
    """
    row_class = np.arange(len(embeddings)) // batch_k
    return pairwise_distances(embeddings)[row_class[:, None] < row_class]


def positive_pair_distances(embeddings: np.ndarray, batch_k: int) -> np.ndarray:
    """Computes the distances of all pairs of an image and another of its class: float64 (pairs,).

    Each pair is there twice. Each `batch_k` consecutive rows of the embeddings are of one class.
    """
    row = np.arange(len(embeddings))
    same = row[:, None] // batch_k == row // batch_k
    return pairwise_distances(embeddings)[same & (row[:, None] != row)]


def pairwise_distances(embeddings: np.ndarray) -> np.ndarray:
    """Computes the distances between all embeddings (n, d): float64 (n, n)."""
    x = embeddings.astype(np.float64)
    squares = np.einsum("nd,nd->n", x, x)
    # Rounding makes squared distances of equal embeddings negative.
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0))


def histogram(distances: np.ndarray) -> list[int]:
    """Counts the distances in each bin. Distances that rounding puts above 2 are in the last."""
    counts, _ = np.histogram(np.minimum(distances, MAX_DISTANCE), HISTOGRAM_EDGES)
    return counts.tolist()
