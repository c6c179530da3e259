"""`evaluate`: measures a saved model on the test images of a data set, or on pairs."""

from __future__ import annotations

import argparse
import json
import math

from embedding_learning.cli import evaluate_pairs, model_flags, split_flags
from embedding_learning.cli.parser import Parser, expand_path, given
from embedding_learning.errors import UsageError
from embedding_learning.evaluation.metric_table import describe_metrics
from embedding_learning.evaluation.metrics import common_metrics, parse_metrics
from embedding_learning.inference import embedded_split
from embedding_learning.inference.embedded_split import EmbeddedSplit
from embedding_learning.runtime.atomic_files import (
    check_input_is_kept,
    check_output_path,
    format_csv,
    write_text,
)
from embedding_learning.runtime.progress import log_to_terminal

# Of `images`, the class's test images, how many have a nearest image of the class `taken for`.
CONFUSION_COLUMNS = ("class", "taken for", "confused", "images")


def main(arguments: list[str]) -> int:
    """Prints a table, or JSON; returns 0."""
    options = _parse(arguments)
    if options.pairs is not None:
        return evaluate_pairs.run(options)
    if options.confusions is not None:
        check_output_path(options.confusions, (".csv",), "--confusions")
        check_input_is_kept(options.confusions, [options.data_path], "--confusions")
    with log_to_terminal():
        model = model_flags.load(options)
        found = embedded_split.embed_split(
            model, split_flags.test_images(options), options.batch_size, options.workers
        )
    if options.confusions is not None:
        _write_confusions(options.confusions, found)
    split, gallery = found.split, found.split.gallery
    measured = found.measure(options.metrics or common_metrics(split.recall_at))
    if options.json:
        # JSON has no numbers that are not finite.
        finite = {
            name: value if math.isfinite(value) else None for name, value in measured.values.items()
        }
        counts = {"images": measured.queries, "without_match": measured.without_match}
        print(json.dumps({"data": split.title, **counts, **finite, "bases": measured.bases}))
        return 0
    searched = f", searched in a gallery of {len(gallery)}" if gallery else ""
    print(
        f"{options.model_file} on {split.title}: {measured.queries} test images{searched}, "
        f"{measured.without_match} without a match."
    )
    width = max(12, *map(len, measured.values))
    for name, value in measured.values.items():
        print(f"{name:{width}s} {value:.4f}  of {measured.bases[name]} images")
    for note in measured.notes():
        print(note)
    return 0


def _write_confusions(path: str, found: EmbeddedSplit) -> None:
    """Writes a line for each pair of classes whose first is taken for the second."""
    names = found.split.test.class_names
    rows = [
        (names[label], names[taken_for], len(queries), images)
        for label, taken_for, queries, images in found.confusions
    ]
    write_text(path, format_csv([CONFUSION_COLUMNS, *rows]))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning evaluate",
        description="Measure a saved model on the test images of a data set, or on image pairs.",
    )
    model_flags.add_flags(parser)
    split_flags.add_flags(parser)
    text = (
        f"metrics, with commas between: {describe_metrics()} (default: the recalls that papers "
        "report for the data set, and all metrics without K)"
    )
    parser.add_argument("--metrics", metavar="LIST", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    text = "list which classes are taken for which others, most often first: a .csv file"
    parser.add_argument("--confusions", type=expand_path, metavar="FILE", help=text)
    evaluate_pairs.add_flags(parser)
    options = parser.parse_args(arguments)
    evaluate_pairs.check(options, given(parser, arguments))
    model_flags.check(options)
    split_flags.check(options)
    if options.metrics is not None:
        try:
            options.metrics = parse_metrics(options.metrics)
        except ValueError as error:
            raise UsageError(f"--metrics {options.metrics}: {error}") from None
    return options
