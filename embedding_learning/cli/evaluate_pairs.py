"""`evaluate --pairs`: verification, are two images of one class?"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedding_learning.cli import model_flags
from embedding_learning.cli.parser import expand_path
from embedding_learning.config import as_flag
from embedding_learning.data.datasets import pairs
from embedding_learning.data.datasets.pairs import PairList
from embedding_learning.errors import DataError, UsageError
from embedding_learning.evaluation import verification
from embedding_learning.evaluation.verification import (
    FALSE_ACCEPT_RATES,
    FoldAccuracies,
    OperatingPoint,
)
from embedding_learning.runtime.atomic_files import check_input_is_kept
from embedding_learning.runtime.progress import log_to_terminal

# Folds of a list that has none, as in LFW.
_FOLDS = 10
# With fewer false accepts than this a rate is mostly chance.
_FEW = 10
# Other flags of `evaluate`: the list of pairs decides the images, and what is measured.
_WITHOUT_EFFECT = (
    "dataset", "bbox", "train_classes", "test", "cache_dir", "skip_bad_images", "metrics",
    "confusions",
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of verification."""
    group = parser.add_argument_group("verification")
    text = (
        "decide for pairs of images whether they show the same class: a pairs.txt of LFW, or a "
        ".csv file with first,second,type (same or different) and, if there are folds, fold; "
        "--data-path names the folder of the images (default: that of FILE)"
    )
    group.add_argument("--pairs", type=expand_path, metavar="FILE", help=text)
    text = "draw the ROC of --pairs, PNG or SVG"
    group.add_argument("--roc", type=expand_path, metavar="FILE", help=text)


def check(options: argparse.Namespace, typed: Collection[str]) -> None:
    """Raises UsageError if a flag that was typed, given by its key, has no effect.

    Sets `options.image_folder`: the folder of the images, or None for that of the list.
    """
    if options.pairs is None:
        if options.roc is not None:
            raise UsageError("--roc: is for --pairs; leave it out")
        return
    for key in _WITHOUT_EFFECT:
        if key in typed:
            raise UsageError(f"{as_flag(key)}: has no effect next to --pairs; leave it out")
    options.image_folder = Path(options.data_path) if "data_path" in typed else None


def run(options: argparse.Namespace) -> int:
    """Embeds the images of all pairs, prints a table or JSON, draws the ROC; returns 0."""
    # Imported here and not above: --help needs none of it.
    from embedding_learning import plots
    from embedding_learning.inference.embedded_split import embed_images

    if options.roc is not None:
        plots.check_plot_path(options.roc)
    listed = pairs.read(Path(options.pairs), options.image_folder)
    if options.roc is not None:
        check_input_is_kept(options.roc, listed.images.paths, "--roc")
    folds = _find_folds(options.pairs, listed)
    with log_to_terminal():
        model = model_flags.load(options)
        embeddings = embed_images(model, listed.images, options.batch_size, options.workers)
    distances = verification.pair_distances(embeddings, listed.first, listed.second)
    of_folds = verification.compute_fold_accuracies(distances, listed.is_same, folds)
    roc = verification.compute_roc(distances, listed.is_same)
    points = {
        f"tar@far={rate:g}": verification.find_operating_point(roc, rate)
        for rate in FALSE_ACCEPT_RATES
    }
    if options.roc is not None:
        title = f"ROC, {os.path.basename(options.pairs)}"
        plots.plot_roc(roc, list(points.values()), options.roc, title)
    print((_format_json if options.json else _format_table)(options, listed, of_folds, points))
    return 0


def _find_folds(file: str, listed: PairList) -> np.ndarray:
    """Returns the fold of each pair, (p,): that in the file, or one of at most ten in turn.

    Raises DataError if there are too few pairs to make folds.
    """
    if listed.folds is not None:
        return listed.folds
    same = int(listed.is_same.sum())
    fewest = min(same, len(listed) - same)
    if fewest < 2:
        raise DataError(
            f"{file}: has {same} pairs that are same and {len(listed) - same} that are different; "
            "at least two of either type are needed"
        )
    return verification.assign_folds(listed.is_same, min(_FOLDS, fewest))


def _format_table(
    options: argparse.Namespace,
    listed: PairList,
    of_folds: FoldAccuracies,
    points: Mapping[str, OperatingPoint],
) -> str:
    same = int(listed.is_same.sum())
    different = len(listed) - same
    low, high = of_folds.thresholds.min(), of_folds.thresholds.max()
    lines = [
        f"{options.model_file} on {options.pairs}: {len(listed.images)} images, {same} pairs are "
        f"same, {different} are different.",
        f"{'accuracy':14s} {of_folds.mean:.4f} ± {of_folds.standard_error:.4f}  mean of "
        f"{len(of_folds.accuracies)} folds and its standard error, thresholds {low:.4f} to "
        f"{high:.4f}",
    ]
    for name, point in points.items():
        lines.append(
            f"{name:14s} {point.true_accept_rate:.4f}  {point.same} of {same} accepted, with "
            f"{point.different} of {different} that are different"
        )
    if listed.folds is None:
        lines.append(
            "The file has no folds: its pairs are dealt out to folds in turn, so an image may be "
            "in several of them."
        )
    few = [name for name, rate in zip(points, FALSE_ACCEPT_RATES) if rate * different < _FEW]
    if few:
        lines.append(
            f"{', '.join(few)}: decided by fewer than {_FEW} of the {different} pairs that are "
            "different."
        )
    return "\n".join(lines)


def _format_json(
    options: argparse.Namespace,
    listed: PairList,
    of_folds: FoldAccuracies,
    points: Mapping[str, OperatingPoint],
) -> str:
    same = int(listed.is_same.sum())
    content: dict[str, Any] = {
        "pairs": options.pairs,
        "images": len(listed.images),
        "same": same,
        "different": len(listed) - same,
        "has_folds": listed.folds is not None,
        "accuracy": of_folds.mean,
        "standard_error": of_folds.standard_error,
        "fold_accuracies": of_folds.accuracies.tolist(),
        "fold_thresholds": [_finite(value) for value in of_folds.thresholds],
    }
    for name, point in points.items():
        content[name] = {
            "tar": point.true_accept_rate,
            "threshold": _finite(point.threshold),
            "accepted_same": point.same,
            "accepted_different": point.different,
        }
    return json.dumps(content)


def _finite(threshold: float) -> float | None:
    """Returns the threshold for JSON, which has no infinity: None accepts no pair."""
    return float(threshold) if math.isfinite(threshold) else None
