"""MAP@R, R-precision, Recall@1, NMI and AMI here and by pytorch-metric-learning: the differences.

    VENV/bin/python -m tests.benchmarks.against_pytorch_metric_learning

VENV is an environment of its own, since gluoncv refuses PyTorch: numpy, scipy, torch, faiss-cpu
and pytorch-metric-learning. No MXNet is needed. Ends with 1 if a difference exceeds 1e-6.

Embeddings without ties, which faiss orders as it likes; NMI and AMI of the same clusters. Recall@1
only where each query has an image to find: those that have none are left out there.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from embedding_learning.evaluation.clustering import k_means
from embedding_learning.evaluation.metrics import evaluate

THEIR_NAMES = {
    "map@r": "mean_average_precision_at_r",
    "r-precision": "r_precision",
    "recall@1": "precision_at_1",
    "nmi": "NMI",
    "ami": "AMI",
}
LARGEST_DIFFERENCE = 1e-6


def embeddings(labels: np.ndarray, noise: float, normalised: bool) -> np.ndarray:
    rng = np.random.default_rng(len(labels))
    x = rng.normal(size=(labels.max() + 1, 32))[labels] + noise * rng.normal(size=(len(labels), 32))
    x /= np.linalg.norm(x, axis=1, keepdims=True) if normalised else 1
    return x.astype(np.float32)


def tasks() -> dict[str, tuple[np.ndarray, ...]]:
    """By name: embeddings and labels, of a gallery too where there is one."""
    rng = np.random.default_rng(0)
    even, uneven = np.arange(1200) % 40, np.minimum(rng.geometric(0.03, 1500), 90)
    single = np.concatenate([even, np.arange(100, 180)])
    some = np.arange(3000) % 3 == 0
    x = embeddings(uneven, 2.0, True)
    return {
        "even classes": (embeddings(even, 2.0, True), even),
        "uneven classes": (embeddings(uneven, 1.5, False), uneven),
        "classes of one image": (embeddings(single, 1.0, True), single),
        "one class": (embeddings(even, 1.0, True), np.zeros(1200, int)),
        "two classes": (embeddings(even % 2, 4.0, True), even % 2),
        "a gallery": (x[some[:1500]], uneven[some[:1500]], x[~some[:1500]], uneven[~some[:1500]]),
    }


def theirs(metrics: list[str], arrays: tuple[np.ndarray, ...]) -> dict[str, float]:
    clusters_of = {"kmeans_func": lambda x, k: torch.from_numpy(k_means(x.numpy(), k))}
    names = tuple(THEIR_NAMES[name] for name in metrics)
    calculator = AccuracyCalculator(
        names, k="max_bin_count", device=torch.device("cpu"), **clusters_of
    )
    found = calculator.get_accuracy(*arrays)
    return {name: found[THEIR_NAMES[name]] for name in metrics}


def main() -> None:
    worst = 0.0
    for title, arrays in tasks().items():
        labels, found = arrays[1], arrays[3] if len(arrays) == 4 else arrays[1]
        counts = np.bincount(found, minlength=labels.max() + 1)[labels]
        everyone_has_some = (counts > (len(arrays) == 2)).all()
        metrics = [name for name in THEIR_NAMES if name != "recall@1" or everyone_has_some]
        here, there = evaluate(*arrays[:2], metrics, *arrays[2:]), theirs(metrics, arrays)
        for name in metrics:
            difference = abs(here[name] - there[name])
            worst = max(worst, difference)
            print(f"{title:22s} {name:12s} {here[name]:.9f} {there[name]:.9f} {difference:.1e}")
    print(f"largest difference {worst:.1e}")
    sys.exit(not worst <= LARGEST_DIFFERENCE)


if __name__ == "__main__":
    main()
