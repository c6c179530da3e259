"""Times sampling with loss, and evaluation, each alone, here and in the original example.

    python -m tests.benchmarks.contenders.parts --original PATH

PATH is the folder example/gluon/embedding_learning of apache/mxnet 1.9.1, which needs the package
bottleneck. Both programs take turns and use the same number of threads. Prints the seconds of one
call, for each round.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from embedding_learning.evaluation.metrics import recall_at_k
from tests.benchmarks.contenders.protocol import TEST_CLASSES, TEST_IMAGES, embeddings
from tests.benchmarks.sampling_and_loss import load_original_model, original_step, own_step
from tests.benchmarks.search import CUB_RANKS, load_original_recalls
from tests.benchmarks.timing import interleaved

# isort: split
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sampling = {
        "here": own_step(args.batch_size),
        "original": original_step(args.batch_size, load_original_model(args.original)),
    }
    rows, labels = embeddings(TEST_IMAGES), np.arange(TEST_IMAGES) % TEST_CLASSES
    evaluation = {
        "here": lambda: recall_at_k(rows, labels, CUB_RANKS),
        "original": load_original_recalls(args.original, rows, labels),
    }
    result = {
        "sampling": interleaved(sampling, args.rounds, calls=20),
        "evaluation": interleaved(evaluation, args.rounds, warmup=1),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
