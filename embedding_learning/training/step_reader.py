"""Reads what training steps computed, a little later than they are queued."""

from __future__ import annotations

import math

from embedding_learning.training.health import HealthMonitor
from embedding_learning.training.learner import Step
from embedding_learning.training.progress import Progress

# How many batches Python may queue beyond the one being computed: enough that a device never waits
# for Python, few enough that they neither fill the memory nor keep a run from stopping.
_STEPS_QUEUED = 1


class StepReader:
    """The steps whose losses have not been read, and the sums of those that have.

    Parameters
    ----------
    progress : Progress
        Receives the sums of the losses.
    health : HealthMonitor
        Sees each loss.

    Attributes
    ----------
    is_stop_agreed : bool
        Whether any worker had been asked to stop at a step that is done. All workers see this after
        the same batch.
    """

    def __init__(self, progress: Progress, health: HealthMonitor) -> None:
        self._progress = progress
        self._health = health
        self._steps: list[Step] = []
        self.is_stop_agreed = False

    def push(self, step: Step) -> None:
        """Adds a step that was queued. Blocks until all but the latest steps are done."""
        self._steps.append(step)
        if len(self._steps) > _STEPS_QUEUED:
            done = self._steps[-1 - _STEPS_QUEUED]
            done.wait()
            self.is_stop_agreed = self.is_stop_agreed or done.is_stop_requested

    def read_interval(self) -> tuple[Step, float]:
        """Returns the last step and the sum of the losses since the last call. Blocks until done.

        The losses then count in the epoch's sum.
        """
        last = self._steps[-1]
        self.read_all()
        progress = self._progress
        loss, progress.interval_loss = progress.interval_loss, 0.0
        progress.epoch_loss += loss
        return last, loss

    def read_epoch(self) -> float:
        """Returns the sum of the losses of the epoch. Blocks until its last step is done."""
        self.read_all()
        progress = self._progress
        progress.epoch_loss += progress.interval_loss
        progress.interval_loss = 0.0
        return progress.epoch_loss

    def read_all(self) -> None:
        """Adds up the losses of all queued steps. Blocks until they are done.

        Raises TrainingError if a loss or gradient is not finite and that ends the run.
        """
        progress, steps = self._progress, self._steps
        self._steps = []
        for number, step in enumerate(steps, progress.batch - len(steps) + 1):
            is_finite, loss = step.is_finite, step.loss
            self.is_stop_agreed = self.is_stop_agreed or step.is_stop_requested
            if not step.has_overflowed:
                self._health.check_batch(progress.epoch, number, is_finite, loss)
            if is_finite or (step.has_overflowed and math.isfinite(loss)):
                progress.interval_loss += loss
