"""Batch norm and ReLU as one operator: the same bits, and only if nothing else reads between."""

import json
import os
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn
from mxnet.gluon.model_zoo import vision
from mxnet.gluon.model_zoo.vision import resnet

from embedding_learning import MarginNet
from embedding_learning.cli.train_flags import parse
from embedding_learning.model.cpu_fusion import (
    can_train_fused,
    fuse_for_inference,
    fuse_for_training,
)
from embedding_learning.training import build
from tests.helpers.paths import ROOT
from tests.helpers.tiny_networks import each_class


def operators(graph):
    return [node["op"] for node in json.loads(graph.tojson())["nodes"]]


def norm(name="norm", **settings):
    return mx.sym.BatchNorm(mx.sym.var("data"), name=name, fix_gamma=False, **settings)


def relu(data):
    return mx.sym.Activation(data, act_type="relu")


def test_the_two_become_one_and_their_readers_read_it():
    graph = fuse_for_training(relu(norm()) + 1.0)
    assert [op for op in operators(graph) if op != "null"] == [
        "_contrib_BatchNormWithReLU",
        "_plus_scalar",
    ]
    assert graph.list_inputs() == (relu(norm()) + 1.0).list_inputs()
    (head,) = fuse_for_training(relu(norm())).list_outputs()
    assert head == "norm_output"


@pytest.mark.parametrize(
    "graph",
    [
        mx.sym.Activation(norm(), act_type="sigmoid"),
        relu(norm(axis=2)),
        relu(norm(use_global_stats=True)),
        relu(mx.sym.var("data")),
        relu(norm() + norm("other")),
    ],
)
def test_what_else_a_graph_holds_is_left_alone(graph):
    assert operators(fuse_for_training(graph)) == operators(graph)


def test_a_norm_that_someone_else_reads_too_stays():
    shared = norm()
    for graph in (relu(shared) + shared, mx.sym.Group([relu(shared), shared])):
        assert "_contrib_BatchNormWithReLU" not in operators(fuse_for_training(graph))


def convolution_and_norm(data):
    layer = mx.sym.Convolution(data, kernel=(3, 3), num_filter=16, no_bias=True, name="layer")
    return mx.sym.BatchNorm(layer, fix_gamma=False, name="norm")


def test_relu6_is_computed_without_clip_to_the_same_bits():
    """Some numbers are below 0, some above 6 and some above 12."""
    graph = mx.sym.clip(convolution_and_norm(mx.sym.var("data")), 0, 6)
    fused = fuse_for_training(graph)
    assert "clip" not in operators(fused)
    assert fused.list_inputs() == graph.list_inputs()
    rng = np.random.default_rng(0)
    values = {
        "data": rng.normal(size=(8, 3, 14, 14)),
        "layer_weight": rng.normal(size=(16, 3, 3, 3)),
    }
    values |= {"norm_gamma": np.full(16, 5.0), "norm_beta": np.linspace(-8, 14, 16)}
    values |= {"norm_moving_mean": np.zeros(16), "norm_moving_var": np.ones(16)}
    head = nd.array(rng.normal(size=(8, 16, 12, 12)))
    outputs, gradients = [], []
    for symbol in (graph, fused):
        arrays = {name: nd.array(value) for name, value in values.items()}
        for name in graph.list_arguments():
            arrays[name].attach_grad()
        with autograd.record():
            output = nd.CachedOp(symbol)(*(arrays[name] for name in symbol.list_inputs()))
        output.backward(head)
        outputs.append(output.asnumpy())
        gradients.append([arrays[name].grad.asnumpy() for name in graph.list_arguments()])
    assert (outputs[0] == 0).any() and (outputs[0] == 6).any()
    np.testing.assert_array_equal(*outputs)
    # A sum may be taken in another order where the layout is another one.
    for expected, found in zip(*gradients):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    "graph",
    [
        mx.sym.clip(convolution_and_norm(mx.sym.var("data")), 0, 5),
        mx.sym.clip(convolution_and_norm(mx.sym.var("data")), -6, 6),
        mx.sym.clip(norm(), 0, 6),
        mx.sym.clip(mx.sym.Convolution(norm(), kernel=(1, 1), num_filter=4), 0, 6),
    ],
)
def test_other_clips_stay(graph):
    assert operators(fuse_for_training(graph)) == operators(graph)


def train_two_steps(fused, monkeypatch, name):
    """Embeddings, gradients and statistics after a step that began with changed statistics."""
    with monkeypatch.context() as patched:
        if not fused:
            patched.setattr("embedding_learning.model.net.fuse_for_training", lambda graph: graph)
        mx.random.seed(3)
        net = MarginNet(getattr(vision, name)().features, 8, 2)
        net.initialize(mx.init.Xavier())
        rng = np.random.default_rng(0)
        images = nd.array(rng.normal(size=(4, 3, 40, 40)))
        net.embed(images)
        net.hybridize(static_alloc=True, static_shape=True)
        for _ in range(2):
            with autograd.record():
                embeddings = net(images)[4]
            embeddings.backward(nd.array(rng.normal(size=(4, 8))))
    has_fused = "_contrib_BatchNormWithReLU" in operators(net._cached_graph[1])
    parameters = net._collect_params_with_prefix().values()
    arrays = [p.grad() if p.grad_req != "null" else p.data() for p in parameters]
    return has_fused, [array.asnumpy() for array in [embeddings, *arrays]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18_v2", "resnet18_v1", "mobilenet0_25", "mobilenet_v2_0_25"]
)
def test_training_computes_the_same_bits(monkeypatch, name):
    # ResNets with all their layers, of a quarter of the channels.
    slim = ("basic_block", [2, 2, 2, 2], [16, 16, 32, 64, 128])
    monkeypatch.setitem(resnet.resnet_spec, 18, slim)
    has_fused, found = train_two_steps(True, monkeypatch, name)
    assert has_fused
    has_fused, expected = train_two_steps(False, monkeypatch, name)
    assert not has_fused
    for array, other in zip(found, expected):
        np.testing.assert_array_equal(array, other)


def grouped_backbone():
    """oneDNN, with AVX-512, has no fused backward pass in front of such a convolution."""
    backbone = nn.HybridSequential()
    backbone.add(
        nn.Conv2D(64, 3, padding=1, in_channels=3),
        nn.Conv2D(128, 1, in_channels=64, use_bias=False),
        nn.BatchNorm(in_channels=128),
        nn.Activation("relu"),
        nn.Conv2D(128, 3, padding=1, groups=32, in_channels=128),
        nn.GlobalAvgPool2D(),
    )
    return backbone


def plain_backbone():
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(8, 3, in_channels=3, use_bias=False), nn.BatchNorm(in_channels=8))
    backbone.add(nn.Activation("relu"), nn.Conv2D(8, 3, in_channels=8), nn.GlobalAvgPool2D())
    return backbone


def train_a_step(backbone):
    """The network after a step, and whether it was fused."""
    options = parse(["--batch-size=4", "--batch-k=2", "--crop-size=14", "--image-size=16"])
    net = MarginNet(backbone, 8, 2, sampling=None)
    net.initialize(mx.init.Xavier())
    net.embed(nd.zeros((1, 3, 14, 14)))
    made = build.build(options, each_class(2), net, [mx.cpu()])
    former = net.dense.weight.data().asnumpy()
    rng = np.random.default_rng(0)
    images = nd.array(rng.normal(size=(4, 3, 14, 14)))
    made.step(mx.io.DataBatch(data=[images], label=[nd.array([0, 0, 1, 1])], pad=0))
    nd.waitall()
    assert not np.array_equal(net.dense.weight.data().asnumpy(), former)
    return "_contrib_BatchNormWithReLU" in operators(net._cached_graph[1])


def test_what_onednn_cannot_train_fused_is_trained_as_it_is():
    backbone = grouped_backbone()
    assert train_a_step(backbone) == can_train_fused(backbone, 14)


def test_a_backbone_is_fused_where_the_trial_succeeds_only(monkeypatch):
    assert can_train_fused(plain_backbone(), 14)
    assert train_a_step(plain_backbone())

    with monkeypatch.context() as patched:
        patched.setattr(mx.nd, "CachedOp", refuse)
        assert not can_train_fused(plain_backbone(), 14)
    monkeypatch.setattr(build, "can_train_fused", lambda features, size: False)
    assert not train_a_step(plain_backbone())


def refuse(*arguments):
    raise mx.base.MXNetError("could not create a primitive descriptor iterator")


def test_a_network_with_relu6_alone_is_tried(monkeypatch):
    backbone = nn.HybridSequential()
    frozen = nn.BatchNorm(in_channels=16, use_global_stats=True)
    relu6 = nn.HybridLambda(lambda F, x: F.clip(x, 0, 6))
    backbone.add(nn.Conv2D(16, 3, in_channels=3), frozen, relu6, nn.GlobalAvgPool2D())
    assert can_train_fused(backbone, 14)
    monkeypatch.setattr(mx.nd, "CachedOp", refuse)
    assert not can_train_fused(backbone, 14)


def test_nothing_is_tried_where_nothing_can_be_fused(monkeypatch):
    monkeypatch.delattr(mx.nd, "CachedOp")
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(8, 3, in_channels=3), nn.Activation("relu"))
    assert can_train_fused(backbone, 14)


@pytest.mark.slow
def test_without_onednn_nothing_is_fused():
    """Runs in a separate process, since MXNet would crash."""
    code = (
        "import embedding_learning\n"
        "from tests.model import test_cpu_fusion as t\n"
        "assert not t.train_a_step(t.plain_backbone())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "MXNET_MKLDNN_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-500:]


def fused_for_inference(graph, **arrays):
    """The fused graph, and the largest difference of its output from that of the graph."""
    shapes, _, statistics_shapes = graph.infer_shape(**{k: v.shape for k, v in arrays.items()})
    for name, shape in zip(graph.list_arguments(), shapes):
        arrays.setdefault(name, nd.random.uniform(-1, 1, shape))
    statistics = {
        name: nd.random.uniform(0.5, 2, shape)
        for name, shape in zip(graph.list_auxiliary_states(), statistics_shapes)
    }
    fused = fuse_for_inference(graph, arrays, statistics)
    expected, found = (
        nd.CachedOp(symbol)(*((arrays | statistics)[name] for name in symbol.list_inputs()))
        for symbol in (graph, fused)
    )
    return fused, float(abs(found - expected).max().asscalar() / abs(expected).max().asscalar())


def test_inference_computes_a_convolution_with_what_follows_it():
    data = mx.sym.var("data")
    convolution = mx.sym.Convolution(data, kernel=(3, 3), pad=(1, 1), num_filter=16)
    graph = relu(mx.sym.BatchNorm(convolution, fix_gamma=False) + data)
    fused, difference = fused_for_inference(graph, data=nd.random.normal(shape=(2, 16, 8, 8)))
    assert [op for op in operators(fused) if op != "null"] == ["_sg_mkldnn_conv"]
    assert difference < 1e-5


def test_fully_connected_layers_stay_as_they_are():
    """MXNet's fused one fails by chance; see `_expand_fully_connected`."""
    data = mx.sym.var("data")
    convolution = relu(mx.sym.Convolution(data, kernel=(3, 3), num_filter=4))
    hidden = relu(mx.sym.FullyConnected(convolution, num_hidden=6, name="hidden"))
    graph = mx.sym.L2Normalization(
        mx.sym.FullyConnected(hidden, num_hidden=3, no_bias=True, name="last") + 1
    )
    fused, difference = fused_for_inference(graph, data=nd.random.normal(shape=(2, 3, 8, 8)))
    assert [op for op in operators(fused) if op != "null"] == [
        "_sg_mkldnn_conv",
        "FullyConnected",
        "Activation",
        "FullyConnected",
        "_plus_scalar",
        "L2Normalization",
    ]
    assert fused.list_inputs() == graph.list_inputs()
    assert difference < 1e-6
