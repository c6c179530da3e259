"""The loop: epochs, steps, schedules, when to evaluate, save and stop."""

from __future__ import annotations

import logging
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import mxnet as mx
import numpy as np
from mxnet import gluon

from embedding_learning import checkpoints, learner_state, reporting, resuming
from embedding_learning.checkpoints import Checkpoint, RunFolder
from embedding_learning.data import Data, open_data, read_split
from embedding_learning.evaluation import recall_at_k
from embedding_learning.inference import embed_all
from embedding_learning.learner import (
    Learner,
    Step,
    build,
    build_network,
    check_names,
    find_devices,
)
from embedding_learning.model import MarginNet
from embedding_learning.monitoring import Monitor, TrainingFault
from embedding_learning.options import UsageError, resumes_network
from embedding_learning.parameter_files import save_parameters
from embedding_learning.resuming import Progress
from embedding_learning.stopping import Interrupted, StopRequest, stop_on_signals

# How many batches Python may queue beyond the one being computed: enough that a device never waits
# for Python, few enough that queued batches do not fill the memory.
_BATCHES_QUEUED = 2


def run(options: Namespace) -> None:
    """Everything that train.py does once its flags are read.

    Raises
    ------
    UsageError, DataError
        If flags, data and checkpoint do not fit; flags and annotations are checked before anything
        is decoded.
    TrainingFault
        If training cannot go on; the last good checkpoint stays.
    Interrupted
        After a signal, once the state is saved.
    """
    check_names(options)
    devices = find_devices(options)
    with RunFolder(options.save_model_prefix, options.keep) as folder:
        checkpoint, progress = _find_start(options)
        split = read_split(options)
        if checkpoint and progress.epoch >= options.epochs:
            logging.info(
                "The run is finished: %d of %d epochs are done; a higher --epochs goes on with it.",
                progress.epoch, options.epochs,
            )  # fmt: skip
            reporting.print_best(split.title, progress.best, progress.before)
            return
        mx.random.seed(options.seed)
        net = build_network(options, devices, is_resumed=checkpoint is not None)
        data = open_data(split, options)
        try:
            learner = build(options, data.classes, net, devices)
            if checkpoint:
                resuming.check_data(checkpoint, data.digest, options)
                _restore(learner, checkpoint)
            Loop(options, learner, data, folder, progress).run(checkpoint)
        finally:
            # What is queued still reads the batches' memory.
            mx.nd.waitall()
            data.close()


def _find_start(options: Namespace) -> tuple[Checkpoint | None, Progress]:
    """The checkpoint to go on from, its flags checked, and how far its run had come."""
    start = Progress(epoch=options.start_epoch)
    if not options.resume or resumes_network(options):
        return None, start
    checkpoint = checkpoints.find(options.resume, options.save_model_prefix)
    if checkpoint is None:
        logging.info("There is no run of this prefix to resume: it starts anew.")
        return None, start
    resuming.check_flags(checkpoint, options)
    progress = resuming.read_progress(checkpoint, options.batch_num)
    logging.info(
        "Resuming from %s: epoch %d, %d batches of it done.",
        checkpoint.path, progress.epoch, progress.batch,
    )  # fmt: skip
    return checkpoint, progress


def _restore(learner: Learner, checkpoint: Checkpoint) -> None:
    source = f"--resume {checkpoint.path}"
    state = checkpoint.state.get("learner")
    if not isinstance(state, dict):
        raise UsageError(f"{source}: holds no learner")
    learner_state.restore(learner, checkpoint.arrays, state, source)


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
    progress : Progress
        Where it stands.
    """

    options: Namespace
    learner: Learner
    data: Data
    folder: RunFolder
    progress: Progress
    _stop: StopRequest = field(default_factory=StopRequest)
    # Steps whose losses have not been read.
    _unread: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._monitor = Monitor(
            self.learner.net.sampled.cutoff, self.options.on_nonfinite == "stop"
        )

    def run(self, checkpoint: Checkpoint | None) -> None:
        """All that is left of the run that the checkpoint, if there is one, belongs to.

        Raises TrainingFault, or Interrupted after the state is saved.
        """
        progress = self.progress
        if (progress.epoch, progress.batch) == (self.options.start_epoch, 0):
            self._evaluate_before_training()
        if progress.epoch < self.options.epochs:
            with stop_on_signals() as self._stop:
                self._train(checkpoint)
        reporting.print_best(self.data.title, progress.best, progress.before)

    def _evaluate_before_training(self) -> None:
        if self.options.evaluate_first or resumes_network(self.options):
            recalls = evaluate(self.learner.net, self.learner.devices, self.data)
            reporting.log_recalls(None, recalls)
            self.progress.before = recalls[1]
            # A resumed network is replaced by a better one only.
            self.progress.best = recalls[1] if resumes_network(self.options) else 0.0

    def _train(self, checkpoint: Checkpoint | None) -> None:
        options, progress = self.options, self.progress
        with self._disk_faults():
            self.folder.begin(checkpoint, progress.best_epoch)
        # A disk without room shows now, and there is always something to go on from.
        self._save_state()
        self.data.train.seek(progress.epoch * options.batch_num + progress.batch)
        for epoch in range(progress.epoch, options.epochs):
            self._train_epoch(epoch)
            self._evaluate_epoch(epoch)

    def _train_epoch(self, epoch: int) -> None:
        """The batches of an epoch that are not done yet."""
        options, learner, progress = self.options, self.learner, self.progress
        if progress.batch == options.batch_num:
            return
        set_learning_rates(options, learner.trainers, epoch)
        if progress.batch == 0:
            rates = [trainer.learning_rate for trainer in learner.trainers]
            reporting.log_learning_rates(epoch, rates)
        started = time.time() - progress.seconds
        for i in reporting.progress(range(progress.batch, options.batch_num), f"Epoch {epoch}"):
            batch = self.data.train.next()
            seed_step(options.seed, epoch * options.batch_num + i)
            self._unread.append(learner.step(batch))
            progress.batch = i + 1
            progress.seconds = time.time() - started
            if len(self._unread) > _BATCHES_QUEUED:
                self._unread[-1 - _BATCHES_QUEUED].losses[0].wait_to_read()

            if progress.batch % options.log_interval == 0:
                self._read_steps(look=True)
                reporting.log_interval_loss(epoch, progress.batch, progress.interval_loss)
                self._end_interval()
            if progress.batch < options.batch_num:
                self._stop_if_asked()
                if (
                    options.checkpoint_interval
                    and progress.batch % options.checkpoint_interval == 0
                ):
                    self._save_state()
        self._read_steps()
        self._end_interval()
        reporting.log_epoch_loss(epoch, progress.epoch_loss, time.time() - started)

    def _evaluate_epoch(self, epoch: int) -> None:
        options, learner, progress = self.options, self.learner, self.progress
        recalls = evaluate(learner.net, learner.devices, self.data, self._stop_if_asked)
        reporting.log_recalls(epoch, recalls)
        if recalls[1] > progress.best:
            progress.best, progress.best_epoch = recalls[1], epoch
            reporting.log_saving(options.save_model_prefix)
            with self._disk_faults():
                self.folder.restore()
                save_parameters(learner.net, str(self.folder.best(epoch)))
                self.folder.publish(epoch)
        progress.epoch, progress.batch = epoch + 1, 0
        progress.epoch_loss = progress.seconds = 0.0
        self._save_state()
        if progress.epoch < options.epochs:
            self._stop_if_asked()

    def _read_steps(self, look: bool = False) -> None:
        """Adds up the losses of the steps done, and has the monitor look at them.

        With `look` it sees the last step's embeddings, and beta, too.
        """
        progress, unread = self.progress, self._unread
        self._unread = []
        for number, step in enumerate(unread, progress.batch - len(unread) + 1):
            finite = step.is_finite()
            losses = [float(loss.asscalar()) for loss in step.losses]
            self._monitor.see_batch(progress.epoch, number, finite, losses)
            if finite:
                for loss in losses:
                    progress.interval_loss += loss
        if look and finite:
            for embeddings in step.embeddings:
                self._monitor.see_embeddings(embeddings.asnumpy())
            self._monitor.see_beta(self.learner.boundaries())

    def _end_interval(self) -> None:
        self.progress.epoch_loss += self.progress.interval_loss
        self.progress.interval_loss = 0.0

    def _save_state(self) -> None:
        """Only a state that is finite: the steps before it are read first."""
        self._read_steps()
        arrays, learner = learner_state.gather(self.learner)
        state = resuming.describe(self.options, self.data.digest, self.progress)
        with self._disk_faults():
            position = self.progress.epoch, self.progress.batch
            self.folder.save(*position, arrays, {**state, "learner": learner})

    def _stop_if_asked(self) -> None:
        number = self._stop.number
        if number is None:
            return
        self._save_state()
        raise Interrupted(
            number,
            f"stopped by {signal.Signals(number).name}; the state is in {self.folder.path}, and "
            "--resume auto goes on with it",
        )

    @contextmanager
    def _disk_faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UsageError) as error:
            raise TrainingFault(
                f"{self.folder.path}: cannot be written to: "
                f"{getattr(error, 'strerror', None) or error}; what was written before is whole: "
                "remove the cause and go on with --resume auto"
            ) from error


def evaluate(
    net: MarginNet,
    devices: list[mx.Context],
    data: Data,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """Recall@1, 2, 4, 8, 16 of the test images, among each other or in the gallery."""
    queries, labels = embed_all(net, devices, data.test, after_batch)
    if data.gallery is None:
        return recall_at_k(queries, labels)
    gallery, gallery_labels = embed_all(net, devices, data.gallery, after_batch)
    return recall_at_k(queries, labels, gallery=gallery, gallery_labels=gallery_labels)


def set_learning_rates(options: Namespace, trainers: list[gluon.Trainer], epoch: int) -> None:
    """Both rates are multiplied by the factor at each epoch listed in the steps."""
    decay = options.factor ** sum(epoch >= step for step in options.steps)
    for trainer, rate in zip(trainers, (options.lr, options.lr_beta)):
        trainer.set_learning_rate(rate * decay)


def seed_step(seed: int, step: int) -> None:
    """Lets a step's random numbers depend on the seed and the step alone.

    MXNet cannot save its random state. Seeding anew for each step makes every run repeatable from
    any step on, and evaluation without influence on what follows.
    """
    state = np.random.SeedSequence((seed, step)).generate_state(1)[0]
    mx.random.seed(int(state >> 1))
