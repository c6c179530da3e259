"""Synchronous training of several workers with MXNet's parameter server.

Each worker computes the gradients of its part of a batch. The servers add them up. Each worker
updates its own copy of the weights with the sum. So all workers have the same weights and the same
optimizer states, and a checkpoint of one is a checkpoint of all. In `asynchronous` the servers
update the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import mxnet as mx
import numpy as np
from mxnet.kvstore import KVStoreBase

from embedding_learning.distributed import dmlc_environment
from embedding_learning.distributed.heartbeat import HeartbeatClient
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import TrainingError

# MXNet's servers name arrays by numbers. The keys of each trainer's parameters start at a multiple
# of KEYS_OF_TRAINER. The keys of all other sums, one per shape, are above them.
KEYS_OF_TRAINER = 1_000_000
_FIRST_KEY_OF_TOTALS = 1_000_000_000


class SynchronousGroup(WorkerGroup):
    """A worker of several that compute each step together.

    Parameters
    ----------
    kvstore : str
        ``dist_sync``, or ``dist_device_sync`` to add up the gradients of a machine's devices on
        these devices.
    client : HeartbeatClient
        This worker's connection to the heartbeat server.
    """

    def __init__(self, kvstore: str, client: HeartbeatClient) -> None:
        self._store = mx.kv.create(kvstore)
        self._client = client
        self._servers = client.servers
        self._key_of_shape: dict[tuple[int, ...], int] = {}
        self._keys_given = 0
        self.rank, self.size = self._store.rank, self._store.num_workers
        client.send_rank(self.rank)

    @property
    def stop_signal(self) -> int | None:
        return self._client.stop_signal

    def create_kvstore(self, name: str, trainer: int) -> KVStoreBase:
        return GradientSum(self._store, trainer, self._servers)

    def sum(self, array: np.ndarray) -> np.ndarray:
        value = mx.nd.array(array, dtype=np.float32)
        self.queue_sum([value])
        total: np.ndarray = value.asnumpy()
        return total

    def queue_sum(self, arrays: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        key = self._key(arrays[0])
        self._store.pushpull(key, arrays, out=arrays)
        return arrays[:1]

    def broadcast(self, data: bytes | None) -> bytes | None:
        # The length is sent as two numbers, because float32 has all integers only up to 2**24.
        length = len(data or b"")
        header = self._first(np.array([data is not None, *divmod(length, 4096)], np.float32))
        has_data, pages, rest = header.astype(int)
        if not has_data:
            return None
        length = pages * 4096 + rest
        padded = (data or b"").ljust(4 * max(1, -(-length // 4)), b"\0")
        return self._first(np.frombuffer(padded, np.float32)).tobytes()[:length]

    def _first(self, array: np.ndarray) -> np.ndarray:
        """Returns worker 0's array in all workers, bit by bit. All pass an array of its shape."""
        # The initial value of a key is copied. All later values would be added up.
        key, value = self._new_key(), mx.nd.array(array)
        self._store.init(key, value)
        self._store.pull(key, out=value)
        first: np.ndarray = value.asnumpy()
        return first

    def check_equal(self, name: str, content: Iterable[bytes]) -> None:
        digest = hashlib.sha256()
        for part in content:
            digest.update(part)
        digests = self.gather(np.frombuffer(digest.digest(), np.uint8)[None].astype(np.float32))
        differing = np.flatnonzero((digests != digests[0]).any(axis=1))
        if len(differing):
            raise TrainingError(
                f"{name} of worker {differing[0]} differ from those of worker 0; all must run the "
                "same program with the same flags on the same files"
            )

    def _key(self, array: mx.nd.NDArray) -> int:
        if array.shape not in self._key_of_shape:
            key = self._key_of_shape[array.shape] = self._new_key()
            self._store.init(key, mx.nd.zeros(array.shape))
        return self._key_of_shape[array.shape]

    def _new_key(self) -> int:
        self._keys_given += 1
        return _FIRST_KEY_OF_TOTALS + self._keys_given


class GradientSum(KVStoreBase):
    """The store of one trainer: copies worker 0's weights to all, and sums gradients.

    Parameters
    ----------
    store : KVStore
    trainer : int
        The number of the trainer.
    servers : int
        The number of servers.
    """

    def __init__(self, store: mx.kv.KVStore, trainer: int, servers: int) -> None:
        self.store = store
        self.trainer = trainer
        self._loads = [0] * servers
        self._keys: dict[int, int] = {}

    def broadcast(
        self, key: int, value: mx.nd.NDArray, out: list[mx.nd.NDArray], priority: int = 0
    ) -> None:
        # A copy, because oneDNN may have changed the layout of the weights. Without a message the
        # store does not send such an array, and each worker would keep its own weights.
        plain = mx.nd.array(value.asnumpy(), dtype=value.dtype)
        first = self.trainer * KEYS_OF_TRAINER
        self._keys[key] = dmlc_environment.least_loaded_key(first, key, value.size, self._loads)
        self.store.init(self._keys[key], plain)
        self.store.pull(self._keys[key], out=out, priority=priority)

    def pushpull(
        self,
        key: int,
        value: list[mx.nd.NDArray],
        out: list[mx.nd.NDArray] | None = None,
        priority: int = 0,
    ) -> None:
        self.store.pushpull(self._keys[key], value, out=out or value, priority=priority)

    @staticmethod
    def is_capable(capability: str) -> bool:
        """Returns False: the servers do not update the weights."""
        return False

    @property
    def type(self) -> str:
        return str(self.store.type)

    @property
    def rank(self) -> int:
        return int(self.store.rank)

    @property
    def num_workers(self) -> int:
        return int(self.store.num_workers)
