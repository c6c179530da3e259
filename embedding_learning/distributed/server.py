"""The processes of a job that do not train: its servers and its scheduler."""

from __future__ import annotations

import ctypes
import json

import mxnet as mx
from mxnet.base import _LIB, check_call

from embedding_learning.distributed import dmlc_environment, heartbeat
from embedding_learning.distributed.asynchronous import ServerOptimizers


def run_server() -> None:
    """Adds up what workers send, or as the scheduler lets all find each other, to the job's end.

    For a process whose DMLC_ROLE was hidden while MXNet was imported: left alone, MXNet begins to
    serve then, and unpickles what it is sent.
    """
    store = mx.kv.create("dist_sync")
    environment = dmlc_environment.read_environment()
    assert environment
    optimizers = ServerOptimizers(environment.servers)

    def control(_number: int, body: bytes, _handle: object) -> None:
        try:
            optimizers.apply_command(json.loads(body))
            # Only an asynchronous job sends commands, and only then do servers update.
            store._set_updater(optimizers.update)
        except Exception as error:  # It would be lost in MXNet's thread, and the job wait for ever.
            heartbeat.print_error(
                f"train.py: server: error: a command cannot be followed: {error!r}"
            )
            heartbeat.exit_now(heartbeat.LOST_STATUS)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(control)
    check_call(_LIB.MXKVStoreRunServer(store.handle, callback, None))
