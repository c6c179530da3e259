"""Asynchronous training: the servers update the weights with each gradient as it comes.

No worker waits for another, so none computes with the newest weights, and no run can be repeated.
The optimizers live on the servers. MXNet would send them there pickled; here a server is told their
names and numbers as JSON, and makes them itself.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import optimizer as optimizers
from mxnet.kvstore import KVStoreBase

from embedding_learning.distributed.heartbeat import HeartbeatClient
from embedding_learning.distributed.synchronous import (
    KEYS_OF_TRAINER,
    GradientSum,
    SynchronousGroup,
)

# MXNet's number for a command that is none of its own.
_COMMAND = 0


class AsynchronousGroup(SynchronousGroup):
    """One of several workers, each of which updates the weights by itself: their `size` is 1."""

    def __init__(self, kind: str, client: HeartbeatClient) -> None:
        super().__init__(kind, client)
        self.size = 1
        if self.rank == 0:
            logging.warning(
                "--kvstore %s: each worker updates the weights with gradients of older ones, and "
                "draws negatives by distances in its own older embedding. The first worker alone "
                "evaluates and saves; a resumed run starts the optimizers anew.",
                kind,
            )

    def create_kvstore(self, name: str, trainer: int) -> KVStoreBase:
        return _ServerUpdates(self._store, trainer, self._servers)

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def queue_sum(self, arrays: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        return arrays

    def check_equal(self, what: str, content: Any) -> None:
        """Nothing: the servers hold the only weights."""

    def send_learning_rates(self, rates: list[float]) -> None:
        for trainer, rate in enumerate(rates):
            _send(self._store, trainer=trainer, rate=rate)


class _ServerUpdates(GradientSum):
    """A trainer's part of the store: sends gradients, gets weights."""

    # Where `learner_state` looks for the optimizer's arrays, which are not here.
    _updater = optimizers.get_updater(optimizers.Test())

    @staticmethod
    def is_capable(capability: str) -> bool:
        return capability == KVStoreBase.OPTIMIZER

    def set_optimizer(self, optimizer: mx.optimizer.Optimizer) -> None:
        """Has the servers make an optimizer like this one."""
        _send(
            self.store,
            trainer=self.trainer,
            optimizer=type(optimizer).__name__.lower(),
            numbers=_numbers(optimizer),
            rate_of={index: p.lr_mult for index, p in optimizer.param_dict.items()},
            decay_of={index: p.wd_mult for index, p in optimizer.param_dict.items()},
        )
        # No other worker may send a gradient before.
        self.store._barrier()


def _send(store: mx.kv.KVStore, **command: Any) -> None:
    """From the first worker to all servers; waits until they have followed."""
    if store.rank == 0:
        store._send_command_to_servers(_COMMAND, json.dumps(command))


def _numbers(optimizer: mx.optimizer.Optimizer) -> dict[str, Any]:
    """The settings of an optimizer, by the names of its attributes."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, (int, float)) or value is None
    }


def _by_number(factors: dict[str, Any]) -> dict[int, float]:
    """What JSON has made of factors by the parameters' numbers."""
    return {int(number): float(factor) for number, factor in factors.items()}


class ServerOptimizers:
    """On one of `servers`: the optimizers of all trainers, and the weights' updates by them."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._updaters: dict[int, mx.optimizer.Updater] = {}

    def apply_command(self, command: dict[str, Any]) -> None:
        """A command of the first worker's. Raises Python's own errors if it is none."""
        trainer = int(command["trainer"])
        if "rate" in command:
            self._updaters[trainer].optimizer.set_learning_rate(float(command["rate"]))
            return
        optimizer = optimizers.create(command["optimizer"])
        known = _numbers(optimizer)
        for name, value in command["numbers"].items():
            if name not in known or not (value is None or isinstance(value, (int, float))):
                raise ValueError(name)
            setattr(optimizer, name, value)
        optimizer.set_lr_mult(_by_number(command["rate_of"]))
        optimizer.set_wd_mult(_by_number(command["decay_of"]))
        self._updaters[trainer] = optimizers.get_updater(optimizer)

    def update(self, key: int, gradient: mx.nd.NDArray, weight: mx.nd.NDArray) -> None:
        """One array of weights (any shape) by a worker's gradient."""
        trainer, place = divmod(key, KEYS_OF_TRAINER)
        self._updaters[trainer](place // self._servers, gradient, weight)
