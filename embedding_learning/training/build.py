"""Builds what a run trains from its configuration: network, sampling, loss and optimizers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import HybridBlock

from embedding_learning.config import MethodConfig, TrainConfig
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import UsageError
from embedding_learning.model import backbones, methods
from embedding_learning.model import sampling as samplings
from embedding_learning.model.cpu_fusion import can_train_fused
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.model.weights.params_file import read_parameters, set_parameters
from embedding_learning.runtime import gpus
from embedding_learning.training import mixed_precision, schedule
from embedding_learning.training.learner import Learner, LossParameter
from embedding_learning.training.memory import Memory
from embedding_learning.training.mixed_precision import LossScale

# At a rate of 0 these change the weights all the same, or divide by it.
_NEEDS_RATE = {"ftml", "ftrl", "sgld"}
_ALWAYS_UPDATES = {"adadelta", *_NEEDS_RATE}
# MXNet's dummy, and one that takes no weight decay.
_NOT_FOR_TRAINING = {"test", "groupadagrad"}
# It divides by the largest gradient so far, and adds nothing to it.
_DIVIDES_BY_ZERO = {"adamax"}
# In an array of MXNet.
_MOST_VALUES = 2**31 - 2


def build(
    config: TrainConfig,
    beta_terms: np.ndarray,
    net: MarginNet,
    devices: list[mx.Context],
    group: WorkerGroup | None = None,
    classes: int | None = None,
) -> Learner:
    """Builds the sampling, the loss, what the loss learns, and the optimizers for a network.

    `beta_terms` (values, j): the entries of beta that add up to each class's or image's value.
    `classes`: how many train; by default as many as beta has entries.
    """
    group = group or WorkerGroup()
    loss = build_loss(config.method)
    sampling = build_sampling(config)
    entries = beta_terms.max() + 1
    shape = classes or entries, net.dense.weight.shape[0]
    shares_batch = config.method.negatives == "batch"
    # The loss of the whole batch is computed on the first device.
    of_loss = devices[:1] if shares_batch else devices
    parameter = build_beta(config.method, entries, of_loss)
    if parameter is None:
        parameter = build_proxies(config.method, shape, of_loss)
    size = config.method.memory
    if devices[0].device_type == "cpu":
        net.should_fuse = can_train_fused(net.base_net, config.data.crop_size)
    for block in (net, loss, sampling):
        if block:
            block.hybridize(static_alloc=True, static_shape=True)
    return Learner(
        net=net,
        sampling=sampling,
        loss=loss,
        parameter=parameter,
        trainers=build_trainers(config, net, parameter, group),
        devices=devices,
        skip_nonfinite=config.run.on_nonfinite == "skip",
        group=group,
        loss_scale=LossScale() if config.model.dtype == "float16" else None,
        beta_terms=beta_terms,
        memory=Memory(size, shape[1], devices[0]) if sampling and size else None,
        shares_batch=shares_batch,
    )


def build_network(
    config: TrainConfig, devices: list[mx.Context], is_resumed: bool = False
) -> MarginNet:
    """Builds the network with the weights it starts from, on the devices.

    `is_resumed`: its weights will be those of a checkpoint. Raises UsageError if images or layers
    of these sizes do not run.
    """
    model, run = config.model, config.run
    net = join(config, _build_backbone(config, devices, is_resumed))
    # The parameters of the backbone are initialized already and stay as they are.
    fresh = [p for p in net.collect_params().values() if p._data is None]
    for parameter in fresh:
        parameter.initialize(ctx=devices, default_init=mx.init.Xavier(magnitude=2))
    _infer_sizes(config, net, devices[0])
    if run.resume and run.resumes_network:
        arrays = read_parameters(run.resume, "--resume")
        source = f"--resume {run.resume}"
        set_parameters(net._collect_params_with_prefix(), arrays, source, devices)
    elif model.init_from and not is_resumed:
        schedule.start_from(model.init_from, net, devices)
    schedule.prepare(config, net)
    if model.dtype != "float32":
        net.cast(model.dtype)
    return net


def _build_backbone(
    config: TrainConfig, devices: list[mx.Context], is_resumed: bool
) -> HybridBlock:
    """Builds the backbone, with its pretrained weights unless others will replace them."""
    model, run = config.model, config.run
    if not (is_resumed or run.resumes_network or model.init_from):
        return backbones.create(
            model.backbone, devices, model.use_pretrained, model.pretrained_params, model.pool
        )
    backbone = backbones.create(model.backbone, devices, pool=model.pool)
    # Other weights replace the pretrained ones, but not the rate at which these learn.
    if model.has_pretrained_backbone:
        backbones.slow_down_convolutions(backbone)
        if not is_resumed and config.optimizer.lr_mult_backbone is None:
            logging.info(
                "The weights are those of %s; --use-pretrained and --pretrained-params only "
                "let convolutions learn at a hundredth of the rate.",
                model.init_from or run.resume,
            )
    return backbone


def _infer_sizes(config: TrainConfig, net: MarginNet, device: mx.Context) -> None:
    """Embeds an image, from which Gluon infers the sizes of weights that depend on the crop.

    Raises UsageError if images or layers of these sizes do not run.
    """
    size = config.data.crop_size
    image = mx.nd.zeros((1, 3, size, size), device, np.uint8)
    does_not_run = f"{config.model.backbone} does not run with images of this size; try another"
    with _size_faults(f"--crop-size {size}: {does_not_run}"):
        net.base_net(ImageNormalization()(image)).wait_to_read()
    with _size_faults("--embed-dim, --feat-dim: layers of this size do not run"):
        net.embed(image).wait_to_read()


@contextmanager
def _size_faults(fault: str) -> Iterator[None]:
    """Raises a UsageError that begins with `fault` if a network does not run within."""
    try:
        with redirect_stdout(StringIO()):  # MXNet prints shapes before it raises.
            yield
    # Gluon raises ValueError where it cannot infer the shapes of weights.
    except (mx.base.MXNetError, ValueError) as error:
        if gpus.is_out_of_memory(error):
            raise
        raise UsageError(f"{fault} ({_first_line(error)})") from error


def join(config: TrainConfig, backbone: HybridBlock) -> MarginNet:
    """Adds the embedding to a backbone; the new layers have no weights yet."""
    return MarginNet(
        backbone,
        config.model.embed_dim,
        config.batch.batch_k,
        config.model.feat_dim,
        sampling=None,
        preprocess=ImageNormalization(),
    )


def build_sampling(config: TrainConfig) -> samplings.Sampling | None:
    """Builds the sampling, or returns None if the loss takes no triplets."""
    method = config.method
    if not methods.LOSSES[method.loss].samples:
        return None
    row = methods.SAMPLINGS[method.sampling]
    settings = {key: getattr(method, key) for key in row.takes}
    sampling: samplings.Sampling = getattr(samplings, row.class_name)(
        config.batch.batch_k, **settings
    )
    return sampling


def build_loss(method: MethodConfig) -> HybridBlock:
    """Builds the loss."""
    row = methods.LOSSES[method.loss]
    module = import_module(f"embedding_learning.model.{row.module}")
    loss: HybridBlock = getattr(module, row.class_name)(
        **{key: getattr(method, key) for key in row.takes}
    )
    return loss


def build_beta(method: MethodConfig, entries: int, devices: list[mx.Context]) -> LossParameter:
    """Builds a learned beta, or returns the constant if its learning rate is 0.

    All values start as --beta. With --beta-per class it is each class's entry, with common the only
    entry; with image it is the common entry, and all others start as 0.
    """
    if not methods.LOSSES[method.loss].has_beta:
        return None
    if not method.lr_beta:
        return float(method.beta)
    first = np.full(entries, method.beta)
    if method.beta_per == "image":
        first[1:] = 0
    beta = gluon.Parameter("beta", shape=(entries,))
    beta.initialize(mx.init.Constant(mx.nd.array(first)), ctx=devices)
    return beta


def build_proxies(
    method: MethodConfig, shape: tuple[int, int], devices: list[mx.Context]
) -> LossParameter:
    """Builds the proxies (classes, d), in random directions; None if the loss has none."""
    if not methods.LOSSES[method.loss].has_proxies:
        return None
    proxies = gluon.Parameter("proxies", shape=shape)
    # Rows of about unit length.
    proxies.initialize(mx.init.Normal(shape[1] ** -0.5), ctx=devices)
    return proxies


def build_trainers(
    config: TrainConfig,
    net: MarginNet,
    parameter: LossParameter,
    group: WorkerGroup | None = None,
) -> list[gluon.Trainer]:
    """Builds the trainer of the network and, if the loss learns a parameter, that of it.

    Beta has an optimizer of its own. Proxies have that of the network, without weight decay.
    """
    group = group or WorkerGroup()
    optimizer, name = config.optimizer, config.devices.kvstore
    settings = {"learning_rate": optimizer.lr, "wd": optimizer.wd}
    if optimizer.name == "sgd":
        settings["momentum"] = optimizer.momentum
    if optimizer.name == "adam":
        settings["epsilon"] = 1e-7
    if optimizer.grad_clip is not None:
        settings["clip_gradient"] = optimizer.grad_clip
    where: dict[str, bool] = {}
    if config.model.dtype == "float16":
        settings["multi_precision"] = True
        # The gradients are examined between their sum and the update.
        where["update_on_kvstore"] = False
    kvstore = group.create_kvstore(name, trainer=0)
    parameters = net.collect_params()
    trainers = [gluon.Trainer(parameters, optimizer.name, settings, kvstore=kvstore, **where)]
    if isinstance(parameter, gluon.Parameter):
        method, of_parameter = config.method, optimizer.name
        settings = {**settings, "wd": 0.0}
        if methods.LOSSES[method.loss].has_beta:
            of_parameter = method.beta_optimizer
            settings = {"momentum": 0.9} if of_parameter == "sgd" else {}
        settings["learning_rate"] = schedule.base_rates(config)[1]
        kvstore = group.create_kvstore(name, trainer=1)
        trainers.append(
            gluon.Trainer([parameter], of_parameter, settings, kvstore=kvstore, **where)
        )
    for trainer in trainers:
        # Servers that update receive it with the optimizer.
        batch = config.batch.total // config.devices.processes * group.size
        trainer.optimizer.rescale_grad = 1 / batch
    return trainers


def optimizers() -> list[str]:
    """Returns the names of MXNet's optimizers that can train a network."""
    return sorted({*mx.optimizer.Optimizer.opt_registry} - _NOT_FOR_TRAINING - _DIVIDES_BY_ZERO)


def check(config: TrainConfig) -> None:
    """Raises UsageError for a backbone, optimizer, store or type that does not exist here."""
    optimizer, name = config.optimizer, config.optimizer.name
    backbones.check_name(config.model.backbone)
    backbones.check_trainable(config.model.backbone, on_cpu=not config.devices.gpus)
    if name in _DIVIDES_BY_ZERO:
        raise UsageError(
            f"--optimizer {name}: MXNet's divides 0 by 0 where a weight and its "
            "gradient are 0, as many are at the start; choose another, such as adam or nadam"
        )
    if name not in optimizers():
        raise UsageError(f"--optimizer {name}: unknown; choose one of {', '.join(optimizers())}")
    if name in _ALWAYS_UPDATES and (optimizer.warm_up_epochs or optimizer.lr_mult_backbone == 0):
        raise UsageError(
            f"--optimizer {name}: cannot leave a layer unchanged, as --warm-up-epochs and "
            "--lr-mult-backbone 0 ask for; choose another, such as adam"
        )
    rate_at_last = optimizer.lr * optimizer.decay(max(0, config.run.epochs - 1))
    if name in _NEEDS_RATE and not rate_at_last:
        raise UsageError(
            f"--optimizer {name}: does not work at a learning rate of 0, as --lr 0 or "
            "--factor 0 asks for; raise the rate, or choose another, such as adam"
        )
    if config.devices.kvstore == "nccl" and not mx.runtime.Features().is_enabled("NCCL"):
        raise UsageError("--kvstore nccl: this build of MXNet has no NCCL; use device or local")
    mixed_precision.check(config)
    rows, dimension = config.method.memory + config.batch.total, config.model.embed_dim
    if config.method.memory and rows * dimension > _MOST_VALUES:
        most = _MOST_VALUES // dimension - config.batch.total
        way_out = f"{most} images are the most" if most > 0 else "lower --embed-dim"
        raise UsageError(
            f"--memory {config.method.memory}: MXNet has no array of {rows} embeddings of "
            f"{dimension} numbers; {way_out}"
        )


def _first_line(error: Exception) -> str:
    """Returns the reason that MXNet gives, without the position in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "Check failed" in line or "rror:" in line]
    line = (reasons or lines or [type(error).__name__])[-1]
    return line[max(0, line.find("Check failed")) :]
