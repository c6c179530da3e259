"""The table of backbones: their names, their sizes, and where their ImageNet weights are.

Imports nothing that takes time, so that names and sizes are known before MXNet is imported.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

# Mean and standard deviation of ImageNet's pixels in [0, 1], by channel. The weights of the model
# zoos were trained with them.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class Architecture(NamedTuple):
    """A classifier without its last layer.

    Attributes
    ----------
    parameters : int
        The number of parameters that are learned.
    features : int
        The number of inputs of the embedding layer for an image of the crop size.
    crop_size : int
        Pixels per side of the square image that the network was designed for.
    family : str
        The module in `model.families` that builds it.
    zoo : str
        The model zoo that has ImageNet weights: "mxnet", "gluoncv", or "" for neither.
    """

    parameters: int
    features: int
    crop_size: int
    family: str
    zoo: str = ""


# Gluon's model zoo, which has ImageNet weights of all its networks.
# name: (parameters, features, crop size)
_GLUON = {
    "alexnet": (57003840, 4096, 224),
    "densenet121": (6953856, 1024, 224),
    "densenet161": (26472000, 2208, 224),
    "densenet169": (12484480, 1664, 224),
    "densenet201": (18092928, 1920, 224),
    "inceptionv3": (21785568, 2048, 299),
    "mobilenet1.0": (3206976, 1024, 224),
    "mobilenet0.75": (1816560, 768, 224),
    "mobilenet0.5": (818592, 512, 224),
    "mobilenet0.25": (213072, 256, 224),
    "mobilenetv2_1.0": (2224960, 1280, 224),
    "mobilenetv2_0.75": (1347592, 1280, 224),
    "mobilenetv2_0.5": (684736, 1280, 224),
    "mobilenetv2_0.25": (236392, 1280, 224),
    "resnet18_v1": (11176512, 512, 224),
    "resnet34_v1": (21284672, 512, 224),
    "resnet50_v1": (23526912, 2048, 224),
    "resnet101_v1": (42540800, 2048, 224),
    "resnet152_v1": (58203648, 2048, 224),
    "resnet18_v2": (11174848, 512, 224),
    "resnet34_v2": (21283008, 512, 224),
    "resnet50_v2": (23500480, 2048, 224),
    "resnet101_v2": (42492608, 2048, 224),
    "resnet152_v2": (58136256, 2048, 224),
    "squeezenet1.0": (735424, 86528, 224),
    "squeezenet1.1": (722496, 86528, 224),
    "vgg11": (128766336, 4096, 224),
    "vgg11_bn": (128771840, 4096, 224),
    "vgg13": (128950848, 4096, 224),
    "vgg13_bn": (128956736, 4096, 224),
    "vgg16": (134260544, 4096, 224),
    "vgg16_bn": (134268992, 4096, 224),
    "vgg19": (139570240, 4096, 224),
    "vgg19_bn": (139581248, 4096, 224),
}
# gluoncv's model zoo.
# name: (parameters, features, crop size, whether the zoo has ImageNet weights)
_GLUONCV = {
    "resnest14": (8562688, 2048, 224, True),
    "resnest26": (15020448, 2048, 224, True),
    "resnest50": (25434240, 2048, 224, True),
    "resnest101": (46226016, 2048, 256, True),
    "resnest200": (68152544, 2048, 320, True),
    "resnest269": (108880480, 2048, 416, True),
    "se_resnet18_v1": (11263552, 512, 224, False),
    "se_resnet34_v1": (21441856, 512, 224, False),
    "se_resnet50_v1": (26041856, 2048, 224, False),
    "se_resnet101_v1": (47283968, 2048, 224, False),
    "se_resnet152_v1": (64781824, 2048, 224, False),
    "se_resnet18_v2": (11261888, 512, 224, False),
    "se_resnet34_v2": (21440192, 512, 224, False),
    "se_resnet50_v2": (26015424, 2048, 224, False),
    "se_resnet101_v2": (47235776, 2048, 224, False),
    "se_resnet152_v2": (64714432, 2048, 224, False),
    "shufflenet_v1": (865554, 960, 224, False),
    "shufflenet_v2": (1253604, 1024, 224, False),
    "googlenet": (5599904, 1024, 224, True),
    "xception": (37867312, 2048, 299, True),
    "xception71": (40220872, 2048, 299, False),
    "mobilenetv3_large": (4200752, 1280, 224, True),
    "mobilenetv3_small": (1664288, 1280, 224, True),
    "resnet18_v1b": (11176512, 512, 224, True),
    "resnet34_v1b": (21284672, 512, 224, True),
    "resnet50_v1b": (23508032, 2048, 224, True),
    "resnet101_v1b": (42500160, 2048, 224, True),
    "resnet152_v1b": (58143808, 2048, 224, True),
    "resnet50_v1c": (23527264, 2048, 224, True),
    "resnet101_v1c": (42519392, 2048, 224, True),
    "resnet152_v1c": (58163040, 2048, 224, True),
    "resnet50_v1d": (23527264, 2048, 224, True),
    "resnet101_v1d": (42519392, 2048, 224, True),
    "resnet152_v1d": (58163040, 2048, 224, True),
    "resnet50_v1e": (23631808, 2048, 224, False),
    "resnet101_v1e": (42623936, 2048, 224, False),
    "resnet152_v1e": (58267584, 2048, 224, False),
    "resnet50_v1s": (23631808, 2048, 224, True),
    "resnet101_v1s": (42623936, 2048, 224, True),
    "resnet152_v1s": (58267584, 2048, 224, True),
    "resnext50_32x4d": (22979904, 2048, 224, True),
    "resnext101_32x4d": (42128704, 2048, 224, True),
    "resnext101_64x4d": (81406272, 2048, 224, True),
    "resnext101e_64x4d": (81542336, 2048, 224, False),
    "se_resnext50_32x4d": (25510896, 2048, 224, True),
    "se_resnext101_32x4d": (46906416, 2048, 224, True),
    "se_resnext101_64x4d": (86183984, 2048, 224, True),
    "se_resnext101e_64x4d": (86320048, 2048, 224, False),
    "senet_154": (113039984, 2048, 224, True),
    "senet_154e": (91019888, 2048, 224, False),
    "darknet53": (40584928, 1024, 224, True),
    "nasnet_4_1056": (4246930, 1056, 224, False),
    "nasnet_5_1538": (10726416, 1536, 224, False),
    "nasnet_7_1920": (22692292, 1920, 224, False),
    "nasnet_6_4032": (84720150, 4032, 331, False),
    "residualattentionnet56": (29761728, 2048, 224, False),
    "residualattentionnet92": (50417344, 2048, 224, False),
    "residualattentionnet128": (63245504, 2048, 224, False),
    "residualattentionnet164": (76073664, 2048, 224, False),
    "residualattentionnet200": (88901824, 2048, 224, False),
    "residualattentionnet236": (101729984, 2048, 224, False),
    "residualattentionnet452": (180236224, 2048, 224, False),
    "resnet18_v1b_0.89": (9931592, 512, 224, True),
    "resnet50_v1d_0.86": (19993360, 2048, 224, True),
    "resnet50_v1d_0.48": (10495200, 1920, 224, True),
    "resnet50_v1d_0.37": (8137560, 1336, 224, True),
    "resnet50_v1d_0.11": (2128616, 784, 224, True),
    "resnet101_v1d_0.76": (32050320, 2048, 224, True),
    "resnet101_v1d_0.73": (30718800, 2048, 224, True),
    "hrnet_w18_c": (19250004, 2048, 224, True),
    "hrnet_w18_small_v1_c": (11138464, 2048, 224, True),
    "hrnet_w18_small_v2_c": (13548464, 2048, 224, True),
    "hrnet_w30_c": (35663220, 2048, 224, True),
    "hrnet_w32_c": (39183680, 2048, 224, True),
    "hrnet_w40_c": (55508160, 2048, 224, True),
    "hrnet_w44_c": (65015984, 2048, 224, True),
    "hrnet_w48_c": (75420864, 2048, 224, True),
    "hrnet_w64_c": (126010944, 2048, 224, True),
    "dla34": (15229104, 1008, 224, True),
}
ARCHITECTURES = {
    **{name: Architecture(*row, family="gluon", zoo="mxnet") for name, row in _GLUON.items()},
    "mobilenet_v2": Architecture(2223872, 1280, 224, family="mobilenet_v2"),
    **{
        name: Architecture(*row[:3], family="gluoncv", zoo="gluoncv" if row[3] else "")
        for name, row in _GLUONCV.items()
    },
    # A family of your own: a row for each network, as that of mobilenet_v2.
}
GLUON_NAMES = tuple(_GLUON)

# torchvision's names of the same architecture, where they differ. Its ResNets have the stride in
# the 3x3 convolution, as gluoncv's v1b and not as Gluon's v1. Its MobileNet v2 has no expansion in
# the first block, so it is a network of its own.
TORCHVISION_NAMES = {
    "inception_v3": "inceptionv3",
    "mobilenet_v2": "mobilenet_v2",
    "squeezenet1_0": "squeezenet1.0",
    "squeezenet1_1": "squeezenet1.1",
    **{f"resnet{depth}": f"resnet{depth}_v1b" for depth in (18, 34, 50, 101, 152)},
}
# torchvision's files of ImageNet weights, the first ones of each network.
_TORCHVISION_FOLDER = "https://download.pytorch.org/models/"
_TORCHVISION_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "densenet121": "densenet121-a639ec97.pth",
    "densenet161": "densenet161-8d451a50.pth",
    "densenet169": "densenet169-b2777c0a.pth",
    "densenet201": "densenet201-c1103571.pth",
    "inceptionv3": "inception_v3_google-0cc3c7bd.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "resnet18_v1": "resnet18-f37072fd.pth",
    "resnet34_v1": "resnet34-b627a593.pth",
    "resnet18_v1b": "resnet18-f37072fd.pth",
    "resnet34_v1b": "resnet34-b627a593.pth",
    "resnet50_v1b": "resnet50-0676ba61.pth",
    "resnet101_v1b": "resnet101-63fe2227.pth",
    "resnet152_v1b": "resnet152-394f9c45.pth",
    "squeezenet1.0": "squeezenet1_0-b66bff10.pth",
    "squeezenet1.1": "squeezenet1_1-b8a52dc0.pth",
    "vgg11": "vgg11-8a719046.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
}

# The side of the crop divided by the side of the resized image.
_CROP_SHARE = 0.875


def resolve_name(name: str) -> str | None:
    """Returns the name in Gluon or gluoncv of a backbone; None if the name is unknown.

    `name` may also be torchvision's, in upper or lower case.
    """
    name = TORCHVISION_NAMES.get(name.lower(), name.lower())
    return name if name in ARCHITECTURES else None


def suggest_names(name: str) -> list[str]:
    """Returns the four known names that are most similar to an unknown one."""
    names = [*ARCHITECTURES, *TORCHVISION_NAMES]
    return difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.0)


def default_sizes(name: str) -> tuple[int, int]:
    """Returns the sides in pixels of the resized image and of the crop; both are squares."""
    resolved = resolve_name(name)
    crop_size = ARCHITECTURES[resolved].crop_size if resolved else 224
    return round(crop_size / _CROP_SHARE), crop_size


def pytorch_network(name: str) -> tuple[str, str]:
    """Returns the library of PyTorch that has a network, and its name there.

    `name` is Gluon's or gluoncv's, of a network that has a name map. torchvision has all of them
    but the ResNets v1c, v1d and v1s, which timm has.
    """
    if match := re.fullmatch(r"(resnet\d+)_v1([cds]?)", name):
        return "timm" if match[2] else "torchvision", f"{match[1]}{match[2]}"
    theirs = {ours: name for name, ours in TORCHVISION_NAMES.items()}
    return "torchvision", theirs.get(name, name)


def torchvision_url(name: str) -> str | None:
    """Returns the URL of torchvision's weights, by Gluon's or gluoncv's name; None if none."""
    file = _TORCHVISION_FILES.get(name)
    return f"{_TORCHVISION_FOLDER}{file}" if file else None


def format_table() -> str:
    """Returns a table of all backbones for the terminal, one per line."""
    lines = [f"{'name':24}{'parameters':>11}{'features':>9}{'pixels':>7}  ImageNet weights"]
    for name in sorted({*ARCHITECTURES, *TORCHVISION_NAMES}):
        resolved = TORCHVISION_NAMES.get(name, name)
        row = ARCHITECTURES[resolved]
        sources = [{"mxnet": "Gluon's zoo", "gluoncv": "gluoncv's zoo", "": ""}[row.zoo]]
        sources.append(_TORCHVISION_FILES.get(resolved, ""))
        weights = ", ".join(source for source in sources if source) or "none known"
        size = f"{row.parameters / 1e6:.1f}M"
        lines.append(f"{name:24}{size:>11}{row.features:9d}{row.crop_size:7d}  {weights}")
    return "\n".join(lines)
