"""The processes that train one model together; most often there is only this one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

import mxnet as mx
import numpy as np
from mxnet.kvstore import KVStoreBase


class WorkerGroup:
    """A process that trains alone. `synchronous.SynchronousGroup` is one of several.

    All processes call the methods that exchange something in the same order.

    Attributes
    ----------
    rank : int
        This process's number among them; 0 logs and saves.
    size : int
        How many make a step together.
    """

    rank = 0
    size = 1

    @property
    def stop_signal(self) -> int | None:
        """The signal by which the launcher was asked to end the job."""
        return None

    def create_kvstore(self, name: str, trainer: int) -> Union[str, KVStoreBase]:
        """What `gluon.Trainer` number `trainer` exchanges gradients by; `name`: as --kvstore."""
        return name

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum of all processes' arrays, float32 of equal shapes."""
        return array

    def queue_sum(self, arrays: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        """The same for small arrays, one a device, without waiting; arrays that add up to it."""
        return arrays

    def broadcast(self, data: bytes | None) -> bytes | None:
        """What process 0 has, for all."""
        return data

    def check_equal(self, what: str, content: Iterable[bytes]) -> None:
        """Raises TrainingFault if the content differs between the processes."""

    def send_learning_rates(self, rates: list[float]) -> None:
        """The trainers' learning rates from here on, where it is not they who update."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Each process's rows (n, ...), below each other in the order of the processes."""
        if self.size == 1:
            return rows
        counts = np.zeros(self.size, np.float32)
        counts[self.rank] = len(rows)
        ends = np.cumsum(self.sum(counts)).astype(int)
        whole = np.zeros((ends[-1], *rows.shape[1:]), np.float32)
        whole[ends[self.rank] - len(rows) : ends[self.rank]] = rows
        return self.sum(whole)
