"""`report`: a run on one page that needs nothing but itself."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

from embedding_learning import model_flags, pictures, reporting, test_set
from embedding_learning import options as flags
from embedding_learning.datasets import DataError
from embedding_learning.evaluation import common_metrics, evaluate
from embedding_learning.flags import Parser, UsageError


def main(arguments: list[str]) -> int:
    """Embeds the run's test images with its best network, draws, and writes the page."""
    options = _parse(arguments)
    # Only now, since these import matplotlib.
    from embedding_learning import plots, records, report
    from embedding_learning.report import Picture

    output = options.output or f"{options.prefix}.run/report.html"
    report.check_path(output)
    folder = Path(f"{options.prefix}.run")
    typed, title, made_with = records.read_description(folder)
    # The prefix is the one that was named, wherever the run was started.
    run = flags.parse([*typed, f"--save-model-prefix={options.prefix}"], is_past=True)
    measured = records.read(folder)
    options.model_file, options.model = f"{options.prefix}.params", None
    for name in (
        *("data_path", "dataset", "train_classes", "held_out", "cache_dir", "bbox"),
        "skip_bad_images",
    ):
        setattr(options, name, getattr(run, name))
    with reporting.log_to_terminal():
        model = model_flags.load(options)
        found = test_set.embed(model, options)
    test, gallery = found.split.test, found.split.gallery
    metrics = evaluate(
        found.queries,
        test.labels,
        common_metrics(found.split.name),
        found.gallery,
        None if gallery is None else gallery.labels,
    )
    best = {"": f"saved: epoch {model.description['epoch']}", **metrics}
    epochs = [
        {"": f"epoch {record['epoch']}", **{k: v for k, v in record.items() if k in metrics}}
        for record in measured
        if record.get("kind") == "evaluation"
    ]
    with TemporaryDirectory() as name:
        drawn = [
            Picture("Curves", f"{name}/curves.png"),
            Picture("Distances of pairs", f"{name}/distances.png"),
            Picture("Queries and their nearest neighbours", f"{name}/gallery.png"),
            Picture("t-SNE: photographs", f"{name}/photographs.png"),
            Picture("t-SNE: classes", f"{name}/points.png"),
        ]
        plots.curves(measured, drawn[0].path, title)
        plots.distances(measured, drawn[1].path, title)
        pictures.draw_photographs(found, drawn[3].path)
        pictures.draw_points(found, drawn[4].path)
        try:
            pictures.draw_gallery(found, drawn[2].path)
        except DataError as error:
            logging.warning("The page has no gallery: %s.", error)
            del drawn[2]
        report.write(
            output,
            f"{Path(options.prefix).name}: {title}",
            shlex.join(["python3", "train.py", *typed]),
            vars(run),
            made_with,
            [*epochs, best],
            drawn,
        )
    print(output)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning report",
        description="Write a run's page: metrics, curves, t-SNE, gallery, command and versions.",
    )
    text = "the run's --save-model-prefix: PREFIX.params and PREFIX.run are read"
    parser.add_argument("prefix", metavar="PREFIX", help=text)
    text = "the page (default: PREFIX.run/report.html)"
    parser.add_argument("--output", metavar="FILE", help=text)
    model_flags.add_devices(parser)
    options = parser.parse_args(arguments)
    model_flags.check(options)
    for ending in (".run/", ".run", ".params"):
        options.prefix = options.prefix.removesuffix(ending)
    if not Path(f"{options.prefix}.run").is_dir():
        raise UsageError(f"{options.prefix}: no run of this prefix; its folder is PREFIX.run")
    return options
