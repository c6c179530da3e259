"""A worker of a job that measures the exchange of gradients; `scaling` starts it.

It builds the network and its trainers as training does, exchanges gradients with the others
in each step through the parameter server, and prints `begin`, then the seconds of a step. A step
is `sleep`: it sleeps for as long as computing takes, then exchanges and waits; or `compute`: the
whole step of training. Outside of a job there is nothing to exchange.
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
    parser.add_argument("--steps", type=int, default=5)
    arguments, flags = parser.parse_known_args()
    options = parse(flags)
    client = heartbeat.join_group("exchange")

    import mxnet as mx
    import numpy as np

    from embedding_learning.distributed.synchronous import SynchronousGroup
    from embedding_learning.distributed.worker_group import WorkerGroup
    from embedding_learning.training import build, loop

    group = SynchronousGroup(options.kvstore, client) if client else WorkerGroup()
    devices = [mx.cpu()]
    learning = build.build(
        options, np.arange(100)[:, None], build.build_network(options, devices), devices, group
    )
    learning.start()
    shape = (options.batch_size, 3, options.crop_size, options.crop_size)
    pixels = mx.nd.array(np.random.default_rng(0).integers(0, 256, shape), dtype=np.uint8)
    labels = mx.nd.array(np.arange(options.batch_size) // options.batch_k)
    batch = mx.io.DataBatch(data=[pixels], label=[labels])
    signals = [mx.nd.zeros((3,))]

    def compute() -> None:
        learning.step(batch)

    def sleep() -> None:
        time.sleep(arguments.seconds)
        group.queue_sum(signals)
        for trainer in learning.trainers:
            trainer.allreduce_grads()
        mx.nd.waitall()

    step = compute if arguments.step == "compute" else sleep
    loop.seed_step(1, 0, group.rank)
    for _ in range(_WARMUP):
        step()
    mx.nd.waitall()
    # All begin together.
    group.sum(np.zeros(1, np.float32))
    print("begin", flush=True)
    started = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    mx.nd.waitall()
    print("seconds", (time.perf_counter() - started) / arguments.steps, flush=True)
    group.sum(np.zeros(1, np.float32))
    # For the servers' processor time to be read before they end with the last worker.
    time.sleep(1)
    return 0


if __name__ == "__main__":
    status = main()
    heartbeat.exit_group(status)
    sys.exit(status)
