"""Asynchronous training: the servers update the weights with each gradient as it arrives.

No worker waits for another. So a worker computes with weights that are not the newest, and no run
can be repeated exactly. The optimizers are on the servers. MXNet would send them pickled. Here a
server receives their names and numbers as JSON and creates them itself.
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

# The number that marks a command as not one of MXNet's own.
_COMMAND = 0


class AsynchronousGroup(SynchronousGroup):
    """A worker of several that update the weights independently. Its `size` is therefore 1.

    Parameters are those of `SynchronousGroup`.
    """

    def __init__(self, kvstore: str, client: HeartbeatClient) -> None:
        super().__init__(kvstore, client)
        self.size = 1
        if self.rank == 0:
            logging.warning(
                "--kvstore %s: each worker computes gradients and samples negatives with weights "
                "that may be out of date. Only the first worker evaluates and saves. A resumed run "
                "starts with new optimizers.",
                kvstore,
            )

    def create_kvstore(self, name: str, trainer: int) -> KVStoreBase:
        return _ServerUpdates(self._store, trainer, self._servers)

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def queue_sum(self, arrays: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        return arrays

    def check_equal(self, name: str, content: Any) -> None:
        """Checks nothing, because the servers hold the only weights."""

    def send_learning_rates(self, rates: list[float]) -> None:
        for trainer, rate in enumerate(rates):
            _send(self._store, trainer=trainer, rate=rate)


class _ServerUpdates(GradientSum):
    """The store of one trainer: sends gradients, receives weights."""

    # `learner_state` looks here for the arrays of the optimizer. They are on the servers.
    _updater = optimizers.get_updater(optimizers.Test())

    @staticmethod
    def is_capable(capability: str) -> bool:
        return capability == KVStoreBase.OPTIMIZER

    def set_optimizer(self, optimizer: mx.optimizer.Optimizer) -> None:
        """Makes the servers create an optimizer like this one."""
        _send(
            self.store,
            trainer=self.trainer,
            optimizer=type(optimizer).__name__.lower(),
            numbers=_numbers(optimizer),
            rate_of={index: p.lr_mult for index, p in optimizer.param_dict.items()},
            decay_of={index: p.wd_mult for index, p in optimizer.param_dict.items()},
        )
        # No worker may send a gradient before the optimizer exists.
        self.store._barrier()


def _send(store: mx.kv.KVStore, **command: Any) -> None:
    """Sends a command from the first worker to all servers. Blocks until they have applied it."""
    if store.rank == 0:
        store._send_command_to_servers(_COMMAND, json.dumps(command))


def _numbers(optimizer: mx.optimizer.Optimizer) -> dict[str, Any]:
    """Returns the numeric attributes of an optimizer, by name."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, (int, float)) or value is None
    }


def _with_integer_keys(factors: dict[str, Any]) -> dict[int, float]:
    """Returns factors by parameter number. In JSON the numbers had become texts."""
    return {int(number): float(factor) for number, factor in factors.items()}


class ServerOptimizers:
    """The optimizers of all trainers, as one of the servers holds them.

    Parameters
    ----------
    servers : int
        The number of servers.
    """

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._updaters: dict[int, mx.optimizer.Updater] = {}

    def apply_command(self, command: dict[str, Any]) -> None:
        """Applies a command of the first worker. Raises a built-in exception if it is invalid."""
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
        optimizer.set_lr_mult(_with_integer_keys(command["rate_of"]))
        optimizer.set_wd_mult(_with_integer_keys(command["decay_of"]))
        self._updaters[trainer] = optimizers.get_updater(optimizer)

    def update(self, key: int, gradient: mx.nd.NDArray, weight: mx.nd.NDArray) -> None:
        """Updates one array of weights (any shape) with a gradient that a worker sent."""
        trainer, index = divmod(key, KEYS_OF_TRAINER)
        self._updaters[trainer](index // self._servers, gradient, weight)
