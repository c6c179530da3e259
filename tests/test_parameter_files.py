"""Files of parameters: whole or not at all, and interchangeable with the original's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import Block, nn

from embedding_learning import parameter_files
from embedding_learning.model import MarginNet
from embedding_learning.options import UsageError
from embedding_learning.parameter_files import read_parameters, save_parameters, set_parameters

DIMENSIONS = 5


class OriginalNet(Block):
    """The original example's network, as far as its parameters go."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.base_net = small_backbone()
            self.dense = nn.Dense(DIMENSIONS)

    def forward(self, x: mx.nd.NDArray) -> mx.nd.NDArray:
        return mx.nd.L2Normalization(self.dense(self.base_net(x)))


def small_backbone() -> nn.HybridSequential:
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(4, 3), nn.BatchNorm(), nn.GlobalAvgPool2D())
    return backbone


def images() -> mx.nd.NDArray:
    pixels = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
    return mx.nd.array(pixels, dtype=np.float32)


def margin_net(seed: int = 0) -> MarginNet:
    """A small network with weights drawn from the seed."""
    mx.random.seed(seed)
    net = MarginNet(small_backbone(), DIMENSIONS, batch_k=2)
    net.initialize(mx.init.Xavier())
    net.embed(images())
    return net


def test_a_saved_network_embeds_as_before(tmp_path: Path) -> None:
    net, other = margin_net(1), margin_net(2)
    save_parameters(net, str(tmp_path / "net.params"))
    other.load_parameters(str(tmp_path / "net.params"))
    np.testing.assert_array_equal(other.embed(images()).asnumpy(), net.embed(images()).asnumpy())


def test_the_network_of_the_original_loads_the_file(tmp_path: Path) -> None:
    net, original = margin_net(), OriginalNet()
    save_parameters(net, str(tmp_path / "net.params"))
    original.load_parameters(str(tmp_path / "net.params"))
    expected = net.embed(images()).asnumpy()
    np.testing.assert_array_equal(original(images()).asnumpy(), expected)


def test_a_file_of_the_original_is_loaded(tmp_path: Path) -> None:
    original = OriginalNet()
    original.initialize(mx.init.Xavier())
    expected = original(images()).asnumpy()
    original.save_parameters(str(tmp_path / "original.params"))

    net = margin_net(7)
    arrays = read_parameters(str(tmp_path / "original.params"), "--resume")
    set_parameters(net._collect_params_with_prefix(), arrays, "--resume", [mx.cpu()])
    np.testing.assert_array_equal(net.embed(images()).asnumpy(), expected)


class Interrupted(BaseException):
    """Stands for whatever ends a program: a full disk, Ctrl-C."""


@pytest.mark.parametrize("error", [OSError, Interrupted])
@pytest.mark.parametrize("former", [b"the best model so far", None])
def test_a_save_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], former: Any
) -> None:
    path = tmp_path / "net.params"
    if former is not None:
        path.write_bytes(former)
    net = margin_net()

    def write_half(file: str) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(net, "save_parameters", write_half)
    with pytest.raises(error):
        save_parameters(net, str(path))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([former] if former else [])


def test_the_new_file_takes_the_place_of_the_former_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.params"
    path.write_bytes(b"former")
    replace, seen = os.replace, []

    def watch(source: str, target: str) -> None:
        seen.append((path.read_bytes(), len(mx.nd.load(source))))
        replace(source, target)

    monkeypatch.setattr(parameter_files.os, "replace", watch)
    net = margin_net()
    save_parameters(net, str(path))
    assert seen == [(b"former", len(net.collect_params().keys()))]
    assert list(tmp_path.iterdir()) == [path]
    assert len(mx.nd.load(str(path))) == len(net.collect_params().keys())


def test_the_same_network_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_parameters(margin_net(3), str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\0", b"not a parameter file at all", b"\x12\x01" * 99])
def test_a_file_that_holds_no_parameters_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "net.params"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_parameters(str(file), "--resume")
    assert str(caught.value) == f"--resume {file}: is damaged or not a Gluon parameter file"


def test_arrays_without_names_are_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "net.params")
    mx.nd.save(file, [mx.nd.ones(2)])
    with pytest.raises(UsageError, match="not a Gluon parameter file"):
        read_parameters(file, "--resume")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "net.params", tmp_path):
        with pytest.raises(UsageError) as caught:
            read_parameters(str(path), "--resume")
        assert str(caught.value) == f"--resume {path}: no such file, or it cannot be read"


def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.params"
    save_parameters(margin_net(), str(file))
    # The superuser may read everything, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    with pytest.raises(UsageError) as caught:
        read_parameters(str(file), "--resume")
    assert str(caught.value) == f"--resume {file}: no such file, or it cannot be read"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda arrays: arrays.pop("dense.bias"), "has no dense.bias"),
        (lambda arrays: arrays.update({"dense.bias": mx.nd.ones(6)}), r"dense.bias .*\(6,\)"),
        (lambda arrays: arrays.update({"dense.bias": mx.nd.ones((5, 1))}), r"dense.bias .*\(5, 1"),
        (
            lambda arrays: arrays.update({"feature.bias": mx.nd.ones(5)}),
            "has feature.bias, which the network lacks",
        ),
    ],
)
def test_parameters_of_another_network_change_nothing(change: Any, told: str) -> None:
    net = margin_net(1)
    before = net.embed(images()).asnumpy()
    parameters = net._collect_params_with_prefix()
    arrays = {name: parameter.data() + 1 for name, parameter in parameters.items()}
    change(arrays)
    other_flags = r"a network of other flags \(--model, --embed-dim, --feat-dim\)$"
    with pytest.raises(UsageError, match=f"^--resume x: .*{told}.*{other_flags}"):
        set_parameters(parameters, arrays, "--resume x", [mx.cpu()])
    np.testing.assert_array_equal(net.embed(images()).asnumpy(), before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["base_net.1.running_var", "dense.bias"])
def test_parameters_that_are_not_finite_change_nothing(name: str, value: float) -> None:
    net = margin_net(1)
    before = net.embed(images()).asnumpy()
    parameters = net._collect_params_with_prefix()
    arrays = {name: parameter.data() + 1 for name, parameter in parameters.items()}
    arrays[name][-1] = value
    with pytest.raises(UsageError) as caught:
        set_parameters(parameters, arrays, "--resume x", [mx.cpu()])
    assert str(caught.value) == f"--resume x: {name} holds values that are not finite"
    np.testing.assert_array_equal(net.embed(images()).asnumpy(), before)


def test_parameters_are_set_on_every_device() -> None:
    net = margin_net(1)
    expected = net.embed(images()).asnumpy()
    parameters = net._collect_params_with_prefix()
    arrays = {name: parameter.data() for name, parameter in parameters.items()}

    fresh = MarginNet(small_backbone(), DIMENSIONS, batch_k=2)
    devices = [mx.cpu(0), mx.cpu(1)]
    set_parameters(fresh._collect_params_with_prefix(), arrays, "--resume x", devices)
    for device in devices:
        found = fresh.embed(images().as_in_context(device)).asnumpy()
        np.testing.assert_array_equal(found, expected)
