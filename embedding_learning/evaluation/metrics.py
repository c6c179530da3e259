"""How good embeddings are: numpy in, numbers out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from embedding_learning.config import COMMON_RECALL_RANKS
from embedding_learning.evaluation.blocked_distances import (
    as_embeddings,
    slices,
    squared_distances_of_pairs,
)
from embedding_learning.evaluation.clustering import ami, k_means, nmi
from embedding_learning.evaluation.neighbors import find_nearest_in_blocks, find_ranks

_COMMON_RECALLS = tuple(f"recall@{k}" for k in COMMON_RECALL_RANKS)

# With a number of neighbors, such as recall@4; cmc is another name of recall.
_METRICS_AT_K = ("recall", "cmc", "precision", "map")
_OTHER_METRICS = ("map@r", "r-precision", "nmi", "ami")
_RECALLS = ("recall", "cmc")
_OF_CLUSTERS = ("nmi", "ami")
# They divide by the number of matches, so that a query without any has no value.
_OF_MATCHED_QUERIES = ("map", "map@r", "r-precision")
# So many neighbors are listed to find a match. If it may be further off, counting those before it
# is faster, unless classes are so large that a match is seldom further off.
_LISTED_RANKS = 64
# Pairs of images of one class that are compared at once: 40 MB with their indices.
_PAIRS = 2**20
_NEVER = np.iinfo(np.int64).max


class _Metric(NamedTuple):
    """A metric's name, and its K where it has one."""

    kind: str
    k: int | None


class Measurement(NamedTuple):
    """Metrics, and what they are computed over.

    Attributes
    ----------
    values : dict of str to float
        By name; NaN where no query has a match and the metric is a mean over those that have.
    bases : dict of str to int
        The number of images that each metric is computed over, by name.
    queries : int
        The number of images that are searched for.
    without_match : int
        How many of them have no other image of their class among those that are searched: they are
        alone in their class, or the gallery lacks it.
    others : int
        The number of images that are searched for each query.
    """

    values: dict[str, float]
    bases: dict[str, int]
    queries: int
    without_match: int
    others: int

    def notes(self) -> list[str]:
        """Sentences on what a reader of the values has to know; none for most data."""
        notes = []
        if self.without_match:
            notes.append(
                f"{self.without_match} of {self.queries} images have no match, as they are alone "
                "in their class or the gallery lacks it: recall@K and cmc@K count them as misses, "
                "precision@K as 0, and map@K, map@r and r-precision leave them out."
            )
        deeper = [
            name
            for name in self.values
            if _parsed(name).kind == "precision" and (_parsed(name).k or 0) > self.others
        ]
        if deeper:
            notes.append(
                f"{', '.join(deeper)}: fewer images are searched for each query; it is the share "
                f"among all {self.others}."
            )
        return notes


def compute_metrics(
    embeddings: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[str] = _COMMON_RECALLS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> Measurement:
    """Computes several metrics with one search and one clustering for all of them.

    For K from 1, and with R the number of a query's matches (other images of its class):

    - ``recall@K``, ``cmc@K``: the share of all queries with a match among the K nearest; see
      `recall_at_k`. A query without a match can only miss.
    - ``precision@K``: the share of matches among the K nearest, or among all images where these are
      fewer than K; the mean over all queries. A query without a match has 0.
    - ``map@K``: mean average precision cut at K, as in Weyand et al., Google Landmarks Dataset v2,
      CVPR 2020: 1 / min(K, R) times the sum over i = 1 to K of P(i), where P(i) is the share of
      matches among the i nearest if the i-th is one, and else 0; the mean over all queries with a
      match.
    - ``map@r``, ``r-precision``: the means over all queries with a match; see `map_at_r` and
      `r_precision`.
    - ``nmi``, ``ami``: see `clustering`. The clusters, as many as there are classes, are of the
      embeddings alone: a gallery is only searched.

    Parameters
    ----------
    embeddings : array (n, d)
    labels : array (n,)
    metrics : sequence of str
    gallery : array (m, d), optional
        Without it, the images are searched among each other.
    gallery_labels : array (m,), optional

    Returns
    -------
    Measurement
        Values and bases in the order of `metrics`.

    Raises
    ------
    ValueError
        If a metric is unknown, the shapes do not fit, there is no embedding, or one of its values
        is not finite.
    """
    parsed = {name: _parsed(name) for name in metrics}
    images = _images(embeddings, labels, gallery, gallery_labels)
    is_matched = images.matches > 0
    searched = [metric for metric in parsed.values() if metric.kind not in _OF_CLUSTERS]
    of_queries = _search(images, searched) if searched else {}
    of_clusters = {}
    if len(searched) < len(parsed):
        clusters = k_means(images.queries, len(np.unique(images.labels)))
        of_clusters = {"nmi": nmi(images.labels, clusters), "ami": ami(images.labels, clusters)}
    values, bases = {}, {}
    for name, metric in parsed.items():
        if metric.kind in _OF_CLUSTERS:
            values[name], bases[name] = of_clusters[name], len(is_matched)
            continue
        counted = of_queries[metric]
        if metric.kind in _OF_MATCHED_QUERIES:
            counted = counted[is_matched]
        values[name] = float(np.mean(counted)) if len(counted) else np.nan
        bases[name] = len(counted)
    without_match = len(is_matched) - np.count_nonzero(is_matched)
    return Measurement(values, bases, len(is_matched), int(without_match), images.others)


def evaluate(
    embeddings: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[str] = _COMMON_RECALLS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[str, float]:
    """The values of `compute_metrics`, by name."""
    return compute_metrics(embeddings, labels, metrics, gallery, gallery_labels).values


def recall_at_k(
    embeddings: np.ndarray,
    labels: np.ndarray,
    ks: Iterable[int] = COMMON_RECALL_RANKS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[int, float]:
    """The share of images with one of their own class among the k nearest others.

    With a gallery the neighbors are its images, and no image is left out. Else the images are
    searched among each other.

    Nearest by Euclidean distance, as in `neighbors.find_nearest`. The image itself is left out by
    its index, so a duplicate of it counts as a neighbor. Of equally distant neighbors the lower
    index is the nearer; equal embeddings are equally distant to the last bit. An image whose class
    has no other image can only miss, as in the original; MAP@R and R-precision leave it out.

    Parameters
    ----------
    embeddings : array (n, d)
    labels : array (n,)
    ks : iterable of int
        Each at least 1; from n - 1 on all other images are neighbors.
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
    names = [f"recall@{k}" for k in ks]
    values = evaluate(embeddings, labels, names, gallery, gallery_labels)
    return dict(zip(ks, values.values()))


def map_at_r(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> float:
    """Mean average precision at R (Musgrave et al., A Metric Learning Reality Check, section 3.2).

    R is the number of other images of a query's class; in a gallery, of its images of that class.
    The value of a query is 1/R times the sum over i = 1 to R of P(i), where P(i) is the share of
    the i nearest images that are of its class if the i-th is, and else 0. The metric is the mean
    over all queries with R > 0, and NaN if there are none; single images are left out, as
    pytorch-metric-learning does too.

    Neighbors, parameters and errors are those of `recall_at_k`.
    """
    return evaluate(embeddings, labels, ["map@r"], gallery, gallery_labels)["map@r"]


def r_precision(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> float:
    """The share of the R nearest images that are of the query's class.

    R, the mean over queries, neighbors, parameters and errors are those of `map_at_r`.
    """
    return evaluate(embeddings, labels, ["r-precision"], gallery, gallery_labels)["r-precision"]


def recall_metrics(ranks: Iterable[int] = COMMON_RECALL_RANKS) -> list[str]:
    """Return the names of the recalls at these ranks, as `evaluate` takes them."""
    return [f"recall@{k}" for k in ranks]


def common_metrics(ranks: Iterable[int] = COMMON_RECALL_RANKS) -> list[str]:
    """Return the names of the recalls at these ranks, and of all metrics without a rank."""
    return [*recall_metrics(ranks), *_OTHER_METRICS]


def parse_metrics(text: str) -> list[str]:
    """Names such as ``recall@1,map@r`` with commas between them, each once, as `evaluate` takes it.

    Raises
    ------
    ValueError
        If one is unknown, or there is none; the message says which there are.
    """
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        _parsed(name)
    return list(dict.fromkeys(names))


def _parsed(name: str) -> _Metric:
    """Raises ValueError if there is no such metric."""
    at_k = re.fullmatch(rf"({'|'.join(_METRICS_AT_K)})@([1-9][0-9]{{0,17}})", name)
    if at_k:
        return _Metric(at_k[1], int(at_k[2]))
    if name not in _OTHER_METRICS:
        first, *others = (*(f"{kind}@K" for kind in _METRICS_AT_K), *_OTHER_METRICS)
        known = ", ".join([f"{first} (K from 1)", *others])
        raise ValueError(f"{name!r} is no metric; there are {known}")
    return _Metric(name, None)


class _Images(NamedTuple):
    """What is searched for, and where; both with labels from 0 on."""

    queries: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,)
    gallery: np.ndarray  # (m, d)
    gallery_labels: np.ndarray  # (m,)
    own: np.ndarray | None  # (n,) for each query the row of the gallery that it is itself

    @property
    def others(self) -> int:
        """How many images are searched for each query."""
        return len(self.gallery) - (self.own is not None)

    @property
    def matches(self) -> np.ndarray:
        """How many of them are of the query's class, (n,)."""
        sizes = np.bincount(self.gallery_labels, minlength=self.labels.max() + 1)
        return sizes[self.labels] - (self.own is not None)


def _images(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None,
    gallery_labels: np.ndarray | None,
) -> _Images:
    queries, labels = _labelled(embeddings, labels)
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("a gallery and its labels come together")
    if gallery is None or gallery_labels is None:
        _, codes = np.unique(labels, return_inverse=True)
        return _Images(queries, codes, queries, codes, np.arange(len(queries)))
    gallery, gallery_labels = _labelled(gallery, gallery_labels)
    _, codes = np.unique(np.concatenate([labels, gallery_labels]), return_inverse=True)
    return _Images(queries, codes[: len(labels)], gallery, codes[len(labels) :], None)


def _labelled(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    embeddings, labels = as_embeddings(embeddings), np.asarray(labels)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings (n, d) and labels (n,) expected, not {embeddings.shape}, {labels.shape}"
        )
    return embeddings, labels


def _search(images: _Images, metrics: Sequence[_Metric]) -> dict[_Metric, np.ndarray]:
    """One search for all these metrics; the value of each query, (n,), by metric."""
    queries, labels, gallery, gallery_labels, own = images
    matches, others = images.matches, images.others
    # Each sums over so many neighbors, whatever else is listed: so its last bit does not depend on
    # the metrics that are computed with it.
    depths = {
        metric: min(others, metric.k or matches.max())
        for metric in metrics
        if metric.kind not in _RECALLS
    }
    deepest = max((metric.k or 0 for metric in metrics if metric.kind in _RECALLS), default=0)
    listed = max(depths.values(), default=0)
    if deepest <= _LISTED_RANKS or matches.mean() > _LISTED_RANKS:
        listed = max(listed, min(deepest, _LISTED_RANKS, others))
    # Of the nearest image of the query's class, from 0 on.
    rank = np.full(len(queries), _NEVER)
    values = {metric: np.zeros(len(queries)) for metric in depths}
    for block, _, rows in find_nearest_in_blocks(queries, listed, gallery, own) if listed else ():
        match = gallery_labels[rows] == labels[block, None]
        rank[block] = np.where(match.any(axis=1), match.argmax(axis=1), _NEVER)
        for metric, depth in depths.items():
            values[metric][block] = _of_lists(metric, match[:, :depth], matches[block])
    left = np.flatnonzero((rank == _NEVER) & (matches > 0))
    if listed < deepest and len(left):
        rank[left] = _rank_of_nearest_match(images, left, deepest)
    hits = {metric: rank < metric.k for metric in metrics if metric.kind in _RECALLS}
    return {**values, **hits}


def _of_lists(metric: _Metric, match: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """The metric of some queries, (b,), from which of their nearest images match, (b, k)."""
    place = np.arange(1, match.shape[1] + 1)
    if metric.kind == "precision":
        return match.sum(axis=1) / max(1, len(place))
    most = matches
    if metric.k is None:
        match = match & (place <= matches[:, None])
    else:
        most = np.minimum(matches, metric.k)
    most = np.maximum(most, 1)
    if metric.kind == "r-precision":
        return match.sum(axis=1) / most
    share = np.cumsum(match, axis=1) / place
    return (share * match).sum(axis=1) / most


def _rank_of_nearest_match(images: _Images, chosen: np.ndarray, deepest: int) -> np.ndarray:
    """For some queries whose class has other images; right below `deepest`."""
    queries, labels, gallery, gallery_labels, own = images
    queries, labels = queries[chosen], labels[chosen]
    own = None if own is None else own[chosen]
    match = np.empty(len(chosen), np.int64)
    by_class = np.argsort(gallery_labels, kind="stable")
    begins = np.searchsorted(gallery_labels[by_class], labels)
    counts = np.bincount(gallery_labels)[labels]
    for block in slices(len(chosen), max(1, _PAIRS // counts.max(initial=1))):
        count = counts[block]
        starts = np.cumsum(count) - count
        query = np.repeat(np.arange(len(count)), count)
        row = by_class[np.arange(len(query)) - starts[query] + begins[block][query]]
        squares = squared_distances_of_pairs(queries[block], gallery, query, row)
        if own is not None:
            squares[row == own[block][query]] = np.inf
        least = np.minimum.reduceat(squares, starts)
        nearest = np.flatnonzero(squares == least[query])[::-1]
        # Of equally distant ones the lowest index is written last.
        match[block][query[nearest]] = row[nearest]
    return find_ranks(queries, match, gallery, own, deepest)
