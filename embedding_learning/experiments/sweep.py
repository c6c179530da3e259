"""The work of a comparison: what to run next, what to say of it, and the tables after each run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from embedding_learning import plots
from embedding_learning.config import TrainConfig
from embedding_learning.errors import DataError
from embedding_learning.experiments import results, tables
from embedding_learning.experiments.process_pool import TrainFunction
from embedding_learning.experiments.results import (
    CRITERION,
    HELD_OUT,
    TEST,
    Outcome,
    Trial,
    trial_prefix,
)
from embedding_learning.training import records

_LONGEST_LINE = 300  # characters
_SELECTED = {
    TEST: "The best epoch was selected on the test classes, as the original example does, which "
    "flatters it; the last epoch was not selected.",
    HELD_OUT: "The epoch was selected on held-out training classes; then all training classes were "
    "trained for as long, and the test classes evaluated at the end.",
}


class Comparison:
    """The runs of a comparison.

    Parameters
    ----------
    folder : Path
    runs : sequence of Trial
        In the order in which they are to be run.
    flags : list of str
        Of train.py, in common to all runs.
    config : TrainConfig
        The same, read.
    select_on : str
        One of `results.SELECTIONS`.
    typed : str
        The flags as the caption shows them.
    parallel : int
        Runs at a time.

    Attributes
    ----------
    failed : list of Trial
        In the order in which they failed.
    """

    def __init__(
        self,
        folder: Path,
        runs: Sequence[Trial],
        flags: list[str],
        config: TrainConfig,
        select_on: str,
        typed: str,
        parallel: int,
    ) -> None:
        self._folder = folder
        self._runs = runs
        self._flags = flags
        self._config = config
        self._select_on = select_on
        self._typed = typed
        self._parallel = parallel
        self.failed: list[Trial] = []
        # Held while records are read and tables written, not while a run trains.
        self._lock = Lock()
        # What was trained since the start, and the time for it with all that is around.
        self._epochs = 0
        self._seconds = 0.0

    def run_trial(self, run: Trial, train: TrainFunction) -> None:
        """Trains a run and logs what becomes of it; called by several threads at a time."""
        for is_final in (False,) if self._select_on == TEST else (False, True):
            with self._lock:
                epochs = self._epochs_of(run, is_final)
                if self._left(run, is_final) == 0:
                    continue
                place = trial_prefix(self._folder, run, is_final)
                done = len(results.read_evaluations(place))
                logging.info("%s %s.", place.name, "goes on" if done else "starts")
            started = time.monotonic()
            log = Path(f"{place}.log")
            status = train(self._flags_of(run, is_final, epochs), log)
            with self._lock:
                found = results.read_evaluations(place)
                self._seconds += time.monotonic() - started
                self._epochs += max(0, len(found) - done)
                if status != 0 or not results.is_finished(found, epochs):
                    self.failed.append(run)
                    logging.error(
                        "%s failed (status %d), its log is %s: %s",
                        place.name, status, log, _last_line(log),
                    )  # fmt: skip
                    return
                chosen = found[-1] if is_final else results.best_evaluation(found)
                logging.info(
                    "%s ends: Recall@1 %.4f of epoch %d; %s.",
                    place.name, chosen.metrics[CRITERION], chosen.epoch, self._time_left(),
                )  # fmt: skip
                self.write_tables()

    def outcomes(self) -> list[Outcome]:
        """Of the runs that are finished."""
        found = [
            results.read_outcome(self._folder, run, self._config.run.epochs, self._select_on)
            for run in self._runs
        ]
        return [outcome for outcome in found if outcome]

    def write_tables(self) -> str:
        """Writes all that is known so far into the folder; the table for a terminal."""
        outcomes = self.outcomes()
        pairs = list(dict.fromkeys((run.loss, run.sampling) for run in self._runs))
        seeds = len({run.seed for run in self._runs})
        rows = results.summarize(pairs, outcomes)
        shown = rows, seeds, self._select_on, self._caption()
        for name, content in {
            "runs.csv": tables.format_epochs(self._folder, self._runs, self._select_on),
            "comparison.csv": tables.format_rows(rows, self._select_on),
            "comparison.md": tables.format_markdown(*shown) + "\n",
        }.items():
            tables.write_file(self._folder / name, content)
        panels = {
            title: {
                pair: [
                    getattr(outcome, kind)[CRITERION]
                    for outcome in outcomes
                    if (outcome.trial.loss, outcome.trial.sampling) == pair
                ]
                for pair in pairs
            }
            for title, kind in zip(tables.TITLES[self._select_on], ("reported", "other"))
        }
        plots.plot_comparison(panels, str(self._folder / "comparison.png"), self._caption())
        return tables.format_text(*shown)

    def _epochs_of(self, run: Trial, is_final: bool) -> int:
        """How many a run has; the final one's are the selected, or at most all of them."""
        if is_final and self._left(run, False) == 0:
            return (
                results.best_evaluation(
                    results.read_evaluations(trial_prefix(self._folder, run))
                ).epoch
                + 1
            )
        return self._config.run.epochs

    def _left(self, run: Trial, is_final: bool) -> int:
        """Epochs of it that are still to be trained."""
        found = results.read_evaluations(trial_prefix(self._folder, run, is_final))
        next_epoch = found[-1].epoch + 1 if found else self._config.run.start_epoch
        return max(0, self._epochs_of(run, is_final) - next_epoch)

    def _flags_of(self, run: Trial, is_final: bool, epochs: int) -> list[str]:
        place = trial_prefix(self._folder, run, is_final)
        return [
            *results.flags_for(run.loss, self._flags),
            *(f"--sampling={run.sampling}", f"--seed={run.seed}"),
            *(f"--save-model-prefix={place}", "--resume=auto"),
            *(["--held-out=0", "--saved-epoch=last", f"--epochs={epochs}"] if is_final else []),
        ]

    def _time_left(self) -> str:
        """As the epochs of this call went on, if as many go on at a time as can."""
        finals = (False,) if self._select_on == TEST else (False, True)
        left = [
            sum(self._left(run, is_final) for is_final in finals)
            for run in self._runs
            if run not in self.failed
        ]
        count = sum(epochs > 0 for epochs in left)
        told = f"{count} {'run is' if count == 1 else 'runs are'} left"
        if not count or not self._epochs:
            return told
        seconds = sum(left) * self._seconds / self._epochs / min(self._parallel, count)
        return f"{told}, about {_duration(seconds)}"

    def _caption(self) -> str:
        seeds = sorted({run.seed for run in self._runs})
        lines = [
            f"{self._title()}; train.py {self._typed}".strip(),
            _SELECTED[self._select_on],
            f"Mean ± sample standard deviation over the seeds {seeds[0]} to {seeds[-1]}; epochs "
            "are counted from 0.",
        ]
        if self.failed:
            lines.append(f"Failed: {', '.join(run.name for run in self.failed)}.")
        # Whatever stands in a flag stays on its line.
        return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)

    def _title(self) -> str:
        """The data as the runs name it, once one does."""
        for run in self._runs:
            place = trial_prefix(self._folder, run, self._select_on == HELD_OUT)
            with suppress(DataError):
                return records.RunInfo.read(Path(f"{place}.run")).title
        return self._config.data.path


def _duration(seconds: float) -> str:
    """In the unit that a person would choose."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _last_line(log: Path) -> str:
    """What a process said last, as one line that no terminal obeys."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "it is empty")
    return "".join(c if c.isprintable() else " " for c in last)[-_LONGEST_LINE:]
