"""From the flags to what a run trains: devices, network, beta, loss and optimizers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import HybridBlock

from embedding_learning.config import MethodConfig, TrainConfig
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import UsageError
from embedding_learning.model import backbones, losses, methods
from embedding_learning.model import sampling as samplings
from embedding_learning.model.cpu_fusion import can_train_fused
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.model.weights.params_file import read_parameters, set_parameters
from embedding_learning.runtime import gpus
from embedding_learning.training import mixed_precision, schedule
from embedding_learning.training.learner import Beta, Learner
from embedding_learning.training.mixed_precision import LossScale

# At a rate of 0 these move the weights all the same, or divide by it.
_NEEDS_RATE = {"ftml", "ftrl", "sgld"}
_NEVER_AT_REST = {"adadelta", *_NEEDS_RATE}
# MXNet's dummy, and one that takes no weight decay.
_NOT_FOR_TRAINING = {"test", "groupadagrad"}
# By the largest gradient so far, to which nothing is added.
_DIVIDES_BY_ZERO = {"adamax"}


def build(
    config: TrainConfig,
    beta_terms: np.ndarray,
    net: MarginNet,
    devices: list[mx.Context],
    group: WorkerGroup | None = None,
) -> Learner:
    """Beta, loss and optimizers for a network and the boundaries of its training images.

    `beta_terms` (boundaries, j): the entries of beta that add up to each boundary.
    """
    group = group or WorkerGroup()
    loss = build_loss(config.method)
    beta = build_beta(config.method, beta_terms.max() + 1, devices)
    if devices[0].device_type == "cpu":
        net.should_fuse_batch_norm = can_train_fused(net.base_net, config.data.crop_size)
    for block in (net, loss):
        block.hybridize(static_alloc=True, static_shape=True)
    trainers = build_trainers(config, net, beta, group)
    loss_scale = LossScale() if config.model.dtype == "float16" else None
    skip = config.run.on_nonfinite == "skip"
    return Learner(net, beta, loss, trainers, devices, skip, group, loss_scale, beta_terms)


def build_network(
    config: TrainConfig, devices: list[mx.Context], is_resumed: bool = False
) -> MarginNet:
    """The network with the weights it starts from, on the devices.

    `is_resumed`: its weights will be those of a checkpoint.
    """
    model, data, run = config.model, config.data, config.run
    if is_resumed or run.resumes_network or model.init_from:
        # Its weights replace the pretrained ones, but not the rate at which these learn.
        backbone = backbones.create(model.backbone, devices, pool=model.pool)
        if model.has_pretrained_backbone:
            backbones.slow_down_convolutions(backbone)
            if not is_resumed and config.optimizer.lr_mult_backbone is None:
                logging.info(
                    "The weights are those of %s; of --use-pretrained and --pretrained-params "
                    "remains that convolutions learn at a hundredth of the rate.",
                    model.init_from or run.resume,
                )
    else:
        backbone = backbones.create(
            model.backbone,
            devices,
            model.use_pretrained,
            model.pretrained_params,
            model.pool,
        )
    net = join(config, backbone)
    # What came with the backbone is initialized already and stays.
    fresh = [p for p in net.collect_params().values() if p._data is None]
    for parameter in fresh:
        parameter.initialize(ctx=devices, default_init=mx.init.Xavier(magnitude=2))
    # The first image settles the sizes that depend on the crop.
    image = mx.nd.zeros((1, 3, data.crop_size, data.crop_size), devices[0], np.uint8)
    # Gluon raises ValueError where it cannot tell the shapes of weights.
    try:
        with redirect_stdout(StringIO()):  # where MXNet prints shapes before it raises
            backbone(ImageNormalization()(image)).wait_to_read()
    except (mx.base.MXNetError, ValueError) as error:
        if gpus.is_out_of_memory(error):
            raise
        raise UsageError(
            f"--crop-size {data.crop_size}: {model.backbone} does not run with images of this "
            f"size; try another ({_first_line(error)})"
        ) from error
    try:
        net.embed(image).wait_to_read()
    except (mx.base.MXNetError, ValueError) as error:
        if gpus.is_out_of_memory(error):
            raise
        raise UsageError(
            f"--embed-dim, --feat-dim: layers of this size do not run ({_first_line(error)})"
        ) from error
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


def join(config: TrainConfig, backbone: HybridBlock) -> MarginNet:
    """Backbone, embedding and sampling as the flags say; what is new has no weights yet."""
    return MarginNet(
        backbone,
        config.model.embed_dim,
        config.batch.batch_k,
        config.model.feat_dim,
        find_sampling(config.method),
        preprocess=ImageNormalization(),
    )


def find_sampling(method: MethodConfig) -> Callable[[int], HybridBlock]:
    """What makes the sampling of that name for a number of images per class."""
    row = methods.SAMPLINGS[method.sampling]
    kind: Callable[..., HybridBlock] = getattr(samplings, row.class_name)
    return partial(kind, normalize_weights=True) if method.normalize_weights else kind


def build_loss(method: MethodConfig) -> HybridBlock:
    """The loss of that name."""
    row = methods.LOSSES[method.loss]
    kind = getattr(losses, row.class_name)
    return kind(method.margin, method.nu) if row.has_beta else kind(method.margin)


def build_beta(method: MethodConfig, entries: int, devices: list[mx.Context]) -> Beta:
    """What boundaries are made of, learned, or the constant if its learning rate is 0.

    Boundaries begin as --beta: it is each class's, or the common one while all others are 0.
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


def build_trainers(
    config: TrainConfig, net: MarginNet, beta: Beta, group: WorkerGroup | None = None
) -> list[gluon.Trainer]:
    """The network's trainer and, where beta is learned, beta's."""
    group = group or WorkerGroup()
    optimizer, name = config.optimizer, config.devices.kvstore
    settings = {"learning_rate": optimizer.lr, "wd": optimizer.wd}
    if optimizer.name == "sgd":
        settings["momentum"] = optimizer.momentum
    if optimizer.name == "adam":
        settings["epsilon"] = 1e-7
    if optimizer.grad_clip is not None:
        settings["clip_gradient"] = optimizer.grad_clip
    at = {}
    if config.model.dtype == "float16":
        settings["multi_precision"] = True
        # The gradients have to be looked at between their sum and the update.
        at["update_on_kvstore"] = False
    kvstore = group.create_kvstore(name, trainer=0)
    parameters = net.collect_params()
    trainers = [gluon.Trainer(parameters, optimizer.name, settings, kvstore=kvstore, **at)]
    if isinstance(beta, gluon.Parameter):
        settings = {"learning_rate": config.method.lr_beta, "momentum": 0.9}
        kvstore = group.create_kvstore(name, trainer=1)
        trainers.append(gluon.Trainer([beta], "sgd", settings, kvstore=kvstore, **at))
    for trainer in trainers:
        # Servers that update are told it when they first hear of the optimizer.
        batch = config.batch.total // config.devices.processes * group.size
        trainer.optimizer.rescale_grad = 1 / batch
    return trainers


def optimizers() -> list[str]:
    """The names of MXNet's optimizers that train a network."""
    return sorted({*mx.optimizer.Optimizer.opt_registry} - _NOT_FOR_TRAINING - _DIVIDES_BY_ZERO)


def check(config: TrainConfig) -> None:
    """Raises UsageError if there is no such backbone or optimizer, or no NCCL or float16 here."""
    optimizer, name = config.optimizer, config.optimizer.name
    backbones.check_name(config.model.backbone)
    backbones.check_trainable(config.model.backbone, on_cpu=not config.devices.gpus)
    if name in _DIVIDES_BY_ZERO:
        raise UsageError(
            f"--optimizer {name}: MXNet's divides 0 by 0 where a weight and its "
            "gradient are 0, as many are at the start; choose another, such as adam or nadam"
        )
    if name not in optimizers():
        raise UsageError(f"--optimizer {name}: unknown; choose of {', '.join(optimizers())}")
    if name in _NEVER_AT_REST and (optimizer.warm_up_epochs or optimizer.lr_mult_backbone == 0):
        raise UsageError(
            f"--optimizer {name}: leaves no layer alone, as --warm-up-epochs and "
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


def _first_line(error: Exception) -> str:
    """What MXNet says, without where in its source it says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Check failed" in line or "rror:" in line]
    line = (told or lines or [type(error).__name__])[-1]
    return line[max(0, line.find("Check failed")) :]
