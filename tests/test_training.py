"""The step and the loop: the original's numbers, several devices, no waits, the same bytes."""

import hashlib

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from embedding_learning import MarginLoss, MarginNet, backbones, training
from embedding_learning.data import Data
from embedding_learning.options import UsageError, parse


def options(*flags):
    return parse([*flags])


def small_net(devices, emb_dim=8, batch_k=2):
    """Without batch norm, whose statistics would differ between devices."""
    mx.random.seed(1)
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(4, 3, in_channels=3), nn.Activation("relu"), nn.GlobalAvgPool2D())
    net = MarginNet(backbone, emb_dim, batch_k)
    net.initialize(mx.init.Xavier(magnitude=2), ctx=devices)
    net.embed(nd.zeros((1, 3, 8, 8), devices[0]))
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def net_with_statistics():
    """With batch norm and dropout, which differ between training and evaluation."""
    mx.random.seed(1)
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(4, 3, in_channels=3), nn.BatchNorm(in_channels=4), nn.Dropout(0.5))
    net = MarginNet(backbone, 8, 2)
    net.initialize(mx.init.Xavier(magnitude=2))
    net.embed(nd.zeros((1, 3, 8, 8)))
    return net


def batch_of(n, classes=5, batch_k=2, seed=0):
    rng = np.random.default_rng(seed)
    data = nd.array(rng.normal(size=(n, 3, 8, 8)))
    labels = nd.array(np.repeat(rng.integers(0, classes, n // batch_k), batch_k))
    return mx.io.DataBatch(data=[data], label=[labels], pad=0)


def draw_from_the_next_class(monkeypatch, batch_k=2):
    """Instead of random negatives: each anchor's place within the class after its own."""

    def draw(self, F, weights, row, like):
        past_end = F.broadcast_sub(row, F.max(row)) + batch_k
        rows = F.where(past_end > 0, past_end - 1, row + batch_k)
        return F.broadcast_add(F.expand_dims(rows, axis=1), F.zeros_like(like))

    monkeypatch.setattr("embedding_learning.sampling.DistanceWeightedSampling._draw", draw)


def parameters_of(net, device=None):
    return [
        parameter.data(device or parameter.list_ctx()[0]).asnumpy()
        for parameter in net.collect_params().values()
    ]


@pytest.mark.shared
def test_golden_learning_rates(golden):
    opt = options("--lr=1e-4", "--steps=12,14,16,18", "--factor=0.5")
    net = small_net([mx.cpu()])
    beta = training.build_beta(opt, 5, [mx.cpu()])
    trainers = training.build_trainers(opt, net, beta)
    for epoch, expected in zip(golden["lr/epochs"], golden["lr/values"]):
        training.set_learning_rates(opt, trainers, int(epoch))
        assert trainers[0].learning_rate == pytest.approx(float(expected), rel=1e-6)
        assert trainers[1].learning_rate == pytest.approx(float(expected) * 1e3, rel=1e-6)


@pytest.mark.shared
def test_golden_two_steps_of_the_whole_network(golden, shared, monkeypatch):
    """SqueezeNet, Adam and beta's SGD as the command builds them, the negatives given."""
    opt = options("--embed-dim=16", "--batch-size=20", f"--batch-k={golden['step/batch_k']}")
    devices = [mx.cpu()]
    features = backbones.create(
        "squeezenet1.1", devices, pretrained_params=str(shared / "weights/squeezenet1.1.params")
    )
    for layer in features:
        if isinstance(layer, nn.Dropout):
            layer._rate = 0.0
    net = MarginNet(features, 16, opt.batch_k)
    net.dense.initialize(ctx=devices)
    net.embed(nd.array(golden["step/x"][0]))
    net.dense.weight.set_data(nd.array(golden["step/dense_weight0"]))
    net.dense.bias.set_data(nd.array(golden["step/dense_bias0"]))
    given = iter(golden["step/negative_indices"])
    monkeypatch.setattr(
        net.sampled,
        "_draw",
        lambda F, weights, row, like: nd.array(next(given)).reshape(like.shape),
    )
    beta = training.build_beta(opt, len(golden["step/beta2"]), devices)
    trainers = training.build_trainers(opt, net, beta)
    loss = MarginLoss(opt.margin, opt.nu)
    for x, expected in zip(golden["step/x"], golden["step/losses"]):
        batch = mx.io.DataBatch(data=[nd.array(x)], label=[nd.array(golden["step/labels"])])
        (found,) = training.train_step(net, loss, beta, trainers, devices, batch)
        np.testing.assert_allclose(found.asscalar(), expected, rtol=1e-5)

    np.testing.assert_allclose(beta.data().asnumpy(), golden["step/beta2"], rtol=1e-6)
    convolutions = [p for name, p in features.collect_params().items() if "conv" in name]
    weights = [p.data().asnumpy() for p in convolutions if p.name.endswith("weight")]
    # Adam's first steps are the rate times the gradient's sign, so that a sign lost to rounding
    # moves a weight by twice the rate; hence absolute tolerances, far below the rates' moves.
    moved = abs(golden["step/dense_weight2"] - golden["step/dense_weight0"]).max()
    assert moved > 1e-4
    for found, name in (
        (net.dense.weight.data().asnumpy(), "dense_weight2"),
        (weights[0], "first_conv_weight2"),
        (weights[-1], "last_conv_weight2"),
    ):
        np.testing.assert_allclose(found, golden[f"step/{name}"], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kvstore", ["device", "local"])
@pytest.mark.parametrize("count", [2, 4])
def test_several_devices_sum_what_one_computes_share_by_share(monkeypatch, kvstore, count):
    """Parameters after 20 steps equal those of one device that adds up the shares' gradients."""
    draw_from_the_next_class(monkeypatch)
    opt = options(
        f"--cpu-contexts={count}", "--batch-size=8", "--batch-k=2", f"--kvstore={kvstore}"
    )
    devices = training.find_devices(opt)
    assert devices == [mx.cpu(number) for number in range(count)]
    net, beta = small_net(devices), training.build_beta(opt, 5, devices)
    trainers = training.build_trainers(opt, net, beta)
    one, one_beta = small_net([mx.cpu()]), training.build_beta(opt, 5, [mx.cpu()])
    one_trainers = training.build_trainers(opt, one, one_beta)
    for parameter in [*one.collect_params().values(), one_beta]:
        parameter.grad_req = "add"

    loss = MarginLoss()
    loss.hybridize(static_alloc=True, static_shape=True)
    for step in range(20):
        batch = batch_of(8 * count, seed=step)
        training.train_step(net, loss, beta, trainers, devices, batch)
        for start in range(0, 8 * count, 8):
            x, y = batch.data[0][start : start + 8], batch.label[0][start : start + 8]
            with autograd.record():
                rows, anchors, positives, negatives, _ = one(x)
                value = loss(anchors, positives, negatives, one_beta, y.take(rows))
            value.backward()
        for trainer in one_trainers:
            trainer.step(8 * count)
        for parameter in [*one.collect_params().values(), one_beta]:
            parameter.zero_grad()

    for device in devices:
        for found, expected in zip(parameters_of(net, device), parameters_of(one)):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(
            beta.data(device).asnumpy(), one_beta.data().asnumpy(), atol=1e-5
        )
    assert abs(one_beta.data().asnumpy() - opt.beta).max() > 1e-3


def test_a_step_waits_for_no_device(monkeypatch):
    """Nothing is read back, nothing waited for; the original waits some 70 times."""
    opt = options("--batch-size=20", "--batch-k=2")
    devices = [mx.cpu()]
    net, beta = small_net(devices), training.build_beta(opt, 10, devices)
    trainers, loss = training.build_trainers(opt, net, beta), MarginLoss()
    loss.hybridize(static_alloc=True, static_shape=True)
    batch = batch_of(20)
    training.train_step(net, loss, beta, trainers, devices, batch)

    def wait(*_):
        raise AssertionError("the step waits")

    for name in ("asnumpy", "asscalar", "wait_to_read", "__bool__"):
        monkeypatch.setattr(nd.NDArray, name, wait)
    monkeypatch.setattr(nd, "waitall", wait)
    training.seed_step(1, 1)
    (value,) = training.train_step(net, loss, beta, trainers, devices, batch)
    monkeypatch.undo()
    assert np.isfinite(value.asscalar())


def test_the_learning_rates_are_divided_by_the_whole_batch():
    """One sgd step on beta: 0.1 times the gradient over the batch size."""
    opt = options("--batch-size=20", "--batch-k=2", "--optimizer=sgd")
    net, beta = small_net([mx.cpu()]), training.build_beta(opt, 10, [mx.cpu()])
    trainers = training.build_trainers(opt, net, beta)
    training.train_step(net, MarginLoss(), beta, trainers, [mx.cpu()], batch_of(20))
    expected = opt.beta - 0.1 * beta.grad().asnumpy() / 20
    np.testing.assert_allclose(beta.data().asnumpy(), expected, rtol=1e-6)


def test_weight_decay_is_on_every_parameter_and_batch_norm_learns():
    """One sgd step: weight - lr * (gradient / batch + wd * weight), beta and gamma not left out."""
    opt = options("--batch-size=20", "--batch-k=2", "--optimizer=sgd", "--lr=0.1", "--wd=0.5",
                  "--momentum=0")  # fmt: skip
    net = net_with_statistics()
    learned = [p for p in net.collect_params().values() if p.grad_req != "null"]
    assert {p.name.rsplit("_", 1)[1] for p in learned} == {"weight", "bias", "gamma", "beta"}
    before = [p.data().asnumpy() + 0.25 for p in learned]
    for parameter, value in zip(learned, before):
        parameter.set_data(nd.array(value))
    trainers = training.build_trainers(opt, net, 1.2)
    training.train_step(net, MarginLoss(), 1.2, trainers, [mx.cpu()], batch_of(20))
    for parameter, value in zip(learned, before):
        expected = value - 0.1 * (parameter.grad().asnumpy() / 20 + 0.5 * value)
        np.testing.assert_allclose(parameter.data().asnumpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_logged_loss_is_the_sum_over_devices_and_batches(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    values = iter(range(1, 100))
    monkeypatch.setattr(
        training, "train_step", lambda *_: [nd.array([next(values)]), nd.array([next(values)])]
    )
    opt = options("--epochs=1", "--batch-num=5", "--log-interval=2", "--cpu-contexts=2",
                  "--batch-size=4", "--batch-k=2")  # fmt: skip
    devices = training.find_devices(opt)
    batches = Recorded([batch_of(8)], 8)
    training.train(opt, small_net(devices), 1.2, devices, Data(batches, batches, None, 4, "Birds"))
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
    training.train(opt, net, 1.2, [mx.cpu()], Data(batches, batches, None, 4, "Birds"))
    assert net._active
    assert {"static_alloc": True, "static_shape": True}.items() <= dict(net._flags).items()


def test_a_diverged_network_is_told_in_one_line():
    net = small_net([mx.cpu()])
    net.dense.weight.set_data(nd.full(net.dense.weight.shape, np.nan))
    data = Data(None, Recorded([batch_of(8)], 8), None, 4, "Birds")
    with pytest.raises(UsageError, match=r"--lr: training diverged"):
        training.evaluate(net, [mx.cpu()], data)


def test_a_resumed_network_is_replaced_by_a_better_one_only(monkeypatch, tmp_path):
    """Evaluated first; the file of its prefix may be the resumed one."""
    monkeypatch.chdir(tmp_path)
    saved = []
    monkeypatch.setattr(training.parameter_files, "save_parameters", lambda *_: saved.append(1))
    recalls = iter([0.5, 0.4, 0.5, 0.6, 0.55])
    monkeypatch.setattr(
        training, "evaluate", lambda *_: dict.fromkeys((1, 2, 4, 8, 16), next(recalls))
    )
    opt = options("--epochs=4", "--batch-num=1", "--batch-size=8", "--batch-k=2")
    opt.resume = "former.params"
    batches = Recorded([batch_of(8)], 8)
    training.train(
        opt, small_net([mx.cpu()]), 1.2, [mx.cpu()], Data(batches, batches, None, 4, "Birds")
    )
    assert len(saved) == 1


def test_beta_is_a_constant_without_a_learning_rate_of_its_own():
    opt = options("--lr-beta=0", "--beta=1.1")
    assert training.build_beta(opt, 10, [mx.cpu()]) == 1.1
    assert len(training.build_trainers(opt, small_net([mx.cpu()]), 1.1)) == 1


@pytest.mark.parametrize(
    "optimizer, expected", [("adam", {"epsilon": 1e-7}), ("sgd", {"momentum": 0.7}), ("nag", {})]
)
def test_optimizer_settings(optimizer, expected):
    opt = options(f"--optimizer={optimizer}", "--momentum=0.7", "--wd=0.01", "--lr=0.5")
    trainer = training.build_trainers(opt, small_net([mx.cpu()]), 1.2)[0]
    assert (trainer.optimizer.wd, trainer.learning_rate) == (0.01, 0.5)
    for name, value in expected.items():
        assert getattr(trainer.optimizer, name) == value


def test_a_steps_random_numbers_depend_on_seed_and_step_alone():
    def draw(seed, step):
        training.seed_step(seed, step)
        return nd.random.uniform(shape=(4,)).asnumpy().tolist()

    first = draw(1, 7)
    nd.random.uniform(shape=(100,))
    assert draw(1, 7) == first
    assert len({tuple(draw(*key)) for key in ((1, 7), (1, 8), (2, 7), (7, 1))}) == 4


def test_each_step_is_seeded_with_its_number_in_the_run(monkeypatch, tmp_path):
    """So that a run goes on from any step as if it had never stopped."""
    monkeypatch.chdir(tmp_path)
    seeded = []
    monkeypatch.setattr(training, "seed_step", lambda seed, step: seeded.append((seed, step)))
    opt = options("--epochs=3", "--start-epoch=1", "--batch-num=2", "--seed=9", "--batch-size=8",
                  "--batch-k=2")  # fmt: skip
    net, batches = small_net([mx.cpu()]), Recorded([batch_of(8)], 8)
    training.train(opt, net, 1.2, [mx.cpu()], Data(batches, batches, None, 4, "Birds"))
    assert seeded == [(9, 2), (9, 3), (9, 4), (9, 5)]
    assert batches.sought == 2


class Recorded:
    """Batches given in advance, in the iterators' shape."""

    def __init__(self, batches, batch_size):
        self.batches, self.batch_size = batches, batch_size

    def reset(self):
        pass

    def seek(self, number):
        self.sought = number

    def next(self):
        return self.batches[0]

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_of_padded_batches_on_any_number_of_devices(count):
    devices = [mx.cpu(number) for number in range(count)]
    net = small_net(devices)
    batches = [batch_of(8, seed=seed) for seed in range(6)]
    batches[-1].pad = 3
    found = training.evaluate(net, devices, Data(None, Recorded(batches, 8), None, 4, "Birds"))
    embeddings = np.concatenate([net.embed(b.data[0]).asnumpy() for b in batches])[:45]
    labels = np.concatenate([b.label[0].asnumpy() for b in batches])[:45]
    assert found == training.recall_at_k(embeddings, labels)


def test_evaluation_changes_nothing_that_follows():
    """No parameter, no statistic and no random stream; the original's draws samples."""

    def drawn(evaluating):
        mx.random.seed(3)
        np.random.seed(3)
        net = net_with_statistics()
        mx.random.seed(3)
        if evaluating:
            data = Data(None, Recorded([batch_of(8)], 8), None, 4, "Birds")
            training.evaluate(net, [mx.cpu()], data)
        return [*parameters_of(net), nd.random.uniform(shape=(5,)).asnumpy(), np.random.rand(5)]

    for found, expected in zip(drawn(True), drawn(False)):
        np.testing.assert_array_equal(found, expected)


def test_missing_gpus_are_told_in_one_line():
    if mx.context.num_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match=r"--gpus 0,1: .*requirements-gpu.txt.*leave --gpus out"):
        training.find_devices(options("--gpus=0,1"))


@pytest.mark.gpu
def test_gpus_are_found():
    if not mx.context.num_gpus():
        pytest.skip("needs an NVIDIA GPU")
    assert training.find_devices(options("--gpus=0")) == [mx.gpu(0)]


def test_a_crop_that_the_backbone_cannot_take_is_told_in_one_line():
    opt = options("--model=squeezenet1.1", "--image-size=8", "--crop-size=8")
    with pytest.raises(UsageError, match=r"--crop-size 8: squeezenet1.1 does not run"):
        training.build_network(opt, [mx.cpu()])


def test_the_whole_network_starts_alike_for_one_seed_and_otherwise_not():
    def digest(seed):
        mx.random.seed(seed)
        opt = options("--model=mobilenet0.25", "--crop-size=32", "--feat-dim=5")
        net = training.build_network(opt, [mx.cpu(0), mx.cpu(1)])
        for parameter in net.collect_params().values():
            first, second = (parameter.data(device).asnumpy() for device in parameter.list_ctx())
            np.testing.assert_array_equal(first, second)
        return hashlib.sha256(b"".join(map(bytes, parameters_of(net)))).hexdigest()

    assert digest(1) == digest(1) != digest(2)
