"""The devices that a command computes on."""

from __future__ import annotations

from argparse import Namespace

import mxnet as mx

from embedding_learning.errors import UsageError
from embedding_learning.runtime import gpus
from embedding_learning.runtime.mxnet_compat import format_install_command


def find_devices(options: Namespace) -> list[mx.Context]:
    """The GPUs asked for, or CPU contexts. Raises UsageError if a GPU is not there."""
    if not options.gpus:
        return [mx.cpu(number) for number in range(options.cpu_contexts)]
    if not mx.runtime.Features().is_enabled("CUDA"):
        raise UsageError(
            f"--gpus {','.join(map(str, options.gpus))}: this machine shows MXNet no GPU; install "
            f"MXNet's GPU build, {format_install_command('requirements-gpu.txt')}, or "
            "leave --gpus out to train on the CPU"
        )
    gpus.check(options.gpus)
    return [mx.gpu(number) for number in options.gpus]
