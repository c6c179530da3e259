"""How good embeddings are: numpy in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

# Distances held at once; with their masks about 20 MB, whatever the number of embeddings.
_DISTANCES_AT_ONCE = 2**20
# Digits of a float64: sums of whole numbers below 2 to this are exact.
_EXACT_BITS = 53
_NEVER = np.iinfo(np.int64).max


def recall_at_k(
    embeddings: np.ndarray,
    labels: np.ndarray,
    ks: Iterable[int] = (1, 2, 4, 8, 16),
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[int, float]:
    """The share of images with one of their own class among the k nearest others.

    With a gallery the neighbours are its images, and no image is left out. Else the images are
    searched among each other.

    Nearest by Euclidean distance. The image itself is left out by its index, so a duplicate of it
    counts as a neighbour. Of equally distant neighbours the lower index is the nearer; equal
    embeddings are equally distant to the last bit. An image whose class has no other image can
    only miss.

    Parameters
    ----------
    embeddings : array (n, d)
    labels : array (n,)
    ks : iterable of int
        Each at least 1; from n - 1 on all other images are neighbours.
    gallery : array (m, d), optional
    gallery_labels : array (m,), optional

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
    ks = tuple(ks)
    if any(k < 1 for k in ks):
        raise ValueError(f"every k is at least 1: {ks}")
    embeddings, labels = _checked(embeddings, labels)
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("a gallery and its labels come together")
    if gallery is None or gallery_labels is None:
        exact = _as_whole_numbers(embeddings)
        rank = _rank_of_nearest_match(exact, labels, exact, labels, among_each_other=True)
    else:
        gallery, gallery_labels = _checked(gallery, gallery_labels)
        exact, exact_gallery = np.split(
            _as_whole_numbers(np.concatenate([embeddings, gallery])), [len(embeddings)]
        )
        rank = _rank_of_nearest_match(
            exact, labels, exact_gallery, gallery_labels, among_each_other=False
        )
    return {k: float(np.mean(rank < k)) for k in ks}


def _checked(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As arrays; raises ValueError if they are not embeddings and their labels."""
    embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
    labels = np.asarray(labels)
    if embeddings.ndim != 2 or not len(embeddings) or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings (n, d) and labels (n,) expected, not {embeddings.shape}, {labels.shape}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("the embeddings hold values that are not finite")
    return embeddings, labels


def _rank_of_nearest_match(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    among_each_other: bool,
) -> np.ndarray:
    """How many images of other classes are nearer than the nearest of the own class, (queries,).

    Beyond any k where the class has no other image.
    """
    squares = np.einsum("nd,nd->n", gallery, gallery)
    index = np.arange(len(gallery))
    rank = np.empty(len(queries), np.int64)
    rows_at_once = max(1, _DISTANCES_AT_ONCE // len(gallery))
    for start in range(0, len(queries), rows_at_once):
        rows = np.arange(start, min(start + rows_at_once, len(queries)))
        # The squared distance but for the query's own square, which orders nothing.
        distance = queries[rows] @ gallery.T
        distance *= -2.0
        distance += squares
        if among_each_other:
            distance[rows - start, rows] = np.inf
        match_distance = np.where(query_labels[rows, None] == gallery_labels, distance, np.inf)
        match = match_distance.argmin(axis=1)
        nearest = match_distance[rows - start, match][:, None]
        before = (distance < nearest) | ((distance == nearest) & (index < match[:, None]))
        rank[rows] = np.where(np.isinf(nearest[:, 0]), _NEVER, before.sum(axis=1))
    return rank


def _as_whole_numbers(embeddings: np.ndarray) -> np.ndarray:
    """The embeddings shifted, scaled and rounded: float64 (n, d), and their distances are exact.

    Sums of products of fractions are rounded differently from one column of a matrix product to
    the next, so that equal rows would be unequally far, and a collapsed network would be ranked by
    noise. Whole numbers this small are summed without rounding; of 128 dimensions they keep 22
    bits, relative to the largest difference from the first row.
    """
    shifted = embeddings.astype(np.float64)
    shifted -= shifted[0]
    largest = np.abs(shifted).max(initial=0.0)
    # A squared distance is at most 4 d times the square of the largest number.
    bits = (_EXACT_BITS - math.ceil(math.log2(4 * max(1, embeddings.shape[1])))) // 2
    if largest > 0:
        shifted *= 2.0**bits / largest
    return np.rint(shifted, out=shifted)
