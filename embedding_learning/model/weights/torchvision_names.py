"""Which layer of torchvision's or timm's classifiers is which layer of Gluon's, by structure.

For each family of networks a function below lists its layers, Gluon's name of each and
torchvision's. A list may hold more layers than a network has; the network's own decide.
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


class Family(NamedTuple):
    """Networks whose structure is that of torchvision's.

    Attributes
    ----------
    models : str
        A pattern of their names in Gluon or gluoncv.
    heads : tuple of str
        What the names of parameters begin with that come after the features, in torchvision and
        in timm.
    layers : callable, optional
        From a model's name to its layers, by Gluon's name. None: the names are the same.
    spellings : callable, optional
        The layers that timm or earlier versions of torchvision name otherwise, by that name.
    """

    models: str
    heads: tuple[str, ...]
    layers: Callable[[str], Layers] | None = None
    spellings: Callable[[], Layers] | None = None


def family_of(model: str) -> Family | None:
    """None if torchvision has no network of this structure."""
    return next((family for family in _FAMILIES if re.fullmatch(family.models, model)), None)


def torch_names(model: str, parameters: list[str]) -> dict[str, str]:
    """Torchvision's names, by Gluon's, of parameters of a model that has a family."""
    family = family_of(model)
    assert family
    layers = family.layers(model) if family.layers else None
    names = {}
    for parameter in parameters:
        layer, leaf = parameter.rsplit(".", 1)
        theirs = layers[layer] if layers else layer
        names[parameter] = f"{theirs}.{_LEAVES.get(leaf, leaf)}"
    return names


def in_torchvision_spelling(family: Family, names: list[str]) -> dict[str, str]:
    """Torchvision's names, by those in a file; what is not known stays as it is."""
    spellings = family.spellings() if family.spellings else {}
    spelled = {}
    for name in names:
        layer, dot, leaf = name.rpartition(".")
        spelled[name] = f"{spellings.get(layer, layer)}{dot}{leaf}"
    return spelled


def _resnet_v1(model: str) -> Layers:
    """Gluon's basic blocks; its bottlenecks have the stride elsewhere, and biases."""
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
    """Torchvision counts the activations, and has its dense layers apart."""
    convolutions = {0: 0, 2: 3, 4: 6, 5: 8, 6: 10}
    layers = {f"features.{ours}": f"features.{theirs}" for ours, theirs in convolutions.items()}
    return {**layers, "features.9": "classifier.1", "features.11": "classifier.4"}


def _vgg(model: str) -> Layers:
    """Both count every layer of the convolutional part; the dense layers follow five poolings."""
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
    """Dense blocks at 4, 6, 8 and 10, a transition behind each but the last."""
    layers = {
        "features.0": "features.conv0",
        "features.1": "features.norm0",
        "features.11": "features.norm5",
    }
    parts = {"1.0": "norm1", "1.2": "conv1", "1.3": "norm2", "1.5": "conv2"}
    for block in range(1, 5):
        place, theirs = 2 * block + 2, f"features.denseblock{block}"
        for layer, (ours, part) in product(range(48), parts.items()):
            layers[f"features.{place}.{layer}.{ours}"] = f"{theirs}.denselayer{layer + 1}.{part}"
        if block < 4:
            layers[f"features.{place + 1}.0"] = f"features.transition{block}.norm"
            layers[f"features.{place + 1}.2"] = f"features.transition{block}.conv"
    return layers


def _densenet_spellings() -> Layers:
    """As the files are that torchvision still distributes."""
    theirs = [name for name in _densenet("").values() if "denselayer" in name]
    return {f"{name[:-1]}.{name[-1]}": name for name in theirs}


def _inception(model: str) -> Layers:
    """Each layer is a convolution and its batch norm."""
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
    for place, (block, branches) in enumerate(blocks.items(), 7):
        for ours, theirs in branches.items():
            units[f"features.{place}.{ours}"] = f"Mixed_{block}.{theirs}"
    layers = {f"{ours}.0": f"{theirs}.conv" for ours, theirs in units.items()}
    return {**layers, **{f"{ours}.1": f"{theirs}.bn" for ours, theirs in units.items()}}


def _mobilenet_v2(model: str) -> Layers:
    """Both blocks begin with an expansion, but torchvision's first, which Gluon's has."""
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
    """timm's, whose blocks stand in stages of these lengths."""
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


_FAMILIES = (
    # gluoncv took torchvision's names over; c, d and s are timm's gluon_resnet*.
    Family(r"resnet(18|34|50|101|152)_v1b|resnet(50|101|152)_v1[cds]", ("fc.",)),
    Family(r"resnet(18|34)_v1", ("fc.",), _resnet_v1),
    Family(r"alexnet", ("classifier.6.",), _alexnet),
    Family(r"vgg(11|13|16|19)(_bn)?", ("classifier.6.", "head.fc."), _vgg, _vgg_spellings),
    Family(r"squeezenet1\.[01]", ("classifier.1.",), _squeezenet),
    Family(r"densenet(121|161|169|201)", ("classifier.",), _densenet, _densenet_spellings),
    Family(r"inceptionv3", ("fc.", "AuxLogits."), _inception),
    Family(r"mobilenet_v2", ("classifier.",), _mobilenet_v2, _mobilenet_v2_spellings),
)
