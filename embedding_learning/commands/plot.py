"""`plot`: pictures of what a model learned, and of how a run went."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from embedding_learning import reporting
from embedding_learning.commands import model_flags, test_images
from embedding_learning.commands.test_images import TestImages
from embedding_learning.options import Parser, UsageError

KINDS = {
    "tsne": "t-SNE of the test images, with the photographs as marks",
    "points": "t-SNE of the test images, as points coloured by class",
    "gallery": "the best, worst and random test images, and the images nearest to each",
    "curves": "the curves of a run",
}
# Queries of each kind in a gallery, and neighbours of each.
_QUERIES, _NEIGHBOURS = 5, 8
# Fixes which images are chosen where there are too many.
_SEED = 0


def main(arguments: list[str]) -> int:
    """Draws the picture."""
    # Only now, since matplotlib takes a second to import and --help needs none of it.
    from embedding_learning import plots, records

    options = _parse(arguments)
    plots.check_path(options.output)
    if options.kind == "curves":
        folder = Path(options.run)
        plots.curves(records.read(folder), options.output, folder.name)
    else:
        with reporting.log_to_terminal():
            found = test_images.embed(model_flags.load(options), options)
        draw = {"tsne": draw_photographs, "points": draw_points, "gallery": draw_gallery}
        draw[options.kind](found, options.output)
    print(options.output)
    return 0


def draw_photographs(found: TestImages, path: str) -> None:
    """t-SNE with photographs. Of very many images some are chosen."""
    from embedding_learning import plots

    rows, points = _in_the_plane(found)
    photograph = test_images.thumbnails(found.split.test)
    plots.tsne_photographs(points, lambda row: photograph(rows[row]), path, _title(found, rows))


def draw_points(found: TestImages, path: str) -> None:
    """t-SNE with coloured points. Of very many images some are chosen."""
    from embedding_learning import plots

    rows, points = _in_the_plane(found)
    test = found.split.test
    plots.tsne_points(points, test.labels[rows], test.class_names, path, _title(found, rows))


def draw_gallery(found: TestImages, path: str) -> None:
    """The queries with the best and the worst average precision, and some at random."""
    from embedding_learning import plots
    from embedding_learning.neighbours import nearest

    test, searched = found.split.test, found.split.gallery or found.split.test
    most = len(searched) - (found.gallery is None)
    distances, neighbours = nearest(found.queries, min(_NEIGHBOURS, most), found.gallery)
    right = searched.labels[neighbours] == test.labels[:, None]
    relevant = np.bincount(searched.labels, minlength=len(test.class_names))[test.labels]
    scores = plots.average_precision(right, relevant - (found.gallery is None))
    plots.gallery(
        plots.choose_queries(scores, test.labels, _QUERIES, _SEED),
        neighbours,
        distances,
        test.labels,
        test.class_names,
        test_images.thumbnails(test),
        path,
        found.split.title,
        (searched.labels, test_images.thumbnails(searched)) if found.gallery is not None else None,
    )


def _in_the_plane(found: TestImages) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are shown, and their points."""
    from embedding_learning import projection

    rows = projection.choose_rows(found.split.test.labels, _SEED)
    return rows, projection.tsne(found.queries[rows], _SEED)


def _title(found: TestImages, rows: np.ndarray) -> str:
    count = len(found.split.test)
    which = f"{len(rows):,} of {count:,}" if len(rows) < count else f"{count:,}"
    return f"{found.split.title}: t-SNE of {which} test images"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning plot",
        description="Draw a picture: a .png or .svg file.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, text in KINDS.items():
        of_kind = kinds.add_parser(kind, help=text, description=f"Draw {text}.")
        if kind == "curves":
            text = "the folder of a run, PREFIX.run"
            of_kind.add_argument("run", metavar="RUN", help=text)
        else:
            model_flags.add_flags(of_kind)
            test_images.add_flags(of_kind)
        of_kind.add_argument("output", metavar="FILE", help="the picture, .png or .svg")
    options = parser.parse_args(arguments)
    if options.kind == "curves":
        if not Path(options.run).is_dir():
            raise UsageError(f"{options.run}: no such folder; name a run's, PREFIX.run")
    else:
        model_flags.check(options)
    return options
