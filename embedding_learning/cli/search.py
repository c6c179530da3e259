"""`search`: the images of a gallery that are nearest to each query."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from embedding_learning.cli import model_flags
from embedding_learning.cli.parser import Parser
from embedding_learning.config import BATCH_SIZE, WORKERS
from embedding_learning.data.datasets import unlabeled
from embedding_learning.data.preprocessing import PixelsFromFiles, read_full_image
from embedding_learning.errors import UsageError
from embedding_learning.evaluation import neighbors
from embedding_learning.inference import embedding_file
from embedding_learning.inference.embedding_file import Embeddings
from embedding_learning.runtime.progress import log_to_terminal, progress_bar

if TYPE_CHECKING:
    from embedding_learning.inference.embedding_model import EmbeddingModel


class Found(NamedTuple):
    """The nearest images of q queries.

    Attributes
    ----------
    queries : Embeddings
    gallery : Embeddings
    distances : float32 array (q, k)
        Euclidean, nearest first.
    rows : int64 array (q, k)
        Of the gallery.
    exif_orientation : bool
        Whether the model sees images turned upright as their EXIF data say, and so pictures.
    """

    queries: Embeddings
    gallery: Embeddings
    distances: np.ndarray
    rows: np.ndarray
    exif_orientation: bool = False

    def is_right(self, query: int, place: int) -> bool | None:
        """Whether the image at that place is of the query's class, if both are known."""
        wanted = self.queries.label(query)
        label = self.gallery.label(self.rows[query, place])
        return None if wanted is None or label is None else wanted == label


def main(arguments: list[str]) -> int:
    """Prints what is found, and draws it."""
    options = _parse(arguments)
    if options.picture is not None:
        from embedding_learning import plots

        plots.check_plot_path(options.picture)
    with log_to_terminal():
        model = model_flags.load(options)
        found = search(
            model, options.gallery, options.queries, options.k, options.batch_size, options.workers
        )
    if options.json:
        print("[\n" + ",\n".join(json.dumps(result) for result in _results(found)) + "\n]")
    else:
        for result in _results(found):
            print("\n".join(_lines(result)))
    if options.picture is not None:
        draw(found, options.picture)
    return 0


def search(
    model: EmbeddingModel,
    gallery: str,
    queries: Sequence[str],
    k: int = 10,
    batch_size: int = BATCH_SIZE,
    workers: int = WORKERS,
) -> Found:
    """The k nearest images of the gallery for each query, exactly.

    Where an image's own file is in the gallery, it is left out, and its vector and its class are
    those of the gallery; a copy of it in another file is found. Of equally distant images the lower
    row is the nearer.

    Parameters
    ----------
    model : EmbeddingModel
    gallery : str
        An .npy file that `embed` wrote with this model, which is mapped into memory; or an input of
        `datasets.files.read`, embedded now, with labels where it is a folder of class folders.
    queries : sequence of str
        .npy files and inputs of `datasets.files.read`.
    k : int
        At least 1. Where there are fewer images to find, all of them are found.
    batch_size, workers : int
        As for `EmbeddingModel.embed`.

    Raises
    ------
    UsageError
        If an .npy file is not as `embed` writes it, is of another dimension than the model's, or
        there is nothing to find. If it is another model's, or its rows are not of unit length, a
        warning is logged.
    DataError
        If an image or a folder cannot be read.
    """
    searched = _embeddings(model, [gallery], batch_size, workers)
    asked = _embeddings(model, queries, batch_size, workers, searched)
    own = searched.rows_of(asked.path(query) for query in range(len(asked.vectors)))
    surplus = max(map(len, own))
    k = min(k, len(searched.vectors) - surplus)
    if k < 1:
        raise UsageError(f"{gallery}: holds no image but the query's own; name another gallery")
    distances, rows = neighbors.find_nearest(asked.vectors, k + surplus, searched.vectors)
    for query in np.flatnonzero([len(some) for some in own]):
        others = np.flatnonzero(np.isin(rows[query], own[query], invert=True))[:k]
        distances[query, :k], rows[query, :k] = distances[query, others], rows[query, others]
    upright = model.preprocessing.exif_orientation
    return Found(asked, searched, distances[:, :k], rows[:, :k], upright)


def draw(found: Found, path: str) -> None:
    """Draws a row for each query: the query, then what was found, framed as right or wrong.

    Raises UsageError if the file cannot be written, or the vectors' images are not known, and
    DataError if one cannot be decoded.
    """
    from embedding_learning import plots

    drawn, place = np.unique(found.rows, return_inverse=True)
    right = np.array(
        [[found.is_right(q, p) for p in range(found.rows.shape[1])] for q in range(len(found.rows))]
    )
    plots.plot_search_results(
        [_title(found.queries, query) for query in range(len(found.rows))],
        lambda query: _photograph(found.queries, query, found.exif_orientation),
        place.reshape(found.rows.shape),
        found.distances,
        [_title(found.gallery, row) for row in drawn],
        lambda image: _photograph(found.gallery, drawn[image], found.exif_orientation),
        path,
        right,
    )


def _embeddings(
    model: EmbeddingModel,
    names: Sequence[str],
    batch_size: int,
    workers: int,
    known: Embeddings | None = None,
) -> Embeddings:
    """Of .npy files as they are, and of images by the model, in the order of the names.

    Images that are among the known ones are not embedded again.
    """
    parts: list[Embeddings] = []
    for is_file, some in groupby(names, lambda name: name.lower().endswith(".npy")):
        if is_file:
            parts += [_read_vectors(model, name) for name in some]
        else:
            parts.append(_embedded(model, list(some), batch_size, workers, known))
    if len(parts) == 1:
        return parts[0]
    return Embeddings(
        np.concatenate([part.vectors for part in parts]),
        [part.path(row) or "" for part in parts for row in range(len(part.vectors))],
        [label for part in parts for label in part.labels],
        os.getcwd(),
    )


def _read_vectors(model: EmbeddingModel, name: str) -> Embeddings:
    """The vectors of an .npy file; warns if their distances to the model's own mean nothing."""
    found = embedding_file.read(name, model.dimension)
    if found.model not in (None, model.digest):
        logging.warning(
            "%s: was embedded with another model, so distances to this model's vectors mean "
            "nothing; name that model, or embed the images again with this one.", name,
        )  # fmt: skip
    row = embedding_file.first_not_unit(found.vectors)
    if row is not None:
        logging.warning(
            "%s: row %d has the length %.4g; this model's vectors have the length 1, so distances "
            "to others mean little.", name, row, np.linalg.norm(found.vectors[row]),
        )  # fmt: skip
    return found


def _embedded(
    model: EmbeddingModel,
    names: Sequence[str],
    batch_size: int,
    workers: int,
    known: Embeddings | None,
) -> Embeddings:
    """Of images, folders and lists."""
    images = unlabeled.read(names)
    vectors = np.empty((len(images), model.dimension), np.float32)
    labels = [images.class_names[label] for label in images.labels]
    new = []
    for row, known_rows in enumerate(known.rows_of(images.paths) if known else [[]] * len(images)):
        if known and known_rows:
            # Where boxes were cut, the whole image would be another one.
            vectors[row] = known.vectors[known_rows[0]]
            labels[row] = known.labels[known_rows[0]] or labels[row]
        else:
            new.append(row)
    rest = images.take(np.array(new, int))
    pixels = PixelsFromFiles(rest, model.description["image_size"], model.preprocessing)
    size = model.batch_size(len(new), batch_size)
    remaining = iter(progress_bar(new, "Embedding", "image"))
    for part in model.embed_batches(pixels, size, workers):
        vectors[list(islice(remaining, len(part)))] = part
    paths = [os.path.normpath(path) for path in images.paths]
    return Embeddings(vectors, paths, labels, os.getcwd())


def _results(found: Found) -> Iterator[dict[str, Any]]:
    """What is told of each query, of what JSON can hold."""
    for query, (distances, rows) in enumerate(zip(found.distances, found.rows)):
        yield {
            "query": found.queries.path(query),
            "row": query,
            "label": found.queries.label(query),
            "neighbours": [
                {
                    "path": found.gallery.path(row),
                    "row": int(row),
                    "label": found.gallery.label(row),
                    # As many digits as a float32 has.
                    "distance": round(float(distance), 7),
                    "right": found.is_right(query, place),
                }
                for place, (distance, row) in enumerate(zip(distances, rows))
            ],
        }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    """The same for people."""

    def name(image: dict[str, Any], path: str | None) -> str:
        label = f"  ({image['label']})" if image["label"] else ""
        return _printable(f"{path or 'row ' + str(image['row'])}{label}")

    yield name(result, result["query"])
    for rank, image in enumerate(result["neighbours"], 1):
        judged = {True: "right  ", False: "wrong  ", None: ""}[image["right"]]
        yield f"{rank:5d}  {image['distance']:.4f}  {judged}{name(image, image['path'])}"


def _printable(text: str) -> str:
    """Without characters that a terminal would obey, or that are no characters."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _title(images: Embeddings, row: int) -> str:
    """What is written below an image: its class, else its file's name, else its row."""
    from embedding_learning.plots.canvas import class_title

    label = images.label(row)
    return class_title(label) if label else os.path.basename(images.path(row) or f"row {row}")


def _photograph(images: Embeddings, row: int, exif_orientation: bool) -> np.ndarray:
    """The whole image, turned as the model sees it: RGB, uint8 (height, width, 3)."""
    path = images.path(row)
    if path is None:
        raise UsageError(
            f"--picture: no .csv file tells the image of row {row}; embed the images again"
        )
    return cv2.cvtColor(read_full_image(path, exif_orientation), cv2.COLOR_BGR2RGB)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning search",
        description="Print the images of a gallery that are nearest to each query. A query that "
        "stands in the gallery by its own path is left out of what is found, and takes its vector "
        "and label from there; a copy in another file is found.",
    )
    model_flags.add_flags(parser)
    text = (
        "an .npy file written by embed with this model; or a folder, a .txt list or - for a list "
        "on the standard input, embedded now, with labels from class folders as embed takes them"
    )
    parser.add_argument("gallery", metavar="GALLERY", help=text)
    text = "an image, a folder, a .txt list, -, or an .npy file of vectors"
    parser.add_argument("queries", nargs="+", metavar="QUERY", help=text)
    text = "number of images to find for each query (default: %(default)s)"
    parser.add_argument("-k", type=int, default=10, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    text = "draw queries and what was found, too: a .png or .svg file, replaced if it is there"
    parser.add_argument("--picture", metavar="FILE", help=text)
    options = parser.parse_intermixed_args(arguments)
    model_flags.check(options)
    if options.k < 1:
        raise UsageError(f"-k {options.k}: must be at least 1")
    return options
