"""Finds the devices that a command computes on."""

from __future__ import annotations

from collections.abc import Sequence

import mxnet as mx

from embedding_learning.errors import UsageError
from embedding_learning.runtime import gpus
from embedding_learning.runtime.install_commands import format_install_command


def find_devices(numbers: Sequence[int] = (), cpu_contexts: int = 1) -> list[mx.Context]:
    """Returns the GPUs of these numbers; without numbers, `cpu_contexts` CPU contexts.

    Raises UsageError if a GPU does not exist.
    """
    if not numbers:
        return [mx.cpu(number) for number in range(cpu_contexts)]
    if not mx.runtime.Features().is_enabled("CUDA"):
        raise UsageError(
            f"--gpus {','.join(map(str, numbers))}: this machine has MXNet's CPU build; install "
            f"the GPU build, {format_install_command('gpu')}, or leave --gpus out "
            "to use the CPU"
        )
    gpus.check(list(numbers))
    return [mx.gpu(number) for number in numbers]
