"""A run from its flags to its end: data, network, what it goes on from, training."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import mxnet as mx

from embedding_learning.config import resumes_network
from embedding_learning.data.build import digest, open_data, read_split
from embedding_learning.distributed.asynchronous import AsynchronousGroup
from embedding_learning.distributed.heartbeat import HeartbeatClient
from embedding_learning.distributed.synchronous import SynchronousGroup
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import UsageError
from embedding_learning.evaluation.metrics import parse_metrics
from embedding_learning.runtime.devices import find_devices
from embedding_learning.training import (
    checkpoint_file,
    learner_state,
    log_lines,
    records,
    resume,
)
from embedding_learning.training.build import build, build_network, check_names
from embedding_learning.training.checkpoint_file import Checkpoint, RunFolder
from embedding_learning.training.learner import Learner
from embedding_learning.training.loop import Loop, disk_faults
from embedding_learning.training.memory_estimate import memory_faults
from embedding_learning.training.resume import Progress
from embedding_learning.training.tensorboard import TensorBoard


def run(
    options: Namespace,
    arguments: Sequence[str],
    client: HeartbeatClient | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Everything that train.py does once its flags are read.

    `arguments` are the flags as they were typed; the run's folder keeps them. `client` is this
    process's place on the roll if it is one of several that train together: the first logs and
    saves. `warnings` are lines about the flags, which are logged once nothing refuses them.

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
    options.metrics = _metrics(options)
    devices = find_devices(options)
    group = _worker_group(options, client)
    with _folder(options, group) as folder, memory_faults(options):
        logging.info(options)
        checkpoint, progress = _find_start(options, group, folder.path)
        split = read_split(options)
        for line in warnings:
            logging.warning(line)
        if checkpoint and not options.skip_bad_images:
            # With bad images left out, what trains is known only after they are found.
            resume.check_data(checkpoint, digest(split.parts), options)
        if checkpoint and progress.epoch >= options.epochs:
            logging.info(
                "The run is finished: %d of %d epochs are done; a higher --epochs goes on with it.",
                progress.epoch, options.epochs,
            )  # fmt: skip
            if not progress.lacks_network(options):
                if group.rank == 0:
                    log_lines.print_best(split.title, progress.best, progress.before)
                return
        board = None
        if options.tensorboard and group.rank == 0:
            step = progress.epoch * options.batch_num + progress.batch
            board = TensorBoard(options.tensorboard, step)
        mx.random.seed(options.seed)
        net = build_network(options, devices, is_resumed=checkpoint is not None)
        data = open_data(split, options, group.rank, group.size)
        try:
            group.check_equal("the data", [data.digest.encode()])
            learner = build(options, data.beta_terms, net, devices, group)
            if checkpoint:
                resume.check_data(checkpoint, data.digest, options)
                _restore(learner, checkpoint)
            learner.start()

            def describe() -> None:
                records.describe(folder.path, arguments, split.title, resume.made_with())

            if progress.has_work_left(options):
                with disk_faults(folder.path):
                    folder.begin(checkpoint, progress.best_epoch)
                    describe()
            Loop(options, learner, data, folder, describe, progress, board).run()
        finally:
            # What is queued still reads the batches' memory.
            mx.nd.waitall()
            data.close()


def _metrics(options: Namespace) -> list[str]:
    """The metrics to log; Recall@1, by which the best network is chosen, is always among them."""
    try:
        names = parse_metrics(options.metrics)
    except ValueError as error:
        raise UsageError(f"--metrics {options.metrics}: {error}") from None
    return list(dict.fromkeys(["recall@1", *names]))


def _worker_group(options: Namespace, client: HeartbeatClient | None) -> WorkerGroup:
    """The processes that train together; waits for all of them."""
    if client is None:
        return WorkerGroup()
    kind = AsynchronousGroup if options.kvstore == "dist_async" else SynchronousGroup
    return kind(options.kvstore, client)


@contextmanager
def _folder(options: Namespace, group: WorkerGroup) -> Iterator[RunFolder]:
    """The run's folder; a process that does not save works in one that is thrown away."""
    if group.rank == 0:
        with RunFolder(options.save_model_prefix, options.keep) as folder:
            yield folder
        return
    # The first says all there is to say.
    logging.getLogger().setLevel(logging.ERROR)
    with TemporaryDirectory() as scratch, RunFolder(f"{scratch}/worker", options.keep) as folder:
        yield folder


def _find_start(
    options: Namespace, group: WorkerGroup, folder: Path
) -> tuple[Checkpoint | None, Progress]:
    """The checkpoint to go on from, its flags checked, and how far its run had come.

    Only the first process looks for it; the others need not share its disk.
    """
    start = Progress(epoch=options.start_epoch)
    if not options.resume or resumes_network(options):
        return None, start
    checkpoint, content = None, None
    if group.rank == 0:
        checkpoint = checkpoint_file.find(options.resume, options.save_model_prefix)
    if options.processes > 1:
        content = group.broadcast(checkpoint.path.read_bytes() if checkpoint else None)
    if group.rank > 0 and content is not None:
        received = folder / "received"
        received.write_bytes(content)
        checkpoint = checkpoint_file.read(received)
        received.unlink()
    if checkpoint is None:
        logging.info("There is no run of this prefix to resume: it starts anew.")
        return None, start
    resume.check_flags(checkpoint, options)
    progress = resume.read_progress(checkpoint, options.batch_num)
    to_beat = progress.to_beat
    if options.saved_epoch == "best" and to_beat is not None and to_beat < progress.best:
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


def _restore(learner: Learner, checkpoint: Checkpoint) -> None:
    source = f"--resume {checkpoint.path}"
    state = checkpoint.state.get("learner")
    if not isinstance(state, dict):
        raise UsageError(f"{source}: holds no learner")
    learner_state.restore(learner, checkpoint.arrays, state, source)
