"""A worker that measures the exchange of gradients with other workers; `scaling` starts it.

It builds the network and its trainers as training does, and exchanges gradients with the other
workers over the parameter server in each step. It prints `begin`, and later the seconds of a step.
With ``--step sleep`` a step sleeps for the time of computing, then exchanges and waits; with
``--step compute`` it is a whole training step. A process that is not in a worker group exchanges
nothing.
"""

from __future__ import annotations

import argparse
import sys
import time

from embedding_learning.cli.train_flags import parse
from embedding_learning.distributed import heartbeat

_WARMUP = 2


def main() -> int:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--step", choices=("sleep", "compute"), required=True)
    parser.add_argument("--seconds", type=float, default=0.0, help="of the sleep")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    args, flags = parser.parse_known_args()
    config = parse(flags)
    client = heartbeat.join_group("exchange")

    import mxnet as mx
    import numpy as np

    from embedding_learning.distributed.synchronous import SynchronousGroup
    from embedding_learning.distributed.worker_group import WorkerGroup
    from embedding_learning.training import loop
    from tests.benchmarks.random_training import build_learner, random_batch

    group = SynchronousGroup(config.devices.kvstore, client) if client else WorkerGroup()
    learner, batch = build_learner(config, group), random_batch(config)
    learner.start()
    packed = [mx.nd.zeros((3,))]  # as large as `Step.packed`

    def compute() -> None:
        learner.step(batch)

    def sleep() -> None:
        time.sleep(args.seconds)
        group.queue_sum(packed)
        for trainer in learner.trainers:
            trainer.allreduce_grads()
        mx.nd.waitall()

    step = compute if args.step == "compute" else sleep
    loop.seed_step(1, 0, group.rank)
    for _ in range(_WARMUP):
        step()
    mx.nd.waitall()
    # All workers begin together.
    group.sum(np.zeros(1, np.float32))
    print("begin", flush=True)
    started = time.perf_counter()
    for _ in range(args.steps):
        step()
    mx.nd.waitall()
    print("seconds", (time.perf_counter() - started) / args.steps, flush=True)
    group.sum(np.zeros(1, np.float32))
    # The servers end with the last worker; their processor time is read before.
    time.sleep(1)
    return 0


if __name__ == "__main__":
    status = main()
    heartbeat.exit_group(status)
    sys.exit(status)
