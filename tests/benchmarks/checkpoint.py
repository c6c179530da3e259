"""What a checkpoint takes, in time and on disk, as a share of an epoch.

    python -m tests.benchmarks.checkpoint FOLDER [--model resnet50_v2] [--batches 200]

The epoch's time is that of its batches, from some timed training steps with the data ready.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from embedding_learning.cli.train_flags import parse
from embedding_learning.training import (
    build,
    checkpoint_file,
    learner_state,
    resume,
)

# isort: split
import mxnet as mx
import numpy as np
from mxnet import nd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet50_v2")
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    devices = [mx.cpu()]
    options = parse([f"--model={args.model}", f"--batch-size={args.batch_size}"])
    net = build.build_network(options, devices)
    learning = build.build(options, np.arange(100)[:, None], net, devices)
    shape = (args.batch_size, 3, options.crop_size, options.crop_size)
    pixels = nd.array(np.random.default_rng(0).integers(0, 256, shape), dtype=np.uint8)
    labels = nd.array(np.arange(args.batch_size) // options.batch_k)
    batch = mx.io.DataBatch(data=[pixels], label=[labels])

    def step() -> None:
        learning.step(batch)
        nd.waitall()

    file = args.folder / "checkpoint-0000-000000.safetensors"

    def save() -> None:
        arrays, state = learner_state.gather(learning)
        told = resume.describe(options, "", Progress())
        checkpoint_file.write(file, arrays, {**told, "learner": state})

    def read() -> None:
        found = checkpoint_file.read(file)
        learner_state.restore(learning, found.arrays, found.state["learner"], "")
        nd.waitall()

    step()
    epoch = args.batches * median_seconds(step, args.steps)
    seconds = median_seconds(save, args.rounds)
    reading = median_seconds(read, args.rounds)
    megabytes = file.stat().st_size / 1e6
    file.unlink()
    print(f"{args.model} with {options.optimizer}, batch {args.batch_size}")
    print(f"an epoch of {args.batches} batches: {epoch:.0f} s")
    print(f"a checkpoint: {megabytes:.0f} MB, {seconds:.2f} s, {seconds / epoch:.3%} of the epoch")
    print(f"reading and restoring it: {reading:.2f} s")


def median_seconds(action, times: int) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
