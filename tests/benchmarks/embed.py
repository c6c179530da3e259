"""How many images a second are embedded from files, compared with onnxruntime and the same decoder?

    python -m tests.benchmarks.embed ../shared/data/cub_crops [--model resnet50_v2] [--images 600]

`EmbeddingModel.embed`, from files to a numpy array, with both engines, takes turns with a simple
program: threads decode images with the same function, and onnxruntime computes one batch after the
other. The weights are random unless --params names a saved model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embedding_learning import load_model
from embedding_learning.data.datasets import unlabeled
from embedding_learning.data.preprocessing import read_square
from embedding_learning.inference.embedding_model import EmbeddingModel
from tests.benchmarks.inference import open_session
from tests.benchmarks.timing import interleaved
from tests.helpers.saved_models import save_model

# isort: split
import numpy as np


def simple_program(
    model: EmbeddingModel, batch_size: int, workers: int
) -> Callable[[list[str]], np.ndarray]:
    """Returns a function from paths to embeddings, with threads and onnxruntime."""
    size, crop = model.description["image_size"], model.description["crop_size"]
    edge = (size - crop) // 2
    run = open_session(model.net, crop)

    def read(path: str) -> np.ndarray:
        square = read_square(path, None, size, model.preprocessing)
        return square[edge : edge + crop, edge : edge + crop].transpose(2, 0, 1)

    def embed(paths: list[str]) -> np.ndarray:
        with ThreadPoolExecutor(workers) as pool:
            images = pool.map(read, paths)
            starts = range(0, len(paths), batch_size)
            return np.concatenate(
                [run(np.stack([next(images) for _ in paths[i : i + batch_size]])) for i in starts]
            )

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--model", default="resnet50_v2")
    parser.add_argument("--params", help="a saved model (default: random weights)")
    parser.add_argument("--images", type=int, help="embed only the first N", metavar="N")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        params = args.params or f"{folder}/model.params"
        if not args.params:
            flags = ["--image-size=256", "--crop-size=224", "--embed-dim=128"]
            save_model(Path(params), f"--model={args.model}", *flags)
        models = {name: load_model(params, engine=name) for name in ("mxnet", "onnxruntime")}
    paths = unlabeled.read([args.folder]).paths[: args.images]
    simple = simple_program(models["mxnet"], args.batch_size, args.workers)
    contenders = {
        f"--engine {name}": lambda model=model: model.embed(
            paths, None, args.batch_size, args.workers
        )
        for name, model in models.items()
    }
    contenders["onnxruntime, same decoder"] = lambda: simple(paths)
    seconds = interleaved(contenders, args.rounds, warmup=1)
    print(f"{len(paths)} images, {models['mxnet'].description['model']}")
    base = seconds["onnxruntime, same decoder"]
    for name, values in seconds.items():
        rates = [len(paths) / value for value in values]
        ratio = statistics.median(b / value for value, b in zip(values, base))
        print(
            f"{name:28s} {statistics.median(rates):8.1f} images/s  "
            f"({min(rates):.1f} to {max(rates):.1f})  {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
