"""Which operators a training step spends its time in.

    python -m tests.benchmarks.operator_shares resnet18_v1 squeezenet1.1 --batch-size 20

MXNet's profiler counts the time of each operator, one at a time: an operator that MXNet would run
together with its neighbors is run alone. Prints the shares of the largest.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

# MXNet reads these when it is loaded. Else the profiler would count groups of operators.
os.environ.update(MXNET_EXEC_BULK_EXEC_TRAIN="0", MXNET_EXEC_BULK_EXEC_INFERENCE="0")

from embedding_learning.cli.train_flags import parse
from embedding_learning.training import loop
from tests.benchmarks.random_training import build_learner, random_batch

# isort: split
import mxnet as mx


def operator_times(model: str, batch_size: int, steps: int) -> list[tuple[float, str]]:
    """Returns the milliseconds a step of each operator, longest first."""
    config = parse([f"--model={model}", f"--batch-size={batch_size}"])
    learner, batch = build_learner(config), random_batch(config)
    with TemporaryDirectory() as folder:
        mx.profiler.set_config(
            profile_symbolic=True,
            profile_imperative=True,
            aggregate_stats=True,
            filename=str(Path(folder) / "profile.json"),
        )
        for step in range(2 + steps):
            if step == 2:
                mx.profiler.set_state("run")
            loop.seed_step(1, step)
            learner.step(batch)
            mx.nd.waitall()
        mx.profiler.set_state("stop")
        _, _, table = mx.profiler.dumps(reset=True).partition("\noperator\n")
    rows = re.findall(r"^(\S+) +\d+ +([\d.]+)", table, re.M)
    return sorted(((float(time) / steps, name) for name, time in rows), reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lines", type=int, default=8, help="operators of each network")
    args = parser.parse_args()
    for model in args.models:
        times = operator_times(model, args.batch_size, args.steps)
        whole = sum(time for time, _ in times)
        print(f"{model}, batches of {args.batch_size}: {whole:.0f} ms a step")
        for time, name in times[: args.lines]:
            print(f"  {100 * time / whole:5.1f} %  {name}")


if __name__ == "__main__":
    main()
