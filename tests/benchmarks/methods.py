"""Every sampling with every loss, forward and backward, beside the original's pair of them.

    python -m tests.benchmarks.methods

Milliseconds of a step in a row of steps, and how many times as long as distance weighted sampling
with the margin-based loss each takes: the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from embedding_learning.model import losses, methods  # makes MXNet ready
from embedding_learning.model import sampling as samplings
from tests.benchmarks.sampling_and_loss import (
    BATCH_K,
    CLASSES,
    DIMENSION,
    embeddings,
)
from tests.benchmarks.timing import interleaved, print_ratios

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd, nd


def steps_of(loss_name: str, sampling_name: str, n: int) -> Callable[[], None]:
    """A function that makes one step."""
    x, labels = embeddings(n), nd.array(np.arange(n) // BATCH_K % CLASSES)
    beta = mx.gluon.Parameter("beta", shape=(CLASSES,))
    beta.initialize(mx.init.Constant(1.2))
    sampling = getattr(samplings, methods.SAMPLINGS[sampling_name].class_name)(BATCH_K)
    loss = getattr(losses, methods.LOSSES[loss_name].class_name)()
    for block in (sampling, loss):
        block.hybridize(static_alloc=True, static_shape=True)

    def step() -> None:
        with autograd.record():
            rows, anchors, positives, negatives, _ = sampling(x)
            boundary = (beta, labels.take(rows)) if methods.LOSSES[loss_name].has_beta else ()
            value = loss(anchors, positives, negatives, *boundary)
        value.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    pairs = [(loss, sampling) for loss in methods.LOSSES for sampling in methods.SAMPLINGS]
    for n, steps in ((70, 20), (280, 5)):
        print(f"n = {n}, d = {DIMENSION}, k = {BATCH_K}; {steps} steps in a row, time of one")
        functions = {f"{loss}, {sampling}": steps_of(loss, sampling, n) for loss, sampling in pairs}
        print_ratios(interleaved(functions, args.rounds, steps), next(iter(functions)))


if __name__ == "__main__":
    main()
