"""Are MAP@R, R-precision, Recall@1, NMI and AMI those of pytorch-metric-learning?

    VENV/bin/python -m tests.benchmarks.against_pytorch_metric_learning

VENV is an environment with numpy, scipy, torch, faiss-cpu and pytorch-metric-learning; it needs no
MXNet. Exit status 1 if a difference exceeds 1e-6.

The embeddings have no ties, whose order in faiss is not defined. NMI and AMI are those of the same
clusters. Recall@1 is compared only if every query has an image to find: that library leaves out the
queries that have none.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from embedding_learning.evaluation.clustering import k_means
from embedding_learning.evaluation.metrics import evaluate

LIBRARY_NAMES = {
    "map@r": "mean_average_precision_at_r",
    "r-precision": "r_precision",
    "recall@1": "precision_at_1",
    "nmi": "NMI",
    "ami": "AMI",
}
LARGEST_DIFFERENCE = 1e-6


def embeddings(labels: np.ndarray, noise: float, is_normalized: bool) -> np.ndarray:
    """Returns rows around a random center for each class, (n, 32)."""
    rng = np.random.default_rng(len(labels))
    x = rng.normal(size=(labels.max() + 1, 32))[labels] + noise * rng.normal(size=(len(labels), 32))
    x /= np.linalg.norm(x, axis=1, keepdims=True) if is_normalized else 1
    return x.astype(np.float32)


def tasks() -> dict[str, tuple[np.ndarray, ...]]:
    """Returns embeddings and labels by name, followed by those of a gallery if one is searched."""
    rng = np.random.default_rng(0)
    even, uneven = np.arange(1200) % 40, np.minimum(rng.geometric(0.03, 1500), 90)
    single = np.concatenate([even, np.arange(100, 180)])
    is_query = np.arange(1500) % 3 == 0
    x = embeddings(uneven, 2.0, True)
    return {
        "even classes": (embeddings(even, 2.0, True), even),
        "uneven classes": (embeddings(uneven, 1.5, False), uneven),
        "classes of one image": (embeddings(single, 1.0, True), single),
        "one class": (embeddings(even, 1.0, True), np.zeros(1200, int)),
        "two classes": (embeddings(even % 2, 4.0, True), even % 2),
        "a gallery": (x[is_query], uneven[is_query], x[~is_query], uneven[~is_query]),
    }


def evaluate_with_library(metrics: list[str], arrays: tuple[np.ndarray, ...]) -> dict[str, float]:
    """Returns the metrics by pytorch-metric-learning."""
    names = tuple(LIBRARY_NAMES[name] for name in metrics)
    calculator = AccuracyCalculator(
        names,
        k="max_bin_count",
        device=torch.device("cpu"),
        kmeans_func=lambda x, k: torch.from_numpy(k_means(x.numpy(), k)),
    )
    values = calculator.get_accuracy(*arrays)
    return {name: values[LIBRARY_NAMES[name]] for name in metrics}


def main() -> None:
    worst = 0.0
    for title, arrays in tasks().items():
        labels, searched_labels = arrays[1], arrays[3] if len(arrays) == 4 else arrays[1]
        counts = np.bincount(searched_labels, minlength=labels.max() + 1)[labels]
        # Among each other an image counts itself.
        all_have_matches = (counts > (len(arrays) == 2)).all()
        metrics = [name for name in LIBRARY_NAMES if name != "recall@1" or all_have_matches]
        own = evaluate(*arrays[:2], metrics, *arrays[2:])
        library = evaluate_with_library(metrics, arrays)
        for name in metrics:
            difference = abs(own[name] - library[name])
            worst = max(worst, difference)
            print(f"{title:22s} {name:12s} {own[name]:.9f} {library[name]:.9f} {difference:.1e}")
    print(f"largest difference {worst:.1e}")
    sys.exit(not worst <= LARGEST_DIFFERENCE)


if __name__ == "__main__":
    main()
