"""`plot`: pictures of what a model learned, and of how a run went."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from embedding_learning.cli import model_flags, split_flags
from embedding_learning.cli.parser import Parser, as_flag
from embedding_learning.errors import UsageError
from embedding_learning.inference import embedded_split, embedding_file
from embedding_learning.inference.run_files import find_run
from embedding_learning.runtime.progress import log_to_terminal

KINDS = {
    "tsne": "t-SNE of the test images or of FILE.npy, with the photographs as marks",
    "points": "t-SNE of the test images or of FILE.npy, as points coloured by class",
    "gallery": "the best, worst and random test images, and the images nearest to each",
    "curves": "the curves of a run",
    "distances": "the distances of a run's pairs: all negatives, those drawn, and the theory",
}
# Of a run's records, not of a model.
_OF_RUN = ("curves", "distances")
# Of vectors too that `embed` wrote, without a model.
_OF_VECTORS = ("tsne", "points")


def main(arguments: list[str]) -> int:
    """Draws the picture."""
    options = _parse(arguments)
    # Only now, since matplotlib takes a second to import and --help needs none of it.
    from embedding_learning import plots
    from embedding_learning.cli import pictures
    from embedding_learning.training import records

    plots.check_path(options.output)
    with log_to_terminal():
        if options.kind in _OF_RUN:
            folder = find_run(options.run)
            draw_run = {"curves": plots.curves, "distances": plots.distances}[options.kind]
            draw_run(records.read(Path(folder)), options.output, os.path.basename(folder))
        elif _names_vectors(options):
            vectors = embedding_file.read_embeddings(options.model_file, None)
            draw_vectors = {
                "tsne": pictures.draw_photographs_of_file,
                "points": pictures.draw_points_of_file,
            }
            draw_vectors[options.kind](
                vectors, os.path.basename(options.model_file), options.output
            )
        else:
            draw = {
                "tsne": pictures.draw_photographs,
                "points": pictures.draw_points,
                "gallery": pictures.draw_gallery,
            }
            found = embedded_split.embed_split(model_flags.load(options), options)
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
        of_kind.add_argument("output", metavar="FILE", help=text)
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
