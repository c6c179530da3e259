"""Networks as one graph: fused on a CPU, with the embeddings of the layers one by one."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from embedding_learning.inference import embedding_graph
from embedding_learning.inference.embedding_graph import EmbeddingGraph
from embedding_learning.model.net import ImageNormalization, MarginNet
from tests.benchmarks.export_families import random_pixels

# Batch norm in the weights, or sums in another order; embeddings have unit length.
CLOSE = 1e-6


class Residual(nn.HybridSequential):
    def hybrid_forward(self, F, x):
        return F.clip(super().hybrid_forward(F, x) + x, 0, 6)


def net_of(*layers, devices=None, size=16):
    mx.random.seed(1)
    backbone = nn.HybridSequential()
    backbone.add(*layers, nn.GlobalAvgPool2D())
    net = MarginNet(backbone, 8, 2, preprocess=ImageNormalization())
    devices = devices or [mx.cpu()]
    net.initialize(mx.init.Xavier(magnitude=2), ctx=devices)
    net.embed(random_pixels(1, size, seed=0).as_in_context(devices[0]))
    rng = np.random.default_rng(0)
    for name, parameter in net.collect_params().items():
        if name.endswith(("running_mean", "running_var", "gamma", "beta")):
            parameter.set_data(nd.array(rng.uniform(0.5, 2, parameter.shape)))
    return net


def layers():
    residual = Residual()
    residual.add(nn.Conv2D(16, 3, padding=1), nn.BatchNorm())
    return [
        nn.Conv2D(16, 3, use_bias=False),
        nn.BatchNorm(),
        nn.Activation("relu"),
        residual,
        nn.Conv2D(20, 1, activation="relu"),
        nn.MaxPool2D(2),
        nn.BatchNorm(),
    ]


def is_fused(graph):
    return isinstance(graph._run, embedding_graph._FusedGraph)


def test_the_embeddings_are_those_of_the_layers_for_any_number_of_images():
    net = net_of(*layers())
    graph = EmbeddingGraph(net)
    for count in (5, 5, 1, 9, 5):
        images = random_pixels(count, 16, seed=count)
        np.testing.assert_allclose(graph(images).asnumpy(), net.embed(images).asnumpy(), atol=CLOSE)
    assert is_fused(graph)


def test_each_device_computes_its_own_images():
    devices = [mx.cpu(0), mx.cpu(1)]
    net = net_of(*layers(), devices=devices)
    graph = EmbeddingGraph(net)
    for seed in range(2):
        images = [random_pixels(3, 16, seed + n).as_in_context(d) for n, d in enumerate(devices)]
        found = [graph(part) for part in images]
        assert [part.context for part in found] == devices
        for part, embeddings in zip(images, found):
            np.testing.assert_allclose(embeddings.asnumpy(), net.embed(part).asnumpy(), atol=CLOSE)


def test_a_new_graph_sees_new_weights_and_new_statistics():
    net = net_of(*layers())
    images = random_pixels(4, 16, seed=2)
    EmbeddingGraph(net)(images).wait_to_read()
    for part in ("running_var", "running_mean", "weight", "bias"):
        before = net.embed(images).asnumpy()
        for name, parameter in net.collect_params().items():
            if name.endswith(part):
                parameter.set_data(parameter.data() * 1.5 + 0.1)
        expected = net.embed(images).asnumpy()
        assert np.abs(expected - before).max() > 100 * CLOSE
        np.testing.assert_allclose(EmbeddingGraph(net)(images).asnumpy(), expected, atol=CLOSE)


@pytest.mark.parametrize("failing", [mx.base.MXNetError, None])
def test_without_fusion_the_layers_compute_one_by_one(failing, monkeypatch):
    net = net_of(*layers())

    def fail(*arguments):
        raise failing("no oneDNN")

    if failing:
        monkeypatch.setattr(embedding_graph, "fuse_for_inference", fail)
    else:
        monkeypatch.setenv("MXNET_MKLDNN_ENABLED", "0")
    graph = EmbeddingGraph(net)
    images = random_pixels(3, 16, seed=3)
    np.testing.assert_allclose(graph(images).asnumpy(), net.embed(images).asnumpy(), atol=CLOSE)
    assert not is_fused(graph)


def test_a_network_in_float16_is_not_fused():
    net = net_of(*layers())
    net.cast("float16")
    assert not embedding_graph._can_fuse(net, random_pixels(1, 16, seed=0))
