"""How many images a second are embedded from files, compared with the bare forward pass?

    python -m tests.benchmarks.embed ../shared/data/cub_crops [--model resnet50_v2] [--images 3569]

`EmbeddingModel.embed`, from files to a numpy array, takes turns with the same backbone alone. The
backbone gets as many batches, in float32 and in memory already. The weights are random unless
--params names a saved model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from embedding_learning import load_model
from embedding_learning.data.datasets import unlabeled
from embedding_learning.inference.embedding_model import EmbeddingModel
from tests.benchmarks.timing import interleaved
from tests.helpers.saved_models import save_model

# isort: split
import mxnet as mx
import numpy as np


def bare_forward(model: EmbeddingModel, batch_size: int, batches: int) -> None:
    """Computes the backbone's features of random batches, with as many in the queue as `embed`."""
    size = model.description["crop_size"]
    images = mx.nd.random.normal(shape=(batch_size, 3, size, size))
    queued: list[mx.nd.NDArray] = []
    for _ in range(batches):
        queued.append(model.net.base_net(images))
        if len(queued) > 2:
            queued.pop(0).wait_to_read()
    mx.nd.waitall()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--model", default="resnet50_v2")
    parser.add_argument("--params", help="a saved model (default: random weights)")
    parser.add_argument("--images", type=int, help="embed only the first N", metavar="N")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        params = args.params or f"{folder}/model.params"
        if not args.params:
            flags = ["--image-size=256", "--crop-size=224", "--embed-dim=128"]
            save_model(Path(params), f"--model={args.model}", *flags)
        model = load_model(params)
    paths = unlabeled.read([args.folder]).paths[: args.images]
    size = model.choose_batch_size(len(paths), args.batch_size)
    batches = -(-len(paths) // size)
    print(f"{len(paths)} images, {batches} batches of {size}, {model.description['model']}")
    seconds = interleaved(
        {
            "embed": lambda: model.embed(paths, None, args.batch_size, args.workers),
            "bare": lambda: bare_forward(model, size, batches),
        },
        args.rounds,
        warmup=1,
    )
    rates = {
        "embed": len(paths) / np.array(seconds["embed"]),
        "bare": batches * size / np.array(seconds["bare"]),
    }
    for name, values in rates.items():
        print(
            f"{name:6s} {statistics.median(values):8.1f} images/s  "
            f"({min(values):.1f} to {max(values):.1f})"
        )
    ratios = rates["embed"] / rates["bare"]
    print(f"embed / bare: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
