"""Do ReLUs near zero explain why two float32 programs with the same steps drift apart?

    python -m tests.benchmarks.relu_gates --data-path FOLDER --model resnet18_v1 \
        --batch-size 20 --crop-size 96 --image-size 112

The gradient of one loss on one batch is computed in float32 and in float64, with the same random
weights: with the network as it is, and with a smooth one (softplus for ReLU, mean for maximum).
Prints the difference between float32 and float64, and how many ReLUs are on in one and off in the
other. Takes flags of train.py; for networks of MXNet's model zoo without dropout.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from embedding_learning.cli import train_flags
from embedding_learning.config import TrainConfig
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
    config = train_flags.parse(sys.argv[1:])
    backbone, seed, batch_k = config.model.backbone, config.run.seed, config.batch.batch_k
    logging.basicConfig(level=logging.INFO)
    data = open_data(read_split(config), config)
    images = ImageNormalization()(data.train.next().data[0])
    data.close()
    mx.random.seed(seed)
    net = MarginNet(backbones.create(backbone, [mx.cpu()]), config.model.embed_dim, batch_k)
    net.initialize(mx.init.Xavier(magnitude=2))
    rows = random_triplets(len(images), batch_k, np.random.default_rng(seed))
    net.embed(images).wait_to_read()
    for is_smooth in (False, True):
        with recorded_relus(is_smooth) as gates:
            single = gradients(net, images, rows, config)
            single_gates = gates[:]
            gates.clear()
            net.cast("float64")
            double = gradients(net, images.astype("float64"), rows, config)
            net.cast("float32")
        difference, array = find_largest_difference(double, single)
        differing = sum(int(np.sum(a != b)) for a, b in zip(single_gates, gates))
        print(
            f"{backbone}, {'smooth' if is_smooth else 'as it is'}: the gradients in float32 and "
            f"float64 differ by {difference:.1e} ({array}); {differing} of "
            f"{sum(gate.size for gate in gates)} ReLUs differ."
        )


def random_triplets(n: int, k: int, rng: np.random.Generator) -> list[mx.nd.NDArray]:
    """Returns rows of anchors, positives and negatives; the negatives are sampled uniformly."""
    anchors = np.repeat(np.arange(n), k - 1)
    positives = [j for i in range(n) for j in range(i // k * k, i // k * k + k) if j != i]
    negatives = (anchors // k * k + k + rng.integers(0, n - k, len(anchors))) % n
    return [mx.nd.array(rows) for rows in (anchors, positives, negatives)]


def gradients(
    net: MarginNet, images: mx.nd.NDArray, rows: list[mx.nd.NDArray], config: TrainConfig
) -> dict[str, np.ndarray]:
    """Returns the gradient of each parameter; `rows` are those of `random_triplets`."""
    loss = MarginLoss(config.method.margin)
    with autograd.record():
        # The normalization of the network itself is for float32 only.
        z = net.dense(net.base_net(images))
        z = z / mx.nd.sqrt(mx.nd.sum(mx.nd.square(z), axis=1, keepdims=True))
        beta = mx.nd.array([config.method.beta], dtype=z.dtype)
        value = loss(*(z.take(row) for row in rows), beta)
    value.backward()
    named = net._collect_params_with_prefix().items()
    return {name: p.grad().asnumpy() for name, p in named if p.grad_req != "null"}


@contextmanager
def recorded_relus(is_smooth: bool) -> Iterator[list[np.ndarray]]:
    """Records which ReLUs are on; if smooth, softplus replaces them, and means replace maxima."""
    activation, pooling = mx.nd.Activation, mx.nd.Pooling
    gates: list[np.ndarray] = []

    def relu(x: Any, act_type: str, **settings: Any) -> Any:
        gates.append(x.asnumpy() > 0)
        return activation(x, act_type="softrelu" if is_smooth else act_type)

    def pool(x: Any, pool_type: str, **settings: Any) -> Any:
        return pooling(x, pool_type="avg" if is_smooth else pool_type, **settings)

    replaced: dict[str, Callable[..., Any]] = {"Activation": relu, "Pooling": pool}
    vars(mx.nd).update(replaced)
    try:
        yield gates
    finally:
        vars(mx.nd).update({"Activation": activation, "Pooling": pooling})


if __name__ == "__main__":
    main()
