"""Why two float32 programs that do the same do not stay the same: ReLUs near zero.

    python -m tests.benchmarks.relu_gates --data-path FOLDER --model resnet18_v1 \
        --batch-size 20 --crop-size 96 --image-size 112

The gradient of one loss on one batch, with one set of random weights, in float32 and in float64:
once with the network as it is, and once with its kinks smoothed (softplus for ReLU, mean for
maximum). Prints how far float32 is from float64, and how many ReLUs are on in one and off in the
other. For networks of MXNet's model zoo without dropout.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from embedding_learning.cli import train_flags  # makes MXNet ready
from embedding_learning.data.build import open_data, read_split
from embedding_learning.model import backbones
from embedding_learning.model.losses import MarginLoss
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.original.compare_arrays import find_largest_difference

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd


def main() -> None:
    told = train_flags.parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO)
    data = open_data(read_split(told), told)
    images = ImageNormalization()(data.train.next().data[0])
    data.close()
    mx.random.seed(told.seed)
    net = MarginNet(backbones.create(told.model, [mx.cpu()]), told.embed_dim, told.batch_k)
    net.initialize(mx.init.Xavier(magnitude=2))
    rows = triples(len(images), told.batch_k, np.random.default_rng(told.seed))
    net.embed(images).wait_to_read()
    for kind in ("as it is", "smoothed"):
        with recorded(kind == "smoothed") as gates:
            single = gradients(net, images, rows, told)
            singles = gates[:]
            gates.clear()
            net.cast("float64")
            double = gradients(net, images.astype("float64"), rows, told)
            net.cast("float32")
        difference, array = find_largest_difference(double, single)
        turned = sum(int(np.sum(a != b)) for a, b in zip(singles, gates))
        print(
            f"{told.model} {kind}: gradients of float32 and float64 are {difference:.1e} apart "
            f"({array}); {turned} of {sum(gate.size for gate in gates)} ReLUs differ."
        )


def triples(n: int, k: int, rng: np.random.Generator) -> list[mx.nd.NDArray]:
    """Rows of anchors, positives and negatives, the negatives drawn uniformly."""
    anchors = np.repeat(np.arange(n), k - 1)
    positives = [j for i in range(n) for j in range(i // k * k, i // k * k + k) if j != i]
    negatives = (anchors // k * k + k + rng.integers(0, n - k, len(anchors))) % n
    return [mx.nd.array(rows) for rows in (anchors, positives, negatives)]


def gradients(net: MarginNet, images: Any, rows: Any, told: Any) -> dict[str, np.ndarray]:
    loss = MarginLoss(told.margin)
    with autograd.record():
        # Not the net's own normalisation, which is for float32.
        z = net.dense(net.base_net(images))
        z = z / mx.nd.sqrt(mx.nd.sum(mx.nd.square(z), axis=1, keepdims=True))
        value = loss(*(z.take(some) for some in rows), mx.nd.array([told.beta], dtype=z.dtype))
    value.backward()
    named = net._collect_params_with_prefix().items()
    return {name: p.grad().asnumpy() for name, p in named if p.grad_req != "null"}


@contextmanager
def recorded(smooth: bool) -> Iterator[list[np.ndarray]]:
    """Within, which ReLUs are on is kept; smoothed they are softplus, and maxima are means."""
    activation, pooling = mx.nd.Activation, mx.nd.Pooling
    gates: list[np.ndarray] = []

    def relu(x: Any, act_type: str, **settings: Any) -> Any:
        gates.append(x.asnumpy() > 0)
        return activation(x, act_type="softrelu" if smooth else act_type)

    def pool(x: Any, pool_type: str, **settings: Any) -> Any:
        return pooling(x, pool_type="avg" if smooth else pool_type, **settings)

    replaced: dict[str, Callable[..., Any]] = {"Activation": relu, "Pooling": pool}
    vars(mx.nd).update(replaced)
    try:
        yield gates
    finally:
        vars(mx.nd).update({"Activation": activation, "Pooling": pooling})


if __name__ == "__main__":
    main()
