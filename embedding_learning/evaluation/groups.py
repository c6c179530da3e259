"""Groups of images, such as those of one sequence or camera, that are no matches of each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Groups(NamedTuple):
    """The group of each query and of each gallery row, made by `number_groups`.

    A query's search leaves out the rows of its own group, as it leaves out the query itself.

    Attributes
    ----------
    queries : int32 array (q,)
        Numbers from 0; -1 for a query without a group.
    gallery : int32 array (n,)
        The same numbers; -2 for a row without a group, so that no query has it.
    """

    queries: np.ndarray
    gallery: np.ndarray

    def of_queries(self, chosen: np.ndarray | slice) -> Groups:
        """Returns the groups for these queries alone."""
        return Groups(self.queries[chosen], self.gallery)

    def count_left_out(self, labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
        """Counts the gallery rows of each query's group and label, int64 (q,)."""
        pairs = [np.stack([labels, self.queries]), np.stack([gallery_labels, self.gallery])]
        _, codes = np.unique(np.concatenate(pairs, axis=1), axis=1, return_inverse=True)
        codes = codes.ravel()
        sizes = np.bincount(codes[len(labels) :], minlength=codes.max() + 1)
        return sizes[codes[: len(labels)]]

    @property
    def largest(self) -> int:
        """The number of gallery rows in the largest group."""
        return int(np.bincount(self.gallery[self.gallery >= 0]).max(initial=0))


def check_groups(groups: Groups | None, queries: int, rows: int) -> None:
    """Raises ValueError unless there are groups of so many queries and gallery rows, or none."""
    if groups is None:
        return
    if not isinstance(groups, Groups):
        raise ValueError(f"groups as number_groups makes them expected, not {type(groups)}")
    if (len(groups.queries), len(groups.gallery)) != (queries, rows):
        raise ValueError(
            f"groups of {queries} queries and {rows} searched images expected, not of "
            f"{len(groups.queries)} and {len(groups.gallery)}"
        )


def number_groups(queries: np.ndarray, gallery: np.ndarray | None = None) -> Groups:
    """Numbers the groups of queries (q,) and gallery rows (n,): ints, below 0 for no group.

    Without a gallery the queries are searched among each other.
    """
    gallery = queries if gallery is None else gallery
    values, codes = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    codes = (codes - np.count_nonzero(values < 0)).astype(np.int32)
    return Groups(
        np.maximum(codes[: len(queries)], -1),
        np.where(codes[len(queries) :] < 0, np.int32(-2), codes[len(queries) :]),
    )


def count_matches(
    labels: np.ndarray, searched_labels: np.ndarray, finds_itself: bool, groups: Groups | None
) -> np.ndarray:
    """Counts the searched images of each query's label, without those that are left out for it.

    Parameters
    ----------
    labels : int array (q,)
        At least 0.
    searched_labels : int array (n,)
    finds_itself : bool
        Whether each query is one of the searched images, which is left out for it.
    groups : Groups, optional
        The images of a query's group are left out for it.

    Returns
    -------
    int64 array (q,)
    """
    sizes: np.ndarray = np.bincount(searched_labels, minlength=labels.max(initial=-1) + 1)
    left_out = np.full(len(labels), int(finds_itself))
    if groups is not None:
        # The images of its group include the query itself.
        left_out = np.maximum(left_out, groups.count_left_out(labels, searched_labels))
    counts: np.ndarray = sizes[labels] - left_out
    return counts
