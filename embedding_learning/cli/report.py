"""`report`: a run on one HTML page that loads no other file."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_learning.cli import model_flags
from embedding_learning.cli.evaluate import CONFUSION_COLUMNS
from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.cli.plot import (
    draw_confusions,
    draw_distances,
    draw_gallery,
    draw_run_curves,
    draw_tsne_photographs,
    draw_tsne_points,
    place_test_images,
)
from embedding_learning.cli.train_flags import parse
from embedding_learning.config import DataConfig, TestImages
from embedding_learning.data.datasets import glyphs
from embedding_learning.errors import DataError, UsageError
from embedding_learning.evaluation.metrics import Measurement, common_metrics
from embedding_learning.inference import embedded_split
from embedding_learning.inference.embedded_split import EmbeddedSplit
from embedding_learning.inference.run_files import find_run, prefix_of
from embedding_learning.runtime.progress import log_to_terminal
from embedding_learning.runtime.user_folders import scratch_folder
from embedding_learning.training import records, run_folder

if TYPE_CHECKING:
    from embedding_learning.plots.html_report import ReportFigure

_CONFUSIONS = "Classes that are taken for others"
_CONFUSION_ROWS = 20


def main(arguments: list[str]) -> int:
    """Embeds the run's test images with its saved network, draws them, and writes the page."""
    options = _parse(arguments)
    # Imported only now: they import MXNet and matplotlib, and --help needs neither.
    from embedding_learning.inference.embedding_model import load_model
    from embedding_learning.plots import html_report
    from embedding_learning.runtime.devices import find_devices

    output = options.output or f"{options.prefix}.run/report.html"
    html_report.check_report_path(output)
    folder = Path(f"{options.prefix}.run")
    info = records.RunInfo.read(folder)
    network = f"{options.prefix}.params"
    if not Path(network).exists():
        raise UsageError(
            f"{network}: does not exist; a run saves its network after its first epoch"
        )
    # The prefix is the given one: the run may have been started in another folder.
    config = parse([*info.arguments, f"--save-model-prefix={options.prefix}"], is_past=True)
    _check_data_exist(config.data)
    recorded, state = records.read(folder), _state(options.prefix, config.run.epochs)
    with log_to_terminal():
        model = load_model(
            network,
            find_devices(options.gpus),
            exif_orientation=options.exif_orientation,
            resize=options.resize,
            resize_to=options.resize_to,
            engine=options.engine,
        )
        embedded = embedded_split.embed_split(
            model, _test_images(config.data), options.batch_size, options.workers
        )
    # Those that papers report for the data set, and those of the run.
    metrics = [*common_metrics(embedded.split.recall_at), *config.run.metrics]
    measurement = embedded.measure(list(dict.fromkeys(metrics)))
    with scratch_folder() as scratch:
        html_report.write_report(
            output,
            title=f"{Path(options.prefix).name}: {info.title}",
            command=shlex.join(["python3", "train.py", *info.arguments]),
            flags=config.as_flags(),
            versions=info.made_with,
            metrics=_table(recorded, measurement, model.description["epoch"]),
            figures=[
                *_run_figures(recorded, info.title, scratch),
                *_network_figures(embedded, scratch),
            ],
            notes=[state, "Epochs are counted from 0, as in the log."],
            notes_on_metrics=measurement.notes(),
        )
    print(output)
    return 0


def _check_data_exist(data: DataConfig) -> None:
    """Raises UsageError if the run's images are not where its flags say, seen from this folder."""
    is_built_in = glyphs.NAME in (data.path, data.dataset)
    if not is_built_in and not os.path.exists(data.path):
        raise UsageError(
            f"--data-path {data.path} of the run: no such file or folder here; call report in the "
            "folder that the run was started in, or put the images back"
        )


def _test_images(data: DataConfig) -> TestImages:
    """Returns the images that the run was evaluated on: other images cannot be compared."""
    return TestImages(
        data_path=data.path,
        cache_dir=data.cache_dir,
        dataset=data.dataset,
        train_classes=data.train_classes,
        held_out=data.held_out,
        held_out_fold=data.held_out_fold,
        bbox=data.bbox,
        skip_bad_images=data.skip_bad_images,
    )


def _table(
    recorded: list[dict[str, Any]], measurement: Measurement, saved_epoch: int
) -> list[dict[str, Any]]:
    """Returns the rows of the table: each evaluation, the saved network, the metrics' bases."""
    metrics = measurement.values
    epochs = [
        {"": _when(record.get("epoch")), **{k: v for k, v in record.items() if k in metrics}}
        for record in recorded
        if record.get("kind") == "evaluation"
    ]
    best = {"": f"saved: epoch {saved_epoch}", **metrics}
    bases = {
        "": "computed over, images",
        **measurement.bases,
        "without a match": measurement.without_match,
    }
    return [*epochs, best, bases]


def _run_figures(recorded: list[dict[str, Any]], title: str, folder: str) -> Iterator[ReportFigure]:
    """Draws the curves and the distances of a run, as far as they are recorded."""
    from embedding_learning.plots.html_report import ReportFigure

    for heading, draw in {"Curves": draw_run_curves, "Distances of pairs": draw_distances}.items():
        figure = ReportFigure(heading, f"{folder}/{heading}.png")
        with suppress(DataError):  # No such record exists yet.
            draw(recorded, figure.path, title)
            yield figure


def _network_figures(embedded: EmbeddedSplit, folder: str) -> Iterator[ReportFigure]:
    """Draws the test images as the network embeds them. t-SNE is computed once for both maps."""
    from embedding_learning.plots.html_report import ReportFigure

    plane = place_test_images(embedded)
    drawn: dict[str, Callable[[EmbeddedSplit, str], None]] = {
        "Queries and their nearest neighbors": draw_gallery,
        _CONFUSIONS: draw_confusions,
        "t-SNE: photographs": partial(draw_tsne_photographs, plane=plane),
        "t-SNE: classes": partial(draw_tsne_points, plane=plane),
    }
    for number, (heading, draw) in enumerate(drawn.items()):
        table = _confusion_table(embedded) if heading == _CONFUSIONS else ()
        figure = ReportFigure(heading, f"{folder}/{number}.png", table=table)
        try:
            draw(embedded, figure.path)
        except DataError as error:
            logging.warning("The page has no %s: %s.", heading, error)
        else:
            yield figure


def _confusion_table(embedded: EmbeddedSplit) -> list[Sequence[str]]:
    """Returns the head and the rows of a table of the classes that are taken for another one."""
    names = embedded.split.test.class_names
    rows = [
        (names[label], names[taken_for], str(len(queries)), str(images))
        for label, taken_for, queries, images in embedded.confusions[:_CONFUSION_ROWS]
    ]
    return [CONFUSION_COLUMNS, *rows]


def _when(epoch: int | None) -> str:
    """Returns the name of a row of the table."""
    return "before training" if epoch is None else f"epoch {epoch}"


def _state(prefix: str, epochs: int) -> str:
    """Says when the report was written, and how far the run had come by then."""
    state = run_folder.state_of(prefix)
    when = time.strftime("Written on %Y-%m-%d at %H:%M:%S (UTC%z)")
    if state is None:
        return f"{when}; the run's checkpoints do not exist any more."
    done = f"{state.epoch} of {epochs} epochs"
    if state.batch:
        done += f" and {state.batch} batches"
    if state.is_running:
        return f"{when}, while the run was training; its latest checkpoint was after {done}."
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
    parser.add_argument("--output", type=expand_path, metavar="FILE", help=text)
    model_flags.add_devices(parser)
    options = parser.parse_args(arguments)
    model_flags.check(options)
    options.prefix = prefix_of(options.prefix)
    find_run(options.prefix)
    return options
