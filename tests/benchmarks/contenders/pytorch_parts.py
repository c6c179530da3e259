"""Times sampling with loss, and evaluation, each alone, in pytorch-metric-learning.

    VENV/bin/python -m tests.benchmarks.contenders.pytorch_parts

VENV is that of pytorch.py, with faiss-cpu. The library has no recall@k: its evaluation searches the
16 nearest images as recall@16 does, and counts the first. Prints the seconds of one call, for each
round.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from pytorch_metric_learning.miners import DistanceWeightedMiner
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from tests.benchmarks.contenders.protocol import (
    BATCH_K,
    TEST_CLASSES,
    TEST_IMAGES,
    embeddings,
)
from tests.benchmarks.contenders.pytorch import margin_loss

NEAREST = 16


def sampling_and_loss(n: int) -> Callable[[], None]:
    x = torch.from_numpy(embeddings(n)).requires_grad_()
    labels = torch.arange(n) // BATCH_K
    miner = DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
    loss = margin_loss(100)
    return lambda: loss(x, labels, miner(x, labels)).backward()


def evaluation() -> Callable[[], object]:
    rows = torch.from_numpy(embeddings(TEST_IMAGES))
    labels = torch.from_numpy(np.arange(TEST_IMAGES) % TEST_CLASSES)
    calculator = AccuracyCalculator(("precision_at_1",), k=NEAREST, device=torch.device("cpu"))
    return lambda: calculator.get_accuracy(rows, labels)


def seconds(function: Callable[[], object], rounds: int, calls: int) -> list[float]:
    """Returns the seconds of one call for each round of `calls`; a first round does not count."""
    timed = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        for _ in range(calls):
            function()
        timed.append((time.perf_counter() - started) / calls)
    return timed[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    result = {
        "sampling": {"pytorch": seconds(sampling_and_loss(args.batch_size), args.rounds, 20)},
        "evaluation": {"pytorch": seconds(evaluation(), args.rounds, 1)},
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
