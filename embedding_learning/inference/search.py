"""Finds the images of a gallery that are nearest to each query, and describes and draws them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from embedding_learning.config import BATCH_SIZE, WORKERS
from embedding_learning.data.datasets import unlabeled
from embedding_learning.data.image_set import number_classes
from embedding_learning.data.preprocessing import PixelsFromFiles, read_full_image
from embedding_learning.errors import UsageError
from embedding_learning.evaluation import neighbors
from embedding_learning.evaluation.groups import Groups, number_groups
from embedding_learning.inference import embedding_file
from embedding_learning.inference.embedding_file import Embeddings
from embedding_learning.runtime.progress import progress_bar

if TYPE_CHECKING:
    from embedding_learning.inference.embedding_model import EmbeddingModel


class SearchResult(NamedTuple):
    """The nearest images of q queries.

    Attributes
    ----------
    queries : Embeddings
    gallery : Embeddings
    distances : float32 array (q, k)
        Euclidean, nearest first.
    rows : int64 array (q, k)
        Rows of the gallery, in the same order; -1, with an infinite distance, at the end where the
        query's own file and its group leave fewer images to be found.
    exif_orientation : bool
        Whether the model sees images turned upright as their EXIF data say, so that plots show them
        in the same way.
    """

    queries: Embeddings
    gallery: Embeddings
    distances: np.ndarray
    rows: np.ndarray
    exif_orientation: bool = False

    def is_right(self, query: int, rank: int) -> bool | None:
        """Returns whether the image at a rank, from 0, has the query's class; None if unknown."""
        row = self.rows[query, rank]
        wanted = self.queries.label(query)
        label = self.gallery.label(row) if row >= 0 else None
        return None if wanted is None or label is None else wanted == label


def search(
    model: EmbeddingModel,
    gallery: str | os.PathLike[str],
    queries: Iterable[str | os.PathLike[str]],
    k: int = 10,
    batch_size: int = BATCH_SIZE,
    workers: int = WORKERS,
) -> SearchResult:
    """Finds the k nearest images of the gallery for each query, exactly.

    If a query's own file is in the gallery, it is left out of the result, and the query takes its
    vector, its class and its group from there. A copy of it in another file is found. The other
    images of its group are left out too. Of equally distant images the one with the lower row comes
    first.

    Parameters
    ----------
    model : EmbeddingModel
    gallery : str or path
        An .npy file that `embed` wrote with this model, which is mapped into memory; or an input
        that `datasets.unlabeled` reads, embedded now, with labels if it is a folder of class
        folders.
    queries : iterable of str or path
        .npy files and inputs that `datasets.unlabeled` reads.
    k : int
        At least 1. If the gallery has fewer images, all of them are found.
    batch_size, workers : int
        As for `EmbeddingModel.embed`.

    Raises
    ------
    ValueError
        If `k` or `batch_size` is below 1, or `queries` is no list or empty.
    UsageError
        If an .npy file is not as `embed` writes it, if it has another dimension than the model, or
        if there is nothing to find. If it belongs to another model, or its rows do not have unit
        length, a warning is logged.
    DataError
        If an image or a folder cannot be read.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    is_one = isinstance(queries, (str, bytes, os.PathLike))
    names = [] if is_one else [os.fsdecode(query) for query in queries]
    if not names:
        raise ValueError(f"a list of queries expected, not {queries!r}")
    searched = _load_embeddings(model, [os.fsdecode(gallery)], batch_size, workers)
    asked = _load_embeddings(model, names, batch_size, workers, searched)
    own = searched.find_rows(asked.path(query) for query in range(len(asked.vectors)))
    k = min(k, len(searched.vectors) - min(map(len, own)))
    if k < 1:
        raise UsageError(f"{gallery}: holds no image but the query's own; name another gallery")
    groups = _number_groups(asked, searched)
    surplus = max(map(len, own))
    distances, rows = neighbors.find_nearest(asked.vectors, k + surplus, searched.vectors, groups)
    for query in np.flatnonzero([len(own_rows) for own_rows in own]):
        is_own = np.isin(rows[query], own[query])
        distances[query, is_own], rows[query, is_own] = np.inf, -1
        others_first = np.argsort(is_own, kind="stable")
        distances[query], rows[query] = distances[query, others_first], rows[query, others_first]
    if (rows[:, :k] < 0).all():
        raise UsageError(
            f"{gallery}: holds no image but those of the queries' own groups; name another gallery"
        )
    upright = model.preprocessing.exif_orientation
    return SearchResult(asked, searched, distances[:, :k], rows[:, :k], upright)


def describe_result(result: SearchResult) -> Iterator[dict[str, Any]]:
    """Yields each query with its nearest images, as a dictionary that JSON can hold."""
    for query, (distances, rows) in enumerate(zip(result.distances, result.rows)):
        yield {
            "query": result.queries.path(query),
            "row": query,
            "label": result.queries.label(query),
            "neighbours": [
                {
                    "path": result.gallery.path(row),
                    "row": int(row),
                    "label": result.gallery.label(row),
                    # As many digits as a float32 has.
                    "distance": round(float(distance), 7),
                    "right": result.is_right(query, rank),
                }
                for rank, (distance, row) in enumerate(zip(distances, rows))
                if row >= 0
            ],
        }


def draw_result(result: SearchResult, path: str) -> None:
    """Draws a row for each query: the query, then the images found, framed as right or wrong.

    Raises UsageError if the file cannot be written or the images of the vectors are not known, and
    DataError if an image cannot be decoded.
    """
    from embedding_learning import plots

    drawn_rows, place = np.unique(result.rows, return_inverse=True)
    place = np.where(result.rows < 0, -1, place.reshape(result.rows.shape))
    queries, k = result.rows.shape
    right = np.array(
        [[result.is_right(query, rank) for rank in range(k)] for query in range(queries)]
    )
    plots.plot_search_results(
        [_title(result.queries, query) for query in range(queries)],
        lambda query: _read_photograph(result.queries, query, result.exif_orientation),
        place,
        result.distances,
        [_title(result.gallery, row) for row in drawn_rows],
        lambda image: _read_photograph(result.gallery, drawn_rows[image], result.exif_orientation),
        path,
        right,
    )


def _load_embeddings(
    model: EmbeddingModel,
    names: Sequence[str],
    batch_size: int,
    workers: int,
    known: Embeddings | None = None,
) -> Embeddings:
    """Returns the vectors of .npy files and of images that are embedded now, in order of `names`.

    Images that are among the known ones are not embedded again.
    """
    parts: list[Embeddings] = []
    for is_file, group in groupby(names, lambda name: name.lower().endswith(".npy")):
        if is_file:
            parts += [_read_vectors(model, name) for name in group]
        else:
            parts.append(_embed_images(model, list(group), batch_size, workers, known))
    if len(parts) == 1:
        return parts[0]
    return Embeddings(
        np.concatenate([part.vectors for part in parts]),
        [part.path(row) or "" for part in parts for row in range(len(part.vectors))],
        [label for part in parts for label in part.labels],
        os.getcwd(),
        groups=[group for part in parts for group in part.groups or [""] * len(part.vectors)],
    )


def _read_vectors(model: EmbeddingModel, name: str) -> Embeddings:
    """Reads an .npy file; warns if distances to the model's own vectors have no meaning."""
    embeddings = embedding_file.read_embeddings(name, model.dimension)
    if embeddings.model not in (None, model.digest):
        logging.warning(
            "%s: was embedded with another model, so distances to this model's vectors mean "
            "nothing; name that model, or embed the images again with this one.", name,
        )  # fmt: skip
    row = embedding_file.find_non_unit_row(embeddings.vectors)
    if row is not None:
        logging.warning(
            "%s: row %d has the length %.4g; this model's vectors have the length 1, so distances "
            "to others mean little.", name, row, np.linalg.norm(embeddings.vectors[row]),
        )  # fmt: skip
    return embeddings


def _embed_images(
    model: EmbeddingModel,
    names: Sequence[str],
    batch_size: int,
    workers: int,
    known: Embeddings | None,
) -> Embeddings:
    """Embeds images, folders and lists, except for images that are among the known ones."""
    images = unlabeled.read(names)
    vectors = np.empty((len(images), model.dimension), np.float32)
    labels = [images.class_names[label] for label in images.labels]
    groups = [""] * len(images)
    new = []
    for row, known_rows in enumerate(
        known.find_rows(images.paths) if known else [[]] * len(images)
    ):
        if known and known_rows:
            # If boxes were cut, the whole image would have another vector.
            vectors[row] = known.vectors[known_rows[0]]
            labels[row] = known.labels[known_rows[0]] or labels[row]
            groups[row] = known.groups[known_rows[0]] if known.groups else ""
        else:
            new.append(row)
    rest = images.take(np.array(new, int))
    pixels = PixelsFromFiles(rest, model.description["image_size"], model.preprocessing)
    size = model.choose_batch_size(len(new), batch_size)
    remaining = iter(progress_bar(new, "Embedding", "image"))
    for part in model.embed_batches(pixels, size, workers):
        vectors[list(islice(remaining, len(part)))] = part
    paths = [os.path.normpath(path) for path in images.paths]
    return Embeddings(vectors, paths, labels, os.getcwd(), groups=groups)


def _number_groups(queries: Embeddings, gallery: Embeddings) -> Groups | None:
    """Returns the groups of both; None if there are none."""
    if not queries.groups or not gallery.groups or not any(gallery.groups):
        return None
    numbers, names = number_classes([*queries.groups, *gallery.groups])
    # The empty text, which means no group, is the first of all.
    numbers -= names[0] == ""
    return number_groups(*np.split(numbers, [len(queries.groups)]))


def _title(images: Embeddings, row: int) -> str:
    """Returns the text below an image: its class, else its file's name, else its row."""
    from embedding_learning.plots.canvas import class_title

    label = images.label(row)
    return class_title(label) if label else os.path.basename(images.path(row) or f"row {row}")


def _read_photograph(images: Embeddings, row: int, exif_orientation: bool) -> np.ndarray:
    """Returns the whole image, turned as the model sees it: RGB, uint8 (height, width, 3)."""
    path = images.path(row)
    if path is None:
        raise UsageError(
            f"--picture: no .csv file names the image of row {row}; embed the images again"
        )
    return cv2.cvtColor(read_full_image(path, exif_orientation), cv2.COLOR_BGR2RGB)
