"""`report`: a run on one HTML page that loads no other file."""

from __future__ import annotations

import argparse
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from embedding_learning.cli import model_flags
from embedding_learning.cli import train_flags as flags
from embedding_learning.cli.parser import Parser
from embedding_learning.cli.plot import draw_gallery, draw_tsne_photographs, draw_tsne_points
from embedding_learning.data import datasets
from embedding_learning.errors import DataError, UsageError
from embedding_learning.evaluation.metrics import (
    Measurement,
    common_metrics,
    compute_metrics,
    parse_metrics,
)
from embedding_learning.inference import embedded_split
from embedding_learning.inference.run_files import find_run, prefix_of
from embedding_learning.runtime.progress import log_to_terminal
from embedding_learning.training import checkpoint_file

if TYPE_CHECKING:
    from embedding_learning.plots.html_report import ReportFigure


def main(arguments: list[str]) -> int:
    """Embeds the run's test images with its saved network, draws them, and writes the page."""
    options = _parse(arguments)
    # Imported here and not above: these import matplotlib.
    from embedding_learning.plots import html_report
    from embedding_learning.training import records

    output = options.output or f"{options.prefix}.run/report.html"
    html_report.check_report_path(output)
    folder = Path(f"{options.prefix}.run")
    typed, title, made_with = records.read_description(folder)
    if not Path(f"{options.prefix}.params").exists():
        raise UsageError(
            f"{options.prefix}.params: is not there; a run saves its network after its first epoch"
        )
    # The prefix is the one that was named, wherever the run was started.
    run = flags.parse([*typed, f"--save-model-prefix={options.prefix}"], is_past=True)
    measured, state = records.read(folder), _state(options.prefix, run.epochs)
    options.model_file, options.model = f"{options.prefix}.params", None
    # Else the page would compare values of other images with those of the epochs.
    options.test = datasets.TESTS[0]
    for name in (
        *("data_path", "dataset", "train_classes", "held_out", "cache_dir", "bbox"),
        "skip_bad_images",
    ):
        setattr(options, name, getattr(run, name))
    with log_to_terminal():
        model = model_flags.load(options)
        found = embedded_split.embed(model, options)
    test, gallery = found.split.test, found.split.gallery
    measurement = compute_metrics(
        found.queries,
        test.labels,
        list(dict.fromkeys([*common_metrics(found.split.recall_at), *parse_metrics(run.metrics)])),
        found.gallery,
        None if gallery is None else gallery.labels,
    )
    with TemporaryDirectory() as drawn:
        html_report.write_report(
            output,
            f"{Path(options.prefix).name}: {title}",
            shlex.join(["python3", "train.py", *typed]),
            vars(run),
            made_with,
            _metric_rows(measured, measurement, model.description["epoch"]),
            [*_draw_run(measured, drawn, title), *_draw_test_images(found, drawn)],
            [state, "Epochs are counted from 0, as in the log."],
            measurement.notes(),
        )
    print(output)
    return 0


def _draw_run(measured: Sequence[Mapping[str, Any]], folder: str, title: str) -> list[ReportFigure]:
    """Draws what the run has recorded into the folder: curves, and distances of pairs."""
    from embedding_learning import plots
    from embedding_learning.plots.html_report import ReportFigure

    figures = []
    draw_run = {"Curves": plots.plot_run_curves, "Distances of pairs": plots.plot_distances}
    for heading, draw in draw_run.items():
        figure = ReportFigure(heading, f"{folder}/{heading}.png")
        with suppress(DataError):  # Nothing of this is recorded yet.
            draw(measured, figure.path, title)
            figures.append(figure)
    return figures


def _draw_test_images(found: embedded_split.EmbeddedTestSet, folder: str) -> list[ReportFigure]:
    """Draws the embedded images into the folder: a gallery if there can be one, and t-SNE."""
    from embedding_learning.plots.html_report import ReportFigure

    gallery = ReportFigure("Queries and their nearest neighbors", f"{folder}/gallery.png")
    photographs = ReportFigure("t-SNE: photographs", f"{folder}/photographs.png")
    points = ReportFigure("t-SNE: classes", f"{folder}/points.png")
    draw_tsne_photographs(found, photographs.path)
    draw_tsne_points(found, points.path)
    try:
        draw_gallery(found, gallery.path)
    except DataError as error:
        logging.warning("The page has no gallery: %s.", error)
        return [photographs, points]
    return [gallery, photographs, points]


def _metric_rows(
    measured: Sequence[Mapping[str, Any]], saved: Measurement, saved_epoch: int
) -> list[dict[str, Any]]:
    """Returns the table of metrics: the recorded epochs, the saved network, and image counts."""
    rows = []
    for record in measured:
        if record.get("kind") == "evaluation":
            epoch = record.get("epoch")
            row_title = "before training" if epoch is None else f"epoch {epoch}"
            values = {name: value for name, value in record.items() if name in saved.values}
            rows.append({"": row_title, **values})
    rows.append({"": f"saved: epoch {saved_epoch}", **saved.values})
    without_match = {"without a match": saved.without_match}
    return [*rows, {"": "computed over, images", **saved.bases, **without_match}]


def _state(prefix: str, epochs: int) -> str:
    """Says when the report was written, and how far the run was then."""
    state = checkpoint_file.state_of(prefix)
    when = time.strftime("Written on %Y-%m-%d at %H:%M:%S (UTC%z)")
    if state is None:
        return f"{when}; the run's checkpoints are not there any more."
    done = f"{state.epoch} of {epochs} epochs"
    if state.batch:
        done += f" and {state.batch} batches"
    if state.is_going_on:
        return f"{when}, while the run was going on; its latest checkpoint was after {done}."
    if state.epoch < epochs:
        return f"{when}, when the run was stopped; its latest checkpoint was after {done}."
    return f"{when}, when the run was finished, after {done}."


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning report",
        description="Write a run's page: metrics, curves, t-SNE, gallery, command and versions.",
    )
    text = (
        "the run's --save-model-prefix: PREFIX.params and PREFIX.run are read; either may be named"
    )
    parser.add_argument("prefix", metavar="PREFIX", help=text)
    text = "the page (default: PREFIX.run/report.html)"
    parser.add_argument("--output", metavar="FILE", help=text)
    model_flags.add_devices(parser)
    options = parser.parse_args(arguments)
    model_flags.check(options)
    options.prefix = prefix_of(options.prefix)
    find_run(options.prefix)
    return options
