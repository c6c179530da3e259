"""Flags of train.py that have no effect next to the others. One table; a new case is a row."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection
from typing import NamedTuple

from embedding_learning.model.methods import LOSSES


class _Case(NamedTuple):
    """When a flag has no effect.

    Attributes
    ----------
    flag : str
        Its attribute.
    applies : function
        Whether it has none, from the parsed options and the attributes of the flags that were
        typed.
    reason : str
        It may show options in braces.
    """

    flag: str
    applies: Callable[[Namespace, Collection[str]], bool]
    reason: str


def _has_no_beta(options: Namespace, given: Collection[str]) -> bool:
    return not LOSSES[options.loss].has_beta


def _has_no_rate(options: Namespace, given: Collection[str]) -> bool:
    return bool(options.optimizer == "adadelta")


def _has_one_device(options: Namespace, given: Collection[str]) -> bool:
    return len(
        options.gpus or range(options.cpu_contexts)
    ) * options.processes == 1 and not options.kvstore.startswith("dist_")


def _never_falls(options: Namespace, given: Collection[str]) -> bool:
    return bool(options.epochs) and not any(step < options.epochs for step in options.steps)


_CASES = (
    _Case("lr_beta", _has_no_beta, "--loss {loss} has no beta"),
    _Case("beta", _has_no_beta, "--loss {loss} has no beta"),
    _Case("nu", _has_no_beta, "--loss {loss} has no beta"),
    _Case("beta_per", _has_no_beta, "--loss {loss} has no beta"),
    _Case(
        "nu",
        lambda options, _: options.lr_beta == 0,
        "beta is constant, and it is for a beta that is learned",
    ),
    _Case("lr", _has_no_rate, "--optimizer {optimizer} has no learning rate"),
    _Case(
        "lr_mult_backbone",
        # With 0 it asks for what the optimizer cannot do, which is refused elsewhere.
        lambda options, given: _has_no_rate(options, given) and options.lr_mult_backbone != 0,
        "--optimizer {optimizer} has no learning rate",
    ),
    _Case(
        "momentum",
        lambda options, _: options.optimizer != "sgd",
        "it is for --optimizer sgd, not {optimizer}",
    ),
    _Case("factor", _never_falls, "--steps names no epoch below --epochs {epochs}"),
    _Case(
        "wd_exclude_bn_bias",
        lambda options, _: options.wd == 0,
        "there is no weight decay with --wd 0",
    ),
    _Case(
        "batch_size",
        lambda _, given: "total_batch_size" in given,
        "--total-batch-size {total_batch_size} says how many images a batch has",
    ),
    _Case("kvstore", _has_one_device, "a single device exchanges no gradients"),
    _Case(
        "cpu_contexts",
        lambda options, _: bool(options.gpus),
        "it is for runs without --gpus",
    ),
    _Case(
        "use_pretrained",
        lambda options, _: bool(options.pretrained_params),
        "the weights are those of --pretrained-params {pretrained_params}",
    ),
    _Case(
        "pretrained_params",
        lambda options, _: bool(options.init_from),
        "the weights are those of --init-from {init_from} (--lr-mult-backbone sets how fast the "
        "backbone learns)",
    ),
    _Case(
        "checkpoint_interval",
        lambda options, _: options.checkpoint_interval >= options.batch_num,
        "the state is saved after each epoch anyway, and an epoch has {batch_num} batches "
        "(--batch-num)",
    ),
)


def find(given: Collection[str], options: Namespace) -> dict[str, str]:
    """The flags that were typed and have no effect, by attribute, each with the reason.

    `given` holds the attributes of the flags that were typed: the value of one that comes from a
    preset or a default is nobody's mistake. `options` are all, parsed.
    """
    return {
        case.flag: case.reason.format(**vars(options))
        for case in reversed(_CASES)
        if case.flag in given and case.applies(options, given)
    }
