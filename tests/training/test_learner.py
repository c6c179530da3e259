"""The step: the original's numbers, several devices; and how the learner is built."""

import hashlib

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from embedding_learning import DistanceWeightedSampling, MarginLoss, MarginNet
from embedding_learning.errors import UsageError
from embedding_learning.model import backbones
from embedding_learning.training import build
from embedding_learning.training.learner import Learner
from tests.helpers.tiny_networks import (
    batch_of,
    config_of,
    devices_of,
    each_class,
    net_with_statistics,
    parameters_of,
    small_net,
)


def draw_from_the_next_class(monkeypatch, batch_k=2):
    """Instead of random negatives: each anchor's place within the class after its own."""

    def draw(self, F, weights, like):
        row = F.contrib.arange_like(weights, axis=0)
        past_end = F.broadcast_sub(row, F.max(row)) + batch_k
        rows = F.where(past_end > 0, past_end - 1, row + batch_k)
        return F.broadcast_add(F.expand_dims(rows, axis=1), F.zeros_like(like))

    monkeypatch.setattr("embedding_learning.model.sampling.DistanceWeightedSampling._sample", draw)


@pytest.mark.slow
@pytest.mark.shared
def test_golden_two_steps_of_the_whole_network(golden, shared, monkeypatch):
    """SqueezeNet, Adam and beta's SGD as the command builds them, the negatives given."""
    config = config_of("--embed-dim=16", "--batch-size=20", f"--batch-k={golden['step/batch_k']}")
    devices = [mx.cpu()]
    features = backbones.create(
        "squeezenet1.1", devices, pretrained_params=str(shared / "weights/squeezenet1.1.params")
    )
    for layer in features:
        if isinstance(layer, nn.Dropout):
            layer._rate = 0.0
    net, sampling = MarginNet(features, 16, 1, sampling=None), build.build_sampling(config)
    net.dense.initialize(ctx=devices)
    net.embed(nd.array(golden["step/x"][0]))
    net.dense.weight.set_data(nd.array(golden["step/dense_weight0"]))
    net.dense.bias.set_data(nd.array(golden["step/dense_bias0"]))
    given = iter(golden["step/negative_indices"])
    monkeypatch.setattr(
        sampling,
        "_sample",
        lambda F, weights, like: nd.array(next(given)).reshape(like.shape),
    )
    beta = build.build_beta(config.method, len(golden["step/beta2"]), devices)
    trainers = build.build_trainers(config, net, beta)
    loss = MarginLoss(config.method.margin, config.method.nu)
    for x, expected in zip(golden["step/x"], golden["step/losses"]):
        batch = mx.io.DataBatch(data=[nd.array(x)], label=[nd.array(golden["step/labels"])])
        found = Learner(net, beta, loss, trainers, devices, sampling).step(batch).loss
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    np.testing.assert_allclose(beta.data().asnumpy(), golden["step/beta2"], rtol=1e-6)
    convolutions = [p for name, p in features.collect_params().items() if "conv" in name]
    weights = [p.data().asnumpy() for p in convolutions if p.name.endswith("weight")]
    # Adam's first steps are the rate times the gradient's sign, so that a sign lost to rounding
    # moves a weight by twice the rate; so the tolerances are absolute, far below the rates' moves.
    moved = abs(golden["step/dense_weight2"] - golden["step/dense_weight0"]).max()
    assert moved > 1e-4
    for found, name in (
        (net.dense.weight.data().asnumpy(), "dense_weight2"),
        (weights[0], "first_conv_weight2"),
        (weights[-1], "last_conv_weight2"),
    ):
        np.testing.assert_allclose(found, golden[f"step/{name}"], atol=2e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kvstore, count, norm",
    [("device", 2, False), ("device", 4, True), ("local", 2, True), ("local", 4, False)],
)
def test_several_devices_sum_what_one_computes_share_by_share(monkeypatch, kvstore, count, norm):
    """Parameters after some steps equal those of one device that adds up the shares' gradients.

    Batch norm normalises each share by itself in both. Its running statistics see every share one
    after the other there, and the mean of the devices' here: they agree but roughly.
    """
    draw_from_the_next_class(monkeypatch)
    config = config_of(
        f"--cpu-contexts={count}", "--batch-size=8", "--batch-k=2", f"--kvstore={kvstore}"
    )
    devices = devices_of(config)
    assert devices == [mx.cpu(number) for number in range(count)]
    net, beta = small_net(devices, norm=norm), build.build_beta(config.method, 5, devices)
    trainers = build.build_trainers(config, net, beta)
    one, one_beta = small_net([mx.cpu()], norm=norm), build.build_beta(config.method, 5, [mx.cpu()])
    one_trainers = build.build_trainers(config, one, one_beta)
    learned = [p for p in one.collect_params().values() if p.grad_req != "null"]
    for parameter in [*learned, one_beta]:
        parameter.grad_req = "add"

    loss, sampling = MarginLoss(), DistanceWeightedSampling(2)
    for block in (loss, sampling):
        block.hybridize(static_alloc=True, static_shape=True)
    for step in range(20 if norm else 10):  # statistics approach those of the images slowly
        batch = batch_of(8 * count, seed=step)
        Learner(net, beta, loss, trainers, devices, sampling).step(batch)
        for start in range(0, 8 * count, 8):
            x, y = batch.data[0][start : start + 8], batch.label[0][start : start + 8]
            with autograd.record():
                rows, anchors, positives, negatives, _ = sampling(one(x))
                value = loss(anchors, positives, negatives, one_beta, y.take(rows))
            value.backward()
        for trainer in one_trainers:
            trainer.step(8 * count)
        for parameter in [*learned, one_beta]:
            parameter.zero_grad()

    Learner(net, beta, loss, trainers, devices).average_running_statistics()
    for device in devices:
        for parameter, other in zip(net.collect_params().values(), one.collect_params().values()):
            found, expected = parameter.data(device).asnumpy(), other.data().asnumpy()
            atol = 1e-5 if parameter.grad_req == "write" else 0.1
            np.testing.assert_allclose(found, expected, atol=atol, err_msg=parameter.name)
        np.testing.assert_allclose(
            beta.data(device).asnumpy(), one_beta.data().asnumpy(), atol=1e-5
        )
    assert abs(one_beta.data().asnumpy() - config.method.beta).max() > 1e-3


def test_the_learning_rates_are_divided_by_the_whole_batch():
    """One sgd step on beta: 0.1 times the gradient over the batch size."""
    config = config_of("--batch-size=20", "--batch-k=2", "--optimizer=sgd")
    net, beta = small_net([mx.cpu()]), build.build_beta(config.method, 10, [mx.cpu()])
    trainers = build.build_trainers(config, net, beta)
    sampling = DistanceWeightedSampling(2)
    Learner(net, beta, MarginLoss(), trainers, [mx.cpu()], sampling).step(batch_of(20))
    expected = config.method.beta - 0.1 * beta.grad().asnumpy() / 20
    np.testing.assert_allclose(beta.data().asnumpy(), expected, rtol=1e-6)


def test_weight_decay_is_on_every_parameter_and_batch_norm_learns():
    """One sgd step: weight - lr * (gradient / batch + wd * weight), beta and gamma not left out."""
    config = config_of("--batch-size=20", "--batch-k=2", "--optimizer=sgd", "--lr=0.1", "--wd=0.5",
                  "--momentum=0")  # fmt: skip
    net = net_with_statistics()
    learned = [p for p in net.collect_params().values() if p.grad_req != "null"]
    assert {p.name.rsplit("_", 1)[1] for p in learned} == {"weight", "bias", "gamma", "beta"}
    before = [p.data().asnumpy() + 0.25 for p in learned]
    for parameter, value in zip(learned, before):
        parameter.set_data(nd.array(value))
    trainers = build.build_trainers(config, net, 1.2)
    sampling = DistanceWeightedSampling(2)
    Learner(net, 1.2, MarginLoss(), trainers, [mx.cpu()], sampling).step(batch_of(20))
    for parameter, value in zip(learned, before):
        expected = value - 0.1 * (parameter.grad().asnumpy() / 20 + 0.5 * value)
        np.testing.assert_allclose(parameter.data().asnumpy(), expected, rtol=1e-4, atol=1e-6)


def test_beta_is_a_constant_without_a_learning_rate_of_its_own():
    config = config_of("--lr-beta=0", "--beta=1.1")
    assert build.build_beta(config.method, 10, [mx.cpu()]) == 1.1
    assert len(build.build_trainers(config, small_net([mx.cpu()]), 1.1)) == 1


@pytest.mark.parametrize(
    "optimizer, expected", [("adam", {"epsilon": 1e-7}), ("sgd", {"momentum": 0.7}), ("nag", {})]
)
def test_optimizer_settings(optimizer, expected):
    config = config_of(f"--optimizer={optimizer}", "--momentum=0.7", "--wd=0.01", "--lr=0.5")
    trainer = build.build_trainers(config, small_net([mx.cpu()]), 1.2)[0]
    assert (trainer.optimizer.wd, trainer.learning_rate) == (0.01, 0.5)
    for name, value in expected.items():
        assert getattr(trainer.optimizer, name) == value


def trained_bytes(*flags):
    """The parameters after three steps."""
    config = config_of("--batch-size=20", "--batch-k=2", "--lr=0.1", *flags)
    learner = build.build(config, each_class(5), small_net([mx.cpu()]), [mx.cpu()])
    for number in range(3):
        mx.random.seed(number)
        learner.step(batch_of(20, seed=number))
    return b"".join(array.tobytes() for array in parameters_of(learner.net))


@pytest.mark.slow
@pytest.mark.parametrize("spelled", ["SGD", "Sgd", "ADAM", "Adam", "Nag"])
def test_an_optimizer_trains_to_the_same_bytes_however_it_is_spelled(spelled):
    """The momentum of sgd and the epsilon of adam are set by its name."""
    found = trained_bytes(f"--optimizer={spelled}")
    assert found == trained_bytes(f"--optimizer={spelled.lower()}")
    assert found != trained_bytes("--optimizer=rmsprop")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", build.optimizers())
def test_every_optimizer_stays_finite_where_gradients_are_0(optimizer):
    """Classes that no batch holds have a beta without gradient; a dead filter has only zeros."""
    config = config_of("--batch-size=20", "--batch-k=2", f"--optimizer={optimizer}")
    net = small_net([mx.cpu()])
    first = next(iter(net.collect_params(".*conv.*weight").values()))
    first.set_data(first.data() * nd.array([0, 1, 1, 1]).reshape((4, 1, 1, 1)))
    bias = next(iter(net.collect_params(".*conv.*bias").values()))
    bias.set_data(nd.array([-1, 0, 0, 0]))
    learner = build.build(config, each_class(50), net, [mx.cpu()])
    for number in range(3):
        learner.step(batch_of(20, seed=number))
    assert not first.grad()[0].asnumpy().any()
    for array in [*parameters_of(net), learner.parameter.data().asnumpy()]:
        assert np.isfinite(array).all()


def test_a_memory_that_mxnet_has_no_array_for_is_refused():
    build.check(config_of("--memory=1000000", "--embed-dim=2047"))
    with pytest.raises(UsageError, match=r"^--memory 1048576: .* 2048 numbers; 1048505 images are"):
        build.check(config_of("--memory=1048576", "--embed-dim=2048"))
    most = config_of("--memory=1048505", "--embed-dim=2048")
    build.check(most)
    assert (most.method.memory + most.batch.total) * 2048 < 2**31


def test_an_optimizer_that_divides_zeros_is_refused():
    with pytest.raises(UsageError, match=r"^--optimizer adamax: MXNet's divides 0 by 0 .* adam"):
        build.check(config_of("--optimizer=AdaMax"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, size", [("squeezenet1.1", 2), ("alexnet", 5), ("inceptionv3", 64), ("vgg11", 16)]
)
def test_a_crop_that_a_backbone_does_not_run_with_is_reported_in_one_line(model, size, capsys):
    config = config_of(f"--model={model}", f"--crop-size={size}", "--image-size=64")
    with pytest.raises(
        UsageError, match=rf"^--crop-size {size}: {model} does not run with [^\n]+$"
    ):
        build.build_network(config, [mx.cpu()])
    assert capsys.readouterr() == ("", "")


def test_missing_gpus_are_reported_in_one_line():
    if mx.context.num_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match=r"--gpus 0,1: .*requirements-gpu.txt.*leave --gpus out"):
        devices_of(config_of("--gpus=0,1"))


@pytest.mark.gpu
def test_gpus_are_found():
    if not mx.context.num_gpus():
        pytest.skip("needs an NVIDIA GPU")
    assert devices_of(config_of("--gpus=0")) == [mx.gpu(0)]


def test_a_crop_that_the_backbone_cannot_take_is_reported_in_one_line():
    config = config_of("--model=squeezenet1.1", "--image-size=8", "--crop-size=8")
    with pytest.raises(UsageError, match=r"--crop-size 8: squeezenet1.1 does not run"):
        build.build_network(config, [mx.cpu()])


@pytest.mark.usefixtures("tiny_backbones")
def test_the_whole_network_starts_alike_for_one_seed_and_otherwise_not():
    def digest(seed):
        mx.random.seed(seed)
        config = config_of("--model=tiny-norm", "--crop-size=32", "--feat-dim=5")
        net = build.build_network(config, [mx.cpu(0), mx.cpu(1)])
        for parameter in net.collect_params().values():
            first, second = (parameter.data(device).asnumpy() for device in parameter.list_ctx())
            np.testing.assert_array_equal(first, second)
        return hashlib.sha256(b"".join(map(bytes, parameters_of(net)))).hexdigest()

    assert digest(1) == digest(1) != digest(2)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("beta_per", ["class", "image"])
def test_the_active_pairs_of_a_step_are_those_of_its_loss(count, beta_per):
    """Against the beta before the step's update, which moves it far; pair by pair."""
    config = config_of(f"--cpu-contexts={count}", "--batch-size=8", "--batch-k=2", "--lr-beta=40",
                  f"--beta-per={beta_per}")  # fmt: skip
    devices = devices_of(config)
    terms = np.stack([0 * np.arange(5), 1 + np.arange(5)], axis=1)
    terms = terms if beta_per == "image" else each_class(5)
    learner = build.build(config, terms, small_net(devices), devices)
    for seed in range(3):
        batch, before = batch_of(8 * count, seed=seed), learner.beta_values()
        labels = batch.label[0].asnumpy().astype(int)
        batch.label = [nd.array(terms[labels] if beta_per == "image" else labels)]
        step = learner.step(batch)
        active = learner.measure(step)["active"]
        expected = []
        for device, (embedded, triple) in enumerate(zip(step.embeddings, step.triplets)):
            anchors, drawn = (x.asnumpy().astype(np.float64) for x in (embedded, triple[2]))
            # The two images of a class are consecutive, and each is the other's positive.
            positives = anchors[np.arange(8) ^ 1]
            of_anchor = before[labels[8 * device : 8 * device + 8]]
            to_positive = np.linalg.norm(anchors - positives, axis=1)
            to_negative = np.linalg.norm(anchors - drawn, axis=1)
            expected += [to_positive - of_anchor + 0.2 > 0, of_anchor - to_negative + 0.2 > 0]
        assert active.tolist() == np.concatenate(expected).tolist()
        assert abs(learner.beta_values() - before).max() > 0.5
