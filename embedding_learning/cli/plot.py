"""`plot`: pictures of what a model learned, and of how a run went."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedding_learning.cli import model_flags, split_flags
from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.config import as_flag
from embedding_learning.data.datasets.unlabeled import UNLABELED
from embedding_learning.data.image_set import number_classes
from embedding_learning.data.preprocessing import read_square
from embedding_learning.errors import DataError, UsageError
from embedding_learning.inference import embedded_split, embedding_file
from embedding_learning.inference.embedded_split import THUMBNAIL, EmbeddedSplit, thumbnail_reader
from embedding_learning.inference.embedding_file import Embeddings
from embedding_learning.inference.run_files import find_run
from embedding_learning.runtime.progress import log_to_terminal

if TYPE_CHECKING:
    from embedding_learning.plots import Thumbnail

KINDS = {
    "tsne": "t-SNE of the test images or of FILE.npy, with the photographs as marks",
    "points": "t-SNE of the test images or of FILE.npy, as points colored by class",
    "gallery": "the best, worst and random test images, and the images nearest to each",
    "curves": "the curves of a run",
    "distances": "the distances of a run's pairs: all negatives, those drawn, and the theory",
}
# Of a run's records, not of a model.
_OF_RUN = ("curves", "distances")
# Of vectors too that `embed` wrote, without a model.
_OF_VECTORS = ("tsne", "points")
# Queries of each group in a gallery, and neighbors of each.
_QUERIES, _NEIGHBORS = 5, 8
# Fixes which images are chosen where there are too many.
_SEED = 0


def main(arguments: list[str]) -> int:
    """Draws the picture."""
    options = _parse(arguments)
    # Imported here and not above: matplotlib takes a second, and --help needs none of it.
    from embedding_learning import plots
    from embedding_learning.training import records

    plots.check_plot_path(options.output)
    with log_to_terminal():
        if options.kind in _OF_RUN:
            folder = find_run(options.run)
            draw_run = {"curves": plots.plot_run_curves, "distances": plots.plot_distances}
            draw_run[options.kind](
                records.read(Path(folder)), options.output, os.path.basename(folder)
            )
        elif _names_vectors(options):
            vectors = embedding_file.read_embeddings(options.model_file, None)
            draw_vectors = {
                "tsne": draw_tsne_photographs_of_file,
                "points": draw_tsne_points_of_file,
            }
            draw_vectors[options.kind](
                vectors, os.path.basename(options.model_file), options.output
            )
        else:
            draw = {
                "tsne": draw_tsne_photographs,
                "points": draw_tsne_points,
                "gallery": draw_gallery,
            }
            found = embedded_split.embed_split(
                model_flags.load(options),
                split_flags.test_images(options),
                options.batch_size,
                options.workers,
            )
            draw[options.kind](found, options.output)
    print(options.output)
    return 0


def _names_vectors(options: argparse.Namespace) -> bool:
    return bool(options.model_file.lower().endswith(".npy"))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning plot",
        description="Draw a picture: a .png or .svg file. A file that is there is replaced.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    parsers = {}
    for kind, text in KINDS.items():
        of_kind = parsers[kind] = kinds.add_parser(kind, help=text, description=f"Draw {text}.")
        if kind in _OF_RUN:
            text = "a run: its folder PREFIX.run, PREFIX.params, or PREFIX"
            of_kind.add_argument("run", metavar="RUN", help=text)
        else:
            more = ""
            if kind in _OF_VECTORS:
                more = "; or FILE.npy that embed wrote: its images are drawn, without a data set"
            model_flags.add_flags(of_kind, more)
            split_flags.add_flags(of_kind)
        text = "the picture, .png or .svg; it is replaced if it is there"
        of_kind.add_argument("output", type=expand_path, metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    if options.kind in _OF_RUN:
        find_run(options.run)
        return options
    if _names_vectors(options):
        _check_vectors(options, parsers[options.kind])
    model_flags.check(options)
    split_flags.check(options)
    return options


def _check_vectors(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises UsageError for a kind that needs a model, and for flags of a model and a data set."""
    if options.kind not in _OF_VECTORS:
        raise UsageError(
            f"MODEL {options.model_file}: plot {options.kind} needs a trained network and a data "
            f"set; an .npy file is drawn by {' and '.join(_OF_VECTORS)}"
        )
    for name, value in vars(options).items():
        if name not in ("kind", "model_file", "output") and value != parser.get_default(name):
            raise UsageError(
                f"{as_flag(name)}: has no effect, for the images of {options.model_file} are "
                "embedded already; leave the flag out"
            )


def draw_tsne_photographs(found: EmbeddedSplit, path: str) -> None:
    """t-SNE with photographs. Of very many images some are chosen."""
    test = found.split.test
    photograph = thumbnail_reader(test, found.preprocessing)
    _photographs(found.queries, test.labels, photograph, _test_images(found), path)


def draw_tsne_points(found: EmbeddedSplit, path: str) -> None:
    """t-SNE with colored points. Of very many images some are chosen."""
    test = found.split.test
    _points(found.queries, test.labels, test.class_names, _test_images(found), path)


def draw_tsne_photographs_of_file(found: Embeddings, name: str, path: str) -> None:
    """t-SNE of the vectors of the file of that name, with the photographs that its list names.

    Raises UsageError if it has no list, DataError if a photograph is not there.
    """
    from embedding_learning.plots import projection

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
        return read_square(str(found.path(row)), None, THUMBNAIL)

    _photographs(found.vectors, labels, thumbnail, (name, "images"), path)


def draw_tsne_points_of_file(found: Embeddings, name: str, path: str) -> None:
    """t-SNE of the vectors of the file of that name, colored by class as far as it is known."""
    labels, class_names = number_classes(found.labels)
    if UNLABELED in class_names:
        labels[labels == class_names.index(UNLABELED)] = -1
    _points(found.vectors, labels, class_names, (name, "images"), path)


def draw_gallery(found: EmbeddedSplit, path: str) -> None:
    """The queries with the best and the worst average precision, and some at random.

    Raises DataError if no query has an image of its class to be found.
    """
    from embedding_learning import plots
    from embedding_learning.evaluation.neighbors import find_nearest

    test, searched = found.split.test, found.split.gallery or found.split.test
    relevant = np.bincount(searched.labels, minlength=len(test.class_names))[test.labels]
    relevant = relevant - (found.gallery is None)
    if not relevant.any():
        raise DataError(
            f"{found.split.title}: no test image has another of its class to be found, so there "
            "are no good and bad queries to draw a gallery of"
        )
    most = len(searched) - (found.gallery is None)
    distances, neighbors = find_nearest(found.queries, min(_NEIGHBORS, most), found.gallery)
    right = searched.labels[neighbors] == test.labels[:, None]
    scores = plots.average_precision(right, relevant)
    plots.plot_gallery(
        plots.choose_queries(scores, test.labels, _QUERIES, _SEED),
        neighbors,
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
    thumbnail: Thumbnail,
    title: tuple[str, str],
    path: str,
) -> None:
    from embedding_learning import plots

    rows, points, heading = _in_the_plane(vectors, labels, title)
    plots.plot_tsne_photographs(points, lambda row: thumbnail(rows[row]), path, heading)


def _points(
    vectors: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: tuple[str, str],
    path: str,
) -> None:
    from embedding_learning import plots

    rows, points, heading = _in_the_plane(vectors, labels, title)
    plots.plot_tsne_points(points, labels[rows], class_names, path, heading)


def _in_the_plane(
    vectors: np.ndarray, labels: np.ndarray, title: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, str]:
    """The rows that are shown, their points, and what stands above; `title`: source and noun."""
    from embedding_learning.plots import projection

    rows = projection.choose_rows(labels, _SEED)
    which = f"{len(rows):,} of {len(labels):,}" if len(rows) < len(labels) else f"{len(labels):,}"
    heading = f"{title[0]}: t-SNE of {which} {title[1]}"
    return rows, projection.tsne(vectors[rows], _SEED), heading


def _test_images(found: EmbeddedSplit) -> tuple[str, str]:
    return found.split.title, "test images"
