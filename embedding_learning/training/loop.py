"""The loop: epochs, steps, schedules, when to evaluate, save and stop."""

from __future__ import annotations

import math
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import gluon

from embedding_learning.config import decay, resumes_network
from embedding_learning.data.build import Data
from embedding_learning.errors import DataError, Interrupted, TrainingError, UsageError
from embedding_learning.model.description import describe
from embedding_learning.model.weights.params_file import save_parameters
from embedding_learning.runtime.progress import progress_bar
from embedding_learning.runtime.signals import StopRequest, stop_on_signals
from embedding_learning.training import (
    learner_state,
    log_lines,
    measuring,
    resume,
)
from embedding_learning.training.checkpoint_file import RECORDS, RunFolder
from embedding_learning.training.health import Monitor
from embedding_learning.training.learner import Learner, Step
from embedding_learning.training.records import Recorder
from embedding_learning.training.resume import Progress
from embedding_learning.training.schedule import set_backbone_rates
from embedding_learning.training.tensorboard import TensorBoard
from embedding_learning.training.validation import evaluate_test

# How many batches Python may queue beyond the one being computed: enough that a device never waits
# for Python, few enough that they neither fill the memory nor keep a run from stopping.
_BATCHES_QUEUED = 1


@dataclass
class Loop:
    """Trains from where it stands to the last epoch, or until it is stopped.

    Attributes
    ----------
    options : Namespace
    learner : Learner
    data : Data
    folder : RunFolder
        Where the state is kept.
    describe : function
        Writes into the folder what the run is.
    progress : Progress
        Where it stands.
    board : TensorBoard, optional
        Is shown what is measured.
    """

    options: Namespace
    learner: Learner
    data: Data
    folder: RunFolder
    describe: Callable[[], None]
    progress: Progress
    board: TensorBoard | None = None
    _stop: StopRequest = field(default_factory=StopRequest)
    # Steps whose losses have not been read.
    _unread: list[Step] = field(default_factory=list)
    # Whether any step that was read tells so.
    _is_to_stop: bool = False
    # The metrics before training, if they are to be recorded.
    _before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._monitor = Monitor(self.options.on_nonfinite == "stop")

    def run(self) -> None:
        """All that is left of the run. Raises TrainingFault, or Interrupted once it is saved."""
        progress = self.progress
        at_start = (progress.epoch, progress.batch) == (self.options.start_epoch, 0)
        if at_start and progress.best_epoch is None and progress.before is None:
            self._evaluate_before_training()
        if progress.has_work_left(self.options):
            with stop_on_signals() as self._stop:
                self._train()
        if self.learner.group.rank == 0:
            is_trained = progress.epoch > self.options.start_epoch
            log_lines.print_best(self.data.title, progress.best, progress.before, is_trained)

    def _evaluate_before_training(self) -> None:
        if self.options.evaluate_first or resumes_network(self.options):
            learner, progress = self.learner, self.progress
            try:
                values, embeddings = evaluate_test(learner, self.data, self.options.metrics)
            except TrainingError as fault:
                raise UsageError(f"--resume {self.options.resume}: {fault}") from fault
            if values:
                log_lines.log_metrics(None, values)
                self._project(embeddings)
                self._before, progress.before = values, criterion(values)
                if resumes_network(self.options):
                    # It is replaced by a better one only.
                    progress.best = progress.to_beat = progress.before

    def _train(self) -> None:
        options, progress = self.options, self.progress
        with disk_faults(self.folder.path):
            self._recorder = Recorder(
                self.folder.path, progress.records_bytes, progress.run_seconds, self.board
            )
        try:
            if self._before:
                self._record_evaluation(None, self._before)
            # A disk without room shows now, and there is always something to go on from.
            self._save_state()
            if progress.epoch >= options.epochs:
                self._save_last_network()
            self.data.train.seek(self._step_number())
            for epoch in range(progress.epoch, options.epochs):
                with self._data_faults():
                    self._train_epoch(epoch)
                    self._evaluate_epoch(epoch)
        finally:
            self._recorder.close()

    def _train_epoch(self, epoch: int) -> None:
        """The batches of an epoch that are not done yet."""
        options, learner, progress = self.options, self.learner, self.progress
        if progress.batch == options.batch_num:
            return
        set_learning_rates(options, learner.trainers, epoch)
        set_backbone_rates(options, learner.net, epoch)
        rates = [trainer.learning_rate for trainer in learner.trainers]
        learner.group.send_learning_rates(rates)
        if progress.batch == 0:
            log_lines.log_learning_rates(epoch, rates)
        started = time.time() - progress.seconds
        self._recorder.begin_interval()
        for i in progress_bar(range(progress.batch, options.batch_num), f"Epoch {epoch}"):
            with self._recorder.waiting():
                batch = self.data.train.next()
            number = epoch * options.batch_num + i
            seed_step(options.seed, number, learner.group.rank)
            self._unread.append(learner.step(batch, is_to_stop=self._asked is not None))
            progress.batch = i + 1
            progress.seconds = time.time() - started
            is_to_stop = learner.group.size == 1 and self._asked is not None
            if len(self._unread) > _BATCHES_QUEUED:
                done = self._unread[-1 - _BATCHES_QUEUED]
                done.signals[0].wait_to_read()
                # The processes of a job stop after the same batch.
                is_to_stop = is_to_stop or done.is_to_stop()

            # An epoch shorter than the interval is an interval, so that each leaves records.
            if progress.batch % min(options.log_interval, options.batch_num) == 0:
                self._end_interval()
            if progress.batch < options.batch_num:
                if is_to_stop or self._is_to_stop:
                    self._stop_run()
                if (
                    options.checkpoint_interval
                    and progress.batch % options.checkpoint_interval == 0
                ):
                    self._save_state()
        self._read_interval()
        log_lines.log_epoch_loss(epoch, progress.epoch_loss, time.time() - started)

    def _evaluate_epoch(self, epoch: int) -> None:
        options, learner, progress = self.options, self.learner, self.progress
        learner.unite_statistics()
        values, embeddings = evaluate_test(
            learner, self.data, options.metrics, self._stop_within_evaluation
        )
        if values:
            self._keep_evaluation(epoch, values, embeddings)
        progress.epoch, progress.batch = epoch + 1, 0
        progress.epoch_loss = progress.seconds = 0.0
        self._save_state()
        if progress.epoch < options.epochs:
            asked = np.array([self._asked is not None], np.float32)
            if learner.group.sum(asked).any():
                self._stop_run()

    def _keep_evaluation(
        self, epoch: int, values: dict[str, float], embeddings: np.ndarray
    ) -> None:
        """Logs and records the metrics, and keeps the network if so far it is the one to save."""
        progress, recall = self.progress, criterion(values)
        log_lines.log_metrics(epoch, values)
        self._record_evaluation(epoch, values)
        self._project(embeddings)
        progress.best = max(progress.best, recall)
        is_better = progress.to_beat is None or recall > progress.to_beat
        if is_better or self.options.saved_epoch == "last":
            self._save_network(epoch, recall)

    def _record_evaluation(self, epoch: int | None, values: dict[str, float]) -> None:
        with disk_faults(self.folder.path):
            self._recorder.evaluation(epoch, self.progress.batch, self._step_number(), values)

    def _project(self, embeddings: np.ndarray) -> None:
        """Shows the embedded test images in TensorBoard's projector."""
        if self.board:
            test, names = self.data.test, self.data.test_classes
            self.board.project(self._step_number(), embeddings, test.labels, names, test.pixels)

    def _save_network(self, epoch: int, recall_at_1: float) -> None:
        """Saves the network as the run's result, that of the given epoch."""
        options, progress = self.options, self.progress
        log_lines.log_saving(options.save_model_prefix)
        with disk_faults(self.folder.path):
            self._restore_folder()
            description = describe(options, self.data.title, epoch, recall_at_1)
            save_parameters(self.learner.net, str(self.folder.best(epoch)), description)
            self.folder.publish(epoch)
        progress.best_epoch, progress.to_beat = epoch, recall_at_1

    def _save_last_network(self) -> None:
        """Saves the network of a finished run, which was not the one to save before."""
        # Its Recall@1 is not in the checkpoint; an evaluation gives it to the last bit.
        values, _ = evaluate_test(
            self.learner, self.data, self.options.metrics, self._stop_within_evaluation
        )
        if values:
            self._save_network(self.progress.epoch - 1, criterion(values))
        self._save_state()

    def _step_number(self) -> int:
        """Batches since the run began."""
        return self.progress.epoch * self.options.batch_num + self.progress.batch

    def _end_interval(self) -> None:
        """Logs the losses since the last interval, and looks closer at its last step."""
        options, learner, progress = self.options, self.learner, self.progress
        step = self._unread[-1]
        epoch, loss = progress.epoch, self._read_interval()
        if progress.batch % options.log_interval == 0:
            log_lines.log_interval_loss(epoch, progress.batch, loss)
        if not step.is_finite():
            self._recorder.begin_interval()
            return
        embeddings = [share.asnumpy() for share in step.embeddings]
        for share in embeddings:
            self._monitor.see_embeddings(share)
        boundaries = learner.boundaries()
        if boundaries is not None:
            self._monitor.see_beta(boundaries)
        pairs = measuring.pairs_of(learner, step, embeddings, options.batch_k)
        values = {
            "loss": loss / min(options.log_interval, options.batch_num) / learner.shares,
            **measuring.values_of(learner, pairs, boundaries),
        }
        # Samplings that know no cutoffs have none to record.
        cutoffs = getattr(learner.net.sampled, "cutoffs", ())
        dimension = embeddings[0].shape[1]
        with disk_faults(self.folder.path):
            self._recorder.interval(
                epoch, progress.batch, self._step_number(), options.total_batch_size, values, pairs
            )
            self._recorder.distances(epoch, progress.batch, dimension, cutoffs, pairs)

    def _read_interval(self) -> float:
        """The sum of the losses since the last interval, now counted in the epoch's."""
        self._read_steps()
        progress = self.progress
        loss, progress.interval_loss = progress.interval_loss, 0.0
        progress.epoch_loss += loss
        return loss

    def _read_steps(self) -> None:
        """Adds up the losses of the steps done, once the monitor has seen them."""
        progress, unread = self.progress, self._unread
        self._unread = []
        for number, step in enumerate(unread, progress.batch - len(unread) + 1):
            finite, loss = step.is_finite(), step.loss
            self._is_to_stop = self._is_to_stop or step.is_to_stop()
            if not step.overflowed:
                self._monitor.see_batch(progress.epoch, number, finite, loss)
            if finite or (step.overflowed and math.isfinite(loss)):
                progress.interval_loss += loss

    def _save_state(self) -> None:
        """Only a state that is finite: the steps before it are read first."""
        self._read_steps()
        with disk_faults(self.folder.path):
            self._restore_folder()
            if self.progress.best_epoch is not None:
                self.folder.restore_network(self.progress.best_epoch)
            self.progress.records_bytes = self._recorder.flush()
        self.progress.run_seconds = self._recorder.seconds
        arrays, learner = learner_state.gather(self.learner)
        if self.learner.group.rank > 0:
            return
        state = resume.describe(self.options, self.data.digest, self.progress)
        with disk_faults(self.folder.path):
            position = self.progress.epoch, self.progress.batch
            self.folder.save(*position, arrays, {**state, "learner": learner})

    def _restore_folder(self) -> None:
        """Writes the records, and what the run is, again if they were removed.

        The folder itself may be left: rm -r cannot remove it if a checkpoint comes meanwhile.
        """
        if self.folder.restore() or not (self.folder.path / RECORDS).exists():
            self._recorder.write_anew()
            self.describe()

    @property
    def _asked(self) -> int | None:
        """The signal by which this process was asked to stop."""
        return self._stop.number or self.learner.group.stop_signal

    def _stop_within_evaluation(self) -> None:
        """The processes of a job all have to come to its end."""
        if self.learner.group.size == 1 and self._asked is not None:
            self._stop_run()

    @contextmanager
    def _data_faults(self) -> Iterator[None]:
        """Within, an image that can no longer be decoded saves the state and is a TrainingFault."""
        try:
            yield
        except DataError as error:
            if self.learner.group.size == 1:
                self._save_state()
                start = "the saved state"
            else:
                # To save, all processes would have to be at the same batch.
                start = "the last checkpoint"
            raise TrainingError(
                f"{error}; put the file back as it was, and --resume auto goes on from {start}"
            ) from error

    def _stop_run(self) -> None:
        """Saves the state and raises Interrupted."""
        self._save_state()
        # The first one saves; the end of another would soon end it too.
        self.learner.group.sum(np.zeros(1, np.float32))
        # Another process of the job may be the one that was asked.
        number = self._asked or signal.SIGTERM
        text = f"stopped by {signal.Signals(number).name}"
        if self.learner.group.rank == 0:
            text += f"; the state is in {self.folder.path}, and --resume auto goes on with it"
        raise Interrupted(number, text)


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Within, what goes wrong in writing to the run's folder is a TrainingFault."""
    try:
        yield
    except (OSError, UsageError) as error:
        raise TrainingError(
            f"{folder}: cannot be written to: {getattr(error, 'strerror', None) or error}; what "
            "was written before is whole: remove the cause and go on with --resume auto"
        ) from error


def criterion(metrics: dict[str, float]) -> float:
    """The Recall@1 that networks are compared by; 0 where it is not defined (NaN)."""
    recall = metrics["recall@1"]
    return 0.0 if math.isnan(recall) else recall


def set_learning_rates(options: Namespace, trainers: list[gluon.Trainer], epoch: int) -> None:
    """Both rates are multiplied by the factor at each epoch listed in the steps."""
    for trainer, rate in zip(trainers, (options.lr, options.lr_beta)):
        trainer.set_learning_rate(rate * decay(options, epoch))


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Lets a step's random numbers depend on the seed, the step and the process's rank alone.

    MXNet cannot save its random state. Seeding anew for each step makes every run repeatable from
    any step on, and evaluation without influence on what follows.
    """
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]
    mx.random.seed(int(state >> 1))
