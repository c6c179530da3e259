"""The training loop: epochs, steps, and when to evaluate, save and stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mxnet as mx
import numpy as np

from embedding_learning.config import TrainConfig
from embedding_learning.data.build import Data
from embedding_learning.errors import DataError, TrainingError
from embedding_learning.runtime.progress import progress_bar
from embedding_learning.training import validation
from embedding_learning.training.learner import Learner
from embedding_learning.training.progress import Progress
from embedding_learning.training.run_log import RunLog
from embedding_learning.training.saver import Saver
from embedding_learning.training.schedule import set_learning_rates
from embedding_learning.training.step_reader import StepReader
from embedding_learning.training.stop_signal import StopSignal
from embedding_learning.training.validation import evaluate_test


@dataclass
class Run:
    """All that the training loop works with. `training.run` builds it."""

    config: TrainConfig
    data: Data
    learner: Learner
    progress: Progress
    reader: StepReader
    log: RunLog
    saver: Saver
    stop: StopSignal


def train(run: Run) -> None:
    """Trains the epochs that are left.

    Raises TrainingError if training cannot continue, or Interrupted once the state is saved.
    """
    config, progress = run.config, run.progress
    run.saver.save()  # A disk without room shows now, and there is a state to resume from.
    if progress.epoch >= config.run.epochs:
        keep_last_network(run)
    run.data.train.seek(progress.step(config.batch.batch_num))
    for epoch in range(progress.epoch, config.run.epochs):
        with state_saved_on_data_error(run):
            train_epoch(run, epoch)
            metrics, embeddings = validate(run)
        if metrics:  # Only the first worker measures.
            run.log.evaluation(epoch, metrics, embeddings)
            run.saver.keep_if_best(epoch, metrics)
            run.log.compare_with_start(is_over=epoch + 1 == config.run.epochs)
        progress.start_epoch(epoch + 1)
        run.saver.save()
        if progress.epoch < config.run.epochs:
            run.stop.raise_after_epoch()


def train_epoch(run: Run, epoch: int) -> None:
    """Trains the batches of an epoch that are not done yet."""
    config, learner, progress = run.config, run.learner, run.progress
    last = config.batch.batch_num
    if progress.batch == last:
        return
    run.log.start_epoch(epoch, set_learning_rates(config, learner, epoch))
    started = time.time() - progress.seconds
    for batch_number in progress_bar(range(progress.batch, last), f"Epoch {epoch}"):
        with run.log.waiting_for_data():
            batch = run.data.train.next()
        # Workers that compute the same loss sample the same negatives.
        rank = 0 if learner.shares_batch else learner.group.rank
        seed_step(config.run.seed, progress.step(last), rank)
        run.reader.push(learner.step(batch, run.stop.is_requested))  # queued, not waited for
        progress.batch, progress.seconds = batch_number + 1, time.time() - started
        if run.log.is_interval_over():
            run.log.interval(*run.reader.read_interval())
        if progress.batch < last:
            run.stop.raise_after_batch(run.reader.is_stop_agreed)
            if progress.batch % (config.run.checkpoint_interval or last) == 0:
                run.saver.save()
    run.log.epoch(epoch, run.reader.read_epoch(), time.time() - started)


def validate(run: Run) -> tuple[dict[str, float], np.ndarray]:
    """Returns the metrics of the test images and their embeddings (n, d)."""
    run.learner.average_running_statistics()
    return evaluate_test(
        run.learner, run.data, run.config.run.metrics, run.stop.raise_in_evaluation
    )


def keep_last_network(run: Run) -> None:
    """Saves the network of a finished run, which was not the one to save before."""
    # Its Recall@1 is not in the checkpoint; an evaluation gives it to the last bit.
    metrics, _ = evaluate_test(
        run.learner, run.data, run.config.run.metrics, run.stop.raise_in_evaluation
    )
    if metrics:
        run.saver.keep(run.progress.epoch - 1, validation.criterion(metrics))
    run.saver.save()


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Lets a step's random numbers depend on the seed, the step and the worker's rank alone.

    MXNet cannot save its random state. A new seed for each step makes every run repeatable from any
    step on, and evaluation without influence on what follows.
    """
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]
    mx.random.seed(int(state >> 1))


@contextmanager
def state_saved_on_data_error(run: Run) -> Iterator[None]:
    """Saves the state and raises a TrainingError if an image can no longer be decoded within."""
    try:
        yield
    except DataError as error:
        if run.learner.group.size == 1:
            run.saver.save()
            start = "the saved state"
        else:
            # To save, all workers would have to be at the same batch.
            start = "the last checkpoint"
        raise TrainingError(
            f"{error}; put the file back as it was, and --resume auto continues from {start}"
        ) from error
