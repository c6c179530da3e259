"""Servers that update the weights, with the optimizers that they receive and nothing else."""

import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from embedding_learning import DistanceWeightedSampling, MarginLoss
from embedding_learning.distributed.asynchronous import ServerOptimizers, _ServerUpdates
from embedding_learning.distributed.synchronous import KEYS_OF_TRAINER
from embedding_learning.training import build, learner, schedule
from tests.helpers.tiny_networks import batch_of, config_of, small_net

# A command that is followed.
SGD = {"trainer": 0, "optimizer": "sgd", "numbers": {}, "rate_of": {}, "decay_of": {}}


class Store:
    """Replaces MXNet's store: keeps the commands that are sent."""

    rank = 0

    def __init__(self):
        self.sent = []

    def _send_command_to_servers(self, number, text):
        assert number == 0
        self.sent.append(json.loads(text))

    def _barrier(self):
        pass


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--wd-exclude-bn-bias"],
        ["--optimizer=sgd", "--grad-clip=1e-3"],
        ["--lr-mult-backbone=0.3"],
    ],
)
def test_the_updates_are_those_of_the_trainers(flags):
    """Gradients of two steps through JSON and servers, against gluon.Trainer itself."""
    config = config_of("--batch-size=8", "--batch-k=2", "--lr=0.01", "--wd=0.1", *flags)
    net, beta = small_net([mx.cpu()]), build.build_beta(config.method, 5, [mx.cpu()])
    convolution = next(p for name, p in net.collect_params().items() if "conv" in name)
    convolution.lr_mult = 0.01
    # A bias that learns, so that it could decay.
    net.dense.bias.set_data(mx.nd.ones_like(net.dense.bias.data()))
    schedule.prepare(config, net)
    schedule.set_backbone_rates(config, net, 0)
    trainers = build.build_trainers(config, net, beta)
    updates, store = ServerOptimizers(servers=2), Store()
    for number, trainer in enumerate(trainers):
        part = _ServerUpdates(store, number, 2)
        part.set_optimizer(trainer.optimizer)
        updates.apply_command(store.sent[-1])
    weights = [[p.data().copy() for p in trainer._params] for trainer in trainers]
    sampling = DistanceWeightedSampling(2)
    learning = learner.Learner(net, beta, MarginLoss(), trainers, [mx.cpu()], sampling)
    for step in range(2):
        if step == 1:
            for number, trainer in enumerate(trainers):
                trainer.set_learning_rate(0.003)
                updates.apply_command({"trainer": number, "rate": 0.003})
        learning.step(batch_of(8, seed=step))
        for number, trainer in enumerate(trainers):
            for index, parameter in enumerate(trainer._params):
                key = number * KEYS_OF_TRAINER + 2 * index + index % 2
                updates.update(key, parameter.grad(), weights[number][index])
    for trainer, copies in zip(trainers, weights):
        for parameter, copy in zip(trainer._params, copies):
            np.testing.assert_array_equal(parameter.data().asnumpy(), copy.asnumpy())
    assert abs(weights[1][0].asnumpy() - config.method.beta).max() > 1e-4


@pytest.mark.parametrize(
    "command",
    [
        {},
        {"trainer": 0, "rate": 0.1},  # before there is an optimizer
        {**SGD, "optimizer": "nothing"},
        {**SGD, "numbers": {"create_state": 1}},
        {**SGD, "numbers": {"lr": "0.1"}},
        {**SGD, "rate_of": {"x": 1}},
        {**SGD, "rate_of": {"1": "fast"}},
        {**SGD, "decay_of": {"1": None}},
        {name: value for name, value in SGD.items() if name != "decay_of"},
        ["trainer"],
        "cos\nsystem\n(S'true'\ntR.",  # what MXNet's own servers would run
    ],
)
def test_what_is_no_command_is_refused(command):
    with pytest.raises((LookupError, TypeError, ValueError)):
        ServerOptimizers(1).apply_command(command)


def test_a_command_is_followed():
    ServerOptimizers(1).apply_command(SGD)


def test_a_key_belongs_to_its_trainer():
    updates = ServerOptimizers(1)
    for trainer, rate in ((0, 1.0), (1, 0.5)):
        optimizer = mx.optimizer.SGD(learning_rate=rate, param_dict={})
        store = Store()
        _ServerUpdates(store, trainer, 1).set_optimizer(optimizer)
        updates.apply_command(store.sent[0])
    for key, expected in ((3, -1.0), (KEYS_OF_TRAINER + 3, -0.5)):
        weight = nd.zeros((2,))
        updates.update(key, nd.ones((2,)), weight)
        np.testing.assert_allclose(weight.asnumpy(), expected)
