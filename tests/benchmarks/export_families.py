"""Do exported networks give the embeddings of the trained network, for every backbone?

    python -m tests.benchmarks.export_families                      # all: some 20 minutes
    python -m tests.benchmarks.export_families resnet18 vgg11_bn

Weights are random; a few passes in training mode set the running statistics of batch norm. Prints a
line per backbone: the largest difference of a number of an embedding, with the fused layers of
`EmbeddingGraph` (at the second call, when all memory was used before), with SymbolBlock and with
onnxruntime, and the smallest distance between two of the images. If that distance is small, the
network hardly tells the images apart, and the differences show little. The input is uint8 RGB.
"""

from __future__ import annotations

import argparse
import os
import tempfile

from embedding_learning.errors import UsageError
from embedding_learning.inference import export
from embedding_learning.inference.embedding_graph import EmbeddingGraph
from embedding_learning.model import backbones
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.model.weights.catalog import ARCHITECTURES, GLUON_NAMES, TORCHVISION_NAMES
from tests.helpers.onnx_files import open_session

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd, nd
from mxnet.gluon import HybridBlock, nn

IMAGES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="backbones (default: all)")
    # Names of torchvision that mean one of Gluon's networks are left out.
    others = [name for name, own in TORCHVISION_NAMES.items() if own not in GLUON_NAMES]
    print("| backbone | pixels | fused | SymbolBlock | ONNX | nearest images |")
    print("|---|---|---|---|---|---|")
    for name in parser.parse_args().models or [*GLUON_NAMES, *others]:
        size = ARCHITECTURES[TORCHVISION_NAMES.get(name, name)].crop_size
        with tempfile.TemporaryDirectory() as folder:
            try:
                fused, symbol, onnx, nearest = differences(name, size, folder)
            except UsageError as error:
                print(f"| {name} | {size} | {error} ||||", flush=True)
            else:
                figures = f"{fused} | {symbol:.1e} | {onnx:.1e} | {nearest:.3f}"
                print(f"| {name} | {size} | {figures} |", flush=True)


def differences(name: str, size: int, folder: str) -> tuple[str, float, float, float]:
    """Returns the differences of the table, and the distance of the nearest images."""
    net = random_net(name, size)
    pixels = random_pixels(IMAGES, size, seed=1)
    expected = net.embed(pixels).asnumpy()
    distances = np.linalg.norm(expected[:, None] - expected, axis=2)

    graph = EmbeddingGraph(net)
    fused = max(abs(graph(pixels).asnumpy() - expected).max() for _ in range(2))
    is_fused = not isinstance(graph._run, HybridBlock)

    prefix = os.path.join(folder, "net")
    export.export_symbol(net, prefix, size, normalize_input=True)
    files = f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params"
    by_symbol = mx.gluon.SymbolBlock.imports(*files)(pixels).asnumpy()

    export.export_onnx(net, f"{prefix}.onnx", size, normalize_input=True)
    (by_onnx,) = open_session(f"{prefix}.onnx").run(None, {"data": pixels.asnumpy()})
    return (
        f"{fused:.1e}" if is_fused else "no",
        float(abs(by_symbol - expected).max()),
        float(abs(by_onnx - expected).max()),
        float(distances[~np.eye(IMAGES, dtype=bool)].min()),
    )


def random_net(name: str, size: int) -> MarginNet:
    """Returns a network with random weights and random parameters of batch norm."""
    devices = [mx.cpu()]
    mx.random.seed(0)
    net = MarginNet(backbones.create(name, devices), 128, 2, preprocess=ImageNormalization())
    # Scaled by the inputs alone (He et al., 2015): with the outputs too, depthwise layers vanish.
    net.initialize(mx.init.Xavier("gaussian", "in", magnitude=2))
    # With the usual 0.9, the statistics would hardly change in five passes.
    net.apply(lambda block: isinstance(block, nn.BatchNorm) and block._kwargs.update(momentum=0.4))
    for seed in range(5):
        # The backward pass updates the statistics.
        with autograd.record():
            embeddings = net.embed(random_pixels(IMAGES, size, seed))
        embeddings.backward()
    rng = np.random.default_rng(0)
    for parameter_name, parameter in net.collect_params().items():
        if parameter_name.endswith(("gamma", "beta")):
            noise = nd.array(rng.uniform(-0.2, 0.2, parameter.shape))
            parameter.set_data(parameter.data() + noise)
    return net


def random_pixels(n: int, size: int, seed: int) -> nd.NDArray:
    """Returns images of a few large patches of color, which differ more to a network than noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (n, 3, 5, 5)).astype(np.uint8)
    images = patches.repeat(-(-size // 5), axis=2).repeat(-(-size // 5), axis=3)
    return nd.array(images[:, :, :size, :size], dtype=np.uint8)


if __name__ == "__main__":
    main()
