"""How fast is every sampling with every loss of triplets, forward and backward?

    python -m tests.benchmarks.methods

Prints the milliseconds of a step, and its ratio to distance weighted sampling with the margin-based
loss: the median of the ratios of all rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from embedding_learning.model import losses, methods
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


def make_step(loss_name: str, sampling_name: str, n: int) -> Callable[[], None]:
    """Returns a function that makes one step with n embeddings."""
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
            beta_arguments = (beta, labels.take(rows)) if methods.LOSSES[loss_name].has_beta else ()
            value = loss(anchors, positives, negatives, *beta_arguments)
        value.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    losses_of_triplets = [name for name, row in methods.LOSSES.items() if row.samples]
    pairs = [(loss, sampling) for loss in losses_of_triplets for sampling in methods.SAMPLINGS]
    for n, steps in ((70, 20), (280, 5)):
        print(f"n = {n}, d = {DIMENSION}, k = {BATCH_K}; time of one step of {steps} in a row")
        functions = {
            f"{loss}, {sampling}": make_step(loss, sampling, n) for loss, sampling in pairs
        }
        print_ratios(interleaved(functions, args.rounds, steps), next(iter(functions)))


if __name__ == "__main__":
    main()
