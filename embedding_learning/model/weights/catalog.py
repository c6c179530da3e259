"""The backbones there are: their names, sizes and where weights of them are kept.

Imports nothing heavy, so that names and sizes are known before MXNet is.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

# Mean and standard deviation of ImageNet's pixels, by channel, of 1: what the weights of the model
# zoos were trained with.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class Architecture(NamedTuple):
    """A classifier of Gluon's or gluoncv's model zoo, less its last layer.

    Attributes
    ----------
    parameters : int
        Of the features, all that learn.
    features : int
        What the embedding layer takes of an image of the crop size.
    crop_size : int
        Pixels of the square it was designed for.
    zoo : str
        Where ImageNet weights are kept: "mxnet", "gluoncv", or "" for neither.
    """

    parameters: int
    features: int
    crop_size: int
    zoo: str


_TABLE = {
    "alexnet": (57003840, 4096, 224, "mxnet"),
    "densenet121": (6953856, 1024, 224, "mxnet"),
    "densenet161": (26472000, 2208, 224, "mxnet"),
    "densenet169": (12484480, 1664, 224, "mxnet"),
    "densenet201": (18092928, 1920, 224, "mxnet"),
    "inceptionv3": (21785568, 2048, 299, "mxnet"),
    "mobilenet1.0": (3206976, 1024, 224, "mxnet"),
    "mobilenet0.75": (1816560, 768, 224, "mxnet"),
    "mobilenet0.5": (818592, 512, 224, "mxnet"),
    "mobilenet0.25": (213072, 256, 224, "mxnet"),
    "mobilenetv2_1.0": (2224960, 1280, 224, "mxnet"),
    "mobilenetv2_0.75": (1347592, 1280, 224, "mxnet"),
    "mobilenetv2_0.5": (684736, 1280, 224, "mxnet"),
    "mobilenetv2_0.25": (236392, 1280, 224, "mxnet"),
    "resnet18_v1": (11176512, 512, 224, "mxnet"),
    "resnet34_v1": (21284672, 512, 224, "mxnet"),
    "resnet50_v1": (23526912, 2048, 224, "mxnet"),
    "resnet101_v1": (42540800, 2048, 224, "mxnet"),
    "resnet152_v1": (58203648, 2048, 224, "mxnet"),
    "resnet18_v2": (11174848, 512, 224, "mxnet"),
    "resnet34_v2": (21283008, 512, 224, "mxnet"),
    "resnet50_v2": (23500480, 2048, 224, "mxnet"),
    "resnet101_v2": (42492608, 2048, 224, "mxnet"),
    "resnet152_v2": (58136256, 2048, 224, "mxnet"),
    "squeezenet1.0": (735424, 86528, 224, "mxnet"),
    "squeezenet1.1": (722496, 86528, 224, "mxnet"),
    "vgg11": (128766336, 4096, 224, "mxnet"),
    "vgg11_bn": (128771840, 4096, 224, "mxnet"),
    "vgg13": (128950848, 4096, 224, "mxnet"),
    "vgg13_bn": (128956736, 4096, 224, "mxnet"),
    "vgg16": (134260544, 4096, 224, "mxnet"),
    "vgg16_bn": (134268992, 4096, 224, "mxnet"),
    "vgg19": (139570240, 4096, 224, "mxnet"),
    "vgg19_bn": (139581248, 4096, 224, "mxnet"),
    "mobilenet_v2": (2223872, 1280, 224, ""),
    "resnest14": (8562688, 2048, 224, "gluoncv"),
    "resnest26": (15020448, 2048, 224, "gluoncv"),
    "resnest50": (25434240, 2048, 224, "gluoncv"),
    "resnest101": (46226016, 2048, 256, "gluoncv"),
    "resnest200": (68152544, 2048, 320, "gluoncv"),
    "resnest269": (108880480, 2048, 416, "gluoncv"),
    "se_resnet18_v1": (11263552, 512, 224, ""),
    "se_resnet34_v1": (21441856, 512, 224, ""),
    "se_resnet50_v1": (26041856, 2048, 224, ""),
    "se_resnet101_v1": (47283968, 2048, 224, ""),
    "se_resnet152_v1": (64781824, 2048, 224, ""),
    "se_resnet18_v2": (11261888, 512, 224, ""),
    "se_resnet34_v2": (21440192, 512, 224, ""),
    "se_resnet50_v2": (26015424, 2048, 224, ""),
    "se_resnet101_v2": (47235776, 2048, 224, ""),
    "se_resnet152_v2": (64714432, 2048, 224, ""),
    "shufflenet_v1": (865554, 960, 224, ""),
    "shufflenet_v2": (1253604, 1024, 224, ""),
    "googlenet": (5599904, 1024, 224, "gluoncv"),
    "xception": (37867312, 2048, 299, "gluoncv"),
    "xception71": (40220872, 2048, 299, ""),
    "mobilenetv3_large": (4200752, 1280, 224, "gluoncv"),
    "mobilenetv3_small": (1664288, 1280, 224, "gluoncv"),
    "resnet18_v1b": (11176512, 512, 224, "gluoncv"),
    "resnet34_v1b": (21284672, 512, 224, "gluoncv"),
    "resnet50_v1b": (23508032, 2048, 224, "gluoncv"),
    "resnet101_v1b": (42500160, 2048, 224, "gluoncv"),
    "resnet152_v1b": (58143808, 2048, 224, "gluoncv"),
    "resnet50_v1c": (23527264, 2048, 224, "gluoncv"),
    "resnet101_v1c": (42519392, 2048, 224, "gluoncv"),
    "resnet152_v1c": (58163040, 2048, 224, "gluoncv"),
    "resnet50_v1d": (23527264, 2048, 224, "gluoncv"),
    "resnet101_v1d": (42519392, 2048, 224, "gluoncv"),
    "resnet152_v1d": (58163040, 2048, 224, "gluoncv"),
    "resnet50_v1e": (23631808, 2048, 224, ""),
    "resnet101_v1e": (42623936, 2048, 224, ""),
    "resnet152_v1e": (58267584, 2048, 224, ""),
    "resnet50_v1s": (23631808, 2048, 224, "gluoncv"),
    "resnet101_v1s": (42623936, 2048, 224, "gluoncv"),
    "resnet152_v1s": (58267584, 2048, 224, "gluoncv"),
    "resnext50_32x4d": (22979904, 2048, 224, "gluoncv"),
    "resnext101_32x4d": (42128704, 2048, 224, "gluoncv"),
    "resnext101_64x4d": (81406272, 2048, 224, "gluoncv"),
    "resnext101e_64x4d": (81542336, 2048, 224, ""),
    "se_resnext50_32x4d": (25510896, 2048, 224, "gluoncv"),
    "se_resnext101_32x4d": (46906416, 2048, 224, "gluoncv"),
    "se_resnext101_64x4d": (86183984, 2048, 224, "gluoncv"),
    "se_resnext101e_64x4d": (86320048, 2048, 224, ""),
    "senet_154": (113039984, 2048, 224, "gluoncv"),
    "senet_154e": (91019888, 2048, 224, ""),
    "darknet53": (40584928, 1024, 224, "gluoncv"),
    "nasnet_4_1056": (4246930, 1056, 224, ""),
    "nasnet_5_1538": (10726416, 1536, 224, ""),
    "nasnet_7_1920": (22692292, 1920, 224, ""),
    "nasnet_6_4032": (84720150, 4032, 331, ""),
    "residualattentionnet56": (29761728, 2048, 224, ""),
    "residualattentionnet92": (50417344, 2048, 224, ""),
    "residualattentionnet128": (63245504, 2048, 224, ""),
    "residualattentionnet164": (76073664, 2048, 224, ""),
    "residualattentionnet200": (88901824, 2048, 224, ""),
    "residualattentionnet236": (101729984, 2048, 224, ""),
    "residualattentionnet452": (180236224, 2048, 224, ""),
    "resnet18_v1b_0.89": (9931592, 512, 224, "gluoncv"),
    "resnet50_v1d_0.86": (19993360, 2048, 224, "gluoncv"),
    "resnet50_v1d_0.48": (10495200, 1920, 224, "gluoncv"),
    "resnet50_v1d_0.37": (8137560, 1336, 224, "gluoncv"),
    "resnet50_v1d_0.11": (2128616, 784, 224, "gluoncv"),
    "resnet101_v1d_0.76": (32050320, 2048, 224, "gluoncv"),
    "resnet101_v1d_0.73": (30718800, 2048, 224, "gluoncv"),
    "hrnet_w18_c": (19250004, 2048, 224, "gluoncv"),
    "hrnet_w18_small_v1_c": (11138464, 2048, 224, "gluoncv"),
    "hrnet_w18_small_v2_c": (13548464, 2048, 224, "gluoncv"),
    "hrnet_w30_c": (35663220, 2048, 224, "gluoncv"),
    "hrnet_w32_c": (39183680, 2048, 224, "gluoncv"),
    "hrnet_w40_c": (55508160, 2048, 224, "gluoncv"),
    "hrnet_w44_c": (65015984, 2048, 224, "gluoncv"),
    "hrnet_w48_c": (75420864, 2048, 224, "gluoncv"),
    "hrnet_w64_c": (126010944, 2048, 224, "gluoncv"),
    "dla34": (15229104, 1008, 224, "gluoncv"),
}
ARCHITECTURES = {name: Architecture(*row) for name, row in _TABLE.items()}
GLUON_NAMES = tuple(name for name, found in ARCHITECTURES.items() if found.zoo == "mxnet")

# torchvision's spelling where it differs, with the same architecture. Its ResNets put the stride
# into the 3x3 convolution, which is gluoncv's v1b and not Gluon's v1. Its MobileNet v2 has no
# expansion in the first block: a network of its own.
TORCHVISION_NAMES = {
    "inception_v3": "inceptionv3",
    "mobilenet_v2": "mobilenet_v2",
    "squeezenet1_0": "squeezenet1.0",
    "squeezenet1_1": "squeezenet1.1",
    **{f"resnet{depth}": f"resnet{depth}_v1b" for depth in (18, 34, 50, 101, 152)},
}
# torchvision's files of ImageNet weights, its first of each network.
_TORCHVISION_ADDRESS = "https://download.pytorch.org/models/"
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

# The share of an image's side that is cropped out of it.
_CROPPED = 0.875


def resolve_name(name: str) -> str | None:
    """As Gluon or gluoncv spells a name, given in any case; None if there is no such backbone."""
    name = TORCHVISION_NAMES.get(name.lower(), name.lower())
    return name if name in ARCHITECTURES else None


def suggest_names(name: str) -> list[str]:
    """The known names that are most like an unknown one."""
    names = [*ARCHITECTURES, *TORCHVISION_NAMES]
    return difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.0)


def default_sizes(name: str) -> tuple[int, int]:
    """Pixels of the square that an image is resized to, and of the one that is cut out of it."""
    found = resolve_name(name)
    crop_size = ARCHITECTURES[found].crop_size if found else 224
    return round(crop_size / _CROPPED), crop_size


def torchvision_file(name: str) -> str | None:
    """The address of torchvision's weights, by Gluon's or gluoncv's name."""
    file = _TORCHVISION_FILES.get(name)
    return f"{_TORCHVISION_ADDRESS}{file}" if file else None


def format_table() -> str:
    """All backbones, a line each."""
    lines = [f"{'name':24}{'parameters':>11}{'features':>9}{'pixels':>7}  ImageNet weights"]
    for name in sorted({*ARCHITECTURES, *TORCHVISION_NAMES}):
        own = TORCHVISION_NAMES.get(name, name)
        found = ARCHITECTURES[own]
        sources = [{"mxnet": "Gluon's zoo", "gluoncv": "gluoncv's zoo", "": ""}[found.zoo]]
        sources.append(_TORCHVISION_FILES.get(own, ""))
        told = ", ".join(source for source in sources if source) or "none known"
        size = f"{found.parameters / 1e6:.1f}M"
        lines.append(f"{name:24}{size:>11}{found.features:9d}{found.crop_size:7d}  {told}")
    return "\n".join(lines)
