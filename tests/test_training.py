"""The loop: the original's schedule and log, what evaluation leaves alone, and when it is saved."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from embedding_learning import building, learner, training
from embedding_learning.checkpoints import RunFolder
from embedding_learning.data import Data
from embedding_learning.evaluation import recall_at_k
from embedding_learning.learner import Step
from embedding_learning.monitoring import TrainingFault
from embedding_learning.resuming import Progress
from tests.small import (
    Recorded,
    batch_of,
    each_class,
    net_with_statistics,
    options,
    parameters_of,
    recalls,
    small_net,
)


def train(opt, net, devices, batches):
    """All epochs, in the current folder."""
    opt.metrics = ["recall@1"]
    learning = building.build(opt, each_class(5), net, devices)
    data = Data(batches, batches, None, 5, "Birds", "")
    with RunFolder(opt.save_model_prefix, opt.keep) as folder:
        progress = Progress(epoch=opt.start_epoch)
        training.Loop(opt, learning, data, folder, lambda: None, progress).run()


@pytest.mark.shared
def test_golden_learning_rates(golden):
    opt = options("--lr=1e-4", "--steps=12,14,16,18", "--factor=0.5")
    net = small_net([mx.cpu()])
    beta = building.build_beta(opt, 5, [mx.cpu()])
    trainers = building.build_trainers(opt, net, beta)
    for epoch, expected in zip(golden["lr/epochs"], golden["lr/values"]):
        training.set_learning_rates(opt, trainers, int(epoch))
        assert trainers[0].learning_rate == pytest.approx(float(expected), rel=1e-6)
        assert trainers[1].learning_rate == pytest.approx(float(expected) * 1e3, rel=1e-6)


def test_the_logged_loss_is_the_sum_over_devices_and_batches(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    values = iter(range(1, 100))

    def step(*_, **__):
        signals = [nd.array([next(values), 1, 0]), nd.array([next(values), 1, 0])]
        x = nd.array([[0, 1], [1, 0]])
        return Step(signals, [x] * 2, [(x, x, x, nd.array([0, 1]))] * 2)

    monkeypatch.setattr(learner.Learner, "step", step)
    opt = options("--epochs=1", "--batch-num=5", "--log-interval=2", "--cpu-contexts=2",
                  "--batch-size=4", "--batch-k=2")  # fmt: skip
    devices = building.find_devices(opt)
    batches = Recorded([batch_of(8)], 8)
    train(opt, small_net(devices), devices, batches)
    logged = [line for line in caplog.messages if "training loss" in line]
    assert logged == [
        "[Epoch 0, Iter 2] training loss=10.000000",
        "[Epoch 0, Iter 4] training loss=26.000000",
        "[Epoch 0] training loss=55.000000",
    ]


def test_training_hybridizes_with_static_memory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    opt = options("--epochs=1", "--batch-num=1", "--batch-size=8", "--batch-k=2")
    net, batches = net_with_statistics(), Recorded([batch_of(8)], 8)
    train(opt, net, [mx.cpu()], batches)
    assert net._active
    assert {"static_alloc": True, "static_shape": True}.items() <= dict(net._flags).items()


def test_a_diverged_network_is_told_when_it_is_evaluated():
    net = small_net([mx.cpu()])
    net.dense.weight.set_data(nd.full(net.dense.weight.shape, np.nan))
    data = Data(None, Recorded([batch_of(8)], 8), None, 4, "Birds", "")
    with pytest.raises(TrainingFault, match=r"training diverged; .* --lr"):
        recalls(net, [mx.cpu()], data)


def test_a_resumed_network_is_replaced_by_a_better_one_only(monkeypatch, tmp_path):
    """Evaluated first; the file of its prefix may be the resumed one."""
    monkeypatch.chdir(tmp_path)
    saved = []
    monkeypatch.setattr(RunFolder, "publish", lambda *_: saved.append(1))
    values = iter([0.5, 0.4, 0.5, 0.6, 0.55])
    monkeypatch.setattr(training, "evaluate_test", lambda *_: ({"recall@1": next(values)}, None))
    opt = options("--epochs=4", "--batch-num=1", "--batch-size=8", "--batch-k=2")
    opt.resume = "former.params"
    batches = Recorded([batch_of(8)], 8)
    train(opt, small_net([mx.cpu()]), [mx.cpu()], batches)
    assert len(saved) == 1


def test_a_steps_random_numbers_depend_on_seed_step_and_rank_alone():
    def draw(*key):
        training.seed_step(*key)
        return nd.random.uniform(shape=(4,)).asnumpy().tolist()

    first = draw(1, 7)
    nd.random.uniform(shape=(100,))
    assert draw(1, 7) == first
    assert draw(1, 7, 0) == first
    assert len({tuple(draw(*key)) for key in ((1, 7), (1, 8), (2, 7), (7, 1), (1, 7, 1))}) == 5


def test_each_step_is_seeded_with_its_number_in_the_run(monkeypatch, tmp_path):
    """So that a run goes on from any step as if it had never stopped."""
    monkeypatch.chdir(tmp_path)
    seeded = []
    monkeypatch.setattr(training, "seed_step", lambda *key: seeded.append(key))
    opt = options("--epochs=3", "--start-epoch=1", "--batch-num=2", "--seed=9", "--batch-size=8",
                  "--batch-k=2")  # fmt: skip
    net, batches = small_net([mx.cpu()]), Recorded([batch_of(8)], 8)
    train(opt, net, [mx.cpu()], batches)
    assert seeded == [(9, 2, 0), (9, 3, 0), (9, 4, 0), (9, 5, 0)]
    assert batches.sought == 2


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_of_padded_batches_on_any_number_of_devices(count):
    devices = [mx.cpu(number) for number in range(count)]
    net = small_net(devices)
    batches = [batch_of(8, seed=seed) for seed in range(6)]
    batches[-1].pad = 3
    found = recalls(net, devices, Data(None, Recorded(batches, 8), None, 4, "Birds", ""))
    embeddings = np.concatenate([net.embed(b.data[0]).asnumpy() for b in batches])[:45]
    labels = np.concatenate([b.label[0].asnumpy() for b in batches])[:45]
    assert found == recall_at_k(embeddings, labels)


def test_evaluation_changes_nothing_that_follows():
    """No parameter, no statistic and no random stream; the original's draws samples."""

    def drawn(evaluating):
        mx.random.seed(3)
        np.random.seed(3)
        net = net_with_statistics()
        mx.random.seed(3)
        if evaluating:
            data = Data(None, Recorded([batch_of(8)], 8), None, 4, "Birds", "")
            recalls(net, [mx.cpu()], data)
        return [*parameters_of(net), nd.random.uniform(shape=(5,)).asnumpy(), np.random.rand(5)]

    for found, expected in zip(drawn(True), drawn(False)):
        np.testing.assert_array_equal(found, expected)
