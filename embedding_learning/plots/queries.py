"""Which queries a gallery shows: the best, the worst and some at random."""

from __future__ import annotations

import numpy as np


def average_precision(right: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """How early the right ones stand among k neighbours: average precision at k, (q,).

    The precision at the rank of each right neighbour, summed and divided by min(k, relevant): 1 if
    all are right that can be. NaN where nothing is relevant.

    Parameters
    ----------
    right : bool array (q, k)
        Which neighbours are of the query's class, nearest first.
    relevant : array (q,)
        How many images could have been found.
    """
    right = np.asarray(right, bool)
    most = np.minimum(relevant, right.shape[1])
    precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    total = (precision * right).sum(axis=1)
    return np.where(most > 0, total / np.maximum(most, 1), np.nan)


def choose_queries(
    scores: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> dict[str, np.ndarray]:
    """The best, the worst and some random queries, up to `count` of each, none twice.

    Of equal scores one is drawn. Each group takes its queries from different classes while there
    are any, for else the best would be one class over and over.

    Parameters
    ----------
    scores : array (n,)
        How well each query does, such as `average_precision`; NaN leaves it out.
    labels : array (n,)
        The class of each query.
    count : int
    seed : int

    Returns
    -------
    dict
        "Best", "Worst" and "Random" to rows; a group that nothing is left for is not there.
    """
    order = np.random.default_rng(seed).permutation(len(scores))
    order = order[~np.isnan(scores[order])]
    rising = order[np.argsort(scores[order], kind="stable")]
    share = [min(count, (len(order) + 2 - group) // 3) for group in range(3)]
    best = _of_many_classes(rising[::-1], labels, share[0])
    worst = _of_many_classes(rising[~np.isin(rising, best)], labels, share[1])
    rest = order[~np.isin(order, np.concatenate([best, worst]))]
    random = _of_many_classes(rest, labels, share[2])
    groups = {"Best": best, "Worst": worst, "Random": random}
    return {name: rows for name, rows in groups.items() if len(rows)}


def _of_many_classes(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The first rows of classes not seen before, and as many others as are missing, in order."""
    _, firsts = np.unique(labels[rows], return_index=True)
    chosen = np.sort(firsts)[:count]
    others = np.setdiff1d(np.arange(len(rows)), firsts)[: count - len(chosen)]
    return rows[np.sort(np.concatenate([chosen, others]))]
