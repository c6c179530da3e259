"""The names of torchvision's and timm's layers: complete, and each of the right shape."""

from __future__ import annotations

import importlib.util

import mxnet as mx
import pytest

from embedding_learning.model.backbones import build_uninitialized
from embedding_learning.model.weights.catalog import ARCHITECTURES, GLUON_NAMES, TORCHVISION_NAMES
from embedding_learning.model.weights.torchvision_names import (
    find_name_map,
    map_names,
    normalize_names,
)
from tests.helpers.torchvision_names import names_of

needs_gluoncv = pytest.mark.skipif(
    importlib.util.find_spec("gluoncv") is None, reason="gluoncv is not installed"
)
SAME = ["alexnet", *(name for name in GLUON_NAMES if name.startswith(("vgg", "densenet")))]
# torchvision's name and Gluon's or gluoncv's.
PAIRS = [
    *((name, name) for name in SAME),
    *((f"resnet{depth}", f"resnet{depth}_v1") for depth in (18, 34)),
    *TORCHVISION_NAMES.items(),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "theirs, ours",
    [
        pytest.param(*pair, marks=needs_gluoncv) if pair[1].endswith("_v1b") else pair
        for pair in PAIRS
    ],
)
def test_each_parameter_has_one_of_torchvision_of_its_shape(theirs: str, ours: str) -> None:
    """All of torchvision's are used except those of the last layer and the counts of steps."""
    name_map = find_name_map(ours)
    assert name_map
    backbone = build_uninitialized(ours)
    side = ARCHITECTURES[ours].crop_size
    backbone.features.infer_shape(mx.nd.zeros((1, 3, side, side)))
    parameters = backbone.parameters
    wanted = names_of(theirs)
    left = {
        name
        for name in wanted
        if not name.startswith(name_map.heads) and not name.endswith("num_batches_tracked")
    }
    names = map_names(ours, list(parameters))
    assert list(names) == list(parameters)
    assert sorted(names.values()) == sorted(left)
    for name, parameter in parameters.items():
        assert parameter.shape == wanted[names[name]], name
        assert (parameter.grad_req == "null") == ("running" in names[name])


@pytest.mark.parametrize("theirs, ours", PAIRS)
def test_the_last_layers_alone_are_heads(theirs: str, ours: str) -> None:
    name_map = find_name_map(ours)
    assert name_map
    heads = {
        name.rpartition(".")[0] for name in names_of(theirs) if name.startswith(name_map.heads)
    }
    last = {"alexnet": "classifier.6", "squeezenet": "classifier.1", "mobilenet": "classifier.1"}
    last |= {"vgg": "classifier.6", "densenet": "classifier", "resnet": "fc", "inception": "fc"}
    (expected,) = (layer for start, layer in last.items() if theirs.startswith(start))
    assert {layer for layer in heads if not layer.startswith("AuxLogits")} == {expected}
    assert name_map.heads[0] == f"{expected}."
    assert any(layer.startswith("AuxLogits") for layer in heads) == theirs.startswith("inception")


@pytest.mark.parametrize(
    "model", ["resnet50_v1", "resnet50_v2", "mobilenet1.0", "mobilenetv2_1.0", "resnet18_v2", ""]
)
def test_what_torchvision_does_not_have_has_no_family(model: str) -> None:
    assert find_name_map(model) is None


def spelled(model: str, *names: str) -> list[str]:
    name_map = find_name_map(model)
    assert name_map
    return list(normalize_names(name_map, [*names]).values())


def test_torchvisions_own_names_are_left_as_they_are() -> None:
    for theirs, ours in PAIRS:
        names = list(names_of(theirs))
        assert spelled(ours, *names) == names


def test_the_first_densenets_had_a_dot_more() -> None:
    """Torchvision's own loader renames them too."""
    names = [name for name in names_of("densenet201") if "denselayer" in name]
    old = []
    for name in names:
        block, layer, part, leaf = name.removeprefix("features.").split(".")
        old.append(f"features.{block}.{layer}.{part[:-1]}.{part[-1]}.{leaf}")
    assert spelled("densenet201", *old) == names


def test_timm_spells_the_dense_layers_of_vgg_its_own_way() -> None:
    names = ["pre_logits.fc1.weight", "pre_logits.fc2.bias", "features.0.weight"]
    assert spelled("vgg16", *names) == ["classifier.0.weight", "classifier.3.bias", names[2]]
    assert find_name_map("vgg16").heads == ("classifier.6.", "head.fc.")  # type: ignore[union-attr]


def test_timm_spells_mobilenet_v2_its_own_way() -> None:
    """Every layer once, in the order of the network."""
    theirs = ["conv_stem.weight", "bn1.weight"]
    for stage, length in enumerate((1, 2, 3, 4, 3, 3, 1)):
        parts = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        if stage == 0:
            parts = ["conv_dw", "bn1", "conv_pw", "bn2"]
        for number in range(length):
            theirs += [f"blocks.{stage}.{number}.{part}.weight" for part in parts]
    theirs += ["conv_head.weight", "bn2.weight"]
    expected = [
        name
        for name in names_of("mobilenet_v2")
        if name.endswith("weight") and "classifier" not in name
    ]
    assert spelled("mobilenet_v2", *theirs) == expected
