"""A learner and a batch of random pixels, for benchmarks that need no data."""

from __future__ import annotations

from embedding_learning.config import TrainConfig
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.training import build
from embedding_learning.training.learner import Learner

# isort: split
import mxnet as mx
import numpy as np

_CLASSES = 100


def build_learner(config: TrainConfig, group: WorkerGroup | None = None) -> Learner:
    """Returns a learner of 100 classes on one CPU context; its network is that of the config."""
    devices = [mx.cpu()]
    net = build.build_network(config, devices)
    return build.build(config, np.arange(_CLASSES)[:, None], net, devices, group)


def random_batch(config: TrainConfig) -> mx.io.DataBatch:
    """Returns one device's batch of random pixels, uint8 (n, 3, crop, crop), on the CPU."""
    n, size = config.batch.per_device, config.data.crop_size
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, size, size))
    labels = mx.nd.array(np.arange(n) // config.batch.batch_k)
    return mx.io.DataBatch(data=[mx.nd.array(pixels, dtype=np.uint8)], label=[labels])
