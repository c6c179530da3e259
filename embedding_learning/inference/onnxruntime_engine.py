"""Computes embeddings on the CPU with onnxruntime, which is faster than MXNet there."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from mxnet import nd

from embedding_learning.errors import UsageError
from embedding_learning.inference.export import serialize_onnx
from embedding_learning.model.net import MarginNet
from embedding_learning.runtime.install_commands import format_install_command

_PACKAGES = ("onnx", "onnxruntime")


def is_installed() -> bool:
    """Returns whether the packages are there: onnx writes the graph, onnxruntime computes it."""
    return all(importlib.util.find_spec(package) for package in _PACKAGES)


def read_thread_count() -> int:
    """Returns the threads of OMP_NUM_THREADS; 0, with which onnxruntime uses all cores, if unset.

    As for OpenMP, it may be a list, such as 4,2: a number for each level of nested loops.
    """
    count = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))
    return int(count[1]) if count else 0


class OnnxRuntimeEngine:
    """The part of a network that embeds images, as an ONNX graph that onnxruntime computes.

    It uses as many threads as MXNet: those of OMP_NUM_THREADS. The weights are copied.

    Parameters
    ----------
    net : MarginNet
        A network with known shapes that takes pixels.
    crop_size : int
        Side of the images in pixels.

    Raises
    ------
    UsageError
        If a package is not installed or cannot be imported, or the network has an operator that
        cannot be translated.
    """

    def __init__(self, net: MarginNet, crop_size: int) -> None:
        if not is_installed():
            raise UsageError(
                f"--engine onnxruntime: needs the packages {' and '.join(_PACKAGES)}; "
                f"{format_install_command('onnx')}"
            )
        try:
            # Imported here, since not everyone has it.
            import onnxruntime

            model = serialize_onnx(net, crop_size, normalize_input=True)
        except ImportError as error:  # of a package that does not fit numpy or the system
            raise UsageError(
                f"--engine onnxruntime: cannot be imported ({error}); "
                f"{format_install_command('onnx')}"
            ) from error
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = read_thread_count()
        providers = ["CPUExecutionProvider"]
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=providers)

    def __call__(self, images: nd.NDArray) -> nd.NDArray:
        """Returns the embeddings (n, d) of pixels, uint8 (n, 3, crop_size, crop_size). Blocks."""
        (embeddings,) = self._session.run(None, {"data": images.asnumpy()})
        return nd.from_numpy(embeddings, zero_copy=True)
