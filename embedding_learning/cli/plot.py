"""`plot`: plots of a model's embeddings, and of the records of a run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedding_learning.cli import model_flags, split_flags
from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.config import as_flag
from embedding_learning.data.datasets.splits import count_partners
from embedding_learning.data.datasets.unlabeled import UNLABELED
from embedding_learning.data.image_set import number_classes
from embedding_learning.data.preprocessing import read_square
from embedding_learning.errors import DataError, UsageError
from embedding_learning.inference import embedded_split, embedding_file
from embedding_learning.inference.embedded_split import THUMBNAIL, EmbeddedSplit, thumbnail_reader
from embedding_learning.inference.embedding_file import Embeddings
from embedding_learning.inference.run_files import find_run
from embedding_learning.runtime.atomic_files import check_input_is_kept
from embedding_learning.runtime.progress import log_to_terminal

if TYPE_CHECKING:
    from embedding_learning.plots import Thumbnail

# Queries of each group in a gallery.
_QUERIES = 5
# Pairs of classes in a plot of confusions.
_CONFUSIONS = 10
# Fixes which images are chosen where there are too many.
_SEED = 0
# More images could hardly be distinguished in a map, and take minutes.
_MOST_IMAGES = 10_000


class Plane(NamedTuple):
    """Images that t-SNE has placed in the plane.

    Attributes
    ----------
    rows : int array (n,)
        The images, ascending.
    points : float32 array (n, 2)
    heading : str
    """

    rows: np.ndarray
    points: np.ndarray
    heading: str


def main(arguments: list[str]) -> int:
    """Draws the plot and prints its path."""
    options = _parse(arguments)
    # Imported here and not above: matplotlib takes a second, and --help needs none of it.
    from embedding_learning import plots
    from embedding_learning.training import records

    plots.check_plot_path(options.output)
    row = PLOTS[options.kind]
    with log_to_terminal():
        if row.of_run:
            folder = find_run(options.run)
            row.of_run(records.read(Path(folder)), options.output, os.path.basename(folder))
        elif row.of_vectors and _is_vector_file(options):
            vectors = embedding_file.read_embeddings(options.model_file, None)
            name = os.path.basename(options.model_file)
            check_input_is_kept(options.output, vectors.known_paths(), "FILE")
            row.of_vectors(vectors, name, options.output, options.images)
        elif row.of_images:
            row.of_images(_embed(options), options.output)
        elif row.of_plane:
            embedded = _embed(options)
            plane = place_test_images(embedded, options.images)
            row.of_plane(embedded, options.output, plane)
    print(options.output)
    return 0


def _embed(options: argparse.Namespace) -> EmbeddedSplit:
    embedded = embedded_split.embed_split(
        model_flags.load(options),
        split_flags.test_images(options),
        options.batch_size,
        options.workers,
    )
    photographs = (path for part in embedded.split.parts for path in part.paths)
    check_input_is_kept(options.output, photographs, "FILE")
    return embedded


def _is_vector_file(options: argparse.Namespace) -> bool:
    return bool(options.model_file.lower().endswith(".npy"))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning plot",
        description="Draw a plot: a .png or .svg file. An existing file is replaced.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    parsers = {}
    for kind, row in PLOTS.items():
        of_kind = parsers[kind] = kinds.add_parser(
            kind, help=row.help, description=f"Draw {row.help}."
        )
        if row.of_run:
            text = "a run: its folder PREFIX.run, PREFIX.params, or PREFIX"
            of_kind.add_argument("run", metavar="RUN", help=text)
        else:
            more = ""
            if row.of_vectors:
                more = "; or FILE.npy that embed wrote: its images are drawn, without a data set"
            model_flags.add_flags(of_kind, more)
            split_flags.add_flags(of_kind)
        if row.of_plane:
            text = "the most images; of more, some are chosen at random. t-SNE of many takes long"
            of_kind.add_argument("--images", type=int, default=_MOST_IMAGES, metavar="N", help=text)
        text = "the plot, .png or .svg; an existing file is replaced"
        of_kind.add_argument("output", type=expand_path, metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    if PLOTS[options.kind].of_run:
        find_run(options.run)
        return options
    if PLOTS[options.kind].of_plane and options.images < 1:
        raise UsageError(f"--images {options.images}: must be at least 1")
    if _is_vector_file(options):
        _check_vectors(options, parsers[options.kind])
    model_flags.check(options)
    split_flags.check(options)
    return options


def _check_vectors(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises UsageError for kinds that need a model, and for flags of a model or a data set."""
    if not PLOTS[options.kind].of_vectors:
        of_vectors = [kind for kind, row in PLOTS.items() if row.of_vectors]
        raise UsageError(
            f"MODEL {options.model_file}: plot {options.kind} needs a trained network and a data "
            f"set; an .npy file is drawn by {' and '.join(of_vectors)}"
        )
    for name, value in vars(options).items():
        if name not in ("kind", "model_file", "output", "images") and value != parser.get_default(
            name
        ):
            raise UsageError(
                f"{as_flag(name)}: has no effect, because the images of {options.model_file} are "
                "embedded already; leave the flag out"
            )


def place_test_images(found: EmbeddedSplit, most: int = _MOST_IMAGES) -> Plane:
    """Computes t-SNE of the test images, or of `most` that are chosen if there are more."""
    return _place(found.queries, found.split.test.labels, (found.split.title, "test images"), most)


def draw_tsne_photographs(found: EmbeddedSplit, path: str, plane: Plane) -> None:
    """Draws t-SNE with photographs."""
    _photographs(plane, thumbnail_reader(found.split.test, found.preprocessing), path)


def draw_tsne_points(found: EmbeddedSplit, path: str, plane: Plane) -> None:
    """Draws t-SNE with colored points."""
    _points(plane, found.split.test.labels, found.split.test.class_names, path)


def draw_tsne_photographs_of_file(found: Embeddings, name: str, path: str, most: int) -> None:
    """Draws t-SNE of the vectors in the file `name`, with the photographs that its list names.

    Raises UsageError if the file has no list, and DataError if a photograph is missing.
    """
    from embedding_learning.plots import projection

    labels, _ = number_classes(found.labels)
    for row in projection.choose_rows(labels, _SEED, most):
        photograph = found.path(row)
        if photograph is None:
            raise UsageError(
                f"{name}: no .csv file names the image of row {row}; embed the images again, or "
                "draw points"
            )
        if not os.path.isfile(photograph):
            raise DataError(
                f"{photograph}: no such file, though it is in the list of {name}; move it back, "
                "embed the images again, or draw points"
            )

    def thumbnail(row: int) -> np.ndarray:
        return read_square(str(found.path(row)), None, THUMBNAIL)

    _photographs(_place(found.vectors, labels, (name, "images"), most), thumbnail, path)


def draw_tsne_points_of_file(found: Embeddings, name: str, path: str, most: int) -> None:
    """Draws t-SNE of the vectors in the file `name`, as points colored by class if it is known."""
    labels, class_names = number_classes(found.labels)
    if UNLABELED in class_names:
        labels[labels == class_names.index(UNLABELED)] = -1
    _points(_place(found.vectors, labels, (name, "images"), most), labels, class_names, path)


def draw_gallery(found: EmbeddedSplit, path: str) -> None:
    """Draws the queries with the best and the worst average precision, and some random ones.

    Raises DataError if no query has an image of its class to find.
    """
    from embedding_learning import plots

    test, searched = found.split.test, found.split.searched
    relevant = count_partners(found.split)
    if not relevant.any():
        outside = " outside its group" if found.split.groups else ""
        raise DataError(
            f"{found.split.title}: no test image has another image of its class{outside}, so a "
            "gallery of good and bad queries cannot be drawn"
        )
    _, neighbors = found.nearest
    right = (searched.labels[neighbors] == test.labels[:, None]) & (neighbors >= 0)
    scores = plots.average_precision(right, relevant)
    chosen = plots.choose_queries(scores, test.labels, _QUERIES, _SEED)
    _gallery(found, chosen, path, found.split.title)


def draw_confusions(found: EmbeddedSplit, path: str) -> None:
    """Draws the classes that are most often taken for another one, with a query of each.

    It is the query whose nearest image, of the wrong class, is nearest. Raises DataError if no
    nearest image is of another class.
    """
    from embedding_learning import plots

    if not found.confusions:
        raise DataError(
            f"{found.split.title}: no test image has a nearest image of another class, so no "
            "classes are confused"
        )
    distances, _ = found.nearest
    names = [plots.class_title(name) for name in found.split.test.class_names]
    if len({*names}) < len(names):
        # Titles leave numbers out, and classes may differ in these alone.
        names = list(found.split.test.class_names)
    queries = {}
    for label, taken_for, rows, images in found.confusions[:_CONFUSIONS]:
        heading = f"{names[label]} taken for {names[taken_for]}: {len(rows)} of {images} images"
        queries[heading] = rows[[np.argmin(distances[rows, 0])]]
    title = f"{found.split.title}: classes taken for others"
    _gallery(found, queries, path, title)


def _gallery(
    found: EmbeddedSplit, queries: Mapping[str, np.ndarray], path: str, title: str
) -> None:
    """Draws queries, given by heading, and their nearest images."""
    from embedding_learning import plots

    test, searched = found.split.test, found.split.searched
    distances, neighbors = found.nearest
    plots.plot_gallery(
        groups=queries,
        neighbors=neighbors,
        distances=distances,
        labels=test.labels,
        class_names=test.class_names,
        thumbnail=thumbnail_reader(test, found.preprocessing),
        path=path,
        title=title,
        searched=None
        if found.gallery is None
        else (searched.labels, thumbnail_reader(searched, found.preprocessing)),
    )


def _photographs(plane: Plane, thumbnail: Thumbnail, path: str) -> None:
    from embedding_learning import plots

    plots.plot_tsne_photographs(
        plane.points, lambda row: thumbnail(plane.rows[row]), path, plane.heading
    )


def _points(plane: Plane, labels: np.ndarray, class_names: Sequence[str], path: str) -> None:
    from embedding_learning import plots

    plots.plot_tsne_points(plane.points, labels[plane.rows], class_names, path, plane.heading)


def _place(vectors: np.ndarray, labels: np.ndarray, title: tuple[str, str], most: int) -> Plane:
    """Chooses at most so many images and computes their t-SNE. `title`: the source, and a noun."""
    from embedding_learning.plots import projection

    rows = projection.choose_rows(labels, _SEED, most)
    count = f"{len(rows):,} of {len(labels):,}" if len(rows) < len(labels) else f"{len(labels):,}"
    heading = f"{title[0]}: t-SNE of {count} {title[1]}"
    return Plane(rows, projection.tsne(vectors[rows], _SEED), heading)


def draw_run_curves(recorded: Sequence[Mapping[str, Any]], path: str, title: str) -> None:
    """Draws the curves of a run from its records."""
    from embedding_learning import plots

    plots.plot_run_curves(recorded, path, title)


def draw_distances(recorded: Sequence[Mapping[str, Any]], path: str, title: str) -> None:
    """Draws the distances of a run's pairs from its records."""
    from embedding_learning import plots

    plots.plot_distances(recorded, path, title)


class PlotRow(NamedTuple):
    """A row of PLOTS; `of_run`, `of_images` or `of_plane` is given.

    Attributes
    ----------
    help : str
        What is drawn.
    of_run : callable, optional
        Draws from the records of a run: records, path of the plot, title.
    of_images : callable, optional
        Draws from embedded test images: EmbeddedSplit, path of the plot.
    of_plane : callable, optional
        Draws embedded test images that t-SNE has placed: EmbeddedSplit, path of the plot, Plane.
    of_vectors : callable, optional
        Draws t-SNE from a file that `embed` wrote, without a model: Embeddings, name, path of the
        plot, most images.
    """

    help: str
    of_run: Callable[[Sequence[Mapping[str, Any]], str, str], None] | None = None
    of_images: Callable[[EmbeddedSplit, str], None] | None = None
    of_plane: Callable[[EmbeddedSplit, str, Plane], None] | None = None
    of_vectors: Callable[[Embeddings, str, str, int], None] | None = None


# By the word on the command line. A new plot is a function in a file of `plots` and a row here.
PLOTS = {
    "tsne": PlotRow(
        "t-SNE of the test images or of FILE.npy, with the photographs as marks",
        of_plane=draw_tsne_photographs,
        of_vectors=draw_tsne_photographs_of_file,
    ),
    "points": PlotRow(
        "t-SNE of the test images or of FILE.npy, as points colored by class",
        of_plane=draw_tsne_points,
        of_vectors=draw_tsne_points_of_file,
    ),
    "gallery": PlotRow(
        "the best, worst and random test images, and the images nearest to each",
        of_images=draw_gallery,
    ),
    "confusions": PlotRow(
        "the classes that are most often taken for another one, with a test image of each",
        of_images=draw_confusions,
    ),
    "curves": PlotRow("the curves of a run", of_run=draw_run_curves),
    "distances": PlotRow(
        "the distances of a run's pairs: all negatives, the sampled ones, and the theory",
        of_run=draw_distances,
    ),
}
