"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass

from embedding_learning.config import RunConfig


@dataclass
class Progress:
    """How far a run has come, and what its next log lines depend on. Checkpoints hold it.

    Attributes
    ----------
    epoch : int
        The current epoch, counted from 0.
    batch : int
        Batches of it that are done.
    interval_loss : float
        Sum of the losses since the last log interval.
    epoch_loss : float
        Sum of the losses of the epoch's log intervals.
    seconds : float
        Time spent on the epoch's batches.
    best : float
        The best Recall@1.
    best_epoch : int, optional
        The epoch whose network is saved; None if none is so far.
    before : float, optional
        Recall@1 before training, if it was measured.
    run_seconds : float
        Time spent on all epochs, evaluation included.
    records_bytes : int
        Size of the run's records.
    to_beat : float, optional
        Recall@1 of the network that is saved or was resumed; the best one so far has a higher one.
        None if there is no such network: the next one is saved whatever its recall.
    """

    epoch: int = 0
    batch: int = 0
    interval_loss: float = 0.0
    epoch_loss: float = 0.0
    seconds: float = 0.0
    best: float = 0.0
    best_epoch: int | None = None
    before: float | None = None
    run_seconds: float = 0.0
    records_bytes: int = 0
    to_beat: float | None = None

    def step(self, batch_num: int) -> int:
        """Returns the number of batches since the run began; an epoch has `batch_num`."""
        return self.epoch * batch_num + self.batch

    def start_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch."""
        self.epoch, self.batch = epoch, 0
        self.epoch_loss = self.seconds = 0.0

    def is_at_start(self, run: RunConfig) -> bool:
        """Whether nothing has been trained or measured yet."""
        at_start = (self.epoch, self.batch) == (run.start_epoch, 0)
        return at_start and self.best_epoch is None and self.before is None

    def has_work_left(self, run: RunConfig) -> bool:
        """Whether an epoch is to be trained, or a network to be saved."""
        return self.epoch < run.epochs or self.lacks_network(run)

    def lacks_network(self, run: RunConfig) -> bool:
        """Whether the network after the last epoch is the one to save, but was not saved.

        This happens when a finished run is resumed with `--saved-epoch last`, or was made by a
        version that saved no network with a Recall@1 of 0.
        """
        if self.epoch <= run.start_epoch or self.batch > 0:
            return False
        if run.saved_epoch == "last":
            return self.best_epoch != self.epoch - 1
        return self.to_beat is None
