"""Files of weights in every format: the features are the file's, or one line says why not."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from safetensors.numpy import save_file

from embedding_learning.errors import UsageError
from embedding_learning.model import backbones
from embedding_learning.model.weights.catalog import DEVIATION, MEAN
from embedding_learning.model.weights.pretrained import (
    _adapt_first_layer,
    _expects_pixels_around_zero,
    load_weights,
)
from embedding_learning.model.weights.torchvision_names import map_names
from tests.helpers.torch_writer import (
    state_program,
    write_old_pth,
    write_pth,
    write_zip,
)
from tests.helpers.torchvision_names import names_of

CPU = [mx.cpu()]
NAME, IN_ZOO = "squeezenet1_1", "squeezenet1.1"
Arrays = dict[str, np.ndarray]


def write_safetensors(path: Path, arrays: Arrays) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


WRITERS = pytest.mark.parametrize("write", [write_pth, write_old_pth, write_safetensors])


def random_arrays(name: str) -> Arrays:
    """Returns arrays with torchvision's names and shapes."""
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for parameter, shape in names_of(name).items():
        if parameter.endswith("num_batches_tracked"):
            arrays[parameter] = np.array(7)
        else:
            scale = 0.1 if len(shape) > 1 else 1
            values = scale * rng.normal(size=shape)
            is_variance = parameter.endswith("running_var")
            arrays[parameter] = (abs(values) if is_variance else values).astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def squeezenet() -> Arrays:
    return random_arrays(NAME)


@pytest.fixture(scope="module")
def mobilenet() -> Arrays:
    return random_arrays("mobilenet_v2")


def assert_loaded(path: Path, name: str, in_zoo: str, arrays: Arrays) -> None:
    """Every parameter has the values that torchvision's names say."""
    backbone = backbones.build_uninitialized(in_zoo)
    backbone.features.infer_shape(mx.nd.zeros((1, 3, 224, 224)))
    parameters = backbone.parameters
    load_weights(str(path), "--pretrained-params", in_zoo, parameters, set(), CPU)
    for ours, theirs in map_names(in_zoo, list(parameters)).items():
        values = arrays[theirs].astype(np.float32).reshape(parameters[ours].shape)
        np.testing.assert_array_equal(parameters[ours].data().asnumpy(), values)


def refusal(path: Path, name: str = NAME) -> str:
    """The one line in which a file is refused, without its start."""
    with pytest.raises(UsageError) as caught:
        backbones.create(name, CPU, pretrained_params=str(path))
    message = str(caught.value)
    start = f"--pretrained-params {path}: "
    assert message.startswith(start)
    assert message.isprintable() and len(message) < 600
    return message.removeprefix(start)


# What is read


@pytest.mark.slow
@WRITERS
def test_each_kind_of_file_gives_each_parameter_its_values(
    tmp_path: Path, mobilenet: Arrays, write: Callable[[Path, Arrays], None]
) -> None:
    """The end of its name does not matter."""
    path = tmp_path / "weights.bin"
    write(path, mobilenet)
    assert_loaded(path, "mobilenet_v2", "mobilenet_v2", mobilenet)


def test_the_order_of_names_does_not_matter(tmp_path: Path, squeezenet: Arrays) -> None:
    names = np.random.default_rng(1).permutation(list(squeezenet))
    write_pth(tmp_path / "net.pth", {name: squeezenet[name] for name in names})
    assert_loaded(tmp_path / "net.pth", NAME, IN_ZOO, squeezenet)


def test_the_features_are_those_of_a_network_with_these_weights(
    tmp_path: Path, squeezenet: Arrays
) -> None:
    """One squeeze and its expansions, computed by hand."""
    write_pth(tmp_path / "net.pth", squeezenet)
    features = backbones.create(NAME, CPU, pretrained_params=str(tmp_path / "net.pth"))
    x = mx.nd.random.normal(shape=(1, 64, 5, 5))

    def convolved(x: mx.nd.NDArray, name: str, pad: int) -> mx.nd.NDArray:
        weight, bias = (
            mx.nd.array(squeezenet[f"features.3.{name}.{leaf}"]) for leaf in ("weight", "bias")
        )
        kernel, channels = weight.shape[2:], weight.shape[0]
        return mx.nd.relu(
            mx.nd.Convolution(x, weight, bias, kernel=kernel, num_filter=channels, pad=(pad, pad))
        )

    squeezed = convolved(x, "squeeze", 0)
    expanded = [convolved(squeezed, "expand1x1", 0), convolved(squeezed, "expand3x3", 1)]
    expected = mx.nd.concat(*expanded, dim=1)
    np.testing.assert_allclose(features[3](x).asnumpy(), expected.asnumpy(), rtol=1e-5)


def test_pretrained_convolutions_learn_slowly_and_reach_every_device(
    tmp_path: Path, squeezenet: Arrays
) -> None:
    write_safetensors(tmp_path / "net.safetensors", squeezenet)
    devices = [mx.cpu(0), mx.cpu(1)]
    path = str(tmp_path / "net.safetensors")
    features = backbones.create(NAME, devices, pretrained_params=path)
    for parameter in features.collect_params().values():
        assert parameter.lr_mult == 0.01
        one, other = (parameter.data(device).asnumpy() for device in devices)
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@WRITERS
def test_half_precision_becomes_single_and_is_logged(
    tmp_path: Path,
    squeezenet: Arrays,
    write: Callable[[Path, Arrays], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "net"
    half = {name: array.astype(np.float16) for name, array in squeezenet.items()}
    write(path, squeezenet)
    assert_loaded(path, NAME, IN_ZOO, squeezenet)
    assert not caplog.messages
    write(path, half)
    assert_loaded(path, NAME, IN_ZOO, half)
    message = f"--pretrained-params {path}: holds float16 values, which become float32."
    assert caplog.messages == [message]


def test_a_gluon_file_of_half_precision_is_logged_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    backbone = backbones.build_uninitialized("mobilenet0.25")
    backbone.features.infer_shape(mx.nd.zeros((1, 3, 224, 224)))
    arrays = {
        name: mx.nd.ones(p.shape, dtype=np.float16) for name, p in backbone.parameters.items()
    }
    mx.nd.save(str(tmp_path / "net.params"), arrays)
    backbones.create("mobilenet0.25", CPU, pretrained_params=str(tmp_path / "net.params"))
    assert "holds float16 values, which become float32" in caplog.text


def test_double_precision_becomes_single(tmp_path: Path, squeezenet: Arrays) -> None:
    double = {name: array.astype(np.float64) for name, array in squeezenet.items()}
    write_pth(tmp_path / "net.pth", double)
    assert_loaded(tmp_path / "net.pth", NAME, IN_ZOO, squeezenet)


def test_the_last_layer_is_passed_over_whatever_it_is(tmp_path: Path, squeezenet: Arrays) -> None:
    others = {
        **squeezenet,
        "classifier.1.weight": np.full((7, 512, 1, 1), np.nan, np.float32),
        "classifier.1.bias": np.zeros(7, np.int64),
    }
    write_pth(tmp_path / "net.pth", others)
    assert_loaded(tmp_path / "net.pth", NAME, IN_ZOO, squeezenet)
    without = {name: array for name, array in squeezenet.items() if "classifier" not in name}
    write_pth(tmp_path / "net.pth", without)
    assert_loaded(tmp_path / "net.pth", NAME, IN_ZOO, squeezenet)


def test_timms_spelling_is_read(tmp_path: Path, mobilenet: Arrays) -> None:
    block = {"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw", "conv.1.1": "bn2"}
    block |= {"conv.2": "conv_pwl", "conv.3": "bn3"}
    first = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
    others = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    others |= {"features.18.0": "conv_head", "features.18.1": "bn2"}
    places = [(stage, n) for stage, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for n in range(depth)]
    for number, (stage, place) in enumerate(places, 1):
        for theirs, timms in (first if number == 1 else block).items():
            others[f"features.{number}.{theirs}"] = f"blocks.{stage}.{place}.{timms}"
    timm = {}
    for name, array in mobilenet.items():
        layer, leaf = name.rsplit(".", 1)
        timm[f"{others[layer]}.{leaf}"] = array
    assert not timm.keys() & mobilenet.keys()
    write_safetensors(tmp_path / "model.safetensors", timm)
    assert_loaded(tmp_path / "model.safetensors", "mobilenet_v2", "mobilenet_v2", mobilenet)


def test_a_convolution_over_the_whole_image_is_a_dense_layer(tmp_path: Path) -> None:
    """A layer as in timm's VGG, but small."""
    rng = np.random.default_rng(0)
    dense = {name: gluon_parameter(name, (8, 12)) for name in ("features.21.weight",)}
    arrays = {"pre_logits.fc1.weight": rng.normal(size=(8, 3, 2, 2)).astype(np.float32)}
    write_safetensors(tmp_path / "net.safetensors", arrays)
    path = str(tmp_path / "net.safetensors")
    load_weights(path, "FILE", "vgg11", dense, set(), CPU)
    values = arrays["pre_logits.fc1.weight"].reshape(8, 12)
    np.testing.assert_array_equal(dense["features.21.weight"].data().asnumpy(), values)
    for shape in ((8, 4, 2, 2), (9, 3, 2, 2), (8, 12, 1), (12, 8)):
        write_safetensors(
            tmp_path / "net.safetensors", {"pre_logits.fc1.weight": np.zeros(shape, np.float32)}
        )
        with pytest.raises(UsageError, match="has the shape"):
            load_weights(path, "FILE", "vgg11", dense, set(), CPU)


def gluon_parameter(name: str, shape: tuple[int, ...]) -> mx.gluon.Parameter:
    return mx.gluon.Parameter(name, shape=shape)


def test_inception_takes_over_the_normalisation_of_its_pixels() -> None:
    """The first layers give the same of usual pixels as they gave of pixels in [-1, 1]."""
    rng = np.random.default_rng(0)
    convolution = nn.Conv2D(32, 3, 2, use_bias=False, in_channels=3)
    norm = nn.BatchNorm(epsilon=0.001, in_channels=32)
    for block in (convolution, norm):
        block.initialize(mx.init.Normal(1))
    values = {
        "features.0.0.weight": convolution.weight,
        "features.0.1.running_mean": norm.running_mean,
    }
    norm.running_var.set_data(mx.nd.array(rng.uniform(0.5, 2, 32)))
    pixels = rng.uniform(0, 1, (2, 3, 21, 21))
    mean, deviation = (np.reshape(v, (3, 1, 1)) for v in (MEAN, DEVIATION))
    expected = norm(convolution(mx.nd.array(2 * pixels - 1))).asnumpy()
    arrays = {name: parameter.data().asnumpy() for name, parameter in values.items()}
    _adapt_first_layer(arrays)
    for name, parameter in values.items():
        parameter.set_data(mx.nd.array(arrays[name]))
    found = norm(convolution(mx.nd.array((pixels - mean) / deviation))).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_only_an_inception_of_pytorch_is_rewritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rng = np.random.default_rng(0)
    arrays = {
        "Conv2d_1a_3x3.conv.weight": rng.normal(size=(32, 3, 3, 3)).astype(np.float32),
        "Conv2d_1a_3x3.bn.running_mean": rng.normal(size=32).astype(np.float32),
    }
    ours = dict(zip(("features.0.0.weight", "features.0.1.running_mean"), arrays.values()))
    mx.nd.save(str(tmp_path / "net.params"), {k: mx.nd.array(v) for k, v in ours.items()})
    write_pth(tmp_path / "net.pth", arrays)
    found = {}
    for name in ("net.params", "net.pth"):
        parameters = {key: gluon_parameter(key, array.shape) for key, array in ours.items()}
        load_weights(str(tmp_path / name), "FILE", "inceptionv3", parameters, set(), CPU)
        found[name] = {key: p.data().asnumpy() for key, p in parameters.items()}
        assert ("[-1, 1]" in caplog.text) == (name == "net.pth")
    for key, array in ours.items():
        np.testing.assert_array_equal(found["net.params"][key], array)
    _adapt_first_layer(ours)
    for key, array in ours.items():
        np.testing.assert_array_equal(found["net.pth"][key], array)


IMAGENET = {"mean": list(MEAN), "std": list(DEVIATION)}
HALVES = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    "model, settings, is_rewritten",
    [
        ("inceptionv3", None, True),
        ("inceptionv3", {"pretrained_cfg": HALVES}, True),
        ("inceptionv3", {"pretrained_cfg": IMAGENET}, False),
        ("vgg11", None, False),
        ("vgg11", {"pretrained_cfg": IMAGENET}, False),
        ("vgg11", {"pretrained_cfg": HALVES}, None),
        ("inceptionv3", {"pretrained_cfg": {**HALVES, "mean": [0.4] * 3}}, None),
        ("inceptionv3", {"pretrained_cfg": {**HALVES, "mean": [0.5] * 2}}, None),
        ("inceptionv3", {"pretrained_cfg": {**HALVES, "mean": "half"}}, None),
        ("inceptionv3", {"pretrained_cfg": {"mean": 0.5, "std": 0.5}}, None),
        ("inceptionv3", {"pretrained_cfg": []}, None),
        ("inceptionv3", {}, None),
        ("inceptionv3", [], None),
    ],
)
def test_timms_config_decides_how_pixels_are_normalized(
    tmp_path: Path, model: str, settings: Any, is_rewritten: bool | None
) -> None:
    """None: refused."""
    path = tmp_path / "model.safetensors"
    if settings is not None:
        (tmp_path / "config.json").write_text(json.dumps(settings))
    if is_rewritten is None:
        with pytest.raises(UsageError, match=r"^FILE: .*config\.json") as caught:
            _expects_pixels_around_zero(str(path), "FILE", model)
        assert str(caught.value).isprintable()
        # It is another file's.
        other = str(tmp_path / "inception.safetensors")
        assert _expects_pixels_around_zero(other, "FILE", model) == (model == "inceptionv3")
    else:
        assert _expects_pixels_around_zero(str(path), "FILE", model) == is_rewritten


CONFIG = json.dumps({"pretrained_cfg": IMAGENET}).encode()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 2**20, b" " * 2**20 + CONFIG])
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match="has no mean and std"):
        _expects_pixels_around_zero(str(tmp_path / "model.safetensors"), "FILE", "inceptionv3")


# What is refused


@WRITERS
@pytest.mark.parametrize("name", ["features.0.weight", "features.12.expand3x3.bias"])
def test_a_missing_tensor_is_named(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None], name: str
) -> None:
    write(tmp_path / "net", {key: array for key, array in squeezenet.items() if key != name})
    assert refusal(tmp_path / "net") == f"is not of squeezenet1.1: it lacks {name}; see --model"


@pytest.mark.slow
@WRITERS
@pytest.mark.parametrize(
    "name", ["features.13.weight", "fc.weight", "features.0.num_batches_tracked", "x"]
)
def test_a_surplus_tensor_is_named(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None], name: str
) -> None:
    write(tmp_path / "net", {**squeezenet, name: np.zeros(3, np.float32)})
    message = f"is not of squeezenet1.1: it also has {name}; see --model"
    assert refusal(tmp_path / "net") == message


def test_a_layer_in_two_spellings_is_named(tmp_path: Path, mobilenet: Arrays) -> None:
    both = {**mobilenet, "conv_stem.weight": mobilenet["features.0.0.weight"]}
    write_pth(tmp_path / "net.pth", both)
    assert "also has conv_stem.weight" in refusal(tmp_path / "net.pth", "mobilenet_v2")


@WRITERS
def test_another_shape_is_named(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None]
) -> None:
    name = "features.3.squeeze.weight"
    write(tmp_path / "net", {**squeezenet, name: squeezenet[name].transpose(1, 0, 2, 3)})
    assert refusal(tmp_path / "net") == (
        f"{name} has the shape (64, 16, 1, 1), the network needs (16, 64, 1, 1); is it of another "
        "--model?"
    )


@WRITERS
def test_whole_numbers_are_refused(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None]
) -> None:
    write(tmp_path / "net", {**squeezenet, "features.0.bias": np.zeros(64, np.int64)})
    assert "features.0.bias is of " in refusal(tmp_path / "net")


@pytest.mark.slow
@WRITERS
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None], value: float
) -> None:
    write(tmp_path / "net", {**squeezenet, "features.0.bias": np.full(64, value)})
    assert "features.0.bias holds values that are not finite" in refusal(tmp_path / "net")


@pytest.mark.slow
@WRITERS
@pytest.mark.parametrize("model", ["squeezenet1_0", "alexnet", "mobilenet_v2", "densenet121"])
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None], model: str
) -> None:
    write(tmp_path / "net", squeezenet)
    message = refusal(tmp_path / "net", model)
    assert message.startswith("is not of ") and message.endswith("; see --model")
    assert "it lacks features." in message and "also has features." in message


@WRITERS
def test_a_network_of_gluon_alone_takes_no_file_of_pytorch(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None]
) -> None:
    write(tmp_path / "net", squeezenet)
    for model in ("resnet50_v2", "mobilenetv2_1.0"):
        message = refusal(tmp_path / "net", model)
        assert message.startswith("is a PyTorch file, and torchvision has no network that is built")


@pytest.mark.slow
@WRITERS
@pytest.mark.parametrize("kept", [0, 3, 12, 500, -1, -2000])
def test_a_file_that_was_cut_off_is_refused(
    tmp_path: Path, squeezenet: Arrays, write: Callable[[Path, Arrays], None], kept: int
) -> None:
    write(tmp_path / "net", squeezenet)
    (tmp_path / "net").write_bytes((tmp_path / "net").read_bytes()[:kept])
    assert "damaged" in refusal(tmp_path / "net")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.pth") == "no such file, or it cannot be read"
    assert refusal(tmp_path) == "is a folder; name a file in it"
    os.mkfifo(tmp_path / "pipe.pth")
    assert refusal(tmp_path / "pipe.pth") == "no such file, or it cannot be read"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<!DOCTYPE html>", "is damaged, or neither a Gluon parameter file, a .safetensors file"),
        (b"\x89HDF\r\n\x1a\n", "is damaged, or neither a Gluon parameter file, "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "is not the weights but a "),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    assert refusal(tmp_path / "net.pth").startswith(message)


def test_a_safetensors_header_is_bounded(tmp_path: Path, squeezenet: Arrays) -> None:
    path = tmp_path / "net.safetensors"
    write_safetensors(path, squeezenet)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for padded in (2**20, 2**20 + 1):
        header = whole[8 : 8 + length] + b" " * (padded - length)
        path.write_bytes(struct.pack("<Q", padded) + header + whole[8 + length :])
        if padded == 2**20:
            assert_loaded(path, NAME, IN_ZOO, squeezenet)
    assert "damaged or no safetensors file" in refusal(path)
    for length in (2**20 + 1, 2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b'{"a":' + b" " * 2**21)
        assert "damaged or no safetensors file" in refusal(path)
    path.write_bytes(struct.pack("<Q", 2**19) + b"{" * 2**20)
    assert "damaged or no safetensors file" in refusal(path)


def test_a_name_of_control_characters_is_not_shown(tmp_path: Path, squeezenet: Arrays) -> None:
    for name in ("\x1b[31mfeatures.0.weight", "a\nb", "n" * 1001):
        write_safetensors(tmp_path / "net.safetensors", {**squeezenet, name: np.zeros(3)})
        assert "damaged" in refusal(tmp_path / "net.safetensors")
        write_pth(tmp_path / "net.pth", {**squeezenet, name: np.zeros(3)})
        assert "damaged" in refusal(tmp_path / "net.pth")


class Malice:
    """Runs a command when Python unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_code_in_a_pth_is_not_run(tmp_path: Path, squeezenet: Arrays) -> None:
    mark, path = tmp_path / "run", tmp_path / "net.pth"
    message = "names posix.system, which no weights need; nothing of it was run"
    code = pickle.dumps({"features.0.weight": Malice(f"touch {mark}")}, protocol=2)
    write_zip(path, code, [])
    assert refusal(path) == message
    # Behind a whole state dictionary, and in place of the old layout's first pickles.
    start = state_program(squeezenet)[:-1]
    write_zip(path, start + code[2:], [])
    assert refusal(path) == message
    write_old_pth(path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:15] + code + whole[15:])
    assert refusal(path) == message
    for protocol in (0, 1, 4):
        write_zip(path, pickle.dumps(Malice(f"touch {mark}"), protocol=protocol), [])
        refusal(path)
    path.write_bytes(code)  # a pickle alone
    assert "damaged" in refusal(path)
    assert not mark.exists()
    pickle.loads(code)  # as PyTorch did
    assert mark.exists()
