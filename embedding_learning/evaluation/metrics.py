"""Metrics of embeddings: numpy arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from embedding_learning.config import COMMON_RECALL_RANKS
from embedding_learning.evaluation.blocked_distances import as_embeddings
from embedding_learning.evaluation.clustering import k_means
from embedding_learning.evaluation.groups import Groups, check_groups, count_matches
from embedding_learning.evaluation.metric_table import (
    ClusterMetric,
    ListMetric,
    Metric,
    RankMetric,
    names_without_k,
    parse_metric,
)
from embedding_learning.evaluation.neighbors import (
    find_nearest_in_blocks,
    find_nearest_matches,
    find_ranks,
)

_COMMON_RECALLS = tuple(f"recall@{k}" for k in COMMON_RECALL_RANKS)

# For a rank alone, counting the nearer images is faster than listing them. Where lists are needed
# anyway, they are made as long as the ranks up to this one, so that there is one search.
_LISTED_RANKS = 64
_NEVER = np.iinfo(np.int64).max


class Measurement(NamedTuple):
    """Values of metrics, and the numbers of images they are computed over.

    Attributes
    ----------
    values : dict of str to float
        By name; NaN if the metric is a mean over the queries with a match and there are none.
    bases : dict of str to int
        The number of images that each metric is computed over, by name.
    queries : int
        The number of queries.
    without_match : int
        The number of queries without a match: they are alone in their class, or the gallery lacks
        their class, or has it in their group alone.
    others : int
        The number of images that are searched for each query; with groups the least.
    has_groups : bool
        Whether the images of a query's group are left out.
    """

    values: dict[str, float]
    bases: dict[str, int]
    queries: int
    without_match: int
    others: int
    has_groups: bool = False

    def notes(self) -> list[str]:
        """Returns sentences that a reader of the values needs; none for most data."""
        notes = []
        if self.without_match:
            outside = " outside their group" if self.has_groups else ""
            notes.append(
                f"{self.without_match} of {self.queries} images have no match, as they are alone "
                f"in their class or the gallery lacks it{outside}: recall@K and cmc@K count them "
                "as misses, precision@K as 0, and map@K, map@r and r-precision leave them out."
            )
        deeper = [
            name
            for name in self.values
            if parse_metric(name).base == "precision" and (parse_metric(name).k or 0) > self.others
        ]
        if deeper:
            which, how_many = "each query", str(self.others)
            if self.has_groups:
                which, how_many = "some queries", f"of them, {self.others} or more"
            notes.append(
                f"{', '.join(deeper)}: fewer images are searched for {which}; it is the share "
                f"among all {how_many}."
            )
        return notes


def compute_metrics(
    embeddings: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[str] = _COMMON_RECALLS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    groups: Groups | None = None,
) -> Measurement:
    """Computes several metrics with one search and one clustering.

    K is at least 1, and R is the number of a query's matches (other images of its class):

    - ``recall@K``, ``cmc@K``: the share of all queries with a match among the K nearest; see
      `recall_at_k`. A query without a match can only miss.
    - ``precision@K``: the share of matches among the K nearest, or among all images if there are
      fewer than K; the mean over all queries. A query without a match has 0.
    - ``map@K``: mean average precision cut at K, as in Weyand et al., Google Landmarks Dataset v2,
      CVPR 2020: 1 / min(K, R) times the sum over i = 1 to K of P(i), where P(i) is the share of
      matches among the i nearest if the i-th is a match, and else 0; the mean over all queries with
      a match.
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
    groups : Groups, optional
        From `number_groups`: images of a query's group are left out exactly as the query itself is,
        so they are neither found nor matches. Clusters are of all images.

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
    parsed = {name: parse_metric(name) for name in metrics}
    images = _prepare_images(embeddings, labels, gallery, gallery_labels, groups)
    is_matched = images.matches > 0
    searched = [metric for metric in parsed.values() if not isinstance(metric.row, ClusterMetric)]
    of_queries = _search(images, searched) if searched else {}
    clusters = np.empty(0)
    if len(searched) < len(parsed):
        clusters = k_means(images.queries, len(np.unique(images.labels)))
    values, bases = {}, {}
    for name, metric in parsed.items():
        if isinstance(metric.row, ClusterMetric):
            values[name] = metric.row.value(images.labels, clusters)
            bases[name] = len(is_matched)
            continue
        counted = of_queries[metric]
        if metric.row.needs_match:
            counted = counted[is_matched]
        values[name] = float(np.mean(counted)) if len(counted) else np.nan
        bases[name] = len(counted)
    without_match = len(is_matched) - np.count_nonzero(is_matched)
    return Measurement(
        values,
        bases,
        len(is_matched),
        int(without_match),
        int(images.others.min()),
        images.groups is not None,
    )


def evaluate(
    embeddings: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[str] = _COMMON_RECALLS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    groups: Groups | None = None,
) -> dict[str, float]:
    """Computes metrics like `compute_metrics`, and returns only their values, by name."""
    return compute_metrics(embeddings, labels, metrics, gallery, gallery_labels, groups).values


def recall_at_k(
    embeddings: np.ndarray,
    labels: np.ndarray,
    ks: Iterable[int] = COMMON_RECALL_RANKS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[int, float]:
    """Computes the share of images with an image of their class among their k nearest.

    With a gallery the neighbors are its images, and none is left out. Without it the images are
    searched among each other.

    Nearest by Euclidean distance, as in `neighbors.find_nearest`. The image itself is left out by
    its index, so a duplicate of it counts as a neighbor. Of equally distant neighbors the one with
    the lower index is the nearer; equal embeddings are equally distant to the last bit. An image
    that is alone in its class can only miss, as in the original; MAP@R and R-precision leave it
    out.

    Parameters
    ----------
    embeddings : array (n, d)
    labels : array (n,)
    ks : iterable of int
        Each at least 1. If k is n - 1 or more, all other images are neighbors.
    gallery : array (m, d), optional
    gallery_labels : array (m,), optional

    Returns
    -------
    dict
        Recall@k by k, between 0 and 1.

    Raises
    ------
    ValueError
        If the shapes do not fit, there is no embedding, one of its values is not finite, or a k is
        below 1.
    """
    ks = tuple(ks)
    if any(k < 1 for k in ks):
        raise ValueError(f"every k must be at least 1, not {ks}")
    names = [f"recall@{k}" for k in ks]
    values = evaluate(embeddings, labels, names, gallery, gallery_labels)
    return dict(zip(ks, values.values()))


def map_at_r(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> float:
    """Computes MAP@R (Musgrave et al., A Metric Learning Reality Check, section 3.2).

    R is the number of other images of a query's class, or of the gallery's images of that class.
    The value of a query is 1/R times the sum over i = 1 to R of P(i), where P(i) is the share of
    the i nearest images that are of its class if the i-th is, and else 0. The metric is the mean
    over all queries with R > 0, and NaN if there are none. Images that are alone in their class are
    left out, as in pytorch-metric-learning.

    Neighbors, parameters and errors are those of `recall_at_k`.
    """
    return evaluate(embeddings, labels, ["map@r"], gallery, gallery_labels)["map@r"]


def r_precision(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> float:
    """Computes the share of the R nearest images that are of the query's class.

    R, the mean over queries, neighbors, parameters and errors are those of `map_at_r`.
    """
    return evaluate(embeddings, labels, ["r-precision"], gallery, gallery_labels)["r-precision"]


def recall_metrics(ranks: Iterable[int] = COMMON_RECALL_RANKS) -> list[str]:
    """Returns the names of the recalls at these ranks, as `evaluate` accepts them."""
    return [f"recall@{k}" for k in ranks]


def common_metrics(ranks: Iterable[int] = COMMON_RECALL_RANKS) -> list[str]:
    """Returns the names of the recalls at these ranks, and of all metrics without a rank."""
    return [*recall_metrics(ranks), *names_without_k()]


def parse_metrics(text: str) -> list[str]:
    """Reads names such as ``recall@1,map@r``, separated by commas. Returns each name once.

    Raises
    ------
    ValueError
        If a name is unknown, or no name is given; the message lists the known names.
    """
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        parse_metric(name)
    return list(dict.fromkeys(names))


class _Images(NamedTuple):
    """The queries and the gallery, both with labels that count from 0."""

    queries: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,)
    gallery: np.ndarray  # (m, d)
    gallery_labels: np.ndarray  # (m,)
    own: np.ndarray | None  # (n,) the row of the gallery that each query is itself
    groups: Groups | None

    @property
    def others(self) -> np.ndarray:
        """The number of images that are searched for each query, (n,)."""
        alike = np.zeros(len(self.gallery), int)
        return count_matches(0 * self.labels, alike, self.own is not None, self.groups)

    @property
    def matches(self) -> np.ndarray:
        """The number of these that are of the query's class, (n,)."""
        return count_matches(self.labels, self.gallery_labels, self.own is not None, self.groups)


def _prepare_images(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None,
    gallery_labels: np.ndarray | None,
    groups: Groups | None,
) -> _Images:
    queries, labels = _check_labels(embeddings, labels)
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("a gallery needs labels, and gallery labels need a gallery")
    if gallery is None or gallery_labels is None:
        _, codes = np.unique(labels, return_inverse=True)
        images = _Images(queries, codes, queries, codes, np.arange(len(queries)), groups)
    else:
        gallery, gallery_labels = _check_labels(gallery, gallery_labels)
        _, codes = np.unique(np.concatenate([labels, gallery_labels]), return_inverse=True)
        codes, gallery_codes = np.split(codes, [len(labels)])
        images = _Images(queries, codes, gallery, gallery_codes, None, groups)
    check_groups(groups, len(images.queries), len(images.gallery))
    return images


def _check_labels(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    embeddings, labels = as_embeddings(embeddings), np.asarray(labels)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings (n, d) and labels (n,) expected, not {embeddings.shape}, {labels.shape}"
        )
    return embeddings, labels


def _search(images: _Images, metrics: Sequence[Metric]) -> dict[Metric, np.ndarray]:
    """Computes all these metrics with one search: the value of each query, (n,), by metric."""
    matches, others = images.matches, int(images.others.max())
    of_rank = {
        metric: (metric.row, metric.k)
        for metric in metrics
        if isinstance(metric.row, RankMetric) and metric.k
    }
    # The other metrics sum over lists of neighbors. The length of a metric's list does not depend
    # on the metrics that are computed with it, and so neither does the last bit of its value.
    of_list = {
        metric: (metric.row, min(others, metric.k or matches.max()))
        for metric in metrics
        if isinstance(metric.row, ListMetric)
    }
    deepest = max((k for _, k in of_rank.values()), default=0)
    listed = max((length for _, length in of_list.values()), default=0)
    if listed and deepest <= _LISTED_RANKS:
        listed = max(listed, min(deepest, others))
    values, rank = _search_by_listing(images, of_list, listed)
    unlisted = np.flatnonzero((rank == _NEVER) & (matches > 0))
    if listed < deepest and len(unlisted):
        rank[unlisted] = _rank_by_counting(images, unlisted, deepest)
    return {**values, **{metric: row.value(rank, k) for metric, (row, k) in of_rank.items()}}


def _search_by_listing(
    images: _Images, of_list: dict[Metric, tuple[ListMetric, int]], listed: int
) -> tuple[dict[Metric, np.ndarray], np.ndarray]:
    """Lists so many nearest images of each query.

    Returns the metrics that are computed from lists of these lengths, (n,) each, and the rank of
    the nearest match, (n,) from 0, or `_NEVER` where no listed image is a match.
    """
    queries, labels, gallery, gallery_labels, own, groups = images
    matches, others = images.matches, images.others
    rank = np.full(len(queries), _NEVER)
    values = {metric: np.zeros(len(queries)) for metric in of_list}
    if listed:
        for block, _, rows in find_nearest_in_blocks(queries, listed, gallery, own, groups):
            match = gallery_labels[rows] == labels[block, None]
            if groups is not None:
                match &= rows >= 0
            rank[block] = np.where(match.any(axis=1), match.argmax(axis=1), _NEVER)
            for metric, (row, length) in of_list.items():
                values[metric][block] = row.value(
                    match[:, :length], matches[block], others[block], metric.k
                )
    return values, rank


def _rank_by_counting(images: _Images, chosen: np.ndarray, deepest: int) -> np.ndarray:
    """Counts the images nearer than the nearest match, for queries that have a match.

    Ranks from `deepest` on are only at least `deepest`.
    """
    queries, labels, gallery, gallery_labels, own, groups = images
    if len(chosen) < len(queries):
        queries, labels = queries[chosen], labels[chosen]
        own = None if own is None else own[chosen]
        groups = groups.of_queries(chosen) if groups else None
    match = find_nearest_matches(queries, labels, gallery, gallery_labels, own, groups)
    return find_ranks(queries, match, gallery, own, deepest, groups)
