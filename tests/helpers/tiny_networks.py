"""Small networks and batches that several tests train."""

import mxnet as mx
import numpy as np
from mxnet import nd
from mxnet.gluon import nn

from embedding_learning import MarginNet
from embedding_learning.cli.train_flags import parse
from embedding_learning.evaluation.metrics import recall_metrics
from embedding_learning.runtime.devices import find_devices
from embedding_learning.training.learner import Learner
from embedding_learning.training.validation import evaluate_test


def config_of(*flags):
    return parse([*flags])


def devices_of(config):
    """The devices of this process."""
    return find_devices(config.devices.gpus, config.devices.cpu_contexts)


def small_net(devices, emb_dim=8, batch_k=2, norm=False):
    """Has batch norm only if asked for, since its statistics differ between devices."""
    mx.random.seed(1)
    backbone = nn.HybridSequential()
    # A bias before a batch norm has no gradient but rounding, whose sign is all that Adam sees.
    backbone.add(nn.Conv2D(4, 3, in_channels=3, use_bias=not norm))
    if norm:
        backbone.add(nn.BatchNorm(in_channels=4))
    backbone.add(nn.Activation("relu"), nn.GlobalAvgPool2D())
    net = MarginNet(backbone, emb_dim, batch_k, sampling=None)
    net.initialize(mx.init.Xavier(magnitude=2), ctx=devices)
    net.embed(nd.zeros((1, 3, 8, 8), devices[0]))
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def net_with_statistics():
    """Has batch norm and dropout, which differ between training and evaluation."""
    mx.random.seed(1)
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(4, 3, in_channels=3), nn.BatchNorm(in_channels=4), nn.Dropout(0.5))
    net = MarginNet(backbone, 8, 2, sampling=None)
    net.initialize(mx.init.Xavier(magnitude=2))
    net.embed(nd.zeros((1, 3, 8, 8)))
    return net


def each_class(count):
    """A boundary for each class, as data.py lists them."""
    return np.arange(count)[:, None]


def batch_of(n, classes=5, batch_k=2, seed=0):
    rng = np.random.default_rng(seed)
    data = nd.array(rng.normal(size=(n, 3, 8, 8)))
    labels = nd.array(np.repeat(rng.integers(0, classes, n // batch_k), batch_k))
    return mx.io.DataBatch(data=[data], label=[labels], pad=0)


def parameters_of(net, device=None):
    return [
        parameter.data(device or parameter.list_ctx()[0]).asnumpy()
        for parameter in net.collect_params().values()
    ]


def recalls(net, devices, data):
    """Recall@1, 2, 4, 8, 16 of the test images by K."""
    values, _ = evaluate_test(Learner(net, 1.2, None, [], devices), data, recall_metrics())
    return {int(name.partition("@")[2]): value for name, value in values.items()}


class Recorded:
    """Batches given in advance, in the iterators' shape."""

    def __init__(self, batches, batch_size):
        self.batches, self.batch_size = batches, batch_size
        self.labels = self.pixels = None

    def reset(self):
        pass

    def seek(self, number):
        self.sought = number

    def next(self):
        return self.batches[0]

    def __iter__(self):
        return iter(self.batches)
