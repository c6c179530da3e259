"""Are the losses without a sampling those of pytorch-metric-learning, and which are faster?

    python -m tests.benchmarks.against_pml_losses --pytorch-python PYTHON

PYTHON is that of an environment with numpy, torch and pytorch-metric-learning. Both compute the
same float32 batches. That library scales embeddings to unit length itself, so its gradients lack
the part along an embedding, which the network's normalization takes away here. Both then take
turns, so that changes of the machine's speed affect both alike. Exit status 1 if a difference
exceeds 1e-4 of the largest number.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from embedding_learning.model import methods
from embedding_learning.training.build import build_loss
from embedding_learning.training.settings import make_config
from tests.benchmarks.timing import interleaved

# isort: split
import numpy as np
from mxnet import autograd, nd

IMAGES, PER_CLASS, DIMENSION = 70, 5, 128
# Classes that train in CUB-200-2011 and in Stanford Online Products.
CLASSES = (100, 11318)
NAMES = [name for name, row in methods.LOSSES.items() if not row.samples]
LARGEST_DIFFERENCE = 1e-4
# Of one loss in a row, in each round.
CALLS = 10


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


class Library:
    """pytorch-metric-learning in a process of another Python, with batches that it computes."""

    def __init__(self, python: str, batches: dict[str, dict[str, np.ndarray]], folder: str) -> None:
        source, target = (str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs"))
        np.savez(
            source, **{f"{key}/{n}": a for key, batch in batches.items() for n, a in batch.items()}
        )
        module = "tests/benchmarks/label_losses_of_pml.py"
        self._process = subprocess.Popen(
            [python, module, source, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # It has begun to wait for requests.
        if self._process.stdout.readline() != "computed\n":
            sys.exit(f"{python} could not compute the losses")
        self.arrays = dict(np.load(target))

    def seconds(self, key: str, calls: int) -> float:
        """Returns the seconds of one of some calls in a row."""
        print(calls, key, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def differences(batches: dict[str, dict[str, np.ndarray]], theirs: dict[str, np.ndarray]) -> float:
    """Prints the difference of each array relative to its largest number; returns the largest."""
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


def print_times(batches: dict[str, dict[str, np.ndarray]], library: Library, rounds: int) -> None:
    """Prints the milliseconds here and there, medians, and the median of the rounds' ratios."""
    print(f"n = {IMAGES}, d = {DIMENSION}; one loss, forward and backward, {rounds} rounds in turn")
    steps = {key: make_step(key.partition(",")[0], batch) for key, batch in batches.items()}
    times: dict[str, list[tuple[float, float]]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            [ours] = interleaved({key: step}, 1, CALLS, warmup=1)[key]
            times[key].append((1e3 * ours, 1e3 * library.seconds(key, CALLS)))
    for key, pairs in times.items():
        ours, theirs = np.median(pairs, axis=0)
        ratio = statistics.median(here / there for here, there in pairs)
        print(f"{key:32s} here {ours:7.2f} ms, library {theirs:7.2f} ms, ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pytorch-python", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    batches = {f"{name}, {classes}": arrays(classes) for classes in CLASSES for name in NAMES}
    with TemporaryDirectory() as folder:
        library = Library(args.pytorch_python, batches, folder)
    worst = differences(batches, library.arrays)
    print(f"largest difference {worst:.1e}")
    print_times(batches, library, args.rounds)
    library.close()
    sys.exit(not worst <= LARGEST_DIFFERENCE)


if __name__ == "__main__":
    main()
