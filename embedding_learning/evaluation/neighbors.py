"""Exact nearest neighbors of any number of embeddings, in bounded memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from embedding_learning.evaluation.blocked_distances import (
    Block,
    Gallery,
    Product,
    Selection,
    as_embeddings,
    count_in_rows,
    gallery_of,
    make_center,
    make_gallery,
    slices,
    split_into_strips,
    squared_distances_of_pairs,
    without_surplus,
)
from embedding_learning.evaluation.groups import Groups, check_groups
from embedding_learning.evaluation.parallel_products import blas_threads

# Entries of the lists of neighbors that are filled at once: 32 MB.
_LISTED = 2**21
# Distances and gallery rows in a block, at most: 16 MB. The lists are updated for each block of
# gallery rows, so a block should hold a whole gallery of common size.
_LISTING = (2**22, 2**16)
# For counting, a block need not hold a whole gallery, and is faster if it stays in the cache: 2 MB.
# Each thread counts other columns; eight are counted at once, see `count_in_rows`.
_COUNTING = (2**19, 504)
# Few distances, those of up to 2,048 queries among each other, are counted by one thread, in blocks
# of 1 MB. The C library reuses their memory; to get new memory from the system would take a quarter
# of the time.
_FEW, _COUNTING_FEW = 2**22, (2**18, 504)
# If at most this share of the queries has something near in a block, only these are compared again.
_FEW_QUERIES = 0.25
# Queries of the same or the next classes that are searched at once for their nearest match.
_QUERIES_OF_CLASSES = 512


def find_nearest(
    queries: np.ndarray,
    k: int,
    gallery: np.ndarray | None = None,
    groups: Groups | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest gallery rows of each query, nearest first.

    Without a gallery the queries are searched among each other. Each query is left out of its own
    list by its index, so a duplicate of it is found.

    The neighbors are exact. Euclidean distances are compared in float64 and depend on the two rows
    alone, so equal rows are equally distant to the last bit. Of equally distant rows the one with
    the lower index is the nearer.

    Parameters
    ----------
    queries : array (q, d)
        Converted to float32, as the gallery is.
    k : int
        At least 1. If there are fewer rows, all of them are found.
    gallery : array (n, d), optional
        If it is float32, it may be a memory map; it is read in pieces.
    groups : Groups, optional
        From `number_groups`: the rows of a query's group are left out of its list.

    Returns
    -------
    distances : float32 array (q, k)
        Infinite at the end of a list for which fewer rows are left.
    rows : int64 array (q, k)
        Indices into the gallery, or into the queries if there is no gallery; -1 where the distance
        is infinite.

    Raises
    ------
    ValueError
        If k is below 1, the shapes do not match, there is no row, a value is not finite, or the
        groups are of other numbers of rows.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    queries = as_embeddings(queries)
    own = np.arange(len(queries)) if gallery is None else None
    gallery = queries if gallery is None else gallery
    check_groups(groups, len(queries), len(gallery))
    k = min(k, len(gallery) - (own is not None))
    distances = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for block, squares, block_rows in find_nearest_in_blocks(queries, k, gallery, own, groups):
        distances[block] = np.sqrt(squares)
        rows[block] = block_rows
    return distances, rows


def find_nearest_in_blocks(
    queries: np.ndarray,
    k: int,
    gallery: np.ndarray,
    own: np.ndarray | None = None,
    groups: Groups | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yields the results of `find_nearest` in pieces, so memory is bounded for any q and k.

    Parameters
    ----------
    queries : array (q, d)
    k : int
        At most the number of rows that can be found.
    gallery : array (n, d)
    own : int array (q,), optional
        The row of the gallery that each query is itself, which is left out for it.
    groups : Groups, optional
        The rows of a query's group are left out for it.

    Yields
    ------
    block : slice
        The queries of this piece.
    squares : float64 array (piece, k)
        Squared distances; infinite at the end of a list for which fewer rows are left.
    rows : int64 array (piece, k)
        -1 where the distance is infinite.
    """
    queries, gallery = _as_searchable(queries, gallery)
    with blas_threads(len(queries) * len(gallery)) as run:
        searched = make_gallery(gallery, k + 1, groups, run)
    for block in slices(len(queries), max(1, _LISTED // max(1, k))):
        lists = _Lists.empty(block.stop - block.start, k)
        own_of_block = None if own is None else own[block]
        left_out = groups.of_queries(block) if groups else None
        with blas_threads(len(lists.rows) * len(searched.kept)) as run:
            for strip in split_into_strips(
                queries[block], searched, own_of_block, _LISTING, groups=left_out
            ):
                # Its columns are prepared with the first block, before threads share them.
                first = next(strip)
                if first.fits_float32():
                    first.column_factor(np.float32)
                run(
                    functools.partial(lists.update, queries[block], searched), chain([first], strip)
                )
        yield block, lists.squares, lists.rows


def find_ranks(
    queries: np.ndarray,
    rows: np.ndarray,
    gallery: np.ndarray,
    own: np.ndarray | None = None,
    below: int | None = None,
    groups: Groups | None = None,
) -> np.ndarray:
    """Counts the gallery rows that are nearer to each query than the row given for it.

    Nearer as in `find_nearest`. Counting a thousand takes a fraction of the time of listing them.

    Parameters
    ----------
    queries : array (q, d)
    rows : int array (q,)
        A gallery row for each query; -1: nothing is counted for it.
    gallery : array (n, d)
    own : int array (q,), optional
        The row of the gallery that each query is itself, which is left out for it.
    below : int, optional
        Higher ranks need not be exact, only at least this. Default: n.
    groups : Groups, optional
        The rows of a query's group are left out for it.

    Returns
    -------
    int64 array (q,)
        The ranks: 0 where the row is the nearest.
    """
    queries, gallery = _as_searchable(queries, gallery)
    limits = np.where(
        rows < 0,
        -np.inf,
        squared_distances_of_pairs(queries, gallery, np.arange(len(queries)), rows),
    )
    rank = np.zeros(len(queries), np.int64)
    adding = threading.Lock()

    def add(selection: Selection, of: slice, others: np.ndarray) -> None:
        """Counts for the queries `of`, which were compared with these gallery rows."""
        limit, row_of_limit = limits[of], rows[of]
        query, row = selection.split_pairs(others)
        squares = squared_distances_of_pairs(queries[of], gallery, query, row)
        is_tie_before = (squares == limit[query]) & (row < row_of_limit[query])
        is_nearer = (squares < limit[query]) | is_tie_before
        nearer = selection.nearer + np.bincount(query[is_nearer], minlength=len(limit))
        with adding:
            rank[of] += nearer

    def count(strip: Iterator[Block]) -> None:
        for block in strip:
            sides = [(block.queries, block.rows)]
            if len(block.column_reach):
                sides.append((block.columns, np.arange(block.queries.start, block.queries.stop)))
            select = functools.partial(_select_near_limits, limits=[limits[of] for of, _ in sides])
            for (of, others), selection in zip(sides, block.select(select)):
                add(selection, of, others)

    distances = len(queries) * len(gallery)
    size = _COUNTING if distances > _FEW else _COUNTING_FEW
    copies = (len(gallery) if below is None else below) + 1
    with blas_threads(distances) as run:
        searched = make_gallery(gallery, copies, groups, run)
        # Then the columns are the queries, and each distance counts for two of them.
        is_mirrored = queries is gallery and own is not None and np.array_equal(own, searched.kept)
        run(count, split_into_strips(queries, searched, own, size, is_mirrored, groups))
    return rank


def find_nearest_matches(
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray | None = None,
    groups: Groups | None = None,
) -> np.ndarray:
    """Finds the nearest gallery row of each query's class, nearest as in `find_nearest`.

    Parameters
    ----------
    queries : array (q, d)
    labels : int array (q,)
    gallery : array (n, d)
    gallery_labels : int array (n,)
    own : int array (q,), optional
        The row of the gallery that each query is itself, which is left out for it.
    groups : Groups, optional
        The rows of a query's group are left out for it.

    Returns
    -------
    int64 array (q,)
        The rows; -1 where the gallery has no other row of the query's class.
    """
    queries, gallery = _as_searchable(queries, gallery)
    kept = _kept_of_classes(labels, gallery, gallery_labels, groups)
    kept = kept[np.argsort(gallery_labels[kept], kind="stable")]
    label_of_kept = gallery_labels[kept]
    center = make_center(gallery)
    order = np.argsort(labels, kind="stable")
    nearest = np.full(len(queries), -1)

    def search(chunk: slice) -> None:
        chosen = order[chunk]
        classes = np.unique(labels[chosen])
        begins = np.searchsorted(label_of_kept, classes, "left")
        ends = np.searchsorted(label_of_kept, classes, "right")
        columns = np.concatenate([kept[begin:end] for begin, end in zip(begins, ends)])
        if not len(columns):
            return
        searched = gallery_of(gallery, np.sort(columns), center)
        lists = _Lists.empty(len(chosen), 1)
        own_of_chosen = None if own is None else own[chosen]
        left_out = groups.of_queries(chosen) if groups else None
        for strip in split_into_strips(
            queries[chosen], searched, own_of_chosen, _LISTING, groups=left_out
        ):
            for block in strip:
                is_match = labels[chosen][block.queries, None] == gallery_labels[block.rows]
                lists.update(queries[chosen], searched, block, is_match)
        nearest[chosen] = lists.rows[:, 0]

    with blas_threads(len(queries) * len(gallery)) as run:
        run(search, slices(len(queries), _QUERIES_OF_CLASSES))
    return nearest


def _kept_of_classes(
    labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray, groups: Groups | None
) -> np.ndarray:
    """Returns the ascending gallery rows of the classes in `labels`, without surplus copies."""
    is_wanted = np.zeros(1 + max(labels.max(), gallery_labels.max()), bool)
    is_wanted[labels] = True
    rows = np.flatnonzero(is_wanted[gallery_labels])
    if len(rows) > len(gallery) // 2:  # a copy of them would take much memory
        return without_surplus(gallery, 2, gallery_labels, groups)
    if not len(rows):
        return rows
    if groups is not None:
        groups = Groups(groups.queries, groups.gallery[rows])
    return rows[without_surplus(gallery[rows], 2, gallery_labels[rows], groups)]


def _select_near_limits(product: Product, limits: Sequence[np.ndarray]) -> list[Selection]:
    """Selects the pairs that may be on either side of each query's limit (b,).

    If there are limits of the columns, (c,), too, selects those of the columns as well.
    """
    sides = (product, product.transposed())
    return [_select_near_limit(side, limit) for side, limit in zip(sides, limits)]


def _select_near_limit(product: Product, limit: np.ndarray) -> Selection:
    within = product.at_most(limit + product.margin)
    near = count_in_rows(within)
    if np.count_nonzero(near) > _FEW_QUERIES * len(near):
        chosen, nearer = np.arange(len(near)), product.at_most(limit - product.margin)
    else:
        # In a large gallery most queries have nothing near in most blocks.
        chosen = np.flatnonzero(near)
        few = product.of_queries(chosen)
        nearer = few.at_most(limit[chosen] - few.margin)
    count = np.zeros(len(near), np.int64)
    count[chosen] = count_in_rows(nearer)
    # Most queries have nothing undecided in most blocks.
    place = np.flatnonzero(near[chosen] != count[chosen])
    undecided = within[chosen[place]] ^ nearer[place]
    # numpy finds them faster in one dimension.
    row, column = np.divmod(np.flatnonzero(undecided), within.shape[1])
    return Selection(chosen[place[row]] * within.shape[1] + column, count)


class _Lists(NamedTuple):
    """The k nearest rows of each query so far."""

    squares: np.ndarray  # (q, k) float64, ascending; infinite where no row is listed yet
    rows: np.ndarray  # (q, k) int64; -1 where no row is listed yet

    @classmethod
    def empty(cls, queries: int, k: int) -> _Lists:
        return cls(np.full((queries, k), np.inf), np.full((queries, k), -1))

    def update(
        self,
        queries: np.ndarray,
        searched: Gallery,
        block: Block,
        is_match: np.ndarray | None = None,
    ) -> None:
        """Lists those of a block's columns that are near.

        Blocks of lower columns come first. `is_match`, (b, c) bool, are the pairs that may be
        listed.
        """
        listed, listed_rows = self.squares[block.queries], self.rows[block.queries]
        k = listed.shape[1]
        if not k:
            return
        select = functools.partial(
            _select_candidates, k=k, farthest=listed[:, -1], is_match=is_match
        )
        [selection] = block.select(select, wanted=listed.size)
        query, row = selection.split_pairs(block.rows)
        counts = np.bincount(query, minlength=len(listed))
        before = k if block.columns.start else 0
        position = before + np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        # What was listed before has lower indices. It goes first, and the sort leaves ties alone.
        longer = np.full((len(listed), max(k, before + counts.max())), np.inf)
        longer_rows = np.full(longer.shape, -1)
        longer[:, :before], longer_rows[:, :before] = listed[:, :before], listed_rows[:, :before]
        longer[query, position] = squared_distances_of_pairs(
            queries[block.queries], searched.rows, query, row
        )
        longer_rows[query, position] = row
        order = np.argsort(longer, axis=1, kind="stable")[:, :k]
        listed[:] = np.take_along_axis(longer, order, axis=1)
        listed_rows[:] = np.take_along_axis(longer_rows, order, axis=1)


def _select_candidates(
    product: Product, k: int, farthest: np.ndarray, is_match: np.ndarray | None
) -> list[Selection]:
    """Selects all pairs that may be among the k nearest, given the farthest listed so far (b,)."""
    if is_match is not None:
        product.squares[~is_match] = np.inf
    limit = np.minimum(_bound(product.squares, k) + 2 * product.margin, farthest + product.margin)
    return [Selection(np.flatnonzero(product.at_most(limit)), np.zeros(len(limit), np.int64))]


def _bound(squares: np.ndarray, k: int) -> np.ndarray | float:
    """Returns a limit (b,) for each query that at least k of its squares, and few more, are within.

    It is the k-th smallest of the minima of groups, of which there are at least 4 k. Finding the
    k-th smallest of all the squares takes longer than computing them.
    """
    if k == 1:
        return np.asarray(squares.min(axis=1))
    size = max(1, squares.shape[1] // max(4 * k, 256))
    groups = squares.shape[1] // size
    if groups < k:
        return np.inf
    minima = squares[:, : size * groups].reshape(-1, size, groups).min(axis=1)
    return np.partition(minima, k - 1, axis=1)[:, k - 1]


def _as_searchable(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float32. Raises ValueError unless they are embeddings of one dimension."""
    queries, gallery = as_embeddings(queries), as_embeddings(gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"embeddings of one dimension expected: {queries.shape}, {gallery.shape}")
    return queries, gallery
