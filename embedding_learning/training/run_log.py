"""What a run reports: log lines, records, TensorBoard, and warnings when training goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from embedding_learning.config import TrainConfig
from embedding_learning.data.build import Data
from embedding_learning.evaluation import pair_distances
from embedding_learning.training import log_lines
from embedding_learning.training.health import HealthMonitor
from embedding_learning.training.learner import Learner, Step
from embedding_learning.training.progress import Progress
from embedding_learning.training.records import Recorder
from embedding_learning.training.run_folder import disk_faults
from embedding_learning.training.tensorboard import TensorBoard


@dataclass
class RunLog:
    """Reports on a run while it trains."""

    config: TrainConfig
    data: Data
    learner: Learner
    progress: Progress
    health: HealthMonitor
    recorder: Recorder
    board: TensorBoard | None

    def start_epoch(self, epoch: int, learning_rates: list[float]) -> None:
        """Logs the learning rates at the start of an epoch, and begins a logging interval.

        A resumed run calls it where it continues, which may be within an epoch.
        """
        if self.progress.batch == 0:
            name = self.learner.learned_name or ""
            log_lines.log_learning_rates(epoch, learning_rates, name)
        self.recorder.begin_interval()

    def waiting_for_data(self) -> AbstractContextManager[None]:
        """Counts the time within as waiting for the next batch."""
        return self.recorder.waiting()

    def is_interval_over(self) -> bool:
        """Whether the batches that are done are a whole number of logging intervals."""
        return self.progress.batch % self._interval == 0

    def interval(self, step: Step, loss: float) -> None:
        """Logs the sum of the losses of a logging interval, and examines its last step."""
        config, progress, learner = self.config, self.progress, self.learner
        if progress.batch % config.run.log_interval == 0:
            log_lines.log_interval_loss(progress.epoch, progress.batch, loss)
        if not step.is_finite:
            self.recorder.begin_interval()
            return
        embeddings = [of_device.asnumpy() for of_device in step.embeddings]
        for of_device in embeddings:
            self.health.check_embeddings(of_device)
        beta = learner.beta_values()
        if beta is not None:
            self.health.check_beta(beta)
        pairs = _measure_pairs(learner, step, embeddings, config.batch.batch_k)
        values = {
            "loss": loss / self._interval / learner.loss_count,
            **_summarize_step(learner, pairs, beta),
        }
        with disk_faults(self.recorder.folder):
            self.recorder.interval(
                progress.epoch, progress.batch, self._step, config.batch.total, values, pairs
            )
            self.recorder.distances(
                epoch=progress.epoch,
                batch=progress.batch,
                dimension=embeddings[0].shape[1],
                cutoffs=learner.sampling.cutoffs if learner.sampling else (),
                distances=pairs,
            )

    def epoch(self, epoch: int, loss: float, seconds: float) -> None:
        """Logs the sum of an epoch's losses, and the seconds of its training."""
        log_lines.log_epoch_loss(epoch, loss, seconds)

    def evaluation(
        self, epoch: int | None, metrics: dict[str, float], embeddings: np.ndarray
    ) -> None:
        """Reports the metrics of an epoch; its log line comes first."""
        log_lines.log_metrics(epoch, metrics)
        self.record_evaluation(epoch, metrics, embeddings)

    def record_evaluation(
        self, epoch: int | None, metrics: dict[str, float], embeddings: np.ndarray
    ) -> None:
        """Records metrics and shows the embedded test images (n, d) in TensorBoard's projector.

        `epoch` is None before training.
        """
        with disk_faults(self.recorder.folder):
            self.recorder.evaluation(epoch, self.progress.batch, self._step, metrics)
        if self.board:
            test, names = self.data.test, self.data.test_classes
            self.board.project(self._step, embeddings, test.labels, names, test.pixels)

    def compare_with_start(self, is_over: bool) -> None:
        """Says so if no epoch so far has reached the Recall@1 before training.

        `is_over`: no epoch follows.
        """
        before, best = self.progress.before, self.progress.best
        if before is None or best >= before:
            return
        advice = self._advice()
        if is_over:
            logging.warning(
                "Recall@1 has stayed below its value before training: %.4f at best, %.4f before. "
                "The saved network is worse than the one it started from. %s",
                best, before, advice,
            )  # fmt: skip
        else:
            logging.info(
                "Recall@1 is below its value before training: %.4f at best so far, %.4f before. %s",
                best, before, advice,
            )  # fmt: skip

    def _advice(self) -> str:
        """Returns what often helps if training makes a network worse."""
        config = self.config
        flags = []
        parameters = self.learner.net.base_net.collect_params()
        if not config.model.freeze_bn and any("running_mean" in name for name in parameters):
            flags.append("--freeze-bn")
        if config.optimizer.lr_mult_backbone is None:
            flags.append("--lr-mult-backbone 0.1")
        return f"Try {' or '.join(flags or ['a lower --lr'])}; see docs/training.md."

    @property
    def _interval(self) -> int:
        """Batches of a logging interval; each epoch leaves records, however short it is."""
        return min(self.config.run.log_interval, self.config.batch.batch_num)

    @property
    def _step(self) -> int:
        return self.progress.step(self.config.batch.batch_num)


def _measure_pairs(
    learner: Learner, step: Step, embeddings: Sequence[np.ndarray], batch_k: int
) -> dict[str, np.ndarray]:
    """Returns what `Learner.measure` returns, and `all_negative_distances` (pairs,).

    `embeddings` are those of the step, of each device (n, d). Without a sampling, the positive
    distances are those of all pairs of an image and another one of its class.
    """
    pairs = learner.measure(step)
    if not learner.sampling:
        pairs["positive_distances"] = np.concatenate(
            [pair_distances.positive_pair_distances(x, batch_k) for x in embeddings]
        )
    negatives = [pair_distances.negative_pair_distances(x, batch_k) for x in embeddings]
    return {**pairs, "all_negative_distances": np.concatenate(negatives)}


def _summarize_step(
    learner: Learner, pairs: dict[str, np.ndarray], beta: np.ndarray | float | None
) -> dict[str, float]:
    """Returns what is recorded of a step in addition to its loss, by name.

    `pairs` are those of the step, measured with the beta that its loss was computed with; `beta`
    is the one after the step's update.
    """
    values = {
        name: pairs[source].mean()
        for name, source in (
            ("active_share", "active"),
            ("positive_distance", "positive_distances"),
            ("negative_distance", "negative_distances"),
        )
        # A loss without a sampling has neither terms nor sampled negatives.
        if len(pairs[source])
    }
    if beta is not None:
        values["beta_min"], values["beta_max"] = np.min(beta), np.max(beta)
        values["beta_median"] = np.median(beta)
    # The second trainer, where there is one, is that of the loss's parameter.
    names = "learning_rate", f"learning_rate_{learner.learned_name}"
    for name, trainer in zip(names, learner.trainers):
        values[name] = trainer.learning_rate
    return {name: float(value) for name, value in values.items()}
