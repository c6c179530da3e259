"""Which classes are taken for which others: by the class of each query's nearest image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Confusion(NamedTuple):
    """Queries of one class whose nearest image is of another class.

    Attributes
    ----------
    label : int
        The class of the queries.
    taken_for : int
        The class of the image nearest to each of them.
    queries : int array (c,)
        Their rows, ascending.
    images : int
        The number of all queries of the class `label`.
    """

    label: int
    taken_for: int
    queries: np.ndarray
    images: int


def find_confusions(labels: np.ndarray, nearest_labels: np.ndarray) -> list[Confusion]:
    """Finds all pairs of classes where the first is taken for the second.

    Parameters
    ----------
    labels : int array (n,)
        The class of each query.
    nearest_labels : int array (n,)
        The class of the image nearest to each query; -1 where there is no image.

    Returns
    -------
    list of Confusion
        The most queries first. Of as many, the larger share of their class is first, then the lower
        class numbers.
    """
    wrong = np.flatnonzero((nearest_labels >= 0) & (nearest_labels != labels))
    pairs, pair_of_wrong = np.unique(
        np.stack([labels[wrong], nearest_labels[wrong]]), axis=1, return_inverse=True
    )
    found = [
        Confusion(
            int(label),
            int(taken_for),
            wrong[pair_of_wrong.ravel() == pair],
            np.count_nonzero(labels == label),
        )
        for pair, (label, taken_for) in enumerate(pairs.T)
    ]
    return sorted(found, key=lambda confusion: (-len(confusion.queries), confusion.images))
