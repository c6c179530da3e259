"""How fast are sampling and loss, forward and backward, here and in the original example?

    python -m tests.benchmarks.sampling_and_loss --original PATH

PATH is the folder example/gluon/embedding_learning of apache/mxnet 1.9.1. Without it only this
program is timed. Both take turns. Prints the milliseconds of a step, and the ratio to this program.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from embedding_learning import DistanceWeightedSampling, MarginLoss
from tests.benchmarks.timing import interleaved, print_ratios

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd, nd

DIMENSION, BATCH_K, CLASSES = 128, 5, 100


def load_original_model(folder: Path) -> ModuleType:
    """Returns the original's model.py, unchanged, as a module."""
    spec = importlib.util.spec_from_file_location("original_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def embeddings(n: int) -> nd.NDArray:
    """Returns unit rows (n, DIMENSION) with distances below and above 1.4, as in training."""
    rng = np.random.default_rng(0)
    rows = 0.5 * rng.normal(size=DIMENSION) + rng.normal(size=(n, DIMENSION))
    x = nd.array(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    x.attach_grad()
    return x


def own_step(n: int) -> Callable[[], None]:
    """Returns a function that makes one step of this program with n embeddings."""
    x, labels = embeddings(n), nd.array(np.arange(n) // BATCH_K % CLASSES)
    beta = mx.gluon.Parameter("beta", shape=(CLASSES,))
    beta.initialize(mx.init.Constant(1.2))
    sampling, loss = DistanceWeightedSampling(BATCH_K), MarginLoss()
    for block in (sampling, loss):
        block.hybridize(static_alloc=True, static_shape=True)

    def step() -> None:
        with autograd.record():
            rows, anchors, positives, negatives, _ = sampling(x)
            value = loss(anchors, positives, negatives, beta, labels.take(rows))
        value.backward()

    return step


def original_step(n: int, model: ModuleType) -> Callable[[], None]:
    """Returns a function that makes one step of the original with n embeddings."""
    x, labels = embeddings(n), nd.array(np.arange(n) // BATCH_K % CLASSES)
    beta = mx.gluon.Parameter("beta", shape=(CLASSES,))
    beta.initialize(mx.init.Constant(1.2))
    sampling, loss = model.DistanceWeightedSampling(batch_k=BATCH_K), model.MarginLoss()

    def step() -> None:
        with autograd.record():
            rows, anchors, positives, negatives, _ = sampling(x)
            value = loss(anchors, positives, negatives, beta, labels[rows])
        value.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", type=Path, help="folder of the original example")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    for n, steps in ((70, 20), (1000, 2)):
        print(f"n = {n}, d = {DIMENSION}, k = {BATCH_K}; time of one step of {steps} in a row")
        functions = {"this program": own_step(n)}
        if args.original:
            functions["the original"] = original_step(n, load_original_model(args.original))
        print_ratios(interleaved(functions, args.rounds, steps), "this program")


if __name__ == "__main__":
    main()
