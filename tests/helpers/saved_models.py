"""A small saved model that several tests load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx

from embedding_learning.cli.train_flags import parse
from embedding_learning.model.description import describe
from embedding_learning.model.weights.params_file import save_parameters
from embedding_learning.training import build

MODEL, IMAGE_SIZE, CROP_SIZE, DIMENSION = "squeezenet1.1", 40, 32, 16
FLAGS = [
    f"--model={MODEL}",
    f"--image-size={IMAGE_SIZE}",
    f"--crop-size={CROP_SIZE}",
    f"--embed-dim={DIMENSION}",
]


def save_model(path: Path, *flags: str, described: bool = True, **changes: Any) -> Any:
    """Writes a network with random weights to the path and returns it.

    `changes` are made to its description.
    """
    config = parse([*FLAGS, *flags])
    mx.random.seed(1)
    net = build.build_network(config, [mx.cpu()])
    # Without training a deep network's features are so small that their length is no longer 1.
    net.dense.weight.set_data(net.dense.weight.data() * 1e6)
    description = {
        **describe(config.model, config.data, "Birds, cropped to boxes", 3, 0.5),
        **changes,
    }
    save_parameters(net, str(path), description if described else None)
    return net
