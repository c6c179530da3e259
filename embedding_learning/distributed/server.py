"""Runs the processes of a group that do not train: servers and scheduler."""

from __future__ import annotations

import ctypes
import json

import mxnet as mx
from mxnet.base import _LIB, check_call

from embedding_learning.distributed import dmlc_environment, heartbeat
from embedding_learning.distributed.asynchronous import ServerOptimizers


def run_server() -> None:
    """Runs MXNet's server or scheduler, whichever DMLC_ROLE says. Blocks until the group ends.

    A server adds up what the workers send. The scheduler connects all processes. DMLC_ROLE has to
    be hidden while MXNet is imported: otherwise the import starts MXNet's own server, which
    unpickles what it receives.
    """
    store = mx.kv.create("dist_sync")
    environment = dmlc_environment.read_environment()
    assert environment
    optimizers = ServerOptimizers(environment.servers)

    def control(_number: int, body: bytes, _handle: object) -> None:
        try:
            optimizers.apply_command(json.loads(body))
            # Only asynchronous groups send commands, and only their servers update the weights.
            store._set_updater(optimizers.update)
        except Exception as error:  # In MXNet's thread it would be lost, and the workers hang.
            heartbeat.print_error(
                f"train.py: server: error: a command cannot be followed: {error!r}"
            )
            heartbeat.exit_now(heartbeat.LOST_STATUS)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(control)
    check_call(_LIB.MXKVStoreRunServer(store.handle, callback, None))
