"""The nearest neighbors of embeddings: exact, in bounded memory, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embedding_learning.evaluation.blocked_distances import (
    Gallery,
    as_embeddings,
    make_gallery,
    products,
    slices,
    squared_distances_of_pairs,
)

# Entries of the lists of neighbors that are filled at once: 32 MB.
_LISTED = 2**21
# Distances held at once, and how many gallery rows they are of. The lists are brought up to date
# for each such piece of a gallery, so that it should hold a whole one of common size. 16 MB.
_LISTING = (2**22, 2**16)
# To count, no piece need hold a whole gallery, and squarer products are faster. Smaller ones are so
# many that threads mostly wait for each other where other programs keep the cores busy.
_COUNTING = (2**22, 2**13)


def find_nearest(
    queries: np.ndarray, k: int, gallery: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery rows of each query, nearest first.

    Without a gallery the queries are searched among each other, and each leaves itself out by its
    index, so that a duplicate of it is found.

    The neighbors are exact. Euclidean distances are compared in float64 and depend on the two rows
    alone, so that equal rows are equally distant to the last bit. Of equally distant rows the lower
    index is the nearer.

    Parameters
    ----------
    queries : array (q, d)
        Taken as float32, as is the gallery.
    k : int
        At least 1. Where there are fewer rows to find, all of them are found.
    gallery : array (n, d), optional
        In float32 it may be mapped into memory; it is read in pieces.

    Returns
    -------
    distances : float32 array (q, k)
    rows : int64 array (q, k)
        Indices into the gallery; into the queries, where there is no gallery.

    Raises
    ------
    ValueError
        If k is below 1, the shapes do not fit, there is no row, or a value is not finite.
    """
    if k < 1:
        raise ValueError(f"k is at least 1, not {k}")
    queries = as_embeddings(queries)
    own = np.arange(len(queries)) if gallery is None else None
    gallery = queries if gallery is None else gallery
    k = min(k, len(gallery) - (own is not None))
    distances = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for block, squares, found in find_nearest_in_blocks(queries, k, gallery, own):
        distances[block] = np.sqrt(squares)
        rows[block] = found
    return distances, rows


def find_nearest_in_blocks(
    queries: np.ndarray, k: int, gallery: np.ndarray, own: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """What `find_nearest` finds, in pieces, so that memory is bounded whatever q and k.

    Parameters
    ----------
    queries : array (q, d)
    k : int
        At most the number of rows there are to find.
    gallery : array (n, d)
    own : int array (q,), optional
        The row of the gallery that each query is itself, and that is left out for it.

    Yields
    ------
    block : slice
        The queries of this piece.
    squares : float64 array (piece, k)
        Squared distances.
    rows : int64 array (piece, k)
    """
    queries, gallery = _matching(queries, gallery)
    searched = make_gallery(gallery, k + 1)
    for block in slices(len(queries), max(1, _LISTED // max(1, k))):
        squares = np.full((block.stop - block.start, k), np.inf)
        rows = np.full(squares.shape, -1)
        own_of_block = None if own is None else own[block]
        if k:
            _fill(squares, rows, queries[block], searched, own_of_block)
        yield block, squares, rows


def find_ranks(
    queries: np.ndarray,
    rows: np.ndarray,
    gallery: np.ndarray,
    own: np.ndarray | None = None,
    below: int | None = None,
) -> np.ndarray:
    """How many gallery rows are nearer to each query than the one that is named for it.

    Nearer as in `find_nearest`. To count a thousand takes a fraction of the time of listing them.

    Parameters
    ----------
    queries : array (q, d)
    rows : int array (q,)
        A gallery row for each query.
    gallery : array (n, d)
    own : int array (q,), optional
        The row of the gallery that each query is itself, and that is left out for it.
    below : int, optional
        Ranks from here on need only be no lower. Default: n.

    Returns
    -------
    int64 array (q,)
        0 where the row is the nearest.
    """
    queries, gallery = _matching(queries, gallery)
    searched = make_gallery(gallery, (len(gallery) if below is None else below) + 1)
    limits = squared_distances_of_pairs(queries, gallery, np.arange(len(queries)), rows)
    rank = np.zeros(len(queries), np.int64)
    for block, columns, approximations in products(queries, searched, own, _COUNTING):
        limit = limits[block]
        for product in approximations:
            surely = product.at_most(limit - product.margin)
            undecided = product.at_most(limit + product.margin)
            undecided ^= surely
            pairs = np.flatnonzero(undecided)
            if product.is_enough(len(pairs)):
                break
        query, column = np.divmod(pairs, columns.stop - columns.start)
        row = searched.kept[columns][column]
        squares = squared_distances_of_pairs(queries[block], gallery, query, row)
        tie = (squares == limit[query]) & (row < rows[block][query])
        nearer = query[(squares < limit[query]) | tie]
        rank[block] += np.count_nonzero(surely, axis=1)
        rank[block] += np.bincount(nearer, minlength=len(limit))
    return rank


def _fill(
    squares: np.ndarray,
    rows: np.ndarray,
    queries: np.ndarray,
    searched: Gallery,
    own: np.ndarray | None,
) -> None:
    """Brings lists of infinite squares and no rows, (q, k) each, to the k nearest."""
    k = squares.shape[1]
    for block, columns, approximations in products(queries, searched, own, _LISTING):
        listed, listed_rows = squares[block], rows[block]
        for product in approximations:
            limit = np.minimum(
                _bound(product.squares, k) + 2 * product.margin, listed[:, -1] + product.margin
            )
            pairs = np.flatnonzero(product.at_most(limit))
            if product.is_enough(len(pairs) - listed.size):
                break
        query, column = np.divmod(pairs, columns.stop - columns.start)
        row = searched.kept[columns][column]
        found = np.bincount(query, minlength=len(listed))
        before = k if columns.start else 0
        place = before + np.arange(len(pairs)) - np.repeat(np.cumsum(found) - found, found)
        # What was listed before has lower indices. It goes first, and the sort leaves ties alone.
        longer = np.full((len(listed), max(k, before + found.max())), np.inf)
        longer_rows = np.full(longer.shape, -1)
        longer[:, :before], longer_rows[:, :before] = listed[:, :before], listed_rows[:, :before]
        longer[query, place] = squared_distances_of_pairs(queries[block], searched.rows, query, row)
        longer_rows[query, place] = row
        order = np.argsort(longer, axis=1, kind="stable")[:, :k]
        listed[:] = np.take_along_axis(longer, order, axis=1)
        listed_rows[:] = np.take_along_axis(longer_rows, order, axis=1)


def _bound(squares: np.ndarray, k: int) -> np.ndarray | float:
    """Something that at least k of a query's squares do not exceed, and few more.

    The k-th smallest of the minima of groups, four times as many as are wanted; finding it among
    all the squares takes longer than computing them.
    """
    size = max(1, squares.shape[1] // max(4 * k, 256))
    groups = squares.shape[1] // size
    if groups < k:
        return np.inf
    minima = squares[:, : size * groups].reshape(-1, size, groups).min(axis=1)
    return np.partition(minima, k - 1, axis=1)[:, k - 1]


def _matching(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    queries, gallery = as_embeddings(queries), as_embeddings(gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"embeddings of one dimension expected: {queries.shape}, {gallery.shape}")
    return queries, gallery
