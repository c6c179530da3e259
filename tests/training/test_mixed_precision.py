"""Float16 training: its arithmetic against float64, its scale, its checkpoints, its refusals."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from embedding_learning import MarginNet, load_model
from embedding_learning.cli import train
from embedding_learning.distributed.synchronous import GradientSum
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import TrainingError, UsageError
from embedding_learning.evaluation.metrics import recall_at_k
from embedding_learning.model.net import ImageNormalization
from embedding_learning.model.weights.params_file import read_parameters, save_parameters
from embedding_learning.training import (
    build,
    learner,
    learner_state,
    loop,
    memory_estimate,
    mixed_precision,
    resume,
)
from embedding_learning.training.learner import Learner
from embedding_learning.training.mixed_precision import LossScale
from tests.end_to_end.test_interrupted_runs import (
    PREFIX,
    last_state,
    logged_values,
    signal_at_call,
)
from tests.end_to_end.test_train_command import QUICK
from tests.helpers.float16 import let_cpus_compute_in_float16
from tests.helpers.tiny_networks import config_of, devices_of, each_class
from tests.training.test_learner import draw_from_the_next_class
from tests.training.test_learner_state import (
    OPTIMIZERS,
    assert_same,
    through_a_file,
    values_of,
)
from tests.training.test_resume import checkpoint_of

SOURCE = "--resume here"
# That no scale has.
VALUES = [0.0, 0.5, 3.0, 2.0**25, -2.0, 2, True, None, "2", [2.0], float("nan"), 10**400]
COUNTS = [-1, 2000, 1.0, None, "1", True, 10**30]


@pytest.fixture
def float16_works(monkeypatch: pytest.MonkeyPatch) -> None:
    let_cpus_compute_in_float16(monkeypatch)


def network(devices: list[mx.Context], seed: int = 1) -> MarginNet:
    mx.random.seed(seed)
    backbone = nn.HybridSequential()
    backbone.add(
        nn.Conv2D(8, 3, in_channels=3),
        nn.BatchNorm(in_channels=8),
        nn.Activation("relu"),
        nn.MaxPool2D(),
    )
    net = MarginNet(backbone, 8, 2, sampling=None, preprocess=ImageNormalization())
    net.initialize(mx.init.Xavier(magnitude=2), ctx=devices)
    net.embed(nd.zeros((1, 3, 8, 8), devices[0]))
    return net


def new_learner(*flags: str, dtype: str = "float16", count: int = 1, seed: int = 1) -> Learner:
    """Builds a learner; in float32, too, its first weights are values that float16 can hold."""
    own = f"--cpu-contexts={count}", f"--total-batch-size={8 * count}", "--batch-k=2", "--lr=0.01"
    config = config_of(*own, f"--dtype={dtype}", *flags)
    devices = devices_of(config)
    net = network(devices, seed)
    net.cast("float16")
    net.cast(dtype)
    return build.build(config, each_class(5), net, devices)


def batch_of(n: int, seed: int = 0) -> mx.io.DataBatch:
    """Noise around a pattern of each class."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(rng.permutation(5)[: n // 2], 2)
    patterns = np.random.default_rng(99).uniform(60, 200, (5, 3, 8, 8))
    pixels = (patterns[classes] + rng.normal(0, 30, (n, 3, 8, 8))).clip(0, 255)
    return mx.io.DataBatch([nd.array(pixels, dtype=np.uint8)], [nd.array(classes)])


def joined(batches: list[mx.io.DataBatch]) -> mx.io.DataBatch:
    data, labels = ([getattr(b, name)[0] for b in batches] for name in ("data", "label"))
    return mx.io.DataBatch([nd.concat(*data, dim=0)], [nd.concat(*labels, dim=0)])


def step_of(learning: Learner, number: int) -> learner.Step:
    loop.seed_step(1, number)
    return learning.step(batch_of(8, seed=number))


def learned(learning: Learner) -> dict[str, mx.gluon.Parameter]:
    parameters = learning.net._collect_params_with_prefix().items()
    return {name: p for name, p in parameters if p.grad_req != "null"}


def masters(learning: Learner) -> dict[str, np.ndarray]:
    """The float32 weights, as the trainer's optimizer holds them."""
    trainer = learning.trainers[0]
    found = {}
    for name, parameter in learned(learning).items():
        state = trainer._updaters[0].states[trainer._params.index(parameter)]
        weight = parameter.list_data()[0]
        leaves = [array.asnumpy() for _, array in learner_state._leaves(state)]
        last = isinstance(trainer.optimizer, mx.optimizer.SGD)
        master = leaves[-1 if last else 0] if weight.dtype == np.float16 else weight.asnumpy()
        assert master.dtype == np.float32
        found[name] = master
    return found


# The step


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenet0.25", "squeezenet1.1"])
def test_the_network_of_the_flags_is_float16(float16_works: None, model: str) -> None:
    flags = f"--model={model}", "--crop-size=32", "--feat-dim=5", "--dtype=float16"
    config = config_of(*flags, "--optimizer=sgd")
    net = build.build_network(config, [mx.cpu()])
    learning = build.build(config, each_class(5), net, [mx.cpu()])
    assert learning.loss_scale.value == 2**16
    assert learning.trainers[0].optimizer.multi_precision
    for name, parameter in net.collect_params().items():
        kind = np.float32 if "batchnorm" in name else np.float16
        assert parameter.data().dtype == kind, name
    assert (
        build.build(config_of(), each_class(5), network([mx.cpu()]), [mx.cpu()]).loss_scale is None
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        *("alexnet", "densenet121", "inceptionv3", "mobilenet1.0", "mobilenetv2_1.0"),
        *("resnet18_v2", "resnet18", "squeezenet1.0", "vgg11", "vgg11_bn"),
    ],
)
def test_the_operators_of_every_family_take_these_types(model: str) -> None:
    """Uses MXNet's inference of types, which needs no device."""
    config = config_of(f"--model={model}", "--dtype=float16", "--feat-dim=5")
    net = memory_estimate._network(config)
    embeddings = net(mx.sym.var("images", dtype="uint8"))
    entries = embeddings.get_internals()
    _, kinds, _ = entries.infer_type(images="uint8")
    kind_of = dict(zip(entries.list_outputs(), kinds))
    parameters = {name: p for name, p in net.collect_params().items() if name in kind_of}
    assert {*kind_of.values()} >= {np.float16, np.float32}
    for name in parameters:
        expected = np.float32 if re.search("batchnorm|running|gamma|beta", name) else np.float16
        assert kind_of[name] == expected, name
    convolved = [kind for name, kind in kind_of.items() if re.search(r"conv.*fwd_output", name)]
    assert {*convolved} == {np.float16}
    assert kind_of[embeddings.list_outputs()[0]] == np.float32


def test_what_is_float16_and_what_is_float32(float16_works: None) -> None:
    learning = new_learner()
    kinds = {name: p.list_data()[0].dtype for name, p in learned(learning).items()}
    half = {name for name, kind in kinds.items() if kind == np.float16}
    assert half == {"base_net.0.weight", "base_net.0.bias", "dense.weight", "dense.bias"}
    assert {data.dtype for arrays in learning._running_statistics() for data in arrays} == {
        np.float32
    }
    step = step_of(learning, 0)
    (triple,) = step.triplets
    assert {array.dtype for array in (*step.embeddings, *step.packed, *triple)} == {np.float32}
    lengths = np.linalg.norm(step.embeddings[0].asnumpy(), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    x = learning.net.preprocess(batch_of(8).data[0])
    assert learning.net.base_net(x).dtype == x.dtype == np.float16


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_of_sgd_is_that_of_float32_weights_with_rounded_gradients(
    float16_works: None, momentum: float
) -> None:
    learning = new_learner("--optimizer=sgd", "--wd=0.5", f"--momentum={momentum}")
    learning.loss_scale.value = 1024.0
    weights = {n: p.data().asnumpy().astype(np.float64) for n, p in learned(learning).items()}
    moved = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for number in range(3):
        assert not step_of(learning, number).has_overflowed
        found = masters(learning)
        for name, parameter in learned(learning).items():
            gradient = parameter.grad().asnumpy()
            assert gradient.dtype == parameter.data().dtype
            decayed = gradient.astype(np.float64) / 1024 / 8 + 0.5 * weights[name]
            moved[name] = momentum * moved[name] - 0.01 * decayed
            weights[name] += moved[name]
            np.testing.assert_allclose(found[name], weights[name], rtol=1e-6, atol=1e-8)
            rounded = found[name].astype(gradient.dtype)
            np.testing.assert_array_equal(parameter.data().asnumpy(), rounded)


def test_steps_of_adam_are_those_of_float32_weights_with_rounded_gradients(
    float16_works: None,
) -> None:
    learning = new_learner("--wd=0.01")
    learning.loss_scale.value = 1024.0
    weights = {n: p.data().asnumpy().astype(np.float64) for n, p in learned(learning).items()}
    mean = {name: np.zeros_like(weight) for name, weight in weights.items()}
    square = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for number in range(3):
        assert not step_of(learning, number).has_overflowed
        found = masters(learning)
        for name, parameter in learned(learning).items():
            gradient = parameter.grad().asnumpy().astype(np.float64) / 1024 / 8
            gradient += 0.01 * weights[name]
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.999 * square[name] + 0.001 * gradient**2
            rate = 0.01 * np.sqrt(1 - 0.999 ** (number + 1)) / (1 - 0.9 ** (number + 1))
            weights[name] -= rate * mean[name] / (np.sqrt(square[name]) + 1e-7)
            np.testing.assert_allclose(found[name], weights[name], rtol=1e-5, atol=1e-6)
            rounded = found[name].astype(parameter.data().dtype)
            np.testing.assert_array_equal(parameter.data().asnumpy(), rounded)


@pytest.mark.parametrize("scale", [1.0, 64.0, 1024.0])
def test_a_step_is_near_that_of_float32_at_any_scale(
    float16_works: None, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """Gradients but for the scale; the loss as it is logged; beta's step."""
    draw_from_the_next_class(monkeypatch)
    half, whole = (new_learner("--optimizer=sgd", dtype=d) for d in ("float16", "float32"))
    half.loss_scale.value = scale
    assert whole.loss_scale is None
    losses = [step_of(learning, 0).loss for learning in (half, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    for name, parameter in learned(half).items():
        found = parameter.grad().asnumpy().astype(np.float64) / scale
        expected = learned(whole)[name].grad().asnumpy()
        # A bias before batch norm has no gradient but rounding.
        tolerance = 0.02 * np.linalg.norm(expected) + 2e-3
        assert np.linalg.norm(found - expected) < tolerance, name
    moved = half.beta_values() - 1.2, whole.beta_values() - 1.2
    assert abs(moved[1]).max() > 1e-3
    np.testing.assert_allclose(*moved, rtol=1e-5)


def test_small_gradients_survive_by_the_scale(float16_works: None) -> None:
    """Float16 holds nothing below 6e-8; a scale below 1 stands in for a loss that is flatter."""

    def share_of_zeros(scale: float) -> float:
        learning = new_learner()
        learning.loss_scale.value = scale
        assert not step_of(learning, 0).has_overflowed
        gradient = learning.net.base_net[0].weight.grad().asnumpy()
        return float((gradient == 0).mean())

    assert share_of_zeros(2.0**-20) > 0.1 > share_of_zeros(1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS} - {"lars"}))
def test_every_optimizer_updates_float32_weights(optimizer: str) -> None:
    """As it does with the same gradients where all is float32; scaled by so much that their
    squares are more than float16 holds."""
    scale, rng = 2.0**10, np.random.default_rng(0)
    first = rng.normal(size=(5, 4)).astype(np.float16)
    gradients = [(rng.normal(size=(5, 4)) * scale).astype(np.float16) for _ in range(5)]
    weights = {}
    for dtype in ("float16", "float32"):
        mx.random.seed(1)
        of_net = config_of(f"--optimizer={optimizer}", f"--dtype={dtype}", "--lr=0.01")
        settings = {"learning_rate": of_net.optimizer.lr, "multi_precision": dtype == "float16"}
        updater = mx.optimizer.get_updater(
            mx.optimizer.create(optimizer, rescale_grad=1 / scale, **settings)
        )
        weight = nd.array(first, dtype=dtype)
        for gradient in gradients:
            updater([0], [nd.array(gradient, dtype=dtype)], [weight])
        weights[dtype] = weight.asnumpy()
        if dtype == "float16":
            leaves = [array.asnumpy() for _, array in learner_state._leaves(updater.states[0])]
            assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    assert abs(weights["float32"] - first).max() > 1e-3
    # The master is among them.
    nearest = min(abs(leaf - weights["float32"]).max() for leaf in leaves)
    assert nearest < 5e-6
    assert (weights["float16"] == weights["float32"].astype(np.float16)).mean() > 0.9


def test_lars_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--dtype float16: not with --optimizer lars, .* sgd"):
        mixed_precision.check(config_of("--dtype=float16", "--optimizer=LARS", "--gpus=0"))
    mixed_precision.check(config_of("--optimizer=lars"))


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["resnet18_v1", "squeezenet1.1", "mobilenet0.25"])
def test_gpus_compute_in_float16(model: str) -> None:
    """Without the stand-in: weights move, and the loss is near that of float32."""
    if not mx.context.num_gpus():
        pytest.skip("needs an NVIDIA GPU")
    losses: dict[str, float] = {}
    for dtype in ("float16", "float32"):
        flags = f"--model={model}", "--crop-size=64", "--gpus=0", f"--dtype={dtype}"
        config = config_of(*flags, "--batch-size=8", "--batch-k=2")
        build.check(config)
        devices = devices_of(config)
        mx.random.seed(1)
        learning = build.build(config, each_class(5), build.build_network(config, devices), devices)
        before = values_of(learning)["dense.weight on 0"]
        for number in range(30):
            batch = batch_of(8, seed=number)
            large = batch.data[0].repeat(8, axis=2).repeat(8, axis=3)
            loop.seed_step(1, number)
            step = learning.step(mx.io.DataBatch([large], batch.label))
            losses.setdefault(dtype, step.loss)
        assert (values_of(learning)["dense.weight on 0"] != before).any()
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.2)


def test_servers_that_update_are_refused() -> None:
    config = config_of("--dtype=float16", "--gpus=0")
    config = replace(config, devices=replace(config.devices, kvstore="dist_async"))
    with pytest.raises(
        UsageError, match=r"^--dtype float16: not with --kvstore dist_async, .*sync"
    ):
        mixed_precision.check(config)


# The scale


def test_the_scale_halves_and_doubles() -> None:
    scale = LossScale()
    assert scale.value == 2**16
    for _ in range(1999):
        assert not scale.update(True)
    assert scale.value == 2**16
    assert not scale.update(True)
    assert (scale.value, scale.good_steps) == (2**17, 0)
    scale.update(True)
    assert scale.update(False)
    assert (scale.value, scale.good_steps) == (2**16, 0)
    for exponent in range(15, -1, -1):
        assert scale.update(False)
        assert scale.value == 2**exponent
    assert not scale.update(False), "there is something else wrong"
    assert scale.value == 1
    for _ in range(25 * 2000):
        scale.update(True)
    assert scale.value == 2**24


def test_any_number_of_gradients_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """MXNet's operator has room for 200 on a GPU."""
    arrays = [nd.full((3,), 65504, dtype="float16") for _ in range(450)]
    assert np.isfinite(mixed_precision.finiteness(arrays).asnumpy()).tolist() == [True]
    for place in (0, 199, 200, 449):
        for value in (np.inf, -np.inf, np.nan):
            arrays[place][1] = value
            assert not np.isfinite(mixed_precision.finiteness(arrays).asnumpy()).any()
        arrays[place][1] = 1
    at_once, look = [], nd.multi_all_finite

    def counting(*given: nd.NDArray, **named: int) -> nd.NDArray:
        at_once.append(len(given))
        return look(*given, **named)

    monkeypatch.setattr(nd, "multi_all_finite", counting)
    mixed_precision.finiteness(arrays)
    assert max(at_once) <= 200
    assert sum(at_once) == 450


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_that_overflows_leaves_nothing_but_a_lower_scale(
    float16_works: None, count: int
) -> None:
    learning = new_learner(count=count)
    step_of(learning, 0)
    learning.loss_scale.value = 2.0**24
    before, (arrays, state) = values_of(learning), learner_state.gather(learning)
    step = step_of(learning, 1)
    assert step.has_overflowed
    assert not step.is_finite
    assert np.isfinite(step.loss)
    assert_same(values_of(learning), before)
    after, state_after = learner_state.gather(learning)
    assert_same(after, arrays)
    assert state_after == {**state, "loss_scale": {"value": 2.0**23, "good_steps": 0}}
    numbers = iter(range(2, 30))
    while learning.loss_scale.value > 1 and step_of(learning, next(numbers)).has_overflowed:
        pass
    changed = values_of(learning)
    assert learning.loss_scale.value > 1
    assert all((changed[name] != before[name]).any() for name in ("beta", "dense.weight on 0"))


def test_a_sum_over_devices_that_overflows_is_seen(
    float16_works: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each device's own gradients are finite."""
    draw_from_the_next_class(monkeypatch)
    one, two = new_learner(), new_learner(count=2)
    batch = batch_of(8)
    twice = joined([batch, batch])

    def overflows(scale: float) -> bool:
        alone = new_learner()
        alone.loss_scale.value = scale
        return alone.step(batch).has_overflowed

    scale = 2.0**19
    while overflows(scale):
        scale /= 2
    one.loss_scale.value = two.loss_scale.value = scale
    assert not one.step(batch).has_overflowed
    assert two.step(twice).has_overflowed
    two.loss_scale.value = scale / 2
    assert not two.step(twice).has_overflowed


def test_the_update_goes_by_the_scale_of_its_own_way_back(
    float16_works: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it doubles in between."""
    ends = []
    for good_steps in (2000, 1):
        monkeypatch.setattr(mixed_precision, "_GOOD_STEPS_TO_GROW", good_steps)
        learning = new_learner("--optimizer=sgd")
        learning.loss_scale.value = 64.0
        step_of(learning, 0)
        ends.append(values_of(learning))
        assert learning.loss_scale.value == (64 if good_steps > 1 else 128)
    assert_same(*ends)


def poisoned(learning: Learner) -> None:
    learning.net.dense.weight.data()[0, 0] = np.nan


def test_at_the_least_scale_a_step_that_is_not_finite_is_one(float16_works: None) -> None:
    learning = new_learner("--on-nonfinite=skip")
    poisoned(learning)
    learning.loss_scale.value = 2.0
    before = values_of(learning)
    assert step_of(learning, 0).has_overflowed
    for number in (1, 2):
        step = step_of(learning, number)
        assert not step.has_overflowed
        assert not step.is_finite
        assert learning.loss_scale.value == 1
    assert_same(values_of(learning), before)


# Several devices


@pytest.mark.slow
@pytest.mark.parametrize("kvstore", ["device", "local"])
def test_two_devices_have_the_same_weights_and_nearly_those_of_float32(
    float16_works: None, monkeypatch: pytest.MonkeyPatch, kvstore: str
) -> None:
    draw_from_the_next_class(monkeypatch)
    half, whole = (
        new_learner(f"--kvstore={kvstore}", "--optimizer=sgd", dtype=dtype, count=2)
        for dtype in ("float16", "float32")
    )
    half.loss_scale.value = 256.0
    start = {name: p.list_data()[0].asnumpy() for name, p in learned(whole).items()}
    for number in range(10):
        parts = [batch_of(8, seed=2 * number + n) for n in range(2)]
        for learning in (half, whole):
            loop.seed_step(1, number)
            assert not learning.step(joined(parts)).has_overflowed
    for parameter in learned(half).values():
        first, second = (data.asnumpy() for data in parameter.list_data())
        np.testing.assert_array_equal(first, second)
    found = masters(half)
    expected = {name: p.list_data()[0].asnumpy() for name, p in learned(whole).items()}
    for name in ("dense.weight", "base_net.0.weight", "base_net.1.gamma"):
        moved = np.linalg.norm(expected[name] - start[name])
        assert np.linalg.norm(found[name] - expected[name]) < 0.1 * moved, name


# Several processes


def test_what_overflows_in_another_process_is_left_out_here_too(float16_works: None) -> None:
    """All workers then continue with one scale."""

    class WithAnother(WorkerGroup):
        size = 2

        def queue_sum(self, arrays: list[nd.NDArray]) -> list[nd.NDArray]:
            return [*arrays, nd.array([0.5, np.inf, 0.0])]

    learning = new_learner()
    learning.loss_scale.value = 64.0
    learning.group = WithAnother()
    before = values_of(learning)
    assert step_of(learning, 0).has_overflowed
    assert learning.loss_scale.value == 32
    assert_same(values_of(learning), before)


def test_the_servers_receive_that_weights_are_float16() -> None:
    """They end without a useful message if they receive another type than they hold."""
    types = {}

    class Store:
        def init(self, key: int, value: nd.NDArray) -> None:
            types[key] = value.dtype

        def pull(self, key: int, out: list[nd.NDArray], priority: int) -> None:
            pass

    gradients = GradientSum(Store(), trainer=0, servers=1)
    for key, dtype in enumerate(("float16", "float32")):
        weight = nd.ones((2,), dtype=dtype)
        gradients.broadcast(key, weight, [weight])
    assert types == {0: np.float16, 1: np.float32}


# Checkpoints


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "optimizer, count",
    [
        *(("adam", 1), ("sgd", 1), ("sgd --momentum=0", 1), ("nag", 1), ("lamb", 1), ("lbsgd", 1)),
        *(("adam", 2), ("sgd --momentum=0", 2), ("lbsgd", 2)),
    ],
)
def test_a_learner_taken_apart_and_made_again_goes_on_the_same(
    float16_works: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    optimizer: str,
    count: int,
) -> None:
    """The steps include a halving and a doubling of the scale."""
    monkeypatch.setattr(mixed_precision, "_GOOD_STEPS_TO_GROW", 3)
    flags = f"--optimizer={optimizer}".split()
    whole = new_learner(*flags, count=count)
    scales = []

    def steps(learning: Learner, first: int, last: int) -> None:
        for number in range(first, last):
            loop.seed_step(1, number)
            learning.step(batch_of(8, seed=number))
            scales.append(learning.loss_scale.value)

    steps(whole, 0, 5)
    halfway = through_a_file(learner_state.gather(whole), tmp_path)
    assert {array.dtype for array in halfway[0].values()} == {np.dtype(np.float32)}
    steps(whole, 5, 11)
    assert {np.sign(after - before) for before, after in zip(scales, scales[1:])} == {-1, 0, 1}
    other = new_learner(*flags, count=count, seed=2)
    learner_state.restore(other, *halfway, SOURCE)
    again = learner_state.gather(other)
    assert_same(again[0], halfway[0])
    assert again[1] == halfway[1]
    steps(other, 5, 11)
    assert scales[11:] == scales[5:11]
    assert_same(values_of(other), values_of(whole))
    assert_same(learner_state.gather(other)[0], learner_state.gather(whole)[0])


def test_the_masters_are_more_than_the_weights(float16_works: None) -> None:
    """A checkpoint of the weights alone would lose what is smaller than they can hold."""
    learning = new_learner("--lr=1e-6")
    learning.loss_scale.value = 256.0
    before = values_of(learning)["dense.weight on 0"]
    for number in range(2):
        step_of(learning, number)
    assert (values_of(learning)["dense.weight on 0"] == before).mean() > 0.9
    arrays, _ = learner_state.gather(learning)
    kept = [array for name, array in arrays.items() if name.startswith("optimizer/0")]
    same_shape = [array for array in kept if array.shape == before.shape]
    assert any(((array != before) & (abs(array - before) < 1e-5)).all() for array in same_shape)


def test_an_absurd_scale_is_refused(float16_works: None) -> None:
    learning = new_learner()
    arrays, state = learner_state.gather(learning)
    for scale in (
        *(None, {}, [], "1", 2.0, {"value": 2.0}, {"value": 2.0, "good_steps": 0, "more": 1}),
        *({"value": value, "good_steps": 0} for value in VALUES),
        *({"value": 2.0, "good_steps": count} for count in COUNTS),
    ):
        with pytest.raises(UsageError, match=f"^{SOURCE}: holds no valid scale of the loss$"):
            learner_state.restore(learning, arrays, {**state, "loss_scale": scale}, SOURCE)


def test_weights_beyond_float16_are_not_gathered(float16_works: None) -> None:
    learning = new_learner("--optimizer=sgd", "--lr=1e9")
    learning.loss_scale.value = 64.0
    step_of(learning, 0)
    with pytest.raises(TrainingError, match=r"^network/\S+ is not finite any more"):
        learner_state.gather(learning)


def test_the_saved_network_is_float32(float16_works: None, tmp_path: Path) -> None:
    learning = new_learner()
    save_parameters(learning.net, str(tmp_path / "net.params"))
    arrays = read_parameters(str(tmp_path / "net.params"), "MODEL")
    assert {array.dtype for array in arrays.values()} == {np.float32}
    for name, parameter in learning.net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(arrays[name].asnumpy(), parameter.data().asnumpy())


# Whole runs


@pytest.fixture
def start(
    float16_works: None,
    tiny_backbones: None,
    monkeypatch: pytest.MonkeyPatch,
    tiny_cub: Path,
    tmp_path: Path,
) -> Callable[..., int]:
    """A function that runs train.py in float16 in this process, from the folder given."""

    def start(folder: Path, *flags: str) -> int:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        own = [f"--data-path={tiny_cub}", f"--cache-dir={tmp_path / 'cache'}", "--dtype=float16"]
        return train.main([*QUICK, *own, *flags])

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--cpu-contexts=1"], ["--cpu-contexts=2", "--total-batch-size=12", "--model=tiny-norm"]],
    ids=["one device", "batch norm, two devices"],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    start: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    flags: list[str],
) -> None:
    monkeypatch.setattr(mixed_precision, "_FIRST", 2.0**8)
    caplog.set_level("INFO")
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert start(alone, *flags) == 0
    expected = logged_values(caplog.text)
    caplog.clear()
    with monkeypatch.context() as patched:
        signal_at_call(patched, learner.Learner, "step", 5, signal.SIGTERM)
        assert start(stopped, *flags) == 143
    assert start(stopped, *flags, "--resume=auto") == 0
    assert logged_values(caplog.text) == expected
    assert last_state(stopped) == last_state(alone)
    best = f"{PREFIX}.params"
    assert (stopped / best).read_bytes() == (alone / best).read_bytes()
    assert {array.dtype for array in read_parameters(best, "MODEL").values()} == {np.float32}
    embeddings = load_model(best).embed([np.full((50, 50, 3), n, np.uint8) for n in (0, 200)])
    assert (np.linalg.norm(embeddings, axis=1) > 0.9).all()


def test_the_run_ends_only_once_the_scale_is_at_its_least(
    start: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mixed_precision, "_FIRST", 4.0)
    monkeypatch.setattr(learner.Step, "is_finite", False)
    caplog.set_level(logging.INFO)
    assert start(tmp_path / "run", "--log-interval=1", "--batch-num=9") == 3
    scales = re.findall(
        r"the batch is skipped, and the loss is scaled by (\d+) from now", caplog.text
    )
    assert scales == ["2", "1"]
    # Batches that were skipped because of the scale alone have a loss like any other.
    assert len(re.findall(r"Iter [12]\] training loss=0\.[1-9]", caplog.text)) == 2
    err = capfd.readouterr().err
    assert re.search(r"^train\.py: stopped: epoch 0, batch 3: .* not finite;", err, re.M), err


@pytest.mark.parametrize("before, after", [("float16", "float32"), ("float32", "float16")])
def test_a_run_stays_with_its_dtype(before: str, after: str) -> None:
    former = checkpoint_of(f"--dtype={before}")
    with pytest.raises(UsageError, match=f"was made with --dtype {before}; give these"):
        resume.check_flags(former, config_of(f"--dtype={after}"))


@pytest.mark.slow
def test_what_is_learned_is_as_good_as_in_float32(float16_works: None) -> None:
    """Recall@1 of noisy images of five patterns."""
    recalls = {}
    for dtype in ("float16", "float32"):
        learning = new_learner(dtype=dtype)
        test = [batch_of(10, seed=1000 + n) for n in range(10)]
        labels = np.concatenate([batch.label[0].asnumpy() for batch in test])
        recalls[dtype] = []
        for number in range(80):
            if number in (0, 79):
                rows = [learning.net.embed(batch.data[0]).asnumpy() for batch in test]
                found = recall_at_k(np.concatenate(rows), labels, ks=(1,))
                recalls[dtype] += [*found.values()]
            step_of(learning, number)
    for first, last in recalls.values():
        assert last > 0.95 > first
    assert recalls["float16"][1] == pytest.approx(recalls["float32"][1], abs=0.04)


# Refusals


def test_cpus_are_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_cub: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([f"--data-path={tiny_cub}", "--dtype=float16"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "train.py: error: --dtype float16: MXNet has no convolution in float16 for CPUs; train on "
        "GPUs with --gpus, or leave --dtype out"
    )
    assert not os.listdir(tmp_path)


def test_any_other_dtype_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^--dtype bfloat16: unknown; choose one of float32, float16$"
    ):
        config_of("--dtype=bfloat16")


# Memory


def test_float16_takes_half_the_memory_of_what_layers_put_out() -> None:
    flags = "--model=resnet18_v1", "--crop-size=64", "--batch-k=5", "--gpus=0"
    sizes = {}
    for dtype in ("float32", "float16"):
        net = memory_estimate._network(config_of(*flags, f"--dtype={dtype}"))
        sizes[dtype] = [sum(part) for part in memory_estimate._sizes(net, (10, 3, 64, 64))]
    images = 10 * 3 * 64 * 64
    weights = [sizes[dtype][0] - images for dtype in ("float32", "float16")]
    assert weights[1] == pytest.approx(weights[0] / 2, rel=0.01)
    # Images are cast and normalised in float32, and then rounded.
    halved = (sizes["float32"][1] - 8 * images) / 2 + 10 * images
    assert sizes["float16"][1] == pytest.approx(halved, rel=0.03)


def test_the_masters_are_counted() -> None:
    """Weight and gradient take half, the optimizer's arrays as much as ever, and the master."""
    bytes_at = {}
    for dtype in ("float32", "float16"):
        for name in ("sgd --momentum=0", "adam"):
            flags = f"--model=squeezenet1.1 --crop-size=64 --gpus=0 --dtype={dtype}".split()
            config = config_of(*flags, *f"--optimizer={name}".split())
            bytes_at[dtype, name[:3]] = memory_estimate.bytes_of_step(config, 10)
    parameters, _ = memory_estimate._sizes(memory_estimate._network(config), (10, 3, 64, 64))
    masters = 2 * sum(parameters)
    assert bytes_at["float16", "ada"] - bytes_at["float16", "sgd"] == 2 * masters
    outputs = memory_estimate._sizes(memory_estimate._network(config), (10, 3, 64, 64))[1]
    rest = sum(outputs) + 3 * max(outputs)
    assert bytes_at["float16", "sgd"] - rest == 2 * sum(parameters) + masters
