"""`evaluate`: how good a saved model is on the test images of a data set."""

from __future__ import annotations

import argparse
import json

from embedding_learning import reporting
from embedding_learning.commands import model_flags, test_images
from embedding_learning.evaluation import evaluate, parse_metrics, recall_metrics
from embedding_learning.options import Parser, UsageError

# Beside the recalls.
_METRICS = ("map@r", "r-precision", "nmi", "ami")


def main(arguments: list[str]) -> int:
    """Prints a table, or JSON."""
    options = _parse(arguments)
    with reporting.log_to_terminal():
        model = model_flags.load(options)
        found = test_images.embed(model, options)
    split, gallery = found.split, found.split.gallery
    values = evaluate(
        found.queries,
        split.test.labels,
        options.metrics or [*recall_metrics(split.name), *_METRICS],
        found.gallery,
        None if gallery is None else gallery.labels,
    )
    if options.json:
        print(json.dumps({"data": split.title, "images": len(split.test), **values}))
        return 0
    searched = f", searched in a gallery of {len(gallery)}" if gallery else ""
    print(f"{options.model_file} on {split.title}: {len(split.test)} test images{searched}.")
    for name, value in values.items():
        print(f"{name:12s} {value:.4f}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning evaluate",
        description="Measure a saved model on the test images of a data set.",
    )
    model_flags.add_flags(parser)
    test_images.add_flags(parser)
    text = (
        "what to measure, with commas between: recall@K for any K, map@r, r-precision, nmi, ami "
        "(default: the recalls that papers report for the data set, and the other four)"
    )
    parser.add_argument("--metrics", metavar="LIST", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    model_flags.check(options)
    if options.metrics is not None:
        try:
            options.metrics = parse_metrics(options.metrics)
        except ValueError as error:
            raise UsageError(f"--metrics {options.metrics}: {error}") from None
    return options
