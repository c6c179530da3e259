"""Estimates the GPU memory of a training step, and the largest batch that fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from embedding_learning.config import OptimizerConfig, TrainConfig
from embedding_learning.errors import TrainingError
from embedding_learning.model import backbones
from embedding_learning.model.methods import LOSSES
from embedding_learning.model.net import MarginNet
from embedding_learning.runtime import gpus
from embedding_learning.training import build

# Operators whose output overwrites their first input.
_IN_PLACE = {"Activation", "elemwise_add"}
# MXNet reuses memory in the backward pass. At one time there are the gradient of an operator's
# output, that of its input, and that of a second branch.
_GRADIENTS_AT_ONCE = 3
# What a step with a memory of N images has at one time: arrays (N, d), which are the memory, what
# takes its place, all candidates, their squares, their factor of the product, and their gradient;
# and matrices (n, N) of the distance weighted sampling. Measured on a CPU; semi-hard sampling has
# twice as many of these with 5 images of a class, and the other samplings have fewer.
_COPIES_OF_MEMORY, _DISTANCE_MATRICES = 6, 7
# What a step with C proxies has in addition to these, their gradient and the optimizer's arrays:
# arrays (C, d), such as the normalized proxies, and matrices (n, C). Measured on a CPU; the losses
# have from 1 to 8 of these.
_COPIES_OF_PROXIES, _COSINE_MATRICES = 3, 5
# Other content of a GPU's memory: the convolutions' common workspace, at most 1 GiB unless the
# layer sets another limit, and 1/2 GiB for the CUDA context and the libraries' code. The latter is
# a guess, made without a GPU.
_RESERVED = 3 * 2**29


@contextmanager
def memory_faults(config: TrainConfig, classes: int) -> Iterator[None]:
    """Raises a TrainingError if a GPU's memory is used up within; it names a batch that would fit.

    `classes` train, of each of which the loss may have a proxy.

    MXNet reports this anywhere, since the step that needs the memory was queued long before. Code
    that waits for the devices at the end of a run has to be within, too: MXNet reports it again.
    """
    try:
        yield
    except mx.base.MXNetError as error:
        if not gpus.is_out_of_memory(error):
            raise
        raise TrainingError(_advice(config, classes)) from error


def _advice(config: TrainConfig, classes: int) -> str:
    memory = min(gpus.read_total_memory(number) for number in config.devices.gpus)
    devices, batch_k = config.devices.count, config.batch.batch_k
    images = config.batch.total // devices
    flag = "--batch-size" if images == config.batch.per_device else "--total-batch-size"
    factor = 1 if flag == "--batch-size" else devices
    fault = f"{flag} {images * factor}: the memory of a GPU, {memory / 2**30:.1f} GiB, is used up"
    memory_flag = "--memory or " if config.method.memory else ""
    smaller = f"a smaller {memory_flag}--crop-size or another --model takes less"
    if images == 2 * batch_k:
        return f"{fault}, and there is no smaller batch of --batch-k {batch_k}; {smaller}"
    fitting = fitting_batch(config, memory, classes)
    if fitting is None:
        return f"{fault}; by estimate not even {2 * batch_k * factor} would fit: {smaller}"
    if fitting < images:
        return f"{fault}; by estimate {flag} {fitting * factor} would fit"
    # The estimate is too low, or other programs use the memory too.
    half = max(2, images // batch_k // 2) * batch_k
    return (
        f"{fault}, though by estimate this batch fits: end other programs on the GPU, which "
        f"nvidia-smi lists, or try {flag} {half * factor}"
    )


def fitting_batch(config: TrainConfig, memory: int, classes: int = 0) -> int | None:
    """Returns the number of images of the largest batch that fits a device of `memory` bytes.

    It is a multiple of --batch-k, and at most the configured batch of a device. None if not even
    two classes fit. `classes` train, of each of which the loss may have a proxy.
    """
    net = _network(config)
    batch_k = config.batch.batch_k
    least, most = 2, config.batch.total // config.devices.count // batch_k

    def fits(classes_in_batch: int) -> bool:
        needed = bytes_of_step(config, classes_in_batch * batch_k, net, classes)
        return needed + _RESERVED <= memory

    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least * batch_k


def bytes_of_step(
    config: TrainConfig, images: int, net: HybridBlock | None = None, classes: int = 0
) -> int:
    """Estimates the bytes that a training step with so many images takes on its device.

    They are the weights, gradients and the optimizer's arrays; the layers' outputs, which stay
    until the backward pass; the largest gradients of that pass; and what the loss and --memory
    add. `net` is the configuration's network if it is built already. `classes` train.
    """
    shape = (images, 3, config.data.crop_size, config.data.crop_size)
    weights, outputs = _sizes(net or _network(config), shape)
    optimizer = _optimizer_arrays(config.optimizer)
    # The first device computes the loss of all, or each its own.
    shares_batch, devices = config.method.negatives == "batch", config.devices.count
    of_loss = images * devices if shares_batch else images
    added = _bytes_of_proxies(config, of_loss, classes) + _bytes_of_memory(config, of_loss)
    if config.model.dtype == "float16":
        # These are float32, and so is the copy of the weights that is updated.
        optimizer = 2 * (optimizer + 1)
    # The gradients of several devices are added up in another array.
    copies = 2 + optimizer + (devices > 1)
    return copies * sum(weights) + sum(outputs) + _GRADIENTS_AT_ONCE * max(outputs) + added


def _bytes_of_proxies(config: TrainConfig, images: int, classes: int) -> int:
    """Returns what the proxies of a loss take while it is computed of so many images."""
    if not LOSSES[config.method.loss].has_proxies:
        return 0
    has_sum = config.devices.count > 1 and config.method.negatives != "batch"
    # Weight and gradient; they are float32 in any case.
    copies = 2 + _optimizer_arrays(config.optimizer) + has_sum + _COPIES_OF_PROXIES
    return 4 * classes * (copies * config.model.embed_dim + _COSINE_MATRICES * images)


def _bytes_of_memory(config: TrainConfig, images: int) -> int:
    """Returns what --memory takes while a loss is computed of so many images."""
    if not LOSSES[config.method.loss].samples:
        return 0
    row = _COPIES_OF_MEMORY * config.model.embed_dim + _DISTANCE_MATRICES * images
    return 4 * config.method.memory * row


def _network(config: TrainConfig) -> MarginNet:
    """Builds the network that is trained, without weights."""
    net = build.join(
        config, backbones.create(config.model.backbone, [mx.cpu()], pool=config.model.pool)
    )
    if config.model.dtype != "float32":
        net.cast(config.model.dtype)
    return net


def _sizes(net: HybridBlock, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Returns the bytes of each parameter and of each kept output, for images of this shape."""
    outputs = net(mx.sym.var("images", dtype="uint8"))
    graph = mx.sym.Group(list(outputs)) if isinstance(outputs, (list, tuple)) else outputs
    entries = graph.get_internals()
    _, shapes, _ = entries.infer_shape(images=shape)
    _, types, _ = entries.infer_type(images="uint8")
    # An entry is named like its node, or like the node and one of the node's outputs.
    operators = {node["name"]: node["op"] for node in json.loads(graph.tojson())["nodes"]}
    parameters, kept = [], []
    for name, entry_shape, dtype in zip(entries.list_outputs(), shapes, types):
        size = int(np.prod(entry_shape)) * np.dtype(dtype).itemsize
        if operators.get(name) == "null":
            parameters.append(size)
        elif operators.get(name.rpartition("_")[0]) not in _IN_PLACE:
            kept.append(size)
    return parameters, kept


def _optimizer_arrays(config: OptimizerConfig) -> int:
    """Returns how many arrays of a weight's size the optimizer keeps for it."""
    settings = {"momentum": config.momentum} if config.name == "sgd" else {}
    optimizer = mx.optimizer.create(config.name, **settings)
    return _count_arrays(optimizer.create_state(0, mx.nd.zeros(1)))


def _count_arrays(state: Any) -> int:
    if isinstance(state, (list, tuple)):
        return sum(map(_count_arrays, state))
    return int(state is not None)
