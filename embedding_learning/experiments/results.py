"""A comparison's numbers: what its runs have recorded, and means and deviations over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from embedding_learning.errors import DataError, UsageError
from embedding_learning.model.methods import LOSSES
from embedding_learning.runtime.atomic_files import atomic_write
from embedding_learning.training import records
from embedding_learning.training.checkpoint_file import RECORDS

TEST, HELD_OUT = SELECTIONS = ("test", "held-out")
# By which the best epoch is chosen, as train.py does.
CRITERION = "recall@1"
# Of a record, what is no metric.
_WHEN = {"kind", "epoch", "batch", "seconds"}
_PLAN = "comparison.json"


def flags_for(loss: str, flags: Sequence[str]) -> list[str]:
    """The flags of train.py for runs with that loss, from those that all runs have in common.

    A loss without beta has no use for --beta-per, and train.py refuses flags without effect.
    """
    common = flags if LOSSES[loss].has_beta else _without(flags, "--beta-per")
    return [*common, f"--loss={loss}"]


def _without(flags: Sequence[str], flag: str) -> list[str]:
    """The flags less one that takes a value, wherever it stands among them."""
    kept, left = [], iter(flags)
    for typed in left:
        if typed == flag:
            next(left, None)
        elif not typed.startswith(f"{flag}="):
            kept.append(typed)
    return kept


class Trial(NamedTuple):
    """A loss, a sampling and a seed; trained once, or with held-out classes and then finally."""

    loss: str
    sampling: str
    seed: int

    @property
    def name(self) -> str:
        """What its files' names begin with."""
        return f"{self.loss}_{self.sampling}_{self.seed}"


class Evaluation(NamedTuple):
    """What an epoch's evaluation showed.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    seconds : float
        Of training and evaluating since the run began.
    metrics : dict of str to float
        Between 0 and 1, `CRITERION` among them.
    """

    epoch: int
    seconds: float
    metrics: dict[str, float]


class Outcome(NamedTuple):
    """What a finished run comes to.

    Attributes
    ----------
    trial : Trial
    epoch : int
        The one selected: of several that are equally good, the first.
    reported : dict of str to float
        Metrics of the test classes: after the selected epoch, or if that was selected on held-out
        classes, after the last epoch of the final training, which is as long.
    other : dict of str to float
        Metrics of the test classes after the last epoch; or if the epoch was selected on held-out
        classes, of these after it.
    seconds : float
        Of training and evaluating, all in all.
    """

    trial: Trial
    epoch: int
    reported: dict[str, float]
    other: dict[str, float]
    seconds: float


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) of so many values; none of too few."""

    size: int
    mean: Optional[float]
    deviation: Optional[float]


class Row(NamedTuple):
    """A loss with a sampling, over its finished seeds."""

    loss: str
    sampling: str
    reported: dict[str, Spread]
    other: dict[str, Spread]
    epoch: Spread
    seconds: Spread


def trial_prefix(folder: Path, run: Trial, is_final: bool = False) -> Path:
    """A run's --save-model-prefix; final is its training on all classes after a selection."""
    return folder / "runs" / f"{run.name}{'_final' if is_final else ''}"


def read_evaluations(run_prefix: Path) -> list[Evaluation]:
    """What a run has recorded so far, by epoch; nothing if it has not begun.

    Raises DataError if its records are damaged.
    """
    folder = Path(f"{run_prefix}.run")
    if not (folder / RECORDS).exists():
        return []
    found = {}
    for record in records.read(folder):
        # The network before training is of no epoch.
        if record.get("kind") == "evaluation" and record.get("epoch") is not None:
            metrics = {
                name: float(value)
                for name, value in record.items()
                if name not in _WHEN and _is_number(value)
            }
            epoch, seconds = record.get("epoch"), record.get("seconds")
            if not isinstance(epoch, int) or not _is_number(seconds) or CRITERION not in metrics:
                raise DataError(f"{folder / RECORDS}: tells no {CRITERION}; the file was changed")
            found[epoch] = Evaluation(epoch, float(record["seconds"]), metrics)
    return [found[epoch] for epoch in sorted(found)]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def best_evaluation(of: Sequence[Evaluation]) -> Evaluation:
    """The epoch that train.py saves as the best."""
    return max(of, key=lambda evaluation: (evaluation.metrics[CRITERION], -evaluation.epoch))


def is_finished(of: Sequence[Evaluation], epochs: int) -> bool:
    """Whether the last of so many epochs was evaluated."""
    return bool(of) and of[-1].epoch >= epochs - 1


def read_outcome(folder: Path, run: Trial, epochs: int, select_on: str) -> Outcome | None:
    """What the run comes to; None as long as it is not finished.

    `epochs` is the number that it trains; if selected on held-out classes, with these kept out.
    """
    first = read_evaluations(trial_prefix(folder, run))
    if not is_finished(first, epochs):
        return None
    chosen = best_evaluation(first)
    if select_on == TEST:
        return Outcome(run, chosen.epoch, chosen.metrics, first[-1].metrics, first[-1].seconds)
    final = read_evaluations(trial_prefix(folder, run, is_final=True))
    if not is_finished(final, chosen.epoch + 1):
        return None
    last, seconds = final[-1], first[-1].seconds + final[-1].seconds
    return Outcome(run, chosen.epoch, last.metrics, chosen.metrics, seconds)


def compute_spread(values: Sequence[float]) -> Spread:
    """Over seeds."""
    mean = statistics.fmean(values) if values else None
    return Spread(len(values), mean, statistics.stdev(values) if len(values) > 1 else None)


def summarize(pairs: Sequence[tuple[str, str]], outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each pair of loss and sampling, in their order, also if none of it is finished."""
    names = metric_names([metrics for o in outcomes for metrics in (o.reported, o.other)])
    rows = []
    for pair in pairs:
        some = [found for found in outcomes if (found.trial.loss, found.trial.sampling) == pair]
        rows.append(
            Row(
                *pair,
                _spreads(names, [found.reported for found in some]),
                _spreads(names, [found.other for found in some]),
                compute_spread([found.epoch for found in some]),
                compute_spread([found.seconds for found in some]),
            )
        )
    return rows


def metric_names(of: Sequence[Mapping[str, float]]) -> list[str]:
    """All of them, the criterion first."""
    return list(dict.fromkeys([CRITERION, *(name for metrics in of for name in metrics)]))


def _spreads(names: Sequence[str], metrics: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {name: compute_spread([m[name] for m in metrics if name in m]) for name in names}


def claim_folder(folder: Path, plan: Mapping[str, Any]) -> None:
    """Writes down what the folder's runs have in common, or compares it with what stands there.

    Raises UsageError that names all that differs.
    """
    file = folder / _PLAN
    plan = json.loads(json.dumps(plan))
    # What no run was begun with is bound to nothing.
    if not file.exists() or not any((folder / "runs").glob("*.run")):
        try:
            with atomic_write(file) as partial, open(partial, "w", encoding="utf-8") as opened:
                json.dump(plan, opened, indent=1)
        except OSError as error:
            raise UsageError(f"--output {file}: cannot be written: {error.strerror}") from error
        return
    try:
        former = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        former = None
    if not isinstance(former, dict):
        raise UsageError(f"--output {folder}: {file} is damaged; name another folder")
    # A flag that was not there yet had its default.
    differing = [name for name in plan if former.get(name, plan[name]) != plan[name]]
    if differing:
        told = ", ".join(_shown(name, former[name]) for name in differing)
        raise UsageError(
            f"--output {folder}: its runs were made with {told}; give these, or name another folder"
        )


def _shown(flag: str, value: Any) -> str:
    """A flag from a file, in a line of text."""
    if value is None or isinstance(value, bool):
        return flag if value else f"no {flag}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{flag} {text[:100]!r}" if not text.isprintable() else f"{flag} {text[:100]}"
