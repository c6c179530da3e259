"""Sets learning rates by epoch, and which layers of a backbone are fixed or learn more slowly."""

from __future__ import annotations

import logging

import mxnet as mx
from mxnet import gluon
from mxnet.gluon import Block, nn

from embedding_learning.config import TrainConfig
from embedding_learning.errors import UsageError
from embedding_learning.inference.run_files import find_network
from embedding_learning.model.backbones import PRETRAINED_CONVOLUTION_LR_MULT
from embedding_learning.model.methods import LOSSES
from embedding_learning.model.net import MarginNet
from embedding_learning.model.weights.params_file import read_parameters, set_parameters
from embedding_learning.training.learner import Learner

_WITHOUT_WEIGHT_DECAY = ("_gamma", "_beta", "_bias")


def prepare(config: TrainConfig, net: MarginNet) -> None:
    """Freezes batch norm, sets the backbone's rates and excludes layers from weight decay.

    Raises UsageError if batch norm is to be frozen and the backbone has none.
    """
    # Servers that update receive the rates before the first epoch.
    set_backbone_rates(config, net, config.run.start_epoch)
    if config.model.freeze_bn and not _freeze_batch_norm(net.base_net):
        raise UsageError(
            f"--freeze-bn: has no effect: --model {config.model.backbone} has no batch norm; leave "
            "it out"
        )
    if config.optimizer.wd_exclude_bn_bias:
        for name, parameter in net.collect_params().items():
            if name.endswith(_WITHOUT_WEIGHT_DECAY):
                parameter.wd_mult = 0.0


def _freeze_batch_norm(block: Block) -> int:
    """Lets batch norm use its running statistics in training too, without changing them.

    Returns the number of such layers.
    """
    count = 0
    for child in block._children.values():
        if isinstance(child, nn.BatchNorm):
            child._kwargs["use_global_stats"] = True
            count += 1
        count += _freeze_batch_norm(child)
    return count


def set_learning_rates(config: TrainConfig, learner: Learner, epoch: int) -> list[float]:
    """Sets the learning rates of an epoch; returns the network's and that of the loss's parameter.

    Both are multiplied by the factor at each epoch listed in the steps. Opens the memory, if there
    is one, from its epoch on.
    """
    set_trainer_rates(config, learner.trainers, epoch)
    set_backbone_rates(config, learner.net, epoch)
    if learner.memory:
        learner.memory.is_open = epoch >= config.method.memory_from
    rates = [trainer.learning_rate for trainer in learner.trainers]
    learner.group.send_learning_rates(rates)
    return rates


def set_trainer_rates(config: TrainConfig, trainers: list[gluon.Trainer], epoch: int) -> None:
    """Sets the rates of the network's trainer and of that of the loss's parameter."""
    for trainer, rate in zip(trainers, base_rates(config)):
        trainer.set_learning_rate(rate * config.optimizer.decay(epoch))


def base_rates(config: TrainConfig) -> list[float]:
    """Returns the rates before any factor: the network's, and that of the loss's parameter."""
    parameter = LOSSES[config.method.loss].parameter
    of_loss = [getattr(config.method, f"lr_{parameter}")] if parameter else []
    return [config.optimizer.lr, *of_loss]


def set_backbone_rates(config: TrainConfig, net: MarginNet, epoch: int) -> None:
    """Sets the multiplier of each backbone parameter's learning rate in an epoch."""
    optimizer = config.optimizer
    if optimizer.lr_mult_backbone is None and not optimizer.warm_up_epochs:
        return  # The multipliers stay as the backbone was created.
    for parameter in net.base_net.collect_params().values():
        usual = 1.0
        if optimizer.lr_mult_backbone is not None:
            usual = optimizer.lr_mult_backbone
        elif config.model.has_pretrained_backbone and "conv" in parameter.name:
            usual = PRETRAINED_CONVOLUTION_LR_MULT
        parameter.lr_mult = 0.0 if epoch < optimizer.warm_up_epochs else usual


def start_from(path: str, net: MarginNet, devices: list[mx.Context]) -> None:
    """Initializes the network from a trained one: the backbone, and layers of the same shape.

    Logs which parameters the file does not initialize, and which of its arrays are not used.

    Raises
    ------
    UsageError
        If the file cannot be read or has another backbone.
    """
    path = find_network(path, "--init-from")
    source = f"--init-from {path}"
    parameters = net._collect_params_with_prefix()
    arrays = read_parameters(path, "--init-from")
    used = {
        name: array
        for name, array in arrays.items()
        if name.startswith("base_net.")
        or (name in parameters and array.shape == parameters[name].shape)
    }
    wanted = {
        name: parameter
        for name, parameter in parameters.items()
        if name.startswith("base_net.") or name in used
    }
    set_parameters(wanted, used, source, devices)
    for names, outcome in ((parameters, "starts from scratch"), (arrays, "is not used")):
        others = [name for name in names if name not in used]
        if others:
            logging.info("%s: %s %s.", source, ", ".join(others), outcome)
