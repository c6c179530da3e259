"""Verification: decides by a threshold on distances whether two images show the same class.

The protocol is that of Labeled Faces in the Wild (Huang et al., 2007). A pair is accepted as "same"
if its distance is at most the threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from embedding_learning.evaluation.blocked_distances import squared_distances_of_pairs

# The false accept rates at which papers report the true accept rate.
FALSE_ACCEPT_RATES = (1e-2, 1e-3, 1e-4)


class Roc(NamedTuple):
    """The receiver operating characteristic: what each threshold accepts.

    Attributes
    ----------
    thresholds : float64 array (m,)
        Every distance that occurs, ascending, after -infinity, which accepts no pair.
    same, different : int64 array (m,)
        How many pairs of either type are accepted. The last entries are all of them.
    """

    thresholds: np.ndarray
    same: np.ndarray
    different: np.ndarray

    @property
    def true_accept_rates(self) -> np.ndarray:
        """The accepted share of the pairs of one class, (m,) float64."""
        return self.same / self.same[-1]

    @property
    def false_accept_rates(self) -> np.ndarray:
        """The accepted share of the pairs of different classes, (m,) float64."""
        return self.different / self.different[-1]


class OperatingPoint(NamedTuple):
    """The largest threshold whose false accept rate is at most a given one.

    Attributes
    ----------
    threshold : float
        -infinity if no pair can be accepted.
    true_accept_rate : float
    same, different : int
        How many pairs of either type are accepted.
    """

    threshold: float
    true_accept_rate: float
    same: int
    different: int


class FoldAccuracies(NamedTuple):
    """The accuracy of each fold, with the threshold that is best for the other folds.

    Attributes
    ----------
    thresholds, accuracies : float64 array (k,)
    """

    thresholds: np.ndarray
    accuracies: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.accuracies.mean())

    @property
    def standard_error(self) -> float:
        """The sample standard deviation of the folds (k - 1), divided by the root of k."""
        return float(self.accuracies.std(ddof=1) / np.sqrt(len(self.accuracies)))


def pair_distances(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distance of each pair.

    Parameters
    ----------
    embeddings : float32 array (n, d)
    first, second : int array (p,)
        The rows of each pair.

    Returns
    -------
    float64 array (p,)
    """
    return np.sqrt(squared_distances_of_pairs(embeddings, embeddings, first, second))


def compute_roc(distances: np.ndarray, is_same: np.ndarray) -> Roc:
    """Counts the pairs that each threshold accepts. There has to be a pair of either type.

    Parameters
    ----------
    distances : array (p,)
    is_same : bool array (p,)
        Whether both images of a pair are of one class.
    """
    order = np.argsort(distances, kind="stable")
    distances, is_same = distances[order], is_same[order]
    # Equal distances are accepted together: the last of them counts.
    last = np.flatnonzero(np.append(distances[1:] != distances[:-1], True))
    same = np.cumsum(is_same)[last]
    different = last + 1 - same
    return Roc(
        np.concatenate([[-np.inf], distances[last]]),
        np.concatenate([[0], same]),
        np.concatenate([[0], different]),
    )


def find_operating_point(roc: Roc, false_accept_rate: float) -> OperatingPoint:
    """Returns the true accept rate at a false accept rate, TAR at FAR."""
    # The comparison of counts is exact where that of rates could be off by rounding.
    most = np.floor(false_accept_rate * roc.different[-1] * (1 + 1e-12))
    index = np.searchsorted(roc.different, most, side="right") - 1
    return OperatingPoint(
        float(roc.thresholds[index]),
        float(roc.true_accept_rates[index]),
        int(roc.same[index]),
        int(roc.different[index]),
    )


def compute_fold_accuracies(
    distances: np.ndarray, is_same: np.ndarray, folds: np.ndarray
) -> FoldAccuracies:
    """Measures each fold with the threshold that is the most accurate on all other folds.

    Parameters
    ----------
    distances : array (p,)
    is_same : bool array (p,)
    folds : int array (p,)
        The fold of each pair, 0 to k - 1, none of them empty. The other folds of each have to
        contain a pair of either type.
    """
    thresholds, accuracies = [], []
    for fold in range(folds.max() + 1):
        is_tested = folds == fold
        threshold = find_best_threshold(distances[~is_tested], is_same[~is_tested])
        is_right = (distances[is_tested] <= threshold) == is_same[is_tested]
        thresholds.append(threshold)
        accuracies.append(is_right.mean())
    return FoldAccuracies(np.array(thresholds), np.array(accuracies))


def find_best_threshold(distances: np.ndarray, is_same: np.ndarray) -> float:
    """Returns the threshold that decides the most pairs correctly; of equal ones the lowest.

    It is in the middle between two neighboring distances, where other pairs have the most room.
    """
    roc = compute_roc(distances, is_same)
    right = roc.same + roc.different[-1] - roc.different
    best = int(np.argmax(right))
    if best in (0, len(right) - 1):
        return float(roc.thresholds[best])  # no or all pairs are accepted
    return float((roc.thresholds[best] + roc.thresholds[best + 1]) / 2)


def assign_folds(is_same: np.ndarray, count: int) -> np.ndarray:
    """Returns a fold for each pair, 0 to count - 1, for a list of pairs that has none.

    The pairs of either type are dealt out in their order: the first to fold 0, the next to fold 1.
    """
    folds = np.empty(len(is_same), np.int64)
    for kind in (is_same, ~is_same):
        folds[kind] = np.arange(kind.sum()) % count
    return folds
