"""Pictures of embedded images: t-SNE and a gallery of queries."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from embedding_learning import plots
from embedding_learning.data.datasets.unlabeled import UNLABELLED
from embedding_learning.data.image_set import number_classes
from embedding_learning.data.preprocessing import read_image
from embedding_learning.errors import DataError, UsageError
from embedding_learning.evaluation.neighbors import nearest
from embedding_learning.inference.embedded_split import THUMBNAIL, EmbeddedSplit, thumbnail_reader
from embedding_learning.inference.embedding_file import Embeddings
from embedding_learning.plots import projection

# Queries of each kind in a gallery, and neighbours of each.
_QUERIES, _NEIGHBOURS = 5, 8
# Fixes which images are chosen where there are too many.
_SEED = 0


def draw_photographs(found: EmbeddedSplit, path: str) -> None:
    """t-SNE with photographs. Of very many images some are chosen."""
    test = found.split.test
    photograph = thumbnail_reader(test, found.preprocessing)
    _photographs(found.queries, test.labels, photograph, _test_images(found), path)


def draw_points(found: EmbeddedSplit, path: str) -> None:
    """t-SNE with coloured points. Of very many images some are chosen."""
    test = found.split.test
    _points(found.queries, test.labels, test.class_names, _test_images(found), path)


def draw_photographs_of_file(found: Embeddings, name: str, path: str) -> None:
    """t-SNE of the vectors of the file of that name, with the photographs that its list names.

    Raises UsageError if it has no list, DataError if a photograph is not there.
    """
    labels, _ = number_classes(found.labels)
    for row in projection.choose_rows(labels, _SEED):
        photograph = found.path(row)
        if photograph is None:
            raise UsageError(
                f"{name}: no .csv file names the image of row {row}; embed the images again, or "
                "draw points"
            )
        if not os.path.isfile(photograph):
            raise DataError(
                f"{photograph}: no such file, though the list of {name} names it; move it back, "
                "embed the images again, or draw points"
            )

    def thumbnail(row: int) -> np.ndarray:
        return read_image(str(found.path(row)), None, THUMBNAIL)

    _photographs(found.vectors, labels, thumbnail, (name, "images"), path)


def draw_points_of_file(found: Embeddings, name: str, path: str) -> None:
    """t-SNE of the vectors of the file of that name, coloured by class as far as it is known."""
    labels, class_names = number_classes(found.labels)
    if UNLABELLED in class_names:
        labels[labels == class_names.index(UNLABELLED)] = -1
    _points(found.vectors, labels, class_names, (name, "images"), path)


def draw_gallery(found: EmbeddedSplit, path: str) -> None:
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
        thumbnail_reader(test, found.preprocessing),
        path,
        found.split.title,
        None
        if found.gallery is None
        else (searched.labels, thumbnail_reader(searched, found.preprocessing)),
    )


def _photographs(
    vectors: np.ndarray,
    labels: np.ndarray,
    thumbnail: plots.Thumbnail,
    title: tuple[str, str],
    path: str,
) -> None:
    rows, points, heading = _in_the_plane(vectors, labels, title)
    plots.tsne_photographs(points, lambda row: thumbnail(rows[row]), path, heading)


def _points(
    vectors: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: tuple[str, str],
    path: str,
) -> None:
    rows, points, heading = _in_the_plane(vectors, labels, title)
    plots.tsne_points(points, labels[rows], class_names, path, heading)


def _in_the_plane(
    vectors: np.ndarray, labels: np.ndarray, title: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, str]:
    """The rows that are shown, their points, and what stands above; `title`: source and noun."""
    rows = projection.choose_rows(labels, _SEED)
    which = f"{len(rows):,} of {len(labels):,}" if len(rows) < len(labels) else f"{len(labels):,}"
    heading = f"{title[0]}: t-SNE of {which} {title[1]}"
    return rows, projection.tsne(vectors[rows], _SEED), heading


def _test_images(found: EmbeddedSplit) -> tuple[str, str]:
    return found.split.title, "test images"
