"""The workers that train one model together. Most often there is only one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

import mxnet as mx
import numpy as np
from mxnet.kvstore import KVStoreBase


class WorkerGroup:
    """A group of a single worker: nothing is exchanged.

    `synchronous.SynchronousGroup` is a group of several. All workers call the methods that exchange
    something in the same order.

    Attributes
    ----------
    rank : int
        The number of this worker. Worker 0 logs and saves.
    size : int
        How many workers compute one step together.
    """

    rank = 0
    size = 1

    @property
    def stop_signal(self) -> int | None:
        """The signal that asked the launcher to stop the group; None if there was none."""
        return None

    def create_kvstore(self, name: str, trainer: int) -> Union[str, KVStoreBase]:
        """Returns the store by which `gluon.Trainer` number `trainer` exchanges gradients.

        `name` is the value of --kvstore.
        """
        return name

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum of all workers' arrays, float32 of equal shapes. Blocks."""
        return array

    def queue_sum(self, arrays: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        """Queues the sum over all workers and devices of small arrays, one per device.

        Does not block. Returns arrays that add up to the sum.
        """
        return arrays

    def queue_gather(self, rows: mx.nd.NDArray) -> mx.nd.NDArray:
        """Queues the exchange of rows (n, ...), as many in each worker; returns those of all.

        They are in the order of the ranks. Does not block, except when the shape is new.
        """
        if self.size == 1:
            return rows
        count = len(rows)
        gathered = mx.nd.zeros((self.size * count, *rows.shape[1:]), rows.context)
        gathered[self.rank * count : (self.rank + 1) * count] = rows
        (total,) = self.queue_sum([gathered])
        return total

    def broadcast(self, data: bytes | None) -> bytes | None:
        """Returns worker 0's bytes in all workers. Blocks."""
        return data

    def check_equal(self, name: str, content: Iterable[bytes]) -> None:
        """Raises TrainingError if the content differs between the workers. Blocks."""

    def send_learning_rates(self, rates: list[float]) -> None:
        """Sends the trainers' new learning rates to the servers, if it is them that update."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows (n, ...) of all workers, in the order of their ranks. Blocks."""
        if self.size == 1:
            return rows
        counts = np.zeros(self.size, np.float32)
        counts[self.rank] = len(rows)
        ends = np.cumsum(self.sum(counts)).astype(int)
        gathered = np.zeros((ends[-1], *rows.shape[1:]), np.float32)
        gathered[ends[self.rank] - len(rows) : ends[self.rank]] = rows
        return self.sum(gathered)
