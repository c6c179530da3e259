"""Pictures of embedded test images: t-SNE and a gallery of queries."""

from __future__ import annotations

import numpy as np

from embedding_learning import plots, projection
from embedding_learning.datasets import DataError
from embedding_learning.neighbours import nearest
from embedding_learning.test_set import EmbeddedTestSet, thumbnails

# Queries of each kind in a gallery, and neighbours of each.
_QUERIES, _NEIGHBOURS = 5, 8
# Fixes which images are chosen where there are too many.
_SEED = 0


def draw_photographs(found: EmbeddedTestSet, path: str) -> None:
    """t-SNE with photographs. Of very many images some are chosen."""
    rows, points = _in_the_plane(found)
    photograph = thumbnails(found.split.test)
    plots.tsne_photographs(points, lambda row: photograph(rows[row]), path, _title(found, rows))


def draw_points(found: EmbeddedTestSet, path: str) -> None:
    """t-SNE with coloured points. Of very many images some are chosen."""
    rows, points = _in_the_plane(found)
    test = found.split.test
    plots.tsne_points(points, test.labels[rows], test.class_names, path, _title(found, rows))


def draw_gallery(found: EmbeddedTestSet, path: str) -> None:
    """The queries with the best and the worst average precision, and some at random.

    Raises DataError if no query has an image of its class to be found.
    """
    test, searched = found.split.test, found.split.gallery or found.split.test
    relevant = np.bincount(searched.labels, minlength=len(test.class_names))[test.labels]
    relevant = relevant - (found.gallery is None)
    if not relevant.any():
        raise DataError(
            f"{found.split.title}: no test image has another of its class to be found, so there "
            "are no good and bad queries to draw a gallery of"
        )
    most = len(searched) - (found.gallery is None)
    distances, neighbours = nearest(found.queries, min(_NEIGHBOURS, most), found.gallery)
    right = searched.labels[neighbours] == test.labels[:, None]
    scores = plots.average_precision(right, relevant)
    plots.gallery(
        plots.choose_queries(scores, test.labels, _QUERIES, _SEED),
        neighbours,
        distances,
        test.labels,
        test.class_names,
        thumbnails(test),
        path,
        found.split.title,
        (searched.labels, thumbnails(searched)) if found.gallery is not None else None,
    )


def _in_the_plane(found: EmbeddedTestSet) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are shown, and their points."""
    rows = projection.choose_rows(found.split.test.labels, _SEED)
    return rows, projection.tsne(found.queries[rows], _SEED)


def _title(found: EmbeddedTestSet, rows: np.ndarray) -> str:
    count = len(found.split.test)
    which = f"{len(rows):,} of {count:,}" if len(rows) < count else f"{count:,}"
    return f"{found.split.title}: t-SNE of {which} test images"
