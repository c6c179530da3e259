"""Reads the results of a comparison's runs, and computes means and deviations over seeds."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional

from embedding_learning.config import FLAGS, TrainConfig
from embedding_learning.errors import DataError, UsageError
from embedding_learning.evaluation.metrics import parse_metrics
from embedding_learning.model.methods import LOSSES
from embedding_learning.runtime.atomic_files import write_text
from embedding_learning.training import records
from embedding_learning.training.run_folder import RECORDS

TEST, HELD_OUT = SELECTIONS = ("test", "held-out")
# The names of a trial's only run, and of the run that ends a trial on held-out classes.
FIRST, FINAL = "", "final"
# The metric that selects the best epoch, as in train.py.
CRITERION = "recall@1"
# The keys of a record that are no metrics.
_NO_METRICS = {"kind", "epoch", "batch", "seconds"}
_PLAN = "comparison.json"

# The name of the sampling of a loss that takes the whole batch.
NO_SAMPLING = "none"
# The value of a varied flag among the flags that all runs of a folder share.
VARIED = "varied"
# What stands for the value of a varied flag in a cell where the flag has no effect.
NO_EFFECT = "-"
# Characters that need no quotes in any shell, and mean nothing to a file system.
_UNSAFE = re.compile(r"[^A-Za-z0-9._,+-]")
# A file name has at most 255 bytes; the seed, the run's name and suffixes follow.
_LONGEST_VALUE, _LONGEST_NAME = 40, 160


def pair_methods(losses: Sequence[str], samplings: Sequence[str]) -> list[tuple[str, str]]:
    """Returns each loss with each sampling; a loss that takes no sampling is there once."""
    return [
        (loss, sampling)
        for loss in losses
        for sampling in (samplings if LOSSES[loss].samples else (NO_SAMPLING,))
    ]


class Cell(NamedTuple):
    """What a row of the table is about: runs that differ in their seed alone.

    Attributes
    ----------
    loss, sampling : str
        The sampling may be `NO_SAMPLING`.
    varied : tuple of (str, str)
        Each varied flag without its dashes, and its value; `NO_EFFECT` where it has none. All cells
        of a comparison have the same flags.
    """

    loss: str
    sampling: str
    varied: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The beginning of its files' names. The order of the varied flags does not matter."""
        values = [
            f"{flag}={_file_name(value)}"
            for flag, value in sorted(self.varied)
            if value != NO_EFFECT
        ]
        name = "_".join([self.loss, self.sampling, *values])
        return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{_digest(name)}"


class CellFlags(NamedTuple):
    """What all runs of a cell have in common.

    Attributes
    ----------
    arguments : tuple of str
        Flags of train.py, without those that each run has of its own, such as its seed.
    config : TrainConfig
        The same flags, read.
    """

    arguments: tuple[str, ...]
    config: TrainConfig


def _file_name(value: str) -> str:
    """Returns a value as a part of a file name; of a long or unsafe one its end and a digest."""
    safe = _UNSAFE.sub("-", value)[-_LONGEST_VALUE:]
    return safe if safe == value else f"{safe}-{_digest(value)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


class Trial(NamedTuple):
    """A cell with a seed.

    It is trained once. If the epoch is selected on held-out classes, a second and final run trains
    with all classes. With K folds of these, there are K runs before it, each with another fold.
    """

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """The beginning of its files' names."""
        return f"{self.cell.name}_{self.seed}"


class Evaluation(NamedTuple):
    """The evaluation of an epoch.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    seconds : float
        Time of training and evaluation since the run began.
    metrics : dict of str to float
        Each between 0 and 1; `CRITERION` is among them.
    """

    epoch: int
    seconds: float
    metrics: dict[str, float]


class Outcome(NamedTuple):
    """The result of a finished trial.

    Attributes
    ----------
    trial : Trial
    epoch : int
        The selected epoch; of equally good ones the first.
    reported : dict of str to float
        Metrics of the test classes after the selected epoch. If the epoch was selected on held-out
        classes: after the last epoch of the final run, which is as long.
    other : dict of str to float
        Metrics of the test classes after the last epoch. If the epoch was selected on held-out
        classes: metrics of those after the selected epoch, the mean over the folds.
    seconds : float
        Time of training and evaluation, of all runs of the trial.
    """

    trial: Trial
    epoch: int
    reported: dict[str, float]
    other: dict[str, float]
    seconds: float


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) of `size` values; None for too few values."""

    size: int
    mean: Optional[float]
    deviation: Optional[float]


class Row(NamedTuple):
    """The results of a cell, over the seeds that are finished."""

    cell: Cell
    reported: dict[str, Spread]
    other: dict[str, Spread]
    epoch: Spread
    seconds: Spread


def name_selecting_runs(folds: int) -> tuple[str, ...]:
    """Returns the names of the runs that select a trial's epoch: one for each fold."""
    return (FIRST,) if folds == 1 else tuple(f"fold{fold}" for fold in range(1, folds + 1))


def name_runs(select_on: str, folds: int) -> tuple[str, ...]:
    """Returns the names of a trial's runs, in the order in which they are trained."""
    return (*name_selecting_runs(folds), *((FINAL,) if select_on == HELD_OUT else ()))


def trial_prefix(folder: Path, trial: Trial, run: str = FIRST) -> Path:
    """Returns the --save-model-prefix of a run of a trial, given by its name."""
    return folder / "runs" / (f"{trial.name}_{run}" if run else trial.name)


def read_evaluations(run_prefix: Path) -> list[Evaluation]:
    """Returns the evaluations that a run has recorded so far, by epoch; none if it has not begun.

    Raises DataError if its records are damaged.
    """
    folder = Path(f"{run_prefix}.run")
    if not (folder / RECORDS).exists():
        return []
    by_epoch = {}
    for record in records.read(folder):
        # The evaluation before training belongs to no epoch.
        if record.get("kind") == "evaluation" and record.get("epoch") is not None:
            metrics = {
                name: float(value)
                for name, value in record.items()
                if name not in _NO_METRICS and _is_number(value)
            }
            epoch, seconds = record.get("epoch"), record.get("seconds")
            if not isinstance(epoch, int) or not _is_number(seconds) or CRITERION not in metrics:
                raise DataError(
                    f"{folder / RECORDS}: contains no {CRITERION}; the file was changed"
                )
            by_epoch[epoch] = Evaluation(epoch, float(record["seconds"]), metrics)
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Returns the evaluation of the epoch that train.py saves as the best."""
    return max(evaluations, key=lambda e: (e.metrics[CRITERION], -e.epoch))


def mean_evaluations(runs: Sequence[Sequence[Evaluation]]) -> list[Evaluation]:
    """Returns the mean of each metric over runs, for each epoch that all have evaluated.

    The seconds are those of all runs together.
    """
    means = []
    for of_epoch in zip(*runs):
        metrics = {
            name: statistics.fmean(evaluation.metrics[name] for evaluation in of_epoch)
            for name in of_epoch[0].metrics
            if all(name in evaluation.metrics for evaluation in of_epoch)
        }
        seconds = sum(evaluation.seconds for evaluation in of_epoch)
        means.append(Evaluation(of_epoch[0].epoch, seconds, metrics))
    return means


def read_selection(
    folder: Path, trial: Trial, epochs: int, folds: int = 1
) -> list[Evaluation] | None:
    """Returns the evaluations that select a trial's epoch; None until all its runs are finished."""
    runs = [
        read_evaluations(trial_prefix(folder, trial, run)) for run in name_selecting_runs(folds)
    ]
    return mean_evaluations(runs) if all(is_finished(run, epochs) for run in runs) else None


def is_finished(evaluations: Sequence[Evaluation], epochs: int) -> bool:
    """Returns whether the last of that many epochs was evaluated."""
    return bool(evaluations) and evaluations[-1].epoch >= epochs - 1


def read_outcome(
    folder: Path, trial: Trial, epochs: int, select_on: str, folds: int = 1
) -> Outcome | None:
    """Returns the outcome of a trial; None as long as it is not finished.

    `epochs` is the number of epochs of the runs that select.
    """
    first = read_selection(folder, trial, epochs, folds)
    if first is None:
        return None
    chosen = best_evaluation(first)
    if select_on == TEST:
        return Outcome(trial, chosen.epoch, chosen.metrics, first[-1].metrics, first[-1].seconds)
    final = read_evaluations(trial_prefix(folder, trial, FINAL))
    if not is_finished(final, chosen.epoch + 1):
        return None
    last, seconds = final[-1], first[-1].seconds + final[-1].seconds
    return Outcome(trial, chosen.epoch, last.metrics, chosen.metrics, seconds)


def compute_spread(values: Sequence[float]) -> Spread:
    """Returns mean and deviation of values over seeds."""
    mean = statistics.fmean(values) if values else None
    return Spread(len(values), mean, statistics.stdev(values) if len(values) > 1 else None)


def summarize(cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns a row for each cell, in order, even if no trial is finished."""
    names = metric_names([metrics for o in outcomes for metrics in (o.reported, o.other)])
    rows = []
    for cell in cells:
        of_cell = [o for o in outcomes if o.trial.cell == cell]
        rows.append(
            Row(
                cell=cell,
                reported=_compute_spreads(names, [o.reported for o in of_cell]),
                other=_compute_spreads(names, [o.other for o in of_cell]),
                epoch=compute_spread([o.epoch for o in of_cell]),
                seconds=compute_spread([o.seconds for o in of_cell]),
            )
        )
    return rows


def metric_names(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """Returns the names of all metrics, the criterion first."""
    return list(dict.fromkeys([CRITERION, *(name for values in metrics for name in values)]))


def _compute_spreads(
    names: Sequence[str], metrics: Sequence[Mapping[str, float]]
) -> dict[str, Spread]:
    """Returns the spread of each metric."""
    return {name: compute_spread([m[name] for m in metrics if name in m]) for name in names}


def claim_folder(folder: Path, plan: Mapping[str, Any]) -> None:
    """Writes the flags that all runs share into the folder, or compares them with those there.

    Raises UsageError that names all flags that differ.
    """
    file = folder / _PLAN
    plan = json.loads(json.dumps(plan))
    # As long as no run has begun, the flags may change.
    if not file.exists() or not any((folder / "runs").glob("*.run")):
        write_text(file, json.dumps(plan, indent=1), "name another --output")
        return
    try:
        former = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        former = None
    if not isinstance(former, dict):
        raise UsageError(f"--output {folder}: {file} is damaged; name another folder")
    former = _complete_plan(former)
    differing = [
        name
        for name, value in plan.items()
        # A flag that did not exist and has no former value was off.
        if (former[name] != value if name in former else value)
    ]
    if differing:
        # If other flags are varied, these say enough.
        differing = [n for n in differing if VARIED in (plan[n], former.get(n))] or differing
        if former["--folds"] != 1 and "--folds" in differing:
            # These decide --held-out, which then cannot be given.
            differing = [name for name in differing if name != "--held-out"]
        flags = ", ".join(_format_flag(name, former.get(name)) for name in differing)
        raise UsageError(
            f"--output {folder}: its runs were made with {flags}; give these, or name another "
            "folder"
        )


def _complete_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plan of any version with the flags and the form of this one."""
    former_values = {flag.name: flag.before for flag in FLAGS.values() if flag.before is not None}
    plan = {"--folds": 1, **former_values, **plan}
    # Version 0.1 kept the text that was typed.
    if isinstance(plan.get("--metrics"), str):
        with suppress(ValueError):
            metrics = parse_metrics(plan["--metrics"])
            plan["--metrics"] = list(dict.fromkeys([CRITERION, *metrics]))
    return plan


def _format_flag(flag: str, value: Any) -> str:
    """Returns a flag from a file as text on one line."""
    if value is None or isinstance(value, bool):
        return flag if value else f"no {flag}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{flag} {text[:100]!r}" if not text.isprintable() else f"{flag} {text[:100]}"
