"""Computes embeddings on the devices of MXNet; on a CPU with fused layers."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
from mxnet import nd
from mxnet.gluon import HybridBlock

from embedding_learning.model.cpu_fusion import fuse_for_inference
from embedding_learning.model.net import MarginNet
from embedding_learning.runtime.environment import is_onednn_enabled


class EmbeddingGraph:
    """The part of a network that embeds images, compiled as one graph at the first call.

    On a CPU, oneDNN computes each convolution and the batch norm, activation and sum after it in
    one pass over memory. The batch norm goes into the convolution's weights, so the embeddings
    differ from those of the single layers in the last bits. docs/measurements.md has the speed.

    A graph reads the arrays of the network's parameters. It may keep what it computed from them at
    the first call, so make another graph for other weights; that takes a few hundredths of a
    second.

    Parameters
    ----------
    net : MarginNet
        A network with known shapes.
    """

    def __init__(self, net: MarginNet) -> None:
        self._net = net
        self._run: _FusedGraph | _PlainGraph | None = None

    def __call__(self, images: nd.NDArray) -> nd.NDArray:
        """Queues the embeddings (n, d) of images (n, 3, height, width), and returns them.

        `images` are on one of the network's devices, and are the input of ``net.embed``.
        """
        if self._run:
            return self._run(images)
        if _can_fuse(self._net, images):
            try:
                self._run = _FusedGraph(self._net, images)
                embeddings = self._run(images)
                embeddings.wait_to_read()
                return embeddings
            except mx.base.MXNetError:
                pass  # oneDNN does not take every network; the layers one by one do
        self._run = _PlainGraph(self._net)
        self._run.hybridize(static_alloc=True, static_shape=True)
        return self._run(images)


def _can_fuse(net: MarginNet, images: nd.NDArray) -> bool:
    parameters = net.collect_params().values()
    return (
        images.context.device_type == "cpu"
        and is_onednn_enabled()
        and all(np.dtype(parameter.dtype) == np.float32 for parameter in parameters)
    )


class _FusedGraph:
    """A graph with fused layers, which runs on CPU contexts alone."""

    def __init__(self, net: MarginNet, images: nd.NDArray) -> None:
        symbol = net.embed(mx.sym.var("data"))
        used = set(symbol.list_inputs())
        self._parameters = {k: p for k, p in net.collect_params().items() if k in used}
        arrays = self._arrays(images)
        auxiliary = {name: arrays.pop(name) for name in symbol.list_auxiliary_states()}
        graph = fuse_for_inference(symbol, {**arrays, "data": images}, auxiliary)
        self._inputs = graph.list_inputs()
        flags = [("static_alloc", True), ("static_shape", True)]
        self._operator = nd.CachedOp(graph, flags)

    def __call__(self, images: nd.NDArray) -> nd.NDArray:
        arrays = {**self._arrays(images), "data": images}
        return self._operator(*(arrays[name] for name in self._inputs))

    def _arrays(self, images: nd.NDArray) -> dict[str, nd.NDArray]:
        """Returns the parameters of the graph on the device of the images."""
        device = images.context
        return {name: parameter.data(device) for name, parameter in self._parameters.items()}


class _PlainGraph(HybridBlock):
    """All layers in one graph.

    `MarginNet.embed` runs one graph for each part of the network, and allocates the arrays between
    them again for each batch. With SqueezeNet on a CPU that takes a twelfth of the time.
    """

    def __init__(self, net: MarginNet) -> None:
        super().__init__()
        with self.name_scope():
            self.net = net

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.net.embed(x)
