"""Fine-tuning: fixed and slowly learning layers, and weights of another network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import HybridBlock, nn

from embedding_learning.cli.train_flags import parse
from embedding_learning.errors import DataError, UsageError
from embedding_learning.model.weights import model_zoo
from embedding_learning.training import build, learner, run, schedule
from tests.helpers.saved_models import save_model
from tests.helpers.tiny_networks import each_class

pytestmark = pytest.mark.usefixtures("tiny_backbones")

CPU = [mx.cpu()]
QUICK = ["--crop-size=32", "--image-size=40", "--batch-size=8", "--batch-k=2", "--embed-dim=16"]
FLAGS = ["--model=tiny-norm", "--lr=0.01", *QUICK]


def built(*flags: str) -> learner.Learner:
    options = parse([*FLAGS, *flags])
    mx.random.seed(1)
    return build.build(options, each_class(4), build.build_network(options, CPU), CPU)


def batch() -> mx.io.DataBatch:
    rng = np.random.default_rng(0)
    pixels = mx.nd.array(rng.integers(0, 256, (8, 3, 32, 32)), dtype=np.uint8)
    labels = mx.nd.array(np.repeat([0, 1, 2, 3], 2))
    return mx.io.DataBatch(data=[pixels], label=[labels], pad=0)


def arrays_of(made: learner.Learner) -> dict[str, np.ndarray]:
    parameters = made.net._collect_params_with_prefix()
    return {name: parameter.data().asnumpy() for name, parameter in parameters.items()}


def changed_by_a_step(*flags: str) -> set[str]:
    """The names of all that a step of training changes."""
    made = built(*flags)
    former = arrays_of(made)
    made.step(batch())
    now = arrays_of(made)
    return {name for name in now if not np.array_equal(former[name], now[name])}


# Batch norm


class Residual(HybridBlock):
    """Adds to its input what a batch norm, a ReLU and a convolution make of it."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.body = nn.HybridSequential()
            self.body.add(nn.BatchNorm(), nn.Activation("relu"), nn.Conv2D(16, 3, padding=1))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x + self.body(x)


def build_nested(*arguments: object) -> HybridBlock:
    """A backbone in the way of ResNet v2: one batch norm is alone, and others lie in blocks."""
    stage, backbone = nn.HybridSequential(), nn.HybridSequential()
    stage.add(Residual(), Residual())
    backbone.add(nn.BatchNorm(scale=False, center=False), nn.Conv2D(16, 3, strides=2))
    backbone.add(stage, nn.GlobalAvgPool2D())
    backbone.initialize(mx.init.Xavier(magnitude=2))
    return backbone


@pytest.mark.slow
def test_frozen_statistics_stay_and_are_used_in_training() -> None:
    assert any("running_" in name for name in changed_by_a_step())
    changed = changed_by_a_step("--freeze-bn")
    assert changed and not any("running_" in name for name in changed)
    assert any(name.endswith("gamma") for name in changed)
    made = built("--freeze-bn", "--model=mobilenet0.25")  # without dropout
    pixels = batch().data[0]
    evaluated = made.net.embed(pixels).asnumpy()
    with mx.autograd.train_mode():
        trained = made.net.embed(pixels).asnumpy()
    np.testing.assert_allclose(trained, evaluated, rtol=1e-4, atol=1e-6)


def count_the_last_batch_alone(block: mx.gluon.Block) -> None:
    if isinstance(block, mx.gluon.nn.BatchNorm):
        block._kwargs["momentum"] = 0.0


def fused(made: learner.Learner) -> bool:
    return "_contrib_BatchNormWithReLU" in made.net._cached_graph[1].tojson()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenet0.25", "nested"])
def test_frozen_statistics_are_used_where_cpus_fuse_layers(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the compiled graph: statistics, embeddings as in evaluation, and gradients."""
    flags = "--model=mobilenet0.25", "--freeze-bn", "--optimizer=sgd", "--momentum=0", "--wd=0"
    if model == "nested":
        monkeypatch.setattr(build, "_build_backbone", build_nested)
    usual = built("--model=mobilenet0.25", "--lr=0", "--lr-beta=0")
    usual.net.apply(count_the_last_batch_alone)
    usual.step(batch())
    assert fused(usual)  # so it would matter here
    counted = arrays_of(usual)
    rng = np.random.default_rng(1)
    pixels, factors = batch().data[0], mx.nd.array(rng.normal(size=(8, 16)))
    found = []
    for is_fusing in (True, False):
        if not is_fusing:
            graph_as_it_is = "embedding_learning.model.net.fuse_for_training"
            monkeypatch.setattr(graph_as_it_is, lambda graph: graph)
        made = built(*flags)
        for name, parameter in made.net._collect_params_with_prefix().items():
            if "running_" in name:
                # Near the batch's, so that numbers keep their size, but not those.
                parameter.set_data(mx.nd.array(counted[name] * 1.1))
        former, evaluated = arrays_of(made), made.net.embed(pixels).asnumpy()
        with mx.autograd.record():
            embeddings = made.net(pixels)
        embeddings.backward(factors)
        now = arrays_of(made)
        for name in former:
            np.testing.assert_array_equal(now[name], former[name], err_msg=name)
        np.testing.assert_allclose(embeddings.asnumpy(), evaluated, rtol=1e-4, atol=1e-5)
        parameters = made.net._collect_params_with_prefix()
        found.append({n: p.grad().asnumpy() for n, p in parameters.items() if p.grad_req != "null"})
        assert not fused(made)
        assert all(np.abs(g).max() > 1e-6 for n, g in found[0].items() if n.endswith("weight"))
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(gradient, found[1][name], err_msg=name)


def test_every_batch_norm_of_the_backbone_is_frozen_wherever_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "_build_backbone", build_nested)
    made = built("--freeze-bn")
    former = arrays_of(made)
    assert sum("running_mean" in name for name in former) == 3
    made.step(batch())
    now = arrays_of(made)
    for name in former:
        if "running_" in name:
            np.testing.assert_array_equal(former[name], now[name])


# Rates


def test_the_backbones_rate_is_multiplied() -> None:
    def step_length(*flags: str) -> dict[str, float]:
        made = built("--optimizer=sgd", "--momentum=0", "--wd=0", "--lr=1000", *flags)
        former = arrays_of(made)
        mx.random.seed(3)
        made.step(batch())
        now = arrays_of(made)
        return {name: float(np.abs(now[name] - former[name]).max()) for name in now}

    whole, tenth = step_length(), step_length("--lr-mult-backbone=0.1")
    # Where the step is not lost in rounding.
    names = [name for name, length in whole.items() if length > 1e-4 and "running" not in name]
    assert any(name.startswith("base_net") for name in names)
    for name in names:
        share = 0.1 if name.startswith("base_net") else 1
        assert tenth[name] == pytest.approx(share * whole[name], rel=0.05), name


def rates(*flags: str, epoch: int = 0) -> dict[str, float]:
    options = parse([*FLAGS, *flags])
    made = built()
    for parameter in made.net.collect_params().values():
        parameter.lr_mult = 7.0
    schedule.set_backbone_rates(options, made.net, epoch)
    named = made.net._collect_params_with_prefix()
    return {name: parameter.lr_mult for name, parameter in named.items()}


def test_without_a_flag_the_rates_are_left_as_the_backbone_was_made() -> None:
    assert set(rates("--use-pretrained").values()) == {7.0}


def test_the_rates_are_set_before_servers_receive_them() -> None:
    """Servers receive them when the trainers are connected, before the first epoch."""
    for flag, expected in (("--lr-mult-backbone=0.3", 0.3), ("--warm-up-epochs=1", 0.0)):
        parameters = built(flag).net.base_net.collect_params().values()
        assert {parameter.lr_mult for parameter in parameters} == {expected}


@pytest.mark.parametrize("epoch", [0, 5])
def test_a_multiplier_takes_the_place_of_that_of_pretrained_convolutions(epoch: int) -> None:
    for flags in ([], ["--use-pretrained"]):
        found = rates("--lr-mult-backbone=0.3", *flags, epoch=epoch)
        for name, rate in found.items():
            assert rate == (0.3 if name.startswith("base_net.") else 7.0)


def test_in_warm_up_the_backbone_stands_still_and_then_learns_as_ever() -> None:
    assert changed_by_a_step("--warm-up-epochs=1", "--freeze-bn") == {"dense.weight", "dense.bias"}
    for epoch in (0, 1):
        found = rates("--warm-up-epochs=2", "--pretrained-params=x.params", epoch=epoch)
        for name, rate in found.items():
            assert rate == (0.0 if name.startswith("base_net.") else 7.0)
    pretrained = rates("--warm-up-epochs=2", "--pretrained-params=x.params", epoch=2)
    assert set(pretrained.values()) == {0.01, 1.0, 7.0}
    assert pretrained["base_net.0.weight"] == 0.01  # a convolution
    assert pretrained["base_net.1.gamma"] == 1.0
    fresh = rates("--warm-up-epochs=2", epoch=2)
    assert {rate for name, rate in fresh.items() if name.startswith("base_net.")} == {1.0}


def test_weight_decay_spares_biases_and_batch_norm() -> None:
    made = built("--wd-exclude-bn-bias")
    for name, parameter in made.net._collect_params_with_prefix().items():
        if parameter.grad_req != "null":
            assert parameter.wd_mult == float(name.endswith("weight")), name
    assert {p.wd_mult for p in built().net.collect_params().values()} == {1.0}


@pytest.mark.parametrize("clip, changes", [("1e-12", False), ("1e6", True)])
def test_gradients_are_cut(clip: str, changes: bool) -> None:
    flags = "--optimizer=sgd", "--momentum=0", "--wd=0"
    made, cut = built(*flags), built(*flags, f"--grad-clip={clip}")
    former = arrays_of(cut)
    for one in (made, cut):
        mx.random.seed(3)  # so that the negatives are the same
        one.step(batch())
    for name, array in arrays_of(cut).items():
        if "running" in name:
            continue
        if changes:
            np.testing.assert_array_equal(array, arrays_of(made)[name])
        else:
            assert np.abs(array - former[name]).max() <= 1e-7


# A trained network as a start


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, np.ndarray]]:
    """A saved network of 16 dimensions, and its parameters."""
    path = tmp_path_factory.mktemp("trained") / "net.params"
    net = save_model(path, "--model=tiny")
    parameters = net._collect_params_with_prefix()
    return str(path), {name: p.data().asnumpy() for name, p in parameters.items()}


@pytest.mark.parametrize("flag", ["--init-from=net", "--pretrained-params=link"])
def test_a_run_does_not_replace_the_weights_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.params").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("net.params")
    config = parse([flag, "--data-path=missing", "--save-model-prefix=./net"])
    message = r"--save-model-prefix \./net: the run would replace .*; choose another prefix"
    with pytest.raises(UsageError, match=message):
        run.train(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "net.params"]
    # Another prefix is no mistake: the data are looked for next.
    with pytest.raises(DataError, match="missing: no such folder"):
        run.train(parse([flag, "--data-path=missing", "--save-model-prefix=other"]))


def started(path: str, *flags: str) -> dict[str, np.ndarray]:
    options = parse(["--model=tiny", *QUICK, f"--init-from={path}", *flags])
    mx.random.seed(2)
    net = build.build_network(options, CPU)
    parameters = net._collect_params_with_prefix()
    return {name: parameter.data().asnumpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    "flags, new, unused",
    [
        ([], "", ""),
        (["--embed-dim=7"], "dense.weight, dense.bias", "dense.weight, dense.bias"),
        (
            ["--feat-dim=5"],
            "feature.weight, feature.bias, dense.weight",
            "dense.weight",
        ),
    ],
)
def test_what_fits_is_used_and_what_is_new_is_reported(
    trained: tuple[str, dict[str, np.ndarray]],
    caplog: pytest.LogCaptureFixture,
    flags: list[str],
    new: str,
    unused: str,
) -> None:
    caplog.set_level(logging.INFO)
    path, former = trained
    found = started(path, *flags)
    for name, array in found.items():
        if name not in new.split(", "):
            np.testing.assert_array_equal(array, former[name])
    outcomes = [(new, "starts from scratch"), (unused, "is not used")]
    expected = [f"--init-from {path}: {names} {outcome}." for names, outcome in outcomes if names]
    assert caplog.messages == expected


def test_the_prefix_of_a_network_names_it(
    trained: tuple[str, dict[str, np.ndarray]], caplog: pytest.LogCaptureFixture
) -> None:
    path, former = trained
    found = started(path.removesuffix(".params"))
    np.testing.assert_array_equal(found["base_net.0.weight"], former["base_net.0.weight"])


def test_a_network_with_a_further_layer_gives_its_backbone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    net = save_model(tmp_path / "net.params", "--model=tiny", "--feat-dim=9")
    former = net._collect_params_with_prefix()
    for name, array in started(str(tmp_path / "net.params")).items():
        if name.startswith("base_net."):
            np.testing.assert_array_equal(array, former[name].data().asnumpy())
    assert "dense.weight starts from scratch" in caplog.text
    assert "feature.weight, feature.bias, dense.weight is not used" in caplog.text


def test_weights_that_are_replaced_are_not_looked_for(
    trained: tuple[str, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its convolutions still learn as pretrained ones do."""
    path, former = trained
    monkeypatch.setattr(model_zoo, "fetch_weights", lambda name: pytest.fail("looked for"))
    found = started(path, "--use-pretrained")
    np.testing.assert_array_equal(found["base_net.0.weight"], former["base_net.0.weight"])
    options = parse(["--model=tiny", *QUICK, f"--init-from={path}", "--use-pretrained"])
    net = build.build_network(options, CPU)
    assert {p.lr_mult for p in net.base_net.collect_params().values()} == {0.01}


def test_another_backbone_or_no_network_is_refused(
    trained: tuple[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path, _ = trained
    with pytest.raises(UsageError, match=f"^--init-from {path}: .* which the network lacks"):
        started(path, "--model=tiny-norm")
    with pytest.raises(UsageError, match="no such file"):
        started(str(tmp_path / "missing.params"))
    mx.nd.save(str(tmp_path / "dense.params"), {"dense.weight": mx.nd.ones((16, 512))})
    with pytest.raises(UsageError, match=r"has no base_net\."):
        started(str(tmp_path / "dense.params"))


def test_a_resumed_network_and_another_start_contradict_each_other(
    trained: tuple[str, dict[str, np.ndarray]],
) -> None:
    path, _ = trained
    with pytest.raises(UsageError, match="--init-from: --resume names a network too"):
        parse([f"--init-from={path}", "--resume=other.params"])
    parse([f"--init-from={path}", "--resume=auto"])


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_gradients_cannot_be_cut_to_nothing(value: str) -> None:
    with pytest.raises(UsageError, match=f"^--grad-clip {float(value)}: must be "):
        parse([f"--grad-clip={value}"])


@pytest.mark.parametrize("flag", ["--warm-up-epochs=1", "--lr-mult-backbone=0"])
@pytest.mark.parametrize("optimizer", ["adadelta", "ftml", "ftrl", "sgld"])
def test_optimizers_that_move_weights_at_a_rate_of_0_are_refused(optimizer: str, flag: str) -> None:
    with pytest.raises(
        UsageError, match=f"^--optimizer {optimizer}: cannot leave a layer unchanged"
    ):
        build.check(parse([f"--optimizer={optimizer}", flag]))
    build.check(parse([f"--optimizer={optimizer}"]))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "nag", "rmsprop", "lars"])
def test_other_optimizers_leave_a_backbone_alone(optimizer: str) -> None:
    made = built("--lr-mult-backbone=0", f"--optimizer={optimizer}", "--freeze-bn")
    before = [p.data().asnumpy() for p in made.net.base_net.collect_params().values()]
    for _ in range(2):
        made.step(batch())
    after = [p.data().asnumpy() for p in made.net.base_net.collect_params().values()]
    assert all((x == y).all() for x, y in zip(before, after))
