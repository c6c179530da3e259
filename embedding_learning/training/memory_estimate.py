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
from embedding_learning.model.net import MarginNet
from embedding_learning.runtime import gpus
from embedding_learning.training import build

# Operators whose output overwrites their first input.
_IN_PLACE = {"Activation", "elemwise_add"}
# MXNet reuses memory in the backward pass. At one time there are the gradient of an operator's
# output, that of its input, and that of a second branch.
_GRADIENTS_AT_ONCE = 3
# Other content of a GPU's memory: the convolutions' common workspace, at most 1 GiB unless the
# layer sets another limit, and 1/2 GiB for the CUDA context and the libraries' code. The latter is
# a guess, made without a GPU.
_RESERVED = 3 * 2**29


@contextmanager
def memory_faults(config: TrainConfig) -> Iterator[None]:
    """Raises a TrainingError if a GPU's memory is used up within; it names a batch that would fit.

    MXNet reports this anywhere, since the step that needs the memory was queued long before. Code
    that waits for the devices at the end of a run has to be within, too: MXNet reports it again.
    """
    try:
        yield
    except mx.base.MXNetError as error:
        if not gpus.is_out_of_memory(error):
            raise
        raise TrainingError(_advice(config)) from error


def _advice(config: TrainConfig) -> str:
    memory = min(gpus.read_total_memory(number) for number in config.devices.gpus)
    devices, batch_k = config.devices.count, config.batch.batch_k
    images = config.batch.total // devices
    flag = "--batch-size" if images == config.batch.per_device else "--total-batch-size"
    factor = 1 if flag == "--batch-size" else devices
    fault = f"{flag} {images * factor}: the memory of a GPU, {memory / 2**30:.1f} GiB, is used up"
    smaller = "a smaller --crop-size or another --model takes less"
    if images == 2 * batch_k:
        return f"{fault}, and there is no smaller batch of --batch-k {batch_k}; {smaller}"
    fitting = fitting_batch(config, memory)
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


def fitting_batch(config: TrainConfig, memory: int) -> int | None:
    """Returns the number of images of the largest batch that fits a device of `memory` bytes.

    It is a multiple of --batch-k, and at most the configured batch of a device. None if not even
    two classes fit.
    """
    net = _network(config)
    batch_k = config.batch.batch_k
    least, most = 2, config.batch.total // config.devices.count // batch_k

    def fits(classes: int) -> bool:
        return bytes_of_step(config, classes * batch_k, net) + _RESERVED <= memory

    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least * batch_k


def bytes_of_step(config: TrainConfig, images: int, net: HybridBlock | None = None) -> int:
    """Estimates the bytes that a training step with so many images takes on its device.

    They are the weights, gradients and the optimizer's arrays; the layers' outputs, which stay
    until the backward pass; and the largest gradients of that pass. `net` is the configuration's
    network if it is built already.
    """
    shape = (images, 3, config.data.crop_size, config.data.crop_size)
    weights, outputs = _sizes(net or _network(config), shape)
    optimizer = _optimizer_arrays(config.optimizer)
    if config.model.dtype == "float16":
        # These are float32, and so is the copy of the weights that is updated.
        optimizer = 2 * (optimizer + 1)
    # The gradients of several devices are added up in another array.
    copies = 2 + optimizer + (config.devices.count > 1)
    return copies * sum(weights) + sum(outputs) + _GRADIENTS_AT_ONCE * max(outputs)


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
