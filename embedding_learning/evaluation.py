"""How good embeddings are: numpy in, numbers out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from embedding_learning.clustering import ami, k_means, nmi
from embedding_learning.datasets import inshop, sop
from embedding_learning.distances import checked, slices, squared_distances
from embedding_learning.neighbours import nearest_blocks, ranks

# The ranks that papers report for a data set, by its name (`Split.name`).
RECALL_RANKS = {sop.NAME: (1, 10, 100, 1000), inshop.NAME: (1, 10, 20, 30, 40, 50)}
# For all others, as in the original.
COMMON_RECALL_RANKS = (1, 2, 4, 8, 16)

_OTHER_METRICS = ("map@r", "r-precision", "nmi", "ami")
# So many neighbours are listed to find a match. If it may be further off, counting those before it
# is faster, unless classes are so large that a match is seldom further off.
_LISTED_RANKS = 64
# Pairs of images of one class that are compared at once: 40 MB with their indices.
_PAIRS = 2**20
_NEVER = np.iinfo(np.int64).max


def evaluate(
    embeddings: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[str] = tuple(f"recall@{k}" for k in COMMON_RECALL_RANKS),
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[str, float]:
    """Several metrics at once, with one search and one clustering for all of them.

    ``recall@K`` for any K from 1, ``map@r``, ``r-precision``, ``nmi``, ``ami``: see `recall_at_k`,
    `map_at_r`, `r_precision`, and `clustering`. The clusters, as many as there are classes, are of
    the embeddings alone: a gallery is only searched.

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
    dict
        Name to value, in the order of `metrics`.

    Raises
    ------
    ValueError
        If a metric is unknown, the shapes do not fit, there is no embedding, or one of its values
        is not finite.
    """
    ranks_of = {name: _rank(name) for name in metrics}
    images = _images(embeddings, labels, gallery, gallery_labels)
    deepest = max((rank for rank in ranks_of.values() if rank is not None), default=0)
    values = {}
    if deepest or {"map@r", "r-precision"} & ranks_of.keys():
        found = _search(images, deepest, bool({"map@r", "r-precision"} & ranks_of.keys()))
        values = {name: float(np.mean(found.rank < k)) for name, k in ranks_of.items() if k}
        values["map@r"], values["r-precision"] = found.map_at_r, found.r_precision
    if {"nmi", "ami"} & ranks_of.keys():
        clusters = k_means(images.queries, len(np.unique(images.labels)))
        values["nmi"], values["ami"] = nmi(images.labels, clusters), ami(images.labels, clusters)
    return {name: values[name] for name in ranks_of}


def recall_at_k(
    embeddings: np.ndarray,
    labels: np.ndarray,
    ks: Iterable[int] = COMMON_RECALL_RANKS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[int, float]:
    """The share of images with one of their own class among the k nearest others.

    With a gallery the neighbours are its images, and no image is left out. Else the images are
    searched among each other.

    Nearest by Euclidean distance, as in `neighbours.nearest`. The image itself is left out by its
    index, so a duplicate of it counts as a neighbour. Of equally distant neighbours the lower index
    is the nearer; equal embeddings are equally distant to the last bit. An image whose class has no
    other image can only miss, as in the original; MAP@R and R-precision leave it out.

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

    Neighbours, parameters and errors are those of `recall_at_k`.
    """
    return evaluate(embeddings, labels, ["map@r"], gallery, gallery_labels)["map@r"]


def r_precision(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> float:
    """The share of the R nearest images that are of the query's class.

    R, the mean over queries, neighbours, parameters and errors are those of `map_at_r`.
    """
    return evaluate(embeddings, labels, ["r-precision"], gallery, gallery_labels)["r-precision"]


def recall_metrics(dataset: str | None = None) -> list[str]:
    """The names of the recalls that papers report for this data set, as `evaluate` takes them."""
    return [f"recall@{k}" for k in RECALL_RANKS.get(dataset or "", COMMON_RECALL_RANKS)]


def common_metrics(dataset: str) -> list[str]:
    """The recalls that papers report for this data set, and all other metrics."""
    return [*recall_metrics(dataset), *_OTHER_METRICS]


def parse_metrics(text: str) -> list[str]:
    """Names such as ``recall@1,map@r`` with commas between them, each once, as `evaluate` takes it.

    Raises
    ------
    ValueError
        If one is unknown, or there is none; the message says which there are.
    """
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        _rank(name)
    return list(dict.fromkeys(names))


def _rank(metric: str) -> int | None:
    """The K of ``recall@K``, nothing for another metric; raises ValueError for none at all."""
    recall = re.fullmatch(r"recall@([1-9][0-9]{0,17})", metric)
    if not recall and metric not in _OTHER_METRICS:
        known = ", ".join(("recall@K (K from 1)", *_OTHER_METRICS))
        raise ValueError(f"{metric!r} is no metric; there are {known}")
    return int(recall[1]) if recall else None


class _Images(NamedTuple):
    """What is searched for, and where; both with labels from 0 on."""

    queries: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,)
    gallery: np.ndarray  # (m, d)
    gallery_labels: np.ndarray  # (m,)
    own: np.ndarray | None  # (n,) for each query the row of the gallery that it is itself


class _Found(NamedTuple):
    rank: np.ndarray  # (n,) of the nearest image of the query's class, from 0 on
    map_at_r: float
    r_precision: float


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
    embeddings, labels = checked(embeddings), np.asarray(labels)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings (n, d) and labels (n,) expected, not {embeddings.shape}, {labels.shape}"
        )
    return embeddings, labels


def _search(images: _Images, deepest: int, to_r: bool) -> _Found:
    """One search for the recalls up to `deepest` and, if asked, for MAP@R and R-precision."""
    queries, labels, gallery, gallery_labels, own = images
    others = len(gallery) - (own is not None)
    matches = np.bincount(gallery_labels, minlength=labels.max() + 1)[labels] - (own is not None)
    listed = matches.max() if to_r else 0
    if deepest <= _LISTED_RANKS or matches.mean() > _LISTED_RANKS:
        listed = max(listed, min(deepest, _LISTED_RANKS))
    listed = min(listed, others)
    rank = np.full(len(queries), _NEVER)
    average_precision, precision = np.zeros(len(queries)), np.zeros(len(queries))
    place = np.arange(1, listed + 1)
    for block, _, rows in nearest_blocks(queries, listed, gallery, own) if listed else ():
        match = gallery_labels[rows] == labels[block, None]
        rank[block] = np.where(match.any(axis=1), match.argmax(axis=1), _NEVER)
        if to_r:
            match &= place <= matches[block, None]
            count = np.maximum(matches[block], 1)
            precision[block] = match.sum(axis=1) / count
            share = np.cumsum(match, axis=1) / place
            average_precision[block] = (share * match).sum(axis=1) / count
    left = np.flatnonzero((rank == _NEVER) & (matches > 0))
    if listed < deepest and len(left):
        rank[left] = _rank_of_nearest_match(images, left, deepest)
    if not matches.any():
        return _Found(rank, np.nan, np.nan)
    searched = matches > 0
    return _Found(
        rank, float(average_precision[searched].mean()), float(precision[searched].mean())
    )


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
        squares = squared_distances(queries[block], gallery, query, row)
        if own is not None:
            squares[row == own[block][query]] = np.inf
        least = np.minimum.reduceat(squares, starts)
        nearest = np.flatnonzero(squares == least[query])[::-1]
        # Of equally distant ones the lowest index is written last.
        match[block][query[nearest]] = row[nearest]
    return ranks(queries, match, gallery, own, deepest)
