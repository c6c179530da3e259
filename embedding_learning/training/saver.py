"""Saves a run: its state as checkpoints, and the network that is its result."""

from __future__ import annotations

from dataclasses import dataclass

from embedding_learning.config import TrainConfig
from embedding_learning.data.build import Data
from embedding_learning.model.description import describe
from embedding_learning.model.weights.params_file import save_parameters
from embedding_learning.training import learner_state, log_lines, resume, validation
from embedding_learning.training.learner import Learner
from embedding_learning.training.progress import Progress
from embedding_learning.training.records import Recorder, RunInfo
from embedding_learning.training.run_folder import RECORDS, RunFolder, disk_faults
from embedding_learning.training.step_reader import StepReader


@dataclass
class Saver:
    """Writes into a run's folder what the run needs to be resumed, and the best network.

    `info` is written again if the folder is removed while the run trains.
    """

    config: TrainConfig
    data: Data
    learner: Learner
    progress: Progress
    reader: StepReader
    folder: RunFolder
    recorder: Recorder
    info: RunInfo

    def save(self) -> None:
        """Writes a checkpoint. Blocks until all steps are done.

        All workers call it; the first one writes. Raises TrainingError if the state is not finite
        or the disk cannot take it.
        """
        # The steps before are read first: a loss that is not finite must not be saved.
        self.reader.read_all()
        progress = self.progress
        with disk_faults(self.folder.path):
            self._recreate_folder_if_removed()
            if progress.best_epoch is not None:
                self.folder.restore_network(progress.best_epoch)
            progress.records_bytes = self.recorder.flush()
        progress.run_seconds = self.recorder.seconds
        arrays, learner = learner_state.gather(self.learner)
        if self.learner.group.rank > 0:
            return
        state = resume.describe(self.config, self.data.digest, progress)
        with disk_faults(self.folder.path):
            self.folder.save(progress.epoch, progress.batch, arrays, {**state, "learner": learner})

    def keep_if_best(self, epoch: int, metrics: dict[str, float]) -> None:
        """Saves the network if it is the one to save so far: the best, or each with
        ``--saved-epoch last``.
        """
        progress, recall = self.progress, validation.criterion(metrics)
        progress.best = max(progress.best, recall)
        is_better = progress.to_beat is None or recall > progress.to_beat
        if is_better or self.config.run.saved_epoch == "last":
            self.keep(epoch, recall)

    def keep(self, epoch: int, recall_at_1: float) -> None:
        """Saves the network as the run's result, that of the given epoch."""
        config, progress = self.config, self.progress
        log_lines.log_saving(config.run.prefix)
        with disk_faults(self.folder.path):
            self._recreate_folder_if_removed()
            description = describe(config.model, config.data, self.data.title, epoch, recall_at_1)
            save_parameters(self.learner.net, str(self.folder.best(epoch)), description)
            self.folder.publish(epoch)
        progress.best_epoch, progress.to_beat = epoch, recall_at_1

    def _recreate_folder_if_removed(self) -> None:
        """Writes the records, and what the run is, again if they were removed.

        The folder itself may be left: rm -r cannot remove it if a checkpoint comes meanwhile.
        """
        if self.folder.recreate_if_removed() or not (self.folder.path / RECORDS).exists():
            self.recorder.write_again()
            self.info.write(self.folder.path)
