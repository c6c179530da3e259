"""Maps the parameter names of torchvision's and timm's classifiers to Gluon's, by structure.

The same maps serve both ways: `pretrained.py` reads PyTorch's files, `inference/export.py` writes
them.

For each family of networks, a function below lists its layers: Gluon's name of each, and
torchvision's. A list may have more layers than a network; only the network's own are used.

A family is one function and one row of _NAME_MAPS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

# From one name of each layer to the other.
Layers = dict[str, str]

# Gluon's names of batch norm's parameters, where torchvision's differ.
_LEAVES = {"gamma": "weight", "beta": "bias"}


class NameMap(NamedTuple):
    """The names of the parameters in a family of networks that torchvision has too.

    Attributes
    ----------
    models : str
        A pattern of the networks' names in Gluon or gluoncv.
    heads : tuple of str
        The beginnings of the names of parameters after the features, in torchvision and in timm.
        The first one is of torchvision's last layer.
    pool : str, optional
        The `--pool` that does what torchvision's network does, at every crop size. None: the
        features end in dense layers.
    takes_any_size : bool
        Whether Gluon's own pooling is the same as torchvision's at every crop size. Otherwise it
        is the same for images of the size that the network was designed for.
    layers : callable, optional
        From a model's name to torchvision's names of its layers, by Gluon's name. None: the names
        are the same.
    spellings : callable, optional
        Returns torchvision's names of layers, by the name in timm or in earlier versions of
        torchvision, where it differs.
    """

    models: str
    heads: tuple[str, ...]
    pool: str | None = "avg"
    takes_any_size: bool = False
    layers: Callable[[str], Layers] | None = None
    spellings: Callable[[], Layers] | None = None


def find_name_map(model: str) -> NameMap | None:
    """Returns the name map of a model; None if torchvision has no network of this structure."""
    return next((row for row in _NAME_MAPS if re.fullmatch(row.models, model)), None)


def map_names(model: str, parameters: list[str]) -> dict[str, str]:
    """Returns torchvision's names of a model's parameters, by Gluon's. The model has a name map."""
    name_map = find_name_map(model)
    assert name_map
    layers = name_map.layers(model) if name_map.layers else None
    names = {}
    for parameter in parameters:
        layer, leaf = parameter.rsplit(".", 1)
        theirs = layers[layer] if layers else layer
        names[parameter] = f"{theirs}.{_LEAVES.get(leaf, leaf)}"
    return names


def normalize_names(name_map: NameMap, names: list[str]) -> dict[str, str]:
    """Returns torchvision's names, by those in a file; an unknown name stays as it is."""
    spellings = name_map.spellings() if name_map.spellings else {}
    normalized = {}
    for name in names:
        layer, dot, leaf = name.rpartition(".")
        normalized[name] = f"{spellings.get(layer, layer)}{dot}{leaf}"
    return normalized


def _resnet_v1(model: str) -> Layers:
    """Lists basic blocks. Gluon's bottlenecks have the stride in another layer, and biases."""
    layers = {"features.0": "conv1", "features.1": "bn1"}
    parts = {
        "body.0": "conv1",
        "body.1": "bn1",
        "body.3": "conv2",
        "body.4": "bn2",
        "downsample.0": "downsample.0",
        "downsample.1": "downsample.1",
    }
    for stage, block, (ours, theirs) in product(range(1, 5), range(6), parts.items()):
        layers[f"features.{stage + 3}.{block}.{ours}"] = f"layer{stage}.{block}.{theirs}"
    return layers


def _alexnet(model: str) -> Layers:
    """Torchvision counts the activations too, and has its dense layers in `classifier`."""
    convolutions = {0: 0, 2: 3, 4: 6, 5: 8, 6: 10}
    layers = {f"features.{ours}": f"features.{theirs}" for ours, theirs in convolutions.items()}
    return {**layers, "features.9": "classifier.1", "features.11": "classifier.4"}


def _vgg(model: str) -> Layers:
    """Both count every layer of the convolutional part, with five poolings at the end of blocks."""
    convolutions = int(model[3:5]) - 3
    dense = (3 if model.endswith("_bn") else 2) * convolutions + 5
    layers = {f"features.{number}": f"features.{number}" for number in range(dense)}
    return {
        **layers,
        f"features.{dense}": "classifier.0",
        f"features.{dense + 2}": "classifier.3",
    }


def _vgg_spellings() -> Layers:
    return {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3"}


def _squeezenet(model: str) -> Layers:
    layers = {"features.0": "features.0"}
    parts = {"0.0": "squeeze", "1.0.0": "expand1x1", "1.1.0": "expand3x3"}
    for number, (ours, theirs) in product(range(3, 13), parts.items()):
        layers[f"features.{number}.{ours}"] = f"features.{number}.{theirs}"
    return layers


def _densenet(model: str) -> Layers:
    """Dense blocks are layers 4, 6, 8 and 10; a transition follows each but the last."""
    layers = {
        "features.0": "features.conv0",
        "features.1": "features.norm0",
        "features.11": "features.norm5",
    }
    parts = {"1.0": "norm1", "1.2": "conv1", "1.3": "norm2", "1.5": "conv2"}
    for block in range(1, 5):
        number, theirs = 2 * block + 2, f"features.denseblock{block}"
        for layer, (ours, part) in product(range(48), parts.items()):
            layers[f"features.{number}.{layer}.{ours}"] = f"{theirs}.denselayer{layer + 1}.{part}"
        if block < 4:
            layers[f"features.{number + 1}.0"] = f"features.transition{block}.norm"
            layers[f"features.{number + 1}.2"] = f"features.transition{block}.conv"
    return layers


def _densenet_spellings() -> Layers:
    """Lists the names in the files that torchvision still distributes."""
    theirs = [name for name in _densenet("").values() if "denselayer" in name]
    return {f"{name[:-1]}.{name[-1]}": name for name in theirs}


def _inception(model: str) -> Layers:
    """Each unit is a convolution and its batch norm."""
    stem = {0: "1a_3x3", 1: "2a_3x3", 2: "2b_3x3", 4: "3b_1x1", 5: "4a_3x3"}
    units = {f"features.{number}": f"Conv2d_{name}" for number, name in stem.items()}
    pool = {"3.1": "branch_pool"}
    mixed_a = {
        "0.0": "branch1x1",
        **{f"1.{number}": f"branch5x5_{number + 1}" for number in range(2)},
        **{f"2.{number}": f"branch3x3dbl_{number + 1}" for number in range(3)},
        **pool,
    }
    mixed_b = {
        "0.0": "branch3x3",
        **{f"1.{number}": f"branch3x3dbl_{number + 1}" for number in range(3)},
    }
    mixed_c = {
        "0.0": "branch1x1",
        **{f"1.{number}": f"branch7x7_{number + 1}" for number in range(3)},
        **{f"2.{number}": f"branch7x7dbl_{number + 1}" for number in range(5)},
        **pool,
    }
    mixed_d = {
        **{f"0.{number}": f"branch3x3_{number + 1}" for number in range(2)},
        **{f"1.{number}": f"branch7x7x3_{number + 1}" for number in range(4)},
    }
    mixed_e = {
        "0.0": "branch1x1",
        "1.0.0": "branch3x3_1",
        "1.1.0.0": "branch3x3_2a",
        "1.1.1.0": "branch3x3_2b",
        "2.0.0": "branch3x3dbl_1",
        "2.0.1": "branch3x3dbl_2",
        "2.1.0.0": "branch3x3dbl_3a",
        "2.1.1.0": "branch3x3dbl_3b",
        **pool,
    }
    blocks = {
        **dict.fromkeys(["5b", "5c", "5d"], mixed_a),
        "6a": mixed_b,
        **dict.fromkeys(["6b", "6c", "6d", "6e"], mixed_c),
        "7a": mixed_d,
        **dict.fromkeys(["7b", "7c"], mixed_e),
    }
    for number, (block, branches) in enumerate(blocks.items(), 7):
        for ours, theirs in branches.items():
            units[f"features.{number}.{ours}"] = f"Mixed_{block}.{theirs}"
    layers = {f"{ours}.0": f"{theirs}.conv" for ours, theirs in units.items()}
    return {**layers, **{f"{ours}.1": f"{theirs}.bn" for ours, theirs in units.items()}}


def _mobilenet_v2(model: str) -> Layers:
    """Every block begins with an expansion, except the first one of torchvision's network."""
    layers = {
        "features.0": "features.0.0",
        "features.1": "features.0.1",
        "features.20": "features.18.0",
        "features.21": "features.18.1",
    }
    first = {3: "0.0", 4: "0.1", 6: "1", 7: "2"}
    others = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
    for block in range(1, 18):
        for ours, theirs in (first if block == 1 else others).items():
            layers[f"features.{block + 2}.out.{ours}"] = f"features.{block}.conv.{theirs}"
    return layers


def _mobilenet_v2_spellings() -> Layers:
    """Lists timm's names; its blocks are grouped in stages of these lengths."""
    spellings = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": "features.18.0",
        "bn2": "features.18.1",
    }
    first = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
    others = {
        **{"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1"},
        **{"conv_pwl": "2", "bn3": "3"},
    }
    block = 0
    for stage, length in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for number in range(length):
            block += 1
            for timms, theirs in (first if block == 1 else others).items():
                spellings[f"blocks.{stage}.{number}.{timms}"] = f"features.{block}.conv.{theirs}"
    return spellings


_NAME_MAPS = (
    # gluoncv uses torchvision's names; c, d and s are timm's gluon_resnet*.
    NameMap(
        r"resnet(18|34|50|101|152)_v1b|resnet(50|101|152)_v1[cds]", ("fc.",), takes_any_size=True
    ),
    NameMap(r"resnet(18|34)_v1", ("fc.",), takes_any_size=True, layers=_resnet_v1),
    NameMap(r"alexnet", ("classifier.6.",), None, layers=_alexnet),
    NameMap(
        r"vgg(11|13|16|19)(_bn)?",
        ("classifier.6.", "head.fc."),
        None,
        layers=_vgg,
        spellings=_vgg_spellings,
    ),
    NameMap(
        r"squeezenet1\.[01]", ("classifier.1.",), "none", takes_any_size=True, layers=_squeezenet
    ),
    NameMap(
        r"densenet(121|161|169|201)",
        ("classifier.",),
        layers=_densenet,
        spellings=_densenet_spellings,
    ),
    NameMap(r"inceptionv3", ("fc.", "AuxLogits."), layers=_inception),
    NameMap(
        r"mobilenet_v2",
        ("classifier.1.", "classifier."),
        takes_any_size=True,
        layers=_mobilenet_v2,
        spellings=_mobilenet_v2_spellings,
    ),
)
