"""`search`: prints or draws the images of a gallery that are nearest to each query."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from embedding_learning.cli import model_flags
from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.data.datasets.unlabeled import check_standard_input
from embedding_learning.errors import UsageError
from embedding_learning.inference.search import describe_result, draw_result, search
from embedding_learning.runtime.atomic_files import check_input_is_kept
from embedding_learning.runtime.progress import log_to_terminal


def main(arguments: list[str]) -> int:
    """Prints the images that are found, and draws them if asked to; returns 0."""
    options = _parse(arguments)
    if options.picture is not None:
        from embedding_learning import plots

        plots.check_plot_path(options.picture)
        check_input_is_kept(options.picture, options.queries, "--picture")
    with log_to_terminal():
        model = model_flags.load(options)
        result = search(
            model, options.gallery, options.queries, options.k, options.batch_size, options.workers
        )
    if options.picture is not None:
        for images in (result.queries, result.gallery):
            check_input_is_kept(options.picture, images.known_paths(), "--picture")
    if options.json:
        print("[\n" + ",\n".join(json.dumps(query) for query in describe_result(result)) + "\n]")
    else:
        for query in describe_result(result):
            print("\n".join(_format_query(query)))
    if options.picture is not None:
        draw_result(result, options.picture)
    return 0


def _format_query(query: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a query and its nearest images, for people."""

    def describe(image: dict[str, Any], path: str | None) -> str:
        label = f"  ({image['label']})" if image["label"] else ""
        return _escape(f"{path or 'row ' + str(image['row'])}{label}")

    yield describe(query, query["query"])
    for rank, image in enumerate(query["neighbours"], 1):
        verdict = {True: "right  ", False: "wrong  ", None: ""}[image["right"]]
        yield f"{rank:5d}  {image['distance']:.4f}  {verdict}{describe(image, image['path'])}"


def _escape(text: str) -> str:
    """Replaces what cannot be printed, such as characters that control a terminal, by escapes."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning search",
        description="Print the images of a gallery that are nearest to each query. A query whose "
        "own file is in the gallery is left out of the result, and takes its vector and label from "
        "there; a copy in another file is found.",
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
    text = "draw the queries and the images found: a .png or .svg file; a former one is replaced"
    parser.add_argument("--picture", type=expand_path, metavar="FILE", help=text)
    options = parser.parse_intermixed_args(arguments)
    model_flags.check(options)
    if options.k < 1:
        raise UsageError(f"-k {options.k}: must be at least 1")
    check_standard_input([options.gallery, *options.queries])
    return options
