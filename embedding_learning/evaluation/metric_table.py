"""The table of metrics. A new metric is a function and a row here.

Imports only numpy, so that `--help` can list the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from embedding_learning.evaluation.clustering import ami, nmi


class RankMetric(NamedTuple):
    """A metric of the rank of each query's nearest match.

    Attributes
    ----------
    value : callable
        From the ranks, (n,) counted from 0, and K: the values of the queries, (n,).
    has_k : bool
        The name ends with @K, a number of neighbors.
    needs_match : bool
        A query without a match has no value, and is left out of the mean.
    """

    value: Callable[[np.ndarray, int], np.ndarray]
    has_k: bool = True
    needs_match: bool = False


class ListMetric(NamedTuple):
    """A metric of the list of each query's nearest images.

    Attributes
    ----------
    value : callable
        From `is_match`, (n, k) bool, whether each of the k nearest images is a match, nearest
        first; the number of all matches of each query, (n,); the number of images that are searched
        for it, (n,), which may be below k; and K: the values of the queries, (n,). For a metric
        without K, k is the largest number of matches, and K is None.
    has_k, needs_match : bool
        As in `RankMetric`.
    """

    value: Callable[[np.ndarray, np.ndarray, np.ndarray, int | None], np.ndarray]
    has_k: bool = False
    needs_match: bool = False


class ClusterMetric(NamedTuple):
    """A metric of a clustering of the embeddings into as many clusters as there are classes.

    Attributes
    ----------
    value : callable
        From labels and clusters, (n,) each: one number.
    has_k, needs_match : bool
        As in `RankMetric`.
    """

    value: Callable[[np.ndarray, np.ndarray], float]
    has_k: bool = False
    needs_match: bool = False


class Metric(NamedTuple):
    """A metric as it is named: its row in METRICS, and the K of its name if it has one."""

    base: str
    k: int | None

    @property
    def row(self) -> RankMetric | ListMetric | ClusterMetric:
        return METRICS[self.base]


def _recall(rank: np.ndarray, k: int) -> np.ndarray:
    return rank < k


def _precision(
    is_match: np.ndarray, matches: np.ndarray, searched: np.ndarray, k: int | None
) -> np.ndarray:
    return is_match.sum(axis=1) / np.clip(searched, 1, max(1, is_match.shape[1]))


def _r_precision(
    is_match: np.ndarray, matches: np.ndarray, searched: np.ndarray, k: int | None
) -> np.ndarray:
    position = np.arange(1, is_match.shape[1] + 1)
    is_match = is_match & (position <= matches[:, None])
    return is_match.sum(axis=1) / np.maximum(matches, 1)


def _average_precision(
    is_match: np.ndarray, matches: np.ndarray, searched: np.ndarray, k: int | None
) -> np.ndarray:
    """1 / min(K, R) times the sum over i = 1 to K, or to R, of the precision at each match."""
    position = np.arange(1, is_match.shape[1] + 1)
    if k is None:
        is_match, most = is_match & (position <= matches[:, None]), matches
    else:
        most = np.minimum(matches, k)
    precision = np.cumsum(is_match, axis=1) / position
    return (precision * is_match).sum(axis=1) / np.maximum(most, 1)


# By the name without K. The order is that of help and messages.
METRICS: dict[str, RankMetric | ListMetric | ClusterMetric] = {
    "recall": RankMetric(_recall),
    "cmc": RankMetric(_recall),  # another name of recall
    "precision": ListMetric(_precision, has_k=True),
    "map": ListMetric(_average_precision, has_k=True, needs_match=True),
    "map@r": ListMetric(_average_precision, needs_match=True),
    "r-precision": ListMetric(_r_precision, needs_match=True),
    "nmi": ClusterMetric(nmi),
    "ami": ClusterMetric(ami),
}


def names_without_k() -> list[str]:
    """Returns the names of the metrics without K."""
    return [name for name, row in METRICS.items() if not row.has_k]


def describe_metrics() -> str:
    """Returns the names of all metrics, for a line of help."""
    at_k = [f"{name}@K" for name, row in METRICS.items() if row.has_k]
    return f"{', '.join([*at_k, *names_without_k()])} (K from 1)"


def parse_metric(name: str) -> Metric:
    """Splits the name of a metric. Raises ValueError if it is unknown."""
    base, at, k = name.rpartition("@")
    row = METRICS.get(base)
    if at and row and row.has_k and re.fullmatch("[1-9][0-9]{0,17}", k):
        return Metric(base, int(k))
    if name in names_without_k():
        return Metric(name, None)
    raise ValueError(f"{name!r} is no metric; the metrics are {describe_metrics()}")
