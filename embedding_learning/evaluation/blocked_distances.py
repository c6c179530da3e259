"""Squared distances between embeddings: of pairs exactly, of all with all nearly and in pieces.

A matrix product in float32, with a proven bound on its rounding, leaves few pairs undecided. Where
it leaves many, because rows are long beside their distances, it is computed again in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# scipy's BLAS is newer than that of the numpy which MXNet asks for. On processors that the old one
# does not know, such as Emerald Rapids, it is four times as fast.
from scipy.linalg.blas import dgemm, sgemm

# Pairs of rows compared at once: 2 MB of 128 dimensions.
_PAIRS = 2**11
# Rows looked through at once: 8 MB of 128 dimensions.
_ROWS = 2**13
# To compare this share of all pairs one by one takes as long as their product in float64.
_DEAR_SHARE = 1 / 16
# Beyond this, squares could overflow in float32.
_LARGEST_SQUARE = 1e36


class Gallery(NamedTuple):
    """Rows to search, and what is computed of them once. Made by `make_gallery`."""

    rows: np.ndarray  # (n, d) float32
    kept: np.ndarray  # (m,) ascending: the rows that are searched, columns from here on
    center: np.ndarray  # (d,) float32
    squares: np.ndarray  # (m,) float64: of each column's distance from the center

    def columns_of(self, rows: np.ndarray) -> np.ndarray:
        """Where these rows stand among the columns; -1 for those that do not."""
        column = np.minimum(np.searchsorted(self.kept, rows), len(self.kept) - 1)
        return np.where(self.kept[column] == rows, column, -1)


class Product(NamedTuple):
    """Squared distances of some queries and some columns, nearly."""

    squares: np.ndarray  # (b, c) float32 or float64; infinite for a query and the row it is itself
    margin: np.ndarray  # (b,) what a query's squares and a limit they are compared to are off by

    def at_most(self, limit: np.ndarray) -> np.ndarray:
        """Which squares are no larger than each query's limit (b,); bool (b, c)."""
        limit = np.minimum(limit, np.finfo(self.squares.dtype).max)
        return self.squares <= limit.astype(self.squares.dtype)[:, None]

    def is_enough(self, undecided: int) -> bool:
        """Whether so many undecided pairs are faster compared exactly than by a better product."""
        return undecided <= _DEAR_SHARE * self.squares.size


def as_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """As float32 (n, d), not copied if they are.

    Raises ValueError if they are none, of another shape, or not finite.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(f"embeddings (n, d) expected, not {embeddings.shape}")
    if not (np.isfinite(embeddings.min()) and np.isfinite(embeddings.max())):
        raise ValueError("the embeddings hold values that are not finite")
    return embeddings


def slices(count: int, at_once: int) -> Iterator[slice]:
    """Pieces of `count` things."""
    for start in range(0, count, at_once):
        yield slice(start, min(start + at_once, count))


def squared_distances_of_pairs(
    left: np.ndarray, right: np.ndarray, left_rows: np.ndarray, right_rows: np.ndarray
) -> np.ndarray:
    """Of pairs of rows, float64 (pairs,); each depends on its two rows alone, to the last bit."""
    squares = np.empty(len(left_rows))
    for pairs in slices(len(squares), _PAIRS):
        difference = left[left_rows[pairs]].astype(np.float64)
        difference -= right[right_rows[pairs]]
        np.einsum("pd,pd->p", difference, difference, out=squares[pairs])
    return squares


def make_gallery(rows: np.ndarray, copies: int) -> Gallery:
    """What `products` takes. Of equal rows all but the first `copies` are left out.

    Those are never among so many nearest neighbors. But a collapsed network gives nothing else,
    and all its distances would be undecided.
    """
    # Near the mean, since the rounding grows with the distance from the center.
    center = rows[:: max(1, len(rows) // 1024)].mean(axis=0, dtype=np.float64).astype(np.float32)
    squares = _squares(rows, center)
    kept = _without_surplus(rows, copies)
    return Gallery(rows, kept, center, squares[kept])


def products(
    queries: np.ndarray, gallery: Gallery, own: np.ndarray | None, size: tuple[int, int]
) -> Iterator[tuple[slice, slice, Iterator[Product]]]:
    """Some queries and some columns at a time: which they are and their products, best last.

    Parameters
    ----------
    queries : float32 array (q, d)
    gallery : Gallery
    own : int array (q,), optional
        The row of the gallery that each query is itself.
    size : (int, int)
        How many distances and how many columns at once, at most.
    """
    rows, kept, center, column_squares = gallery
    distances, columns_at_once = size[0], min(size[1], len(kept))
    squares = _squares(queries, center)
    reach = (np.sqrt(squares) + np.sqrt(column_squares.max())) ** 2
    own = np.full(len(queries), -1) if own is None else gallery.columns_of(own)
    for columns in slices(len(kept), columns_at_once):
        ends = (column_squares[columns], 1.0)
        right = functools.cache(functools.partial(_factor, rows[kept[columns]], center, ends))
        for block in slices(len(queries), max(1, distances // columns_at_once)):
            left = functools.partial(_factor, queries[block], center, (1.0, squares[block]))
            yield block, columns, _refined(left, right, reach[block], own[block] - columns.start)


def _refined(
    left: Callable[[type], np.ndarray],
    right: Callable[[type], np.ndarray],
    reach: np.ndarray,
    own: np.ndarray,
) -> Iterator[Product]:
    """The product in float32 and then, for who wants it, in float64.

    In whatever order a sum of n products is taken, it is off by n units of rounding, relative to
    the sum of their absolute values (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1); here that sum is (|x| + |y|)^2 at most, the query's `reach`. Eight units more
    cover the rounding of the rows less the center, of their squares and of a limit. Exact distances
    are off themselves, by as many units of float64.
    """
    query = np.flatnonzero(own >= 0)
    for dtype, multiply in ((np.float32, sgemm), (np.float64, dgemm)):
        if dtype is np.float32 and reach.max() > _LARGEST_SQUARE:
            continue
        factor = left(dtype)
        factor[:, :-2] *= -2
        squares = multiply(1.0, right(dtype).T, factor.T, trans_a=True).T
        there = query[own[query] < squares.shape[1]]
        squares[there, own[there]] = np.inf
        units = np.finfo(dtype).eps / 2 + np.finfo(np.float64).eps / 2
        margin = (factor.shape[1] + 8) * (units * reach + np.finfo(dtype).tiny)
        yield Product(squares, margin)


def _factor(
    rows: np.ndarray, center: np.ndarray, ends: tuple[np.ndarray | float, ...], dtype: type
) -> np.ndarray:
    """Rows less the center, and two columns more: products of two such give squared distances."""
    factor: np.ndarray = np.empty((len(rows), rows.shape[1] + 2), dtype)
    np.subtract(rows, center, out=factor[:, :-2], dtype=dtype)
    factor[:, -2], factor[:, -1] = ends
    return factor


def _squares(rows: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Of the rows' distances from the center, float64 (n,)."""
    squares = np.empty(len(rows))
    for piece in slices(len(rows), _ROWS):
        difference = rows[piece].astype(np.float64)
        difference -= center
        np.einsum("nd,nd->n", difference, difference, out=squares[piece])
    return squares


def _without_surplus(rows: np.ndarray, copies: int) -> np.ndarray:
    """Indices of all rows but those with so many equal ones before them, ascending."""
    # Equal rows have equal keys, and hardly any others have. This sum cannot overflow.
    weights = np.random.default_rng(0).uniform(-1, 1, rows.shape[1]) / rows.shape[1]
    key = np.einsum("nd,d->n", rows, weights.astype(np.float32))
    order = np.argsort(key, kind="stable")
    repeats = np.zeros(len(rows), bool)
    repeats[1:] = key[order[1:]] == key[order[:-1]]
    suspects = np.flatnonzero(repeats)
    for piece in slices(len(suspects), _ROWS):
        later = suspects[piece]
        repeats[later] = (rows[order[later]] == rows[order[later - 1]]).all(axis=1)
    first = np.flatnonzero(~repeats)
    position = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    return np.sort(order[position < copies])
