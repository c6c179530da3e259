"""How many images a second are embedded, compared with onnxruntime and PyTorch?

    python -m tests.benchmarks.inference --pytorch-python VENV/bin/python [MODEL ...]

VENV is an environment of its own, with torch and torchvision. Each round embeds one batch of
224x224 pixels with each contender in turn: the layers one by one, the fused layers (--engine
mxnet), --engine onnxruntime, onnxruntime alone on the exported file, and PyTorch, channels last.
Weights are random. The last column is the largest difference of a number of an embedding between
the fused layers and the layers one by one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing

from embedding_learning.errors import UsageError
from embedding_learning.inference.embedding_graph import EmbeddingGraph, _PlainGraph
from embedding_learning.inference.export import export_onnx
from embedding_learning.inference.onnxruntime_engine import OnnxRuntimeEngine
from embedding_learning.model.net import MarginNet
from tests.benchmarks.export_families import random_net, random_pixels
from tests.benchmarks.timing import interleaved

# isort: split
import numpy as np
import onnxruntime

SIZE = 224
MODELS = [
    "resnet50_v2",
    "resnet50_v1b",
    "resnet18_v1",
    "squeezenet1.1",
    "mobilenet_v2",
    "densenet121",
    "mobilenetv3_large",
    "resnext50_32x4d",
]


class PyTorch:
    """A process that embeds a batch whenever it is called, and idles otherwise."""

    def __init__(self, python: str, model: str, batch_size: int) -> None:
        module = "tests.benchmarks.contenders.pytorch_inference"
        flags = [f"--model={model}", f"--batch-size={batch_size}"]
        self._process = subprocess.Popen(
            [python, "-m", module, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> None:
        print(file=self._process.stdin, flush=True)
        if not self._process.stdout.readline():
            raise SystemExit("the process of PyTorch has ended")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def open_session(net: MarginNet, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns onnxruntime itself, on the file that `export` writes, as a function of pixels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(net, f"{folder}/net.onnx", size, normalize_input=True)
        session = onnxruntime.InferenceSession(f"{folder}/net.onnx", options)
    return lambda pixels: session.run(None, {"data": pixels})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--pytorch-python", help="a Python that has PyTorch")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    columns = ["one by one", "fused", "engine onnxruntime", "onnxruntime alone", "PyTorch"]
    print("| backbone | " + " | ".join(columns) + " | difference |")
    print("|---" * (len(columns) + 2) + "|")
    for model in args.models:
        rates, difference = measure(model, args)
        cells = [f"{rates[name]:.1f}" if name in rates else "-" for name in columns]
        print(f"| {model} | " + " | ".join(cells) + f" | {difference:.0e} |", flush=True)


def measure(model: str, args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Returns the images a second of each contender, and the difference of the fused layers."""
    net, pixels = random_net(model, SIZE), random_pixels(args.batch_size, SIZE, seed=1)
    array = pixels.asnumpy()
    plain, fused = _PlainGraph(net), EmbeddingGraph(net)
    plain.hybridize(static_alloc=True, static_shape=True)
    contenders: dict[str, Callable[[], object]] = {
        "one by one": lambda: plain(pixels).asnumpy(),
        "fused": lambda: fused(pixels).asnumpy(),
    }
    difference = abs(plain(pixels).asnumpy() - fused(pixels).asnumpy()).max()
    try:
        engine, alone = OnnxRuntimeEngine(net, SIZE), open_session(net, SIZE)
        contenders["engine onnxruntime"] = lambda: engine(pixels).asnumpy()
        contenders["onnxruntime alone"] = lambda: alone(array)
    except UsageError as error:
        print(f"{model}: {error}", file=sys.stderr)
    with ExitStack() as stack:
        if args.pytorch_python:
            torch = PyTorch(args.pytorch_python, model, args.batch_size)
            contenders["PyTorch"] = stack.enter_context(closing(torch))
        seconds = interleaved(contenders, args.rounds)
    rates = {name: args.batch_size / statistics.median(s) for name, s in seconds.items()}
    return rates, difference


if __name__ == "__main__":
    main()
