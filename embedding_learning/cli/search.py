"""`search`: the images of a gallery that are nearest to each query."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from embedding_learning.cli import model_flags
from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.errors import UsageError
from embedding_learning.inference.search import describe_result, draw_result, search
from embedding_learning.runtime.progress import log_to_terminal


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
        print("[\n" + ",\n".join(json.dumps(result) for result in describe_result(found)) + "\n]")
    else:
        for result in describe_result(found):
            print("\n".join(_lines(result)))
    if options.picture is not None:
        draw_result(found, options.picture)
    return 0


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
    parser.add_argument("--picture", type=expand_path, metavar="FILE", help=text)
    options = parser.parse_intermixed_args(arguments)
    model_flags.check(options)
    if options.k < 1:
        raise UsageError(f"-k {options.k}: must be at least 1")
    return options
