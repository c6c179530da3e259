"""How well clusters of embeddings agree with their classes: numpy in, numbers out."""

from __future__ import annotations

import numpy as np

from embedding_learning.evaluation.blocked_distances import as_embeddings
from embedding_learning.evaluation.neighbors import find_nearest

# As many as pytorch-metric-learning asks of faiss.
_ITERATIONS = 20
# The first centers are drawn in so many rounds, each with those of the rounds before known. One by
# one, thousands of centers would take longer than all iterations.
_ROUNDS = 200


def k_means(embeddings: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """The cluster of each embedding by Lloyd's k-means, Euclidean.

    The first centers are embeddings, drawn with probabilities proportional to the squared distance
    from the nearest center so far (k-means++, Arthur and Vassilvitskii 2007), up to 200 clusters
    one by one, beyond in 200 draws of several. Then 20 iterations at most, fewer if nothing moves
    any more. Of equally distant centers the first is taken; a center that loses all its embeddings
    stays where it is. Neighbors are exact, so that a seed gives the same clusters with any number
    of threads.

    Parameters
    ----------
    embeddings : array (n, d)
    clusters : int
        At least 1. Where there are fewer different embeddings, there are no more clusters.
    seed : int

    Returns
    -------
    int64 array (n,)
        From 0 on; not every number need occur.

    Raises
    ------
    ValueError
        If there is no embedding or a value is not finite.
    """
    embeddings = as_embeddings(embeddings)
    centers = _first_centers(embeddings, clusters, np.random.default_rng(seed))
    before = None
    for _ in range(_ITERATIONS):
        cluster = find_nearest(embeddings, 1, centers)[1][:, 0]
        if before is not None and (cluster == before).all():
            break
        before = cluster
        sizes = np.bincount(cluster, minlength=len(centers))
        lived = sizes > 0
        for dimension, values in enumerate(embeddings.T):
            sums = np.bincount(cluster, weights=values, minlength=len(centers))
            centers[lived, dimension] = sums[lived] / sizes[lived]
    return cluster


def _first_centers(embeddings: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Different embeddings, (clusters, d), or fewer if there are no more."""
    chosen = [rng.integers(len(embeddings), size=1)]
    left = clusters - 1
    squares = np.full(len(embeddings), np.inf)
    while left > 0:
        distances, _ = find_nearest(embeddings, 1, embeddings[chosen[-1]])
        squares = np.minimum(squares, distances[:, 0].astype(np.float64) ** 2)
        count = min(-(-clusters // _ROUNDS), left, int(np.count_nonzero(squares)))
        if not count:
            break
        drawn = rng.choice(len(embeddings), count, replace=False, p=squares / squares.sum())
        chosen.append(drawn)
        left -= count
    return embeddings[np.concatenate(chosen)]


def nmi(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Normalised mutual information: I(classes; clusters) over the mean of their entropies.

    Between 0 and 1, which it is where the two differ in names only, be it a single class. By chance
    alone it grows with the number of clusters; see `ami`.

    Parameters
    ----------
    labels, clusters : array (n,)
        Anything that compares.
    """
    # Only now, since it takes seconds to import.
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels, clusters))


def ami(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Adjusted mutual information: like `nmi`, less what chance gives.

    (I - E) / (mean entropy - E), where E is the mean of I over all ways to deal the images out to
    classes and clusters of these sizes (Vinh, Epps and Bailey, Information Theoretic Measures for
    Clusterings Comparison, 2010). 1 where the two differ in names only, 0 by chance, and below 0
    for less than that. Where each image is a class and a cluster of its own, it is not defined.

    Parameters
    ----------
    labels, clusters : array (n,)
        Anything that compares.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(labels, clusters))
