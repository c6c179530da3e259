"""K-means clusters of embeddings, and their agreement with the classes."""

from __future__ import annotations

import numpy as np

from embedding_learning.evaluation.blocked_distances import as_embeddings
from embedding_learning.evaluation.neighbors import find_nearest

# The number of iterations that pytorch-metric-learning sets for faiss.
_ITERATIONS = 20
# The first centers are sampled in this number of rounds; each round knows the centers of those
# before it. One by one, thousands of centers would take longer than all iterations.
_ROUNDS = 200


def k_means(embeddings: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Clusters the embeddings by Lloyd's k-means with Euclidean distances.

    The first centers are embeddings, sampled with probabilities proportional to the squared
    distance from the nearest center so far (k-means++, Arthur and Vassilvitskii 2007): one by one
    for up to 200 clusters, and in 200 groups for more. At most 20 iterations follow, fewer if no
    embedding changes its cluster. Of equally distant centers the first is taken; a center that
    loses all its embeddings stays where it is. Neighbors are exact, so a seed gives the same
    clusters with any number of threads.

    Parameters
    ----------
    embeddings : array (n, d)
    clusters : int
        At least 1. There are never more clusters than different embeddings.
    seed : int

    Returns
    -------
    int64 array (n,)
        The cluster of each embedding, from 0; some numbers may not occur.

    Raises
    ------
    ValueError
        If there is no embedding, or a value is not finite.
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
        has_members = sizes > 0
        for dimension, values in enumerate(embeddings.T):
            sums = np.bincount(cluster, weights=values, minlength=len(centers))
            centers[has_members, dimension] = sums[has_members] / sizes[has_members]
    return cluster


def _first_centers(embeddings: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Returns different embeddings, (clusters, d), or fewer if there are no more."""
    chosen = [rng.integers(len(embeddings), size=1)]
    missing = clusters - 1
    squares = np.full(len(embeddings), np.inf)
    while missing > 0:
        distances, _ = find_nearest(embeddings, 1, embeddings[chosen[-1]])
        squares = np.minimum(squares, distances[:, 0].astype(np.float64) ** 2)
        count = min(-(-clusters // _ROUNDS), missing, int(np.count_nonzero(squares)))
        if not count:
            break
        probabilities = squares / squares.sum()
        chosen.append(rng.choice(len(embeddings), count, replace=False, p=probabilities))
        missing -= count
    return embeddings[np.concatenate(chosen)]


def nmi(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Computes normalized mutual information: I(classes; clusters) over their mean entropy.

    It is between 0 and 1, and 1 if the two differ only in names, even with a single class. It grows
    with the number of clusters by chance alone; see `ami`.

    Parameters
    ----------
    labels, clusters : array (n,)
        Values that can be compared.
    """
    # Imported here because it takes seconds.
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels, clusters))


def ami(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Computes adjusted mutual information: `nmi` corrected for chance.

    It is (I - E) / (mean entropy - E), where E is the mean of I over all ways to distribute the
    images to classes and clusters of these sizes (Vinh, Epps and Bailey, Information Theoretic
    Measures for Clusterings Comparison, 2010). It is 1 if the two differ only in names, 0 for an
    agreement by chance, and below 0 for less. It is not defined if each image is a class and a
    cluster of its own.

    Parameters
    ----------
    labels, clusters : array (n,)
        Values that can be compared.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(labels, clusters))
