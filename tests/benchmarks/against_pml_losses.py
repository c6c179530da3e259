"""Are the losses without a sampling those of pytorch-metric-learning, and how long do they take?

    python -m tests.benchmarks.against_pml_losses --torch-python PYTHON

PYTHON is that of an environment with numpy, torch and pytorch-metric-learning. Both compute the
same float32 batches. That library scales embeddings to unit length itself, so its gradients lack
the part along an embedding, which the network's normalization takes away here. Exit status 1 if a
difference exceeds 1e-4 of the largest number.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from embedding_learning.model import methods
from embedding_learning.training.build import build_loss
from embedding_learning.training.settings import make_config
from tests.benchmarks.timing import interleaved, print_ratios

# isort: split
import numpy as np
from mxnet import autograd, nd

IMAGES, PER_CLASS, DIMENSION = 70, 5, 128
# Classes that train in CUB-200-2011 and in Stanford Online Products.
CLASSES = (100, 11318)
NAMES = [name for name, row in methods.LOSSES.items() if not row.samples]
LARGEST_DIFFERENCE = 1e-4


def arrays(classes: int) -> dict[str, np.ndarray]:
    """Returns embeddings around the proxies of their classes, the classes, and proxies."""
    rng = np.random.default_rng(classes)
    proxies = rng.normal(size=(classes, DIMENSION)) / np.sqrt(DIMENSION)
    labels = np.repeat(rng.permutation(classes)[: IMAGES // PER_CLASS], PER_CLASS)
    x = proxies[labels] + 3 * rng.normal(size=(IMAGES, DIMENSION)) / np.sqrt(DIMENSION)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    named = {"embeddings": x, "labels": labels, "proxies": proxies}
    return {name: array.astype(np.float32) for name, array in named.items()}


def make_step(name: str, batch: dict[str, np.ndarray]) -> Callable[[], dict[str, nd.NDArray]]:
    """Returns a function that computes a loss and its gradients."""
    loss = build_loss(make_config({"loss": name}, saves=False).method)
    loss.hybridize(static_alloc=True, static_shape=True)
    inputs = {key: nd.array(array) for key, array in batch.items()}
    learned = ["embeddings"] + ["proxies"] * methods.LOSSES[name].has_proxies
    for key in learned:
        inputs[key].attach_grad()

    def step() -> dict[str, nd.NDArray]:
        with autograd.record():
            value = loss(*list(inputs.values())[: 1 + len(learned)])
        value.backward()
        return {"loss": value, **{key: inputs[key].grad for key in learned}}

    return step


def differences(batches: dict[str, dict[str, np.ndarray]], python: str) -> float:
    """Prints the difference of each array relative to its largest number; returns the largest."""
    with TemporaryDirectory() as folder:
        source, target = (str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs"))
        np.savez(
            source, **{f"{key}/{n}": a for key, batch in batches.items() for n, a in batch.items()}
        )
        module = "tests/benchmarks/label_losses_of_pml.py"
        subprocess.run([python, module, source, target], check=True)
        theirs = dict(np.load(target))
    worst = 0.0
    for key, batch in batches.items():
        ours = make_step(key.partition(",")[0], batch)()
        for name, array in ours.items():
            expected = theirs[f"{key}/{name}"]
            found = array.asnumpy()
            if name == "embeddings":
                x = batch[name]
                found = found - (found * x).sum(axis=1, keepdims=True) * x
            difference = abs(found - expected).max() / abs(expected).max()
            worst = max(worst, difference)
            print(f"{key:32s} {name:12s} {difference:.1e}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    batches = {f"{name}, {classes}": arrays(classes) for classes in CLASSES for name in NAMES}
    worst = differences(batches, args.torch_python)
    print(f"largest difference {worst:.1e}")
    print(f"n = {IMAGES}, d = {DIMENSION}; time of one loss, forward and backward")
    functions = {key: make_step(key.partition(",")[0], batch) for key, batch in batches.items()}
    print_ratios(interleaved(functions, args.rounds, 10), next(iter(functions)))
    sys.exit(not worst <= LARGEST_DIFFERENCE)


if __name__ == "__main__":
    main()
