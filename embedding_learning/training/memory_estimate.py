"""How much of a GPU's memory a training step takes, and the batch that fits where one does not."""

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

# Their output takes the place of their first input.
_IN_PLACE = {"Activation", "elemwise_add"}
# Going back, MXNet reuses memory: there are the gradient that comes in, the one that goes out, and
# that of a second branch.
_GRADIENTS_AT_ONCE = 3
# What a GPU's memory holds besides: the convolutions' common workspace, at most 1 GiB unless the
# layer sets another limit, and 1/2 GiB for the CUDA context and the libraries' code. The latter is
# a guess, made without a GPU.
_RESERVED = 3 * 2**29


@contextmanager
def memory_faults(config: TrainConfig) -> Iterator[None]:
    """Within, a GPU without memory left is a TrainingFault that names the batch that would fit.

    MXNet tells of it anywhere: the step that needs the memory was queued long before. Whatever
    waits for the devices at a run's end has to be within, too, since it is told again.
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
    share = config.batch.total // devices
    flag = "--batch-size" if share == config.batch.per_device else "--total-batch-size"
    factor = 1 if flag == "--batch-size" else devices
    what = f"{flag} {share * factor}: the memory of a GPU, {memory / 2**30:.1f} GiB, is used up"
    smaller = "a smaller --crop-size or another --model takes less"
    if share == 2 * batch_k:
        return f"{what}, and there is no smaller batch of --batch-k {batch_k}; {smaller}"
    fitting = fitting_share(config, memory)
    if fitting is None:
        return f"{what}; by estimate not even {2 * batch_k * factor} would fit: {smaller}"
    if fitting < share:
        return f"{what}; by estimate {flag} {fitting * factor} would fit"
    # The estimate is too low, or the memory is not all ours.
    half = max(2, share // batch_k // 2) * batch_k
    return (
        f"{what}, though by estimate this batch fits: end other programs on the GPU, which "
        f"nvidia-smi lists, or try {flag} {half * factor}"
    )


def fitting_share(config: TrainConfig, memory: int) -> int | None:
    """The images of the largest batch on a device of this many bytes.

    At most the flags' share; a multiple of --batch-k. None if not even two classes fit.
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


def bytes_of_step(config: TrainConfig, share: int, net: HybridBlock | None = None) -> int:
    """An estimate of the bytes that a training step with `share` images takes on its device.

    Weights, gradients and the optimizer's arrays; what the layers put out, which stays until the
    way back; and the largest gradients on that way. `net` is the flags' network where there is
    one already.
    """
    shape = (share, 3, config.data.crop_size, config.data.crop_size)
    weights, outputs = _sizes(net or _network(config), shape)
    optimizer = _optimizer_arrays(config.optimizer)
    if config.model.dtype == "float16":
        # These are float32, and so is the copy of the weights that is updated.
        optimizer = 2 * (optimizer + 1)
    # Several devices' gradients are added up in an array of their own.
    copies = 2 + optimizer + (config.devices.count > 1)
    return copies * sum(weights) + sum(outputs) + _GRADIENTS_AT_ONCE * max(outputs)


def _network(config: TrainConfig) -> MarginNet:
    """The network that is trained, its weights not there."""
    net = build.join(
        config, backbones.create(config.model.backbone, [mx.cpu()], pool=config.model.pool)
    )
    if config.model.dtype != "float32":
        net.cast(config.model.dtype)
    return net


def _sizes(net: HybridBlock, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The bytes of each parameter, and of each output that stays, for images of this shape."""
    outputs = net(mx.sym.var("images", dtype="uint8"))
    graph = mx.sym.Group(list(outputs)) if isinstance(outputs, (list, tuple)) else outputs
    entries = graph.get_internals()
    _, shapes, _ = entries.infer_shape(images=shape)
    _, types, _ = entries.infer_type(images="uint8")
    # An entry is a node's name, or that with the name of one of its outputs.
    operators = {node["name"]: node["op"] for node in json.loads(graph.tojson())["nodes"]}
    parameters, kept = [], []
    for name, entry_shape, kind in zip(entries.list_outputs(), shapes, types):
        size = int(np.prod(entry_shape)) * np.dtype(kind).itemsize
        if operators.get(name) == "null":
            parameters.append(size)
        elif operators.get(name.rpartition("_")[0]) not in _IN_PLACE:
            kept.append(size)
    return parameters, kept


def _optimizer_arrays(config: OptimizerConfig) -> int:
    """How many arrays of a weight's size the optimizer keeps for it."""
    settings = {"momentum": config.momentum} if config.name == "sgd" else {}
    optimizer = mx.optimizer.create(config.name, **settings)
    return _count_arrays(optimizer.create_state(0, mx.nd.zeros(1)))


def _count_arrays(state: Any) -> int:
    if isinstance(state, (list, tuple)):
        return sum(map(_count_arrays, state))
    return int(state is not None)
