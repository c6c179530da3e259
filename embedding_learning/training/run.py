"""A run from its configuration to its end: data, network, what it resumes from, training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mxnet as mx
import numpy as np

from embedding_learning.config import TrainConfig
from embedding_learning.data.build import Data, digest, open_data, read_split
from embedding_learning.distributed.asynchronous import AsynchronousGroup
from embedding_learning.distributed.heartbeat import HeartbeatClient
from embedding_learning.distributed.synchronous import SynchronousGroup
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import TrainingError, UsageError
from embedding_learning.inference.run_files import find_network
from embedding_learning.runtime.atomic_files import is_same_file
from embedding_learning.runtime.devices import find_devices
from embedding_learning.runtime.signals import stop_on_signals
from embedding_learning.runtime.user_folders import scratch_folder
from embedding_learning.training import (
    checkpoint_file,
    learner_state,
    log_lines,
    loop,
    resume,
    run_folder,
    validation,
)
from embedding_learning.training.build import build, build_network, check
from embedding_learning.training.checkpoint_file import Checkpoint
from embedding_learning.training.health import HealthMonitor
from embedding_learning.training.learner import Learner
from embedding_learning.training.memory_estimate import memory_faults
from embedding_learning.training.progress import Progress
from embedding_learning.training.records import Recorder, RunInfo
from embedding_learning.training.run_folder import RunFolder, disk_faults
from embedding_learning.training.run_log import RunLog
from embedding_learning.training.saver import Saver
from embedding_learning.training.settings import as_arguments
from embedding_learning.training.step_reader import StepReader
from embedding_learning.training.stop_signal import StopSignal
from embedding_learning.training.tensorboard import TensorBoard
from embedding_learning.training.validation import evaluate_test


def train(config: TrainConfig) -> None:
    """Trains a network as train.py does, in this process: the same log, files and resuming.

    ``PREFIX.params`` is the best network, ``PREFIX.run`` the run's folder. Blocks until the run is
    finished. Raises what `run` raises.

    Parameters
    ----------
    config : TrainConfig
        What `make_config` returns.
    """
    run(config, as_arguments(config))


def run(
    config: TrainConfig,
    arguments: Sequence[str],
    client: HeartbeatClient | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Does everything that train.py does once its flags are read.

    Parameters
    ----------
    config : TrainConfig
    arguments : sequence of str
        The flags as they were typed; the run's folder keeps them.
    client : HeartbeatClient, optional
        Connects this process with the other workers that train together, of which the first logs
        and saves.
    warnings : sequence of str
        Lines about the flags, which are logged once nothing refuses them.

    Raises
    ------
    UsageError, DataError
        If settings, data and checkpoint do not fit; settings and annotations are checked before
        anything is decoded.
    TrainingError
        If training cannot continue; the last good checkpoint stays.
    Interrupted
        After a signal, once the state is saved.
    """
    check(config)
    devices = find_devices(config.devices.gpus, config.devices.cpu_contexts)
    group = _worker_group(config, client)
    with _run_folder(config, group) as folder:
        settings = ", ".join(f"{key}={value!r}" for key, value in config.as_flags().items())
        logging.info("Namespace(%s)", settings)
        checkpoint, progress = _find_start(config, group, folder.path)
        if checkpoint is None:
            _check_weights_are_kept(config)
        split = read_split(config)
        for line in warnings:
            logging.warning(line)
        if checkpoint and not config.data.skip_bad_images:
            # With bad images left out, the training images are known only after these are found.
            resume.check_data(checkpoint, digest(split.parts), config.data.path)
        if checkpoint and progress.epoch >= config.run.epochs:
            logging.info(
                "The run is finished: %d of %d epochs are done; a higher --epochs continues it.",
                progress.epoch, config.run.epochs,
            )  # fmt: skip
            if not progress.lacks_network(config.run):
                if group.rank == 0:
                    with disk_faults(folder.path):
                        folder.publish_if_missing(checkpoint, progress.best_epoch)
                    log_lines.print_best(split.title, progress.best, progress.before)
                return
        board = None
        if config.run.tensorboard and group.rank == 0:
            board = TensorBoard(config.run.tensorboard, progress.step(config.batch.batch_num))
        with memory_faults(config, len(split.train.class_names)):
            mx.random.seed(config.run.seed)
            net = build_network(config, devices, is_resumed=checkpoint is not None)
            data = open_data(split, config, group.rank, group.size)
            try:
                group.check_equal("the data", [data.digest.encode()])
                classes = data.train.class_count
                learner = build(config, data.beta_terms, net, devices, group, classes)
                if checkpoint:
                    resume.check_data(checkpoint, data.digest, config.data.path)
                    _restore(learner, checkpoint)
                learner.start()
                info = RunInfo(list(arguments), split.title, resume.made_with())
                train_prepared(config, data, learner, progress, folder, checkpoint, info, board)
            finally:
                # Queued computations still read the batches' memory.
                mx.nd.waitall()
                data.close()


def train_prepared(
    config: TrainConfig,
    data: Data,
    learner: Learner,
    progress: Progress,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    info: RunInfo,
    board: TensorBoard | None,
) -> None:
    """Evaluates before training if that is wanted, trains the rest, prints the closing line."""
    before = None
    if progress.is_at_start(config.run):
        before = _evaluate_before_training(config, data, learner, progress)
    if progress.has_work_left(config.run):
        with disk_faults(folder.path):
            folder.begin(checkpoint, progress.best_epoch)
            info.write(folder.path)
            recorder = Recorder(folder.path, progress.records_bytes, progress.run_seconds, board)
        with recorder, stop_on_signals() as request:
            health = HealthMonitor(config.run.on_nonfinite == "stop", learner.learned_name)
            reader = StepReader(progress, health)
            log = RunLog(config, data, learner, progress, health, recorder, board)
            saver = Saver(config, data, learner, progress, reader, folder, recorder, info)
            stop = StopSignal(request, learner.group, saver)
            if before:
                log.record_evaluation(None, *before)
            loop.train(loop.Run(config, data, learner, progress, reader, log, saver, stop))
    if learner.group.rank == 0:
        is_trained = progress.epoch > config.run.start_epoch
        log_lines.print_best(data.title, progress.best, progress.before, is_trained)


def _evaluate_before_training(
    config: TrainConfig, data: Data, learner: Learner, progress: Progress
) -> tuple[dict[str, float], np.ndarray] | None:
    """Returns metrics and embeddings, which it logs; None if there are none to log here."""
    run = config.run
    if not run.evaluate_first and not run.resumes_network:
        return None
    try:
        metrics, embeddings = evaluate_test(learner, data, run.metrics)
    except TrainingError as error:
        if run.resumes_network:
            raise UsageError(f"--resume {run.resume}: {error}") from error
        raise
    if not metrics:
        return None
    log_lines.log_metrics(None, metrics)
    progress.before = validation.criterion(metrics)
    if run.resumes_network:
        # Only a better network replaces the resumed one.
        progress.best = progress.to_beat = progress.before
    return metrics, embeddings


def _worker_group(config: TrainConfig, client: HeartbeatClient | None) -> WorkerGroup:
    """Returns the workers that train together. Blocks until all are connected."""
    if client is None:
        return WorkerGroup()
    is_asynchronous = config.devices.kvstore == "dist_async"
    group = AsynchronousGroup if is_asynchronous else SynchronousGroup
    return group(config.devices.kvstore, client)


@contextmanager
def _run_folder(config: TrainConfig, group: WorkerGroup) -> Iterator[RunFolder]:
    """Opens the run's folder; a worker that does not save gets a temporary one."""
    prefix, keep = config.run.prefix, config.run.keep
    if group.rank == 0:
        with RunFolder(prefix, keep) as folder:
            yield folder
        return
    # The first worker logs for all.
    logging.getLogger().setLevel(logging.ERROR)
    with scratch_folder() as scratch, RunFolder(f"{scratch}/worker", keep) as folder:
        yield folder


def _find_start(
    config: TrainConfig, group: WorkerGroup, folder: Path
) -> tuple[Checkpoint | None, Progress]:
    """Returns the checkpoint to resume from, its flags checked, and how far its run had come.

    Only the first worker looks for it; the others need not share its disk.
    """
    run = config.run
    start = Progress(epoch=run.start_epoch)
    if not run.resume or run.resumes_network:
        return None, start
    checkpoint, content = None, None
    if group.rank == 0:
        checkpoint = run_folder.find(run.resume, run.prefix)
    if config.devices.processes > 1:
        content = group.broadcast(checkpoint.path.read_bytes() if checkpoint else None)
    if group.rank > 0 and content is not None:
        received = folder / "received"
        received.write_bytes(content)
        checkpoint = checkpoint_file.read(received)
        received.unlink()
    if checkpoint is None:
        logging.info("There is no run of this prefix to resume: it starts from scratch.")
        return None, start
    resume.check_flags(checkpoint, config)
    progress = resume.read_progress(checkpoint, config.batch.batch_num)
    to_beat = progress.to_beat
    if run.saved_epoch == "best" and to_beat is not None and to_beat < progress.best:
        logging.warning(
            "The run saved its last epoch's network (Recall@1 %.4f), not its best (%.4f), which is "
            "lost; a later one is saved if it is better than the saved one.",
            to_beat, progress.best,
        )  # fmt: skip
    logging.info(
        "Resuming from %s: epoch %d, %d batches of it done.",
        checkpoint.path, progress.epoch, progress.batch,
    )  # fmt: skip
    return checkpoint, progress


def _check_weights_are_kept(config: TrainConfig) -> None:
    """Raises UsageError if the result of a new run would replace the weights it starts from."""
    model, prefix = config.model, config.run.prefix
    sources = {"--pretrained-params": model.pretrained_params}
    if model.init_from:
        sources["--init-from"] = find_network(model.init_from, "--init-from")
    for flag, path in sources.items():
        if path and is_same_file(path, f"{prefix}.params"):
            raise UsageError(
                f"--save-model-prefix {prefix}: the run would replace {path}, the file of {flag}; "
                "choose another prefix"
            )


def _restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Gives a learner the state of a checkpoint. Raises UsageError if it does not fit."""
    source = f"--resume {checkpoint.path}"
    state = checkpoint.state.get("learner")
    if not isinstance(state, dict):
        raise UsageError(f"{source}: holds no learner")
    learner_state.restore(learner, checkpoint.arrays, state, source)
