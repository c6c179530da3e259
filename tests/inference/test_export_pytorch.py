"""The file for PyTorch: torchvision's names and shapes, and the way back. Needs no PyTorch.

`python -m tests.benchmarks.export_pytorch` compares the embeddings with PyTorch's.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from safetensors import safe_open

from embedding_learning.cli import export
from embedding_learning.errors import UsageError
from embedding_learning.inference.export import export_pytorch
from embedding_learning.model import backbones
from embedding_learning.model.net import MarginNet
from embedding_learning.model.weights.catalog import (
    ARCHITECTURES,
    TORCHVISION_NAMES,
    pytorch_network,
)
from embedding_learning.model.weights.torchvision_names import find_name_map
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import MODEL, save_model
from tests.helpers.torchvision_names import names_of

CPU = [mx.cpu()]
DIMENSION = 5
# The others of a family differ only in the number of layers, which test_torchvision_names tests.
NETWORKS = {
    "resnet18_v1": "resnet18",
    "resnet50_v1b": "resnet50",
    "squeezenet1.1": "squeezenet1_1",
    "densenet121": "densenet121",
    "mobilenet_v2": "mobilenet_v2",
    # Last: the next test takes it again.
    "inceptionv3": "inception_v3",
}


def described(model: str, **changes: Any) -> dict[str, Any]:
    """The part of a description that an export looks at."""
    size = ARCHITECTURES[model].crop_size
    return {
        **{"model": model, "embed_dim": DIMENSION, "pool": "original", "bbox": True},
        **{"image_size": size + 32, "crop_size": size, "exif_orientation": False},
        **{"resize": "linear", "resize_to": "square"},
        **{"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]},
        **{"trained_on": "Birds", "epoch": 3, "recall_at_1": 0.5},
        **changes,
    }


@functools.lru_cache(maxsize=1)
def random_network(model: str, feat_dim: int | None = None, pool: str = "original") -> MarginNet:
    """Returns a network whose running statistics are random too."""
    mx.random.seed(0)
    net = MarginNet(backbones.create(model, CPU, pool=pool), DIMENSION, 2, feat_dim=feat_dim)
    net.initialize(mx.init.Xavier(magnitude=2))
    side = ARCHITECTURES[model].crop_size
    net.base_net.infer_shape(nd.zeros((1, 3, side, side)))
    (shape,) = net.base_net(mx.sym.var("data")).infer_shape(data=(1, 3, side, side))[1]
    (net.feature or net.dense).infer_shape(nd.zeros(shape))
    if net.feature:
        net.dense.infer_shape(nd.zeros((1, feat_dim or 0)))
    for parameter in net.collect_params().values():
        parameter.grad_req = "null"  # needs no memory for gradients
        parameter._finish_deferred_init()
        if "running" in parameter.name or "gamma" in parameter.name:
            parameter.set_data(nd.random.uniform(0.5, 1.5, parameter.shape))
    return net


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors and the description."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        assert metadata["format"] == "pt"  # other programs refuse a file without it
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, json.loads(metadata["description"])


@pytest.mark.slow
@pytest.mark.parametrize("model", NETWORKS)
def test_names_and_shapes_are_torchvisions_and_the_way_back_gives_the_same_features(
    model: str, tmp_path: Path
) -> None:
    net = random_network(model)
    path = tmp_path / "net.safetensors"
    export_pytorch(net, str(path), described(model))
    tensors, about = read(path)

    name = NETWORKS[model]
    expected = {
        key: shape
        for key, shape in names_of(name).items()
        if not key.startswith("AuxLogits") and not key.endswith("num_batches_tracked")
    }
    last = list(expected)[-1].rpartition(".")[0]
    features = ARCHITECTURES[model].features
    expected.update({f"{last}.weight": (DIMENSION, features), f"{last}.bias": (DIMENSION,)})
    assert {key: tensor.shape for key, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}
    assert (about["library"], about["architecture"]) == ("torchvision", name)
    np.testing.assert_array_equal(tensors[f"{last}.weight"], net.dense.weight.data().asnumpy())

    again = backbones.create(model, CPU, pretrained_params=str(path))
    written, found = (block._collect_params_with_prefix() for block in (net.base_net, again))
    assert written.keys() == found.keys()
    # Inception's first layer is rewritten for torchvision's pixels, and back.
    tolerance = 1e-6 if model == "inceptionv3" else 0
    for key, parameter in written.items():
        values = [of.data().asnumpy() for of in (found[key], parameter)]
        np.testing.assert_allclose(*values, rtol=tolerance, atol=tolerance, err_msg=key)


def test_inception_takes_pixels_around_zero_as_torchvisions_does(tmp_path: Path) -> None:
    """The first convolution and its batch norm, on the same pixels in both normalizations."""
    net = random_network("inceptionv3")
    path = tmp_path / "net.safetensors"
    export_pytorch(net, str(path), described("inceptionv3"))
    tensors, about = read(path)
    assert about["mean"] == about["deviation"] == [0.5, 0.5, 0.5]
    pixels = np.random.default_rng(0).random((1, 3, 9, 9))
    mean, deviation = np.reshape([0.485, 0.456, 0.406, 0.229, 0.224, 0.225], (2, 3, 1, 1))

    first = net.base_net[0]
    expected = first(nd.array((pixels - mean) / deviation)).asnumpy()
    start = "Conv2d_1a_3x3"
    weight = nd.array(tensors[f"{start}.conv.weight"])
    x = nd.Convolution(
        nd.array(2 * pixels - 1), weight, kernel=(3, 3), stride=(2, 2), num_filter=32, no_bias=True
    )
    leaves = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, running_mean, variance = (
        tensors[f"{start}.bn.{leaf}"][:, None, None] for leaf in leaves
    )
    found = (x.asnumpy() - running_mean) / np.sqrt(variance + 0.001) * gamma + beta
    np.testing.assert_allclose(np.maximum(found, 0), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_the_additional_layer_is_part_of_the_embedding_layer(tmp_path: Path) -> None:
    net = random_network("squeezenet1.1", feat_dim=7)
    path = tmp_path / "net.safetensors"
    export_pytorch(net, str(path), described("squeezenet1.1"))
    tensors, _ = read(path)
    x = np.random.default_rng(0).normal(size=(2, 86528)).astype(np.float32)
    expected = net.dense(net.feature(nd.array(x))).asnumpy()
    found = x @ tensors["classifier.1.weight"].T + tensors["classifier.1.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, pool, crop_size, is_written",
    [
        ("squeezenet1.1", "original", 64, True),
        ("squeezenet1.1", "none", 64, True),
        ("squeezenet1.1", "avg", 224, False),
        ("resnet18_v1", "original", 64, True),
        ("resnet18_v1", "avg", 64, True),
        ("resnet18_v1", "max", 224, False),
        # Gluon pools 7 x 7 pixels, torchvision the whole map.
        ("densenet121", "original", 256, False),
        ("densenet121", "avg", 256, True),
        # torchvision changes the map to 6 x 6.
        ("alexnet", "original", 256, False),
        ("mobilenet1.0", "original", 224, False),
    ],
)
def test_only_a_network_that_computes_the_same_is_written(
    model: str, pool: str, crop_size: int, is_written: bool, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    description = described(model, pool=pool, crop_size=crop_size)
    if is_written:
        export_pytorch(random_network(model, pool=pool), str(path), description)
        assert path.exists()
        return
    untouched = MarginNet(mx.gluon.nn.HybridSequential(), DIMENSION, 2)
    with pytest.raises(UsageError, match=r"net\.safetensors: .*export ONNX instead"):
        export_pytorch(untouched, str(path), description)
    assert not list(tmp_path.iterdir())


def test_every_network_that_is_read_has_a_name_in_pytorch() -> None:
    """Without one, PyTorch could not build it."""
    timm = {f"resnet{depth}{stem}" for depth in (50, 101, 152) for stem in "cds"}
    theirs = {*TORCHVISION_NAMES, *(name for name in ARCHITECTURES if name.startswith("vgg"))}
    theirs |= {"alexnet", "densenet121", "densenet161", "densenet169", "densenet201"}
    found = {pytorch_network(name) for name in ARCHITECTURES if find_name_map(name)}
    assert found == {("timm", name) for name in timm} | {("torchvision", name) for name in theirs}


def test_the_command_writes_the_file_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "birds.params")
    output = tmp_path / "birds.safetensors"
    assert export.main([str(tmp_path / "birds.params"), str(output)]) == 0
    assert f"{output}: weights of torchvision's squeezenet1_1" in capsys.readouterr().out
    about = read(output)[1]
    assert about["model"] == MODEL and about["crop_size"] == 32 and about["recall_at_1"] == 0.5
    page = (ROOT / "docs" / "using-a-model.md").read_text(encoding="utf-8")
    assert {"architecture", "embed_dim"} <= set(re.findall(r'about\["(\w+)"\]', page)) <= {*about}
    former = output.read_bytes()
    with pytest.raises(UsageError, match=r"^--normalize-input: .*leave the flag out$"):
        export.main([str(tmp_path / "birds.params"), str(output), "--normalize-input"])
    assert output.read_bytes() == former
    with pytest.raises(UsageError, match=r"x\.safetensors: the folder .*none does not exist"):
        export.main([str(tmp_path / "birds.params"), str(tmp_path / "none" / "x.safetensors")])
