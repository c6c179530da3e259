"""Finds flags of train.py that have no effect. One table; a new case is a row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from embedding_learning.config import TrainConfig
from embedding_learning.model.methods import LOSSES, SAMPLINGS


class _Case(NamedTuple):
    """A case in which a flag has no effect.

    Attributes
    ----------
    flag : str
        The key of the flag.
    applies : function
        Returns whether the case applies, given the configuration and the keys of the typed flags.
    reason : str
        Settings in braces are replaced by their values.
    """

    flag: str
    applies: Callable[[TrainConfig, Collection[str]], bool]
    reason: str


def _has_no_beta(config: TrainConfig, given: Collection[str]) -> bool:
    return not LOSSES[config.method.loss].has_beta


def _has_no_proxies(config: TrainConfig, given: Collection[str]) -> bool:
    return not LOSSES[config.method.loss].has_proxies


def _has_no(setting: str) -> Callable[[TrainConfig, Collection[str]], bool]:
    """Returns a function that says whether the loss does not take the setting."""
    return lambda config, _: setting not in LOSSES[config.method.loss].takes


def _has_no_sampling(config: TrainConfig, given: Collection[str]) -> bool:
    return not LOSSES[config.method.loss].samples


def _has_no_cutoffs(config: TrainConfig, given: Collection[str]) -> bool:
    return "cutoff" not in SAMPLINGS[config.method.sampling].takes


def _has_no_rate(config: TrainConfig, given: Collection[str]) -> bool:
    return bool(config.optimizer.name == "adadelta")


def _has_one_device(config: TrainConfig, given: Collection[str]) -> bool:
    return config.devices.count == 1 and not config.devices.is_distributed


def _stays_empty(config: TrainConfig, given: Collection[str]) -> bool:
    return bool(0 < config.run.epochs <= config.method.memory_from)


def _never_falls(config: TrainConfig, given: Collection[str]) -> bool:
    return bool(config.run.epochs) and not any(
        step < config.run.epochs for step in config.optimizer.steps
    )


_TAKES_ALL = "--loss {loss} takes the whole batch, without a sampling"

_CASES = (
    _Case("lr_beta", _has_no_beta, "--loss {loss} has no beta"),
    _Case("beta", _has_no_beta, "--loss {loss} has no beta"),
    _Case("nu", _has_no_beta, "--loss {loss} has no beta"),
    _Case("beta_per", _has_no_beta, "--loss {loss} has no beta"),
    _Case(
        "nu",
        lambda config, _: config.method.lr_beta == 0,
        "beta is constant, and it is for a beta that is learned",
    ),
    _Case("beta_optimizer", _has_no_beta, "--loss {loss} has no beta"),
    _Case(
        "beta_optimizer",
        lambda config, _: config.method.lr_beta == 0,
        "beta is constant, and it is for a beta that is learned",
    ),
    _Case("margin", _has_no("margin"), "--loss {loss} has no margin"),
    _Case("scale", _has_no("scale"), "--loss {loss} has no scale"),
    _Case("lr_proxies", _has_no_proxies, "--loss {loss} has no proxies"),
    _Case("lr_proxies", _has_no_rate, "--optimizer {optimizer} has no learning rate"),
    _Case("sampling", _has_no_sampling, _TAKES_ALL),
    _Case("normalize_weights", _has_no_sampling, _TAKES_ALL),
    _Case("cutoff", _has_no_sampling, _TAKES_ALL),
    _Case("nonzero_loss_cutoff", _has_no_sampling, _TAKES_ALL),
    _Case("cutoff", _has_no_cutoffs, "--sampling {sampling} has no cutoffs"),
    _Case("nonzero_loss_cutoff", _has_no_cutoffs, "--sampling {sampling} has no cutoffs"),
    _Case("lr", _has_no_rate, "--optimizer {optimizer} has no learning rate"),
    _Case(
        "lr_mult_backbone",
        # 0 asks for something that the optimizer cannot do; `training.build.check` refuses it.
        lambda config, given: _has_no_rate(config, given)
        and config.optimizer.lr_mult_backbone != 0,
        "--optimizer {optimizer} has no learning rate",
    ),
    _Case(
        "momentum",
        lambda config, _: config.optimizer.name != "sgd",
        "it is for --optimizer sgd, not {optimizer}",
    ),
    _Case("factor", _never_falls, "--steps names no epoch below --epochs {epochs}"),
    _Case(
        "wd_exclude_bn_bias",
        lambda config, _: config.optimizer.wd == 0,
        "there is no weight decay with --wd 0",
    ),
    _Case(
        "batch_size",
        lambda _, given: "total_batch_size" in given,
        "--total-batch-size {total_batch_size} says how many images a batch has",
    ),
    _Case("memory", _has_no_sampling, _TAKES_ALL),
    # Without this row, `leave_out_unused` would leave out --memory-from alone: another run.
    _Case("memory", _stays_empty, "--memory-from {memory_from} is not below --epochs {epochs}"),
    _Case("memory_from", lambda config, _: not config.method.memory, "there is no --memory"),
    _Case("memory_from", _stays_empty, "there are only --epochs {epochs}, counted from 0"),
    _Case("negatives", _has_one_device, "a single device has the whole batch"),
    _Case(
        "held_out_fold",
        lambda config, _: not config.data.held_out,
        "it is for --held-out",
    ),
    _Case("kvstore", _has_one_device, "a single device exchanges no gradients"),
    _Case(
        "cpu_contexts",
        lambda config, _: bool(config.devices.gpus),
        "it is for runs without --gpus",
    ),
    _Case(
        "use_pretrained",
        lambda config, _: bool(config.model.pretrained_params),
        "the weights are those of --pretrained-params {pretrained_params}",
    ),
    _Case(
        "pretrained_params",
        lambda config, _: bool(config.model.init_from),
        "the weights are those of --init-from {init_from} (--lr-mult-backbone sets how fast the "
        "backbone learns)",
    ),
    _Case(
        "checkpoint_interval",
        lambda config, _: (config.run.checkpoint_interval or 0) >= config.batch.batch_num,
        "the state is saved after each epoch anyway, and an epoch has {batch_num} batches "
        "(--batch-num)",
    ),
)


def find(given: Collection[str], config: TrainConfig) -> dict[str, str]:
    """Returns the flags that were typed and have no effect, by key, each with the reason.

    `given` holds the keys of the flags that were typed: values of presets and defaults are no
    mistake of the user.
    """
    settings = config.as_flags()
    return {
        case.flag: case.reason.format(**settings)
        for case in reversed(_CASES)
        if case.flag in given and case.applies(config, given)
    }
