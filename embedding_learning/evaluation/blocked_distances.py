"""Squared Euclidean distances: exact for given pairs, blocked and approximate for all pairs.

A matrix product in float32, with a proven bound on its rounding error, leaves few pairs undecided.
Where rows are long compared to their distances it leaves many, and is repeated in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from embedding_learning.evaluation.groups import Groups
from embedding_learning.evaluation.parallel_products import Run, multiply, run_in_order

# Pairs of rows compared at once: 2 MB of 128 dimensions.
_PAIRS = 2**11
# Rows read at once: 8 MB of 128 dimensions.
_ROWS = 2**13
# The factor of queries of so many numbers, 32 MB, is kept for all strips. Larger ones are computed
# again for each strip.
_KEPT = 2**23
# Comparing this share of all pairs one by one takes as long as their product in float64.
_COSTLY_SHARE = 1 / 16
# The unit of rounding and the smallest normal number of each type. numpy takes long to find them.
_ROUNDING: dict[type, tuple[float, float]] = {
    t: (float(np.finfo(t).eps) / 2, float(np.finfo(t).tiny)) for t in (np.float32, np.float64)
}
# Beyond this, squares could overflow in float32.
_LARGEST_SQUARE = 1e36


class Gallery(NamedTuple):
    """Rows to search, and values that are computed of them once. Made by `make_gallery`."""

    rows: np.ndarray  # (n, d) float32
    kept: np.ndarray  # (m,) ascending: the rows that are searched, called columns from here on
    center: np.ndarray  # (d,) float32
    squares: np.ndarray  # (m,) float64: squared distance of each column from the center

    def columns_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the column of each row, or -1 for rows that are not searched."""
        column = np.minimum(np.searchsorted(self.kept, rows), len(self.kept) - 1)
        return np.where(self.kept[column] == rows, column, -1)


class Product(NamedTuple):
    """Approximate squared distances of the pairs of a block."""

    squares: np.ndarray  # (b, c) float32 or float64; infinite where a query is the row itself
    margin: np.ndarray  # (b,) bound on the error of a query's squares compared to a limit
    column_margin: np.ndarray  # (c,) the same for the columns' squares; empty without mirroring

    def transposed(self) -> Product:
        """Returns the distances with the columns as queries."""
        return Product(self.squares.T, self.column_margin, self.margin)

    def of_queries(self, chosen: np.ndarray) -> Product:
        """Returns the distances of some of the queries."""
        return Product(self.squares[chosen], self.margin[chosen], self.column_margin)

    def at_most(self, limit: np.ndarray) -> np.ndarray:
        """Returns which squares are no larger than each query's limit (b,); bool (b, c)."""
        limit = np.minimum(limit, np.finfo(self.squares.dtype).max)
        return self.squares <= limit.astype(self.squares.dtype)[:, None]


class Selection(NamedTuple):
    """The pairs of a block that a product leaves to be compared exactly."""

    pairs: np.ndarray  # (p,) ascending indices into the flattened (b, c)
    nearer: np.ndarray  # (b,) how many other columns are certainly nearer than each query's limit

    def split_pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the query within the block and the gallery row of each pair, given rows (c,)."""
        query, column = np.divmod(self.pairs, len(rows))
        return query, rows[column]


@dataclass(frozen=True)
class Block:
    """Some queries and some columns that are compared at once. Made by `split_into_strips`."""

    queries: slice  # b queries
    columns: slice  # c columns
    rows: np.ndarray  # (c,) the gallery row of each column
    own: np.ndarray  # (b,) the column that each query is itself; none if outside [0, c)
    reach: np.ndarray  # (b,) (|x| + |y|)^2 for a query x and the longest column y
    column_reach: np.ndarray  # (c,) that of each column, if the block also stands for its mirror
    query_factor: Callable[[type], np.ndarray]  # from a dtype to (b, d + 2)
    column_factor: Callable[[type], np.ndarray]  # from a dtype to (c, d + 2)
    groups: Groups | None  # of the queries and the columns

    def select(
        self, select: Callable[[Product], Sequence[Selection]], wanted: int = 0
    ) -> Sequence[Selection]:
        """Returns what `select` selects by a product in float32, or in float64 if that is faster.

        It is faster if float32 selects many pairs more than the `wanted` ones, which have to be
        compared exactly in any case.
        """
        if self.fits_float32():
            product = self.product(np.float32)
            selections = select(product)
            selected = sum(len(selection.pairs) for selection in selections)
            if selected - wanted <= _COSTLY_SHARE * product.squares.size:
                return selections
        return select(self.product(np.float64))

    def fits_float32(self) -> bool:
        """Returns whether no square can overflow in float32."""
        return bool(self.reach.max() <= _LARGEST_SQUARE)

    def product(self, dtype: type) -> Product:
        """Computes the squared distances in float32 or float64.

        In whatever order a sum of n products is taken, its error is at most n units of rounding,
        relative to the sum of their absolute values (Higham, Accuracy and Stability of Numerical
        Algorithms, section 3.1). Here that sum is at most the query's `reach`. Eight more units
        cover the rounding of the centered rows, of their squares and of a limit. Exact distances
        have an error too, of as many units of float64.
        """
        factor = self.query_factor(dtype)
        squares = multiply(factor, self.column_factor(dtype))
        query = np.flatnonzero((self.own >= 0) & (self.own < squares.shape[1]))
        squares[query, self.own[query]] = np.inf
        if self.groups is not None:
            squares[self.groups.queries[:, None] == self.groups.gallery] = np.inf
        unit, tiny = _ROUNDING[dtype]
        relative, units = unit + _ROUNDING[np.float64][0], factor.shape[1] + 8
        return Product(
            squares,
            units * (relative * self.reach + tiny),
            units * (relative * self.column_reach + tiny),
        )


def as_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """Returns the embeddings as float32 (n, d), without a copy if they are that already.

    Raises ValueError if there are no embeddings, the shape is wrong, or a value is not finite.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(f"embeddings (n, d) expected, not {embeddings.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = np.isfinite(embeddings.sum())
    # The sum of very large numbers can overflow.
    if not is_finite and not np.isfinite([embeddings.min(), embeddings.max()]).all():
        raise ValueError("the embeddings contain values that are not finite")
    return embeddings


def count_in_rows(is_counted: np.ndarray) -> np.ndarray:
    """Counts what is true in each row of a bool array (b, c), int64 (b,).

    numpy adds booleans one at a time. Here eight neighbors are one number, and are added at once;
    each is a byte of the sum and must not exceed 255. In an array in Fortran's order, whose columns
    are contiguous, whole columns are added in bytes.
    """
    rows, columns = is_counted.shape
    counts = np.zeros(rows, np.int64)
    if is_counted.flags.f_contiguous:
        for piece in slices(columns, 255):
            counts += is_counted[:, piece].view(np.uint8).sum(axis=1, dtype=np.uint8)
        return counts
    whole = columns - columns % 8
    if columns == whole:
        eights = is_counted.view(np.uint64)
    else:
        eights = np.ascontiguousarray(is_counted[:, :whole]).view(np.uint64)
        counts += is_counted[:, whole:].sum(axis=1)
    for piece in slices(eights.shape[1], 255):
        sums = eights[:, piece].sum(axis=1, dtype=np.uint64)
        counts += sums.view(np.uint8).reshape(rows, 8).sum(axis=1, dtype=np.int64)
    return counts


def slices(count: int, at_once: int, start: int = 0) -> Iterator[slice]:
    """Yields slices of at most `at_once` that cover range(start, count) in order."""
    for begin in range(start, count, at_once):
        yield slice(begin, min(begin + at_once, count))


def squared_distances_of_pairs(
    left: np.ndarray, right: np.ndarray, left_rows: np.ndarray, right_rows: np.ndarray
) -> np.ndarray:
    """Computes the squared distances between given pairs of rows, float64 (pairs,).

    Each depends on its two rows alone, to the last bit.
    """
    squares = np.empty(len(left_rows))
    for pairs in slices(len(squares), _PAIRS):
        difference = left[left_rows[pairs]].astype(np.float64)
        difference -= right[right_rows[pairs]]
        np.einsum("pd,pd->p", difference, difference, out=squares[pairs])
    return squares


def make_gallery(
    rows: np.ndarray, copies: int, groups: Groups | None = None, run: Run = run_in_order
) -> Gallery:
    """Prepares rows (n, d) for `split_into_strips`. Of equal rows only the first `copies` are kept.

    The others are never among the `copies` nearest neighbors. Without this, the embeddings of a
    collapsed network, which are all equal, would leave all pairs undecided. Where queries leave out
    groups, more are kept. `run`, from `blas_threads`, prepares pieces of the rows at the same time.
    """
    kept = without_surplus(rows, copies, groups=groups, run=run)
    return gallery_of(rows, kept, make_center(rows), run)


def make_center(rows: np.ndarray) -> np.ndarray:
    """Returns a point near the mean, (d,): rounding errors grow with the distance from it."""
    return rows[:: max(1, len(rows) // 1024)].mean(axis=0, dtype=np.float64).astype(np.float32)


def gallery_of(
    rows: np.ndarray, kept: np.ndarray, center: np.ndarray, run: Run = run_in_order
) -> Gallery:
    """Prepares the ascending rows `kept` of rows (n, d), with a center from `make_center`."""
    squares = np.empty(len(kept))

    def compute(piece: slice) -> None:
        squares[piece] = _squares(_take(rows, kept[piece]), center)

    run(compute, slices(len(kept), _ROWS))
    return Gallery(rows, kept, center, squares)


def split_into_strips(
    queries: np.ndarray,
    gallery: Gallery,
    own: np.ndarray | None,
    size: tuple[int, int],
    is_mirrored: bool = False,
    groups: Groups | None = None,
) -> Iterator[Iterator[Block]]:
    """Yields strips of the gallery's columns, each as blocks that cover all queries in order.

    If the queries are the columns, half of the blocks are enough, as each distance is that of two
    queries. Then a strip begins with a square block, whose queries are its columns. After it come
    the later queries, in blocks that have `column_reach`.

    Parameters
    ----------
    queries : float32 array (q, d)
    gallery : Gallery
    own : int array (q,), optional
        The row of the gallery that each query is itself.
    size : (int, int)
        The largest number of distances and of columns in a block.
    is_mirrored : bool
        Whether to leave out the other half. The queries must be the columns.
    groups : Groups, optional
        Of the queries and of the gallery's rows.
    """
    squares = _squares(queries, gallery.center)
    reach = (np.sqrt(squares) + np.sqrt(gallery.squares.max())) ** 2
    own = np.full(len(queries), -1) if own is None else gallery.columns_of(own)

    def compute(block: slice, dtype: type) -> np.ndarray:
        return _factor(queries[block], gallery.center, (1.0, squares[block]), dtype)

    whole = functools.cache(functools.partial(compute, slice(None)))

    def query_factor(block: slice, dtype: type) -> np.ndarray:
        return whole(dtype)[block] if queries.size <= _KEPT else compute(block, dtype)

    distances, columns_at_once = size[0], min(size[1], len(gallery.kept))
    at_once = max(1, distances // columns_at_once)
    for columns in slices(len(gallery.kept), columns_at_once):
        blocks: Iterable[slice]
        if is_mirrored:
            blocks = chain([columns], slices(len(queries), at_once, columns.stop))
        else:
            blocks = slices(len(queries), at_once)
        yield _strip(query_factor, reach, own, gallery, columns, blocks, is_mirrored, groups)


def _strip(
    query_factor: Callable[[slice, type], np.ndarray],
    reach: np.ndarray,
    own: np.ndarray,
    gallery: Gallery,
    columns: slice,
    blocks: Iterable[slice],
    is_mirrored: bool,
    groups: Groups | None,
) -> Iterator[Block]:
    """Yields the blocks of a strip."""
    rows, ends = gallery.kept[columns], (gallery.squares[columns], 1.0)

    @functools.cache
    def column_factor(dtype: type) -> np.ndarray:
        factor = _factor(_take(gallery.rows, rows), gallery.center, ends, dtype)
        factor[:, :-2] *= -2
        return factor

    for block in blocks:
        has_mirror = is_mirrored and block != columns
        yield Block(
            queries=block,
            columns=columns,
            rows=rows,
            own=own[block] - columns.start,
            reach=reach[block],
            column_reach=reach[columns] if has_mirror else np.empty(0),
            query_factor=functools.partial(query_factor, block),
            column_factor=column_factor,
            groups=Groups(groups.queries[block], groups.gallery[rows]) if groups else None,
        )


def _take(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Returns the rows of the ascending indices `chosen`, without a copy if none is left out."""
    first, last = chosen[0], chosen[-1]
    return rows[first : last + 1] if last - first + 1 == len(chosen) else rows[chosen]


def _factor(
    rows: np.ndarray, center: np.ndarray, ends: tuple[np.ndarray | float, ...], dtype: type
) -> np.ndarray:
    """Returns the centered rows with two more columns.

    With these, and the others of a column times -2, the product of the factors of a query and a
    column is a squared distance.
    """
    factor: np.ndarray = np.empty((len(rows), rows.shape[1] + 2), dtype)
    np.subtract(rows, center, out=factor[:, :-2], dtype=dtype)
    factor[:, -2], factor[:, -1] = ends
    return factor


def _squares(rows: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Returns the squared distances of the rows from the center, float64 (n,)."""
    squares = np.empty(len(rows))
    for piece in slices(len(rows), _ROWS):
        difference = rows[piece].astype(np.float64)
        difference -= center
        np.einsum("nd,nd->n", difference, difference, out=squares[piece])
    return squares


def without_surplus(
    rows: np.ndarray,
    copies: int,
    labels: np.ndarray | None = None,
    groups: Groups | None = None,
    run: Run = run_in_order,
) -> np.ndarray:
    """Returns the ascending indices of the rows that have fewer than `copies` equal rows before.

    With labels, rows of different labels are not equal. With groups, `copies` are left whichever
    group a query leaves out; a row that is not needed for one of two reasons is not returned.
    """
    if groups is not None:
        # Nobody leaves out more than the largest group.
        few = without_surplus(rows, copies + groups.largest, labels, run=run)
        # Of a group, a query needs as many as of all groups.
        pairs = [groups.gallery, groups.gallery if labels is None else labels]
        _, codes = np.unique(np.stack(pairs), axis=1, return_inverse=True)
        of_group = without_surplus(rows, copies, codes.ravel(), run=run)
        return np.intersect1d(few, of_group, assume_unique=True)
    labels = np.zeros(len(rows), np.int8) if labels is None else labels
    # Equal rows have equal keys, and hardly any other rows do. This sum cannot overflow.
    weights = np.random.default_rng(0).uniform(-1, 1, rows.shape[1]) / rows.shape[1]
    key = np.empty(len(rows), np.float32)

    def compute(piece: slice) -> None:
        np.einsum("nd,d->n", rows[piece], weights.astype(np.float32), out=key[piece])

    run(compute, slices(len(rows), _ROWS))
    order = np.argsort(key, kind="stable")
    if np.any(labels != labels[0]):
        order = order[np.argsort(labels[order], kind="stable")]
    later, before = order[1:], order[:-1]
    repeats = np.zeros(len(rows), bool)
    repeats[1:] = (key[later] == key[before]) & (labels[later] == labels[before])
    suspects = np.flatnonzero(repeats)
    if not len(suspects):
        return np.arange(len(rows))
    for piece in slices(len(suspects), _ROWS):
        position = suspects[piece]
        repeats[position] = (rows[order[position]] == rows[order[position - 1]]).all(axis=1)
    first = np.flatnonzero(~repeats)
    position = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    return np.sort(order[position < copies])
