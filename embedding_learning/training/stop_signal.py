"""Stops a run when it was asked to, with its state saved."""

from __future__ import annotations

import signal

import numpy as np

from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import Interrupted
from embedding_learning.runtime.signals import StopRequest
from embedding_learning.training.saver import Saver


class StopSignal:
    """Stops a run that was asked to stop, at the places where its state can be saved.

    Several workers stop after the same batch: each would wait for the others in the next one.

    Parameters
    ----------
    request : StopRequest
        A signal to this process.
    group : WorkerGroup
        Its launcher may ask, too.
    saver : Saver
    """

    def __init__(self, request: StopRequest, group: WorkerGroup, saver: Saver) -> None:
        self._request = request
        self._group = group
        self._saver = saver

    @property
    def _number(self) -> int | None:
        return self._request.number or self._group.stop_signal

    @property
    def is_requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._number is not None

    def raise_after_batch(self, is_agreed: bool) -> None:
        """Saves and raises Interrupted if the run is to stop after the batch that is done.

        `is_agreed`: all workers know by now that one of them was asked.
        """
        if is_agreed:
            self._save_and_raise()
        self.raise_in_evaluation()

    def raise_in_evaluation(self) -> None:
        """Saves and raises Interrupted if a single process was asked to stop.

        Several workers finish the evaluation: each embeds a part of the images.
        """
        if self._group.size == 1 and self.is_requested:
            self._save_and_raise()

    def raise_after_epoch(self) -> None:
        """Saves and raises Interrupted if any worker was asked to stop; all have to call it."""
        requested = np.array([self.is_requested], np.float32)
        if self._group.sum(requested).any():
            self._save_and_raise()

    def _save_and_raise(self) -> None:
        self._saver.save()
        # The first worker saves; the end of another would soon end it too.
        self._group.sum(np.zeros(1, np.float32))
        # Another worker may be the one that was asked.
        number = self._number or signal.SIGTERM
        text = f"stopped by {signal.Signals(number).name}"
        if self._group.rank == 0:
            text += f"; the state is in {self._saver.folder.path}; --resume auto continues from it"
        raise Interrupted(number, text)
