"""How good embeddings are: numpy in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Distances held at once; with their masks about 100 MB, whatever the number of embeddings.
_DISTANCES_AT_ONCE = 2**24


def recall_at_k(
    embeddings: np.ndarray, labels: np.ndarray, ks: Iterable[int] = (1, 2, 4, 8, 16)
) -> dict[int, float]:
    """The share of images with one of their own class among the k nearest others.

    Nearest by Euclidean distance. The image itself is left out by its index, so a duplicate of it
    counts as a neighbour. Of equally distant neighbours the lower index is the nearer. An image
    whose class has no other image can only miss.

    Parameters
    ----------
    embeddings : array (n, d)
    labels : array (n,)
    ks : iterable of int
        Each at least 1; from n - 1 on all other images are neighbours.

    Returns
    -------
    dict
        k to Recall@k, between 0 and 1.

    Raises
    ------
    ValueError
        If the shapes do not fit, there is no embedding, one of its values is not finite, or a k is
        below 1.
    """
    embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
    labels = np.asarray(labels)
    ks = tuple(ks)
    if embeddings.ndim != 2 or not len(embeddings) or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings (n, d) and labels (n,) expected, not {embeddings.shape}, {labels.shape}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("the embeddings hold values that are not finite")
    if any(k < 1 for k in ks):
        raise ValueError(f"every k is at least 1: {ks}")
    rank = _rank_of_nearest_match(embeddings, labels)
    return {k: float(np.mean(rank < k)) for k in ks}


def _rank_of_nearest_match(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many images of other classes are nearer than the nearest of the own class, (n,).

    n where the class has no other image.
    """
    count = len(embeddings)
    squares = np.einsum("nd,nd->n", embeddings, embeddings)
    index = np.arange(count)
    rank = np.empty(count, np.int64)
    rows_at_once = max(1, _DISTANCES_AT_ONCE // count)
    for start in range(0, count, rows_at_once):
        rows = index[start : start + rows_at_once]
        # The squared distance but for the query's own square, which orders nothing.
        distance = embeddings[rows] @ embeddings.T
        distance *= -2.0
        distance += squares
        distance[np.arange(len(rows)), rows] = np.inf
        match_distance = np.where(labels[rows, None] == labels, distance, np.inf)
        match = match_distance.argmin(axis=1)
        nearest = match_distance[np.arange(len(rows)), match][:, None]
        before = (distance < nearest) | ((distance == nearest) & (index < match[:, None]))
        rank[rows] = np.where(np.isinf(nearest[:, 0]), count, before.sum(axis=1))
    return rank
