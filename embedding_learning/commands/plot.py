"""`plot`: pictures of what a model learned, and of how a run went."""

from __future__ import annotations

import argparse
from pathlib import Path

from embedding_learning import model_flags, reporting, test_set
from embedding_learning.flags import Parser, UsageError

KINDS = {
    "tsne": "t-SNE of the test images, with the photographs as marks",
    "points": "t-SNE of the test images, as points coloured by class",
    "gallery": "the best, worst and random test images, and the images nearest to each",
    "curves": "the curves of a run",
    "distances": "the distances of a run's pairs: all negatives, those drawn, and the theory",
}
# Of a run's records, not of a model.
_OF_RUN = ("curves", "distances")


def main(arguments: list[str]) -> int:
    """Draws the picture."""
    # Only now, since matplotlib takes a second to import and --help needs none of it.
    from embedding_learning import pictures, plots, records

    options = _parse(arguments)
    plots.check_path(options.output)
    if options.kind in _OF_RUN:
        folder = Path(options.run)
        draw_run = {"curves": plots.curves, "distances": plots.distances}[options.kind]
        draw_run(records.read(folder), options.output, folder.name)
    else:
        with reporting.log_to_terminal():
            found = test_set.embed(model_flags.load(options), options)
        draw = {
            "tsne": pictures.draw_photographs,
            "points": pictures.draw_points,
            "gallery": pictures.draw_gallery,
        }
        draw[options.kind](found, options.output)
    print(options.output)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning plot",
        description="Draw a picture: a .png or .svg file.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, text in KINDS.items():
        of_kind = kinds.add_parser(kind, help=text, description=f"Draw {text}.")
        if kind in _OF_RUN:
            text = "the folder of a run, PREFIX.run"
            of_kind.add_argument("run", metavar="RUN", help=text)
        else:
            model_flags.add_flags(of_kind)
            test_set.add_flags(of_kind)
        of_kind.add_argument("output", metavar="FILE", help="the picture, .png or .svg")
    options = parser.parse_args(arguments)
    if options.kind in _OF_RUN:
        if not Path(options.run).is_dir():
            raise UsageError(f"{options.run}: no such folder; name a run's, PREFIX.run")
    else:
        model_flags.check(options)
        test_set.check(options)
    return options
