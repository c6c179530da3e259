"""Embeddings of exported networks against the network's own, for every backbone.

    python -m tests.benchmarks.export_families                      # all: some 20 minutes
    python -m tests.benchmarks.export_families resnet18 vgg11_bn

Weights are random; a few passes in training mode give batch norm statistics of its own. A line a
backbone: the largest difference of any number of any embedding, by SymbolBlock and by onnxruntime,
beside the smallest distance between two of the images: where that is small the images hardly
differ to the network, and the differences say little. The input is uint8 RGB.
"""

from __future__ import annotations

import argparse
import os
import tempfile

from embedding_learning.errors import UsageError
from embedding_learning.inference import export
from embedding_learning.model import backbones
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.model.weights.catalog import ARCHITECTURES, GLUON_NAMES, TORCHVISION_NAMES
from tests.helpers.onnx_files import open_session

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd, nd
from mxnet.gluon import nn

IMAGES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="backbones; none: all of them")
    # Where torchvision's name is another for one of Gluon's, the network is the same.
    others = [name for name, own in TORCHVISION_NAMES.items() if own not in GLUON_NAMES]
    print("| backbone | pixels | SymbolBlock | ONNX | nearest images |\n|---|---|---|---|---|")
    for name in parser.parse_args().models or [*GLUON_NAMES, *others]:
        size = ARCHITECTURES[TORCHVISION_NAMES.get(name, name)].crop_size
        with tempfile.TemporaryDirectory() as folder:
            try:
                symbol, onnx, nearest = differences(name, size, folder)
            except UsageError as error:
                print(f"| {name} | {size} | {error} |||", flush=True)
            else:
                figures = f"{symbol:.1e} | {onnx:.1e} | {nearest:.3f}"
                print(f"| {name} | {size} | {figures} |", flush=True)


def differences(name: str, size: int, folder: str) -> tuple[float, float, float]:
    """Largest difference by SymbolBlock and by ONNX, and the smallest distance of two images."""
    net = random_net(name, size)
    pixels = random_pixels(IMAGES, size, seed=1)
    expected = net.embed(pixels).asnumpy()
    distances = np.linalg.norm(expected[:, None] - expected, axis=2)

    prefix = os.path.join(folder, "net")
    export.export_symbol(net, prefix, size, normalize_input=True)
    files = f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params"
    by_symbol = mx.gluon.SymbolBlock.imports(*files)(pixels).asnumpy()

    export.export_onnx(net, f"{prefix}.onnx", size, normalize_input=True)
    (by_onnx,) = open_session(f"{prefix}.onnx").run(None, {"data": pixels.asnumpy()})
    return (
        float(abs(by_symbol - expected).max()),
        float(abs(by_onnx - expected).max()),
        float(distances[~np.eye(IMAGES, dtype=bool)].min()),
    )


def random_net(name: str, size: int) -> MarginNet:
    """A network of random weights, batch norm included."""
    devices = [mx.cpu()]
    mx.random.seed(0)
    net = MarginNet(backbones.create(name, devices), 128, 2, preprocess=ImageNormalization())
    # By the inputs alone (He et al., 2015): with outputs counted in, depthwise layers vanish.
    net.initialize(mx.init.Xavier("gaussian", "in", magnitude=2))
    # With the usual 0.9, five passes would leave the statistics near where they began.
    net.apply(lambda block: isinstance(block, nn.BatchNorm) and block._kwargs.update(momentum=0.4))
    for seed in range(5):
        # The backward pass is what moves the statistics.
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
    """Images of a few large patches of colour: networks tell them apart better than noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (n, 3, 5, 5)).astype(np.uint8)
    whole = patches.repeat(-(-size // 5), axis=2).repeat(-(-size // 5), axis=3)
    return nd.array(whole[:, :, :size, :size], dtype=np.uint8)


if __name__ == "__main__":
    main()
