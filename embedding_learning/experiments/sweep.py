"""Runs the trials of a comparison, logs their progress, and writes the tables after each run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from embedding_learning import plots
from embedding_learning.errors import DataError
from embedding_learning.experiments import results, tables
from embedding_learning.experiments.process_pool import TrainFunction
from embedding_learning.experiments.results import (
    CRITERION,
    FINAL,
    HELD_OUT,
    TEST,
    Cell,
    CellFlags,
    Outcome,
    Trial,
    trial_prefix,
)
from embedding_learning.runtime.atomic_files import write_text
from embedding_learning.training import records

_LONGEST_LINE = 300  # characters
_SELECTED = {
    TEST: "The best epoch was selected on the test classes, as the original example does, which "
    "flatters it; the last epoch was not selected.",
    HELD_OUT: "The epoch was selected on held-out training classes; then all training classes were "
    "trained for as long, and the test classes evaluated at the end. Recall among the held-out "
    "classes cannot be compared with recall among the test classes: other images are searched.",
}


class Comparison:
    """The trials of a comparison in a folder.

    Parameters
    ----------
    folder : Path
    trials : sequence of Trial
        In the order in which they are trained.
    flags : mapping of Cell to CellFlags
        Of all cells, in the order of the table's rows.
    select_on : str
        One of `results.SELECTIONS`.
    folds : int
        The folds of held-out classes, each held out by a run; 1: one run, as `flags` say.
    typed : str
        The flags as the user typed them, for the caption.
    parallel : int
        Number of runs at the same time.
    leave_out_unused : callable
        Returns flags of train.py without those that have no effect.

    Attributes
    ----------
    failed : list of Trial
        In the order in which they failed.
    """

    def __init__(
        self,
        folder: Path,
        trials: Sequence[Trial],
        flags: Mapping[Cell, CellFlags],
        select_on: str,
        typed: str,
        parallel: int,
        folds: int = 1,
        leave_out_unused: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self._folder = folder
        self._trials = trials
        self._flags = flags
        self._select_on = select_on
        self._folds = folds
        self._runs = results.name_runs(select_on, folds)
        self._typed = typed
        self._parallel = parallel
        self._leave_out_unused = leave_out_unused
        self.failed: list[Trial] = []
        # It is held while records are read and tables written, not while a run trains.
        self._lock = Lock()
        # Epochs that this call has trained, and the time for them, start of the runs included.
        self._epochs = 0
        self._seconds = 0.0

    def run_trial(self, trial: Trial, train: TrainFunction) -> None:
        """Trains what is left of a trial and logs the result; blocks until it is done.

        Several threads may call it at the same time, each with another trial.
        """
        for run in self._runs:
            with self._lock:
                epochs = self._planned_epochs(trial, run)
                if self._epochs_left(trial, run) == 0:
                    continue
                prefix = trial_prefix(self._folder, trial, run)
                done = len(results.read_evaluations(prefix))
                logging.info("%s %s.", prefix.name, "resumes" if done else "starts")
            started = time.monotonic()
            log = Path(f"{prefix}.log")
            status = train(self._build_flags(trial, run, epochs), log)
            with self._lock:
                evaluations = results.read_evaluations(prefix)
                self._seconds += time.monotonic() - started
                self._epochs += max(0, len(evaluations) - done)
                if status != 0 or not results.is_finished(evaluations, epochs):
                    self.failed.append(trial)
                    logging.error(
                        "%s failed (status %d), its log is %s: %s",
                        prefix.name, status, log, _last_line(log),
                    )  # fmt: skip
                    return
                chosen = evaluations[-1] if run == FINAL else results.best_evaluation(evaluations)
                logging.info(
                    "%s ends: Recall@1 %.4f of epoch %d; %s.",
                    prefix.name, chosen.metrics[CRITERION], chosen.epoch, self._format_time_left(),
                )  # fmt: skip
                self.write_tables()

    def outcomes(self) -> list[Outcome]:
        """Returns the outcomes of the trials that are finished."""
        outcomes = [
            results.read_outcome(
                self._folder, trial, self._epochs_of(trial), self._select_on, self._folds
            )
            for trial in self._trials
        ]
        return [outcome for outcome in outcomes if outcome]

    def write_tables(self) -> str:
        """Writes tables and plot of all results so far; returns the table for a terminal."""
        outcomes = self.outcomes()
        cells = list(self._flags)
        seeds = len({trial.seed for trial in self._trials})
        rows = results.summarize(cells, outcomes)
        shown = rows, seeds, self._select_on, self._caption()
        for name, content in {
            "runs.csv": tables.format_epochs(
                self._folder, self._trials, self._select_on, self._runs
            ),
            "comparison.csv": tables.format_rows(rows, self._select_on),
            "comparison.md": tables.format_markdown(*shown) + "\n",
        }.items():
            write_text(self._folder / name, content)
        subject, labels = _label_cells(cells)
        panels = {
            title: {
                labels[cell]: [
                    getattr(outcome, metrics)[CRITERION]
                    for outcome in outcomes
                    if outcome.trial.cell == cell
                ]
                for cell in cells
            }
            for title, metrics in zip(tables.TITLES[self._select_on], ("reported", "other"))
        }
        file = str(self._folder / "comparison.png")
        plots.plot_comparison(panels, file, self._caption(), subject)
        return tables.format_text(*shown)

    def _epochs_of(self, trial: Trial) -> int:
        """Returns the epochs of a trial's runs, of the final run at most."""
        return self._flags[trial.cell].config.run.epochs

    def _planned_epochs(self, trial: Trial, run: str) -> int:
        """Returns how many epochs a run has; for a final run at most, until they are selected."""
        epochs = self._epochs_of(trial)
        if run == FINAL:
            selecting = results.read_selection(self._folder, trial, epochs, self._folds)
            if selecting is not None:
                return results.best_evaluation(selecting).epoch + 1
        return epochs

    def _epochs_left(self, trial: Trial, run: str) -> int:
        """Returns how many epochs of a run are still to be trained."""
        evaluations = results.read_evaluations(trial_prefix(self._folder, trial, run))
        start = self._flags[trial.cell].config.run.start_epoch
        next_epoch = evaluations[-1].epoch + 1 if evaluations else start
        return max(0, self._planned_epochs(trial, run) - next_epoch)

    def _build_flags(self, trial: Trial, run: str, epochs: int) -> list[str]:
        flags = [
            *self._flags[trial.cell].arguments,
            f"--seed={trial.seed}",
            f"--save-model-prefix={trial_prefix(self._folder, trial, run)}",
            "--resume=auto",
        ]
        if self._folds > 1 and run != FINAL:
            flags.append(f"--held-out-fold={self._runs.index(run) + 1}")
        if run == FINAL:
            flags += ["--held-out=0", "--saved-epoch=last", f"--epochs={epochs}"]
            # It may be so short that some flags have none, and train.py refuses these.
            flags = self._leave_out_unused(flags)
        return flags

    def _format_time_left(self) -> str:
        """Estimates the time left from the epochs trained so far and the free slots."""
        epochs_left = [
            sum(self._epochs_left(trial, run) for run in self._runs)
            for trial in self._trials
            if trial not in self.failed
        ]
        count = sum(epochs > 0 for epochs in epochs_left)
        runs_left = f"{count} {'run is' if count == 1 else 'runs are'} left"
        if not count or not self._epochs:
            return runs_left
        seconds = sum(epochs_left) * self._seconds / self._epochs / min(self._parallel, count)
        return f"{runs_left}, about {_duration(seconds)}"

    def _caption(self) -> str:
        """Returns the lines above the tables and the plot."""
        seeds = sorted({trial.seed for trial in self._trials})
        lines = [
            f"{self._title()}; train.py {self._typed}".strip(),
            self._format_selection(),
            f"Mean ± sample standard deviation over the seeds {seeds[0]} to {seeds[-1]}; epochs "
            "are counted from 0.",
        ]
        if self.failed:
            lines.append(f"Failed: {', '.join(trial.name for trial in self.failed)}.")
        # A flag may contain line ends.
        return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)

    def _format_selection(self) -> str:
        """Returns how the epoch was selected."""
        if self._folds == 1:
            return _SELECTED[self._select_on]
        return (
            f"{_SELECTED[self._select_on]} All training classes were held out, in {self._folds} "
            "folds, by as many runs; the table has the mean of these."
        )

    def _title(self) -> str:
        """Returns the titles of the data that runs recorded, or the paths if none did so far."""
        titles: dict[str, None] = {}
        for trial in self._trials:
            prefix = trial_prefix(self._folder, trial, self._runs[-1])
            with suppress(DataError):
                titles[records.RunInfo.read(Path(f"{prefix}.run")).title] = None
        paths = dict.fromkeys(flags.config.data.path for flags in self._flags.values())
        return ", ".join(titles or paths)


def _label_cells(cells: Sequence[Cell]) -> tuple[str, dict[Cell, tuple[str, str]]]:
    """Returns what the cells differ in, and for each the labels of its column and its color.

    These are loss and sampling; or the first varied flag, and all else that differs.
    """
    if not cells[0].varied:
        return "loss and sampling", {cell: (cell.loss, cell.sampling) for cell in cells}
    settings = [
        dict([*cell.varied, ("loss", cell.loss), ("sampling", cell.sampling)]) for cell in cells
    ]
    values = {name: [of_cell[name] for of_cell in settings] for name in settings[0]}
    first, *rest = values
    several = [name for name in rest if len(set(values[name])) > 1]
    # Of paths in one folder the names are enough.
    folders = {name: os.path.dirname(os.path.commonprefix(values[name])) for name in values}
    labels = {}
    for cell, of_cell in zip(cells, settings):
        shown = {
            name: value[len(folders[name]) :].lstrip("/") or value
            for name, value in of_cell.items()
        }
        color = ", ".join(shown[name] for name in several or ("loss", "sampling"))
        if len(several) == 1 and several[0] not in ("loss", "sampling"):
            color = f"{several[0]}={color}"
        labels[cell] = shown[first], color
    return ", ".join([first, *several]), labels


def _duration(seconds: float) -> str:
    """Returns a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _last_line(log: Path) -> str:
    """Returns the last line of a log, without characters that control a terminal."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "it is empty")
    return "".join(c if c.isprintable() else " " for c in last)[-_LONGEST_LINE:]
