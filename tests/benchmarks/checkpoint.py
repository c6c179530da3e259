"""How long a checkpoint takes to write and to read, and how much disk it needs.

    python -m tests.benchmarks.checkpoint FOLDER [--model resnet50_v2] [--batches 200]

The checkpoint is written into FOLDER and removed at the end. Its time is compared with that of an
epoch, which is estimated from a few timed training steps on a batch in memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from embedding_learning.cli.train_flags import parse
from embedding_learning.training import checkpoint_file, learner_state, resume
from embedding_learning.training.progress import Progress
from tests.benchmarks.random_training import build_learner, random_batch

# isort: split
from mxnet import nd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet50_v2")
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--batches", type=int, default=200, help="of an epoch")
    parser.add_argument("--steps", type=int, default=3, help="timed training steps")
    parser.add_argument("--rounds", type=int, default=5, help="timed checkpoints")
    args = parser.parse_args()

    config = parse([f"--model={args.model}", f"--batch-size={args.batch_size}"])
    learner, batch = build_learner(config), random_batch(config)
    file = args.folder / "checkpoint-0000-000000.safetensors"

    def step() -> None:
        learner.step(batch)
        nd.waitall()

    def save() -> None:
        arrays, state = learner_state.gather(learner)
        metadata = resume.describe(config, "", Progress())
        checkpoint_file.write(file, arrays, {**metadata, "learner": state})

    def restore() -> None:
        saved = checkpoint_file.read(file)
        learner_state.restore(learner, saved.arrays, saved.state["learner"], "")
        nd.waitall()

    step()
    epoch = args.batches * median_seconds(step, args.steps)
    seconds = median_seconds(save, args.rounds)
    restoring = median_seconds(restore, args.rounds)
    megabytes = file.stat().st_size / 1e6
    file.unlink()
    print(f"{args.model} with {config.optimizer.name}, batches of {args.batch_size}")
    print(f"an epoch of {args.batches} batches: {epoch:.0f} s")
    print(f"a checkpoint: {megabytes:.0f} MB, {seconds:.2f} s, {seconds / epoch:.3%} of the epoch")
    print(f"reading and restoring it: {restoring:.2f} s")


def median_seconds(function: Callable[[], object], times: int) -> float:
    """Returns the median of the seconds that several calls take."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
