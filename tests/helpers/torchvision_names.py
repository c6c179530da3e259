"""The parameters of torchvision's classifiers, names and shapes, written down from its networks.

Each function lists one network layer by layer, as torchvision builds it. Imports nothing of this
program, nor PyTorch.
"""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

RESNETS = {
    18: (1, (2, 2, 2, 2)),
    34: (1, (3, 4, 6, 3)),
    50: (4, (3, 4, 6, 3)),
    101: (4, (3, 4, 23, 3)),
    152: (4, (3, 8, 36, 3)),
}
VGGS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
DENSENETS = {
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
    201: (32, 64, (6, 12, 48, 32)),
}


def names_of(name: str) -> Shapes:
    """All parameters and statistics of a network, by torchvision's name of it."""
    if name.startswith("resnet"):
        return resnet(*RESNETS[int(name[6:])])
    if name.startswith("vgg"):
        return vgg(VGGS[int(name[3:5])], name.endswith("_bn"))
    if name.startswith("densenet"):
        return densenet(*DENSENETS[int(name[8:])])
    return {
        "alexnet": alexnet,
        "squeezenet1_0": lambda: squeezenet(96, 7, (3, 4, 5, 7, 8, 9, 10, 12)),
        "squeezenet1_1": lambda: squeezenet(64, 3, (3, 4, 6, 7, 9, 10, 11, 12)),
        "inception_v3": inception,
        "mobilenet_v2": mobilenet_v2,
    }[name]()


def norm(name: str, channels: int) -> Shapes:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{leaf}": (channels,) for leaf in leaves}, f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def biased(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def resnet(expansion: int, depths: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for stage, depth in enumerate(depths, 1):
        width = 64 * 2 ** (stage - 1)
        for number in range(depth):
            block, outputs = f"layer{stage}.{number}", width * expansion
            if expansion == 1:
                convolutions = [(inputs, width, 3), (width, width, 3)]
            else:
                convolutions = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
            for index, (c_in, c_out, kernel) in enumerate(convolutions, 1):
                shapes[f"{block}.conv{index}.weight"] = (c_out, c_in, kernel, kernel)
                shapes.update(norm(f"{block}.bn{index}", c_out))
            if number == 0 and (stage > 1 or inputs != outputs):
                shapes[f"{block}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes.update(norm(f"{block}.downsample.1", outputs))
            inputs = outputs
    return {**shapes, **linear("fc", inputs, 1000)}


def alexnet() -> Shapes:
    return {
        **biased("features.0", 3, 64, 11),
        **biased("features.3", 64, 192, 5),
        **biased("features.6", 192, 384, 3),
        **biased("features.8", 384, 256, 3),
        **biased("features.10", 256, 256, 3),
        **linear("classifier.1", 256 * 6 * 6, 4096),
        **linear("classifier.4", 4096, 4096),
        **linear("classifier.6", 4096, 1000),
    }


def vgg(depths: tuple[int, ...], has_norm: bool) -> Shapes:
    shapes: Shapes = {}
    number, inputs = 0, 3
    for depth, width in zip(depths, (64, 128, 256, 512, 512)):
        for _ in range(depth):
            shapes.update(biased(f"features.{number}", inputs, width, 3))
            if has_norm:
                shapes.update(norm(f"features.{number + 1}", width))
            number += 3 if has_norm else 2  # and the activation
            inputs = width
        number += 1  # the pooling
    return {
        **shapes,
        **linear("classifier.0", 512 * 7 * 7, 4096),
        **linear("classifier.3", 4096, 4096),
        **linear("classifier.6", 4096, 1000),
    }


def squeezenet(first: int, kernel: int, places: tuple[int, ...]) -> Shapes:
    shapes = biased("features.0", 3, first, kernel)
    inputs = first
    for place, squeezed in zip(places, (16, 16, 32, 32, 48, 48, 64, 64)):
        shapes.update(biased(f"features.{place}.squeeze", inputs, squeezed, 1))
        shapes.update(biased(f"features.{place}.expand1x1", squeezed, 4 * squeezed, 1))
        shapes.update(biased(f"features.{place}.expand3x3", squeezed, 4 * squeezed, 3))
        inputs = 8 * squeezed
    return {**shapes, **biased("classifier.1", inputs, 1000, 1)}


def densenet(growth: int, first: int, depths: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {"features.conv0.weight": (first, 3, 7, 7), **norm("features.norm0", first)}
    channels = first
    for block, depth in enumerate(depths, 1):
        for number in range(1, depth + 1):
            layer = f"features.denseblock{block}.denselayer{number}"
            shapes.update(norm(f"{layer}.norm1", channels))
            shapes[f"{layer}.conv1.weight"] = (4 * growth, channels, 1, 1)
            shapes.update(norm(f"{layer}.norm2", 4 * growth))
            shapes[f"{layer}.conv2.weight"] = (growth, 4 * growth, 3, 3)
            channels += growth
        if block < len(depths):
            transition = f"features.transition{block}"
            shapes.update(norm(f"{transition}.norm", channels))
            shapes[f"{transition}.conv.weight"] = (channels // 2, channels, 1, 1)
            channels //= 2
    return {**shapes, **norm("features.norm5", channels), **linear("classifier", channels, 1000)}


def inception() -> Shapes:
    shapes: Shapes = {}

    def add(name: str, inputs: int, outputs: int, *kernel: int) -> int:
        height, width = kernel if len(kernel) == 2 else kernel * 2
        shapes[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        shapes.update(norm(f"{name}.bn", outputs))
        return outputs

    add("Conv2d_1a_3x3", 3, 32, 3)
    add("Conv2d_2a_3x3", 32, 32, 3)
    add("Conv2d_2b_3x3", 32, 64, 3)
    add("Conv2d_3b_1x1", 64, 80, 1)
    add("Conv2d_4a_3x3", 80, 192, 3)
    inputs = 192
    for block, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
        start = f"Mixed_{block}.branch"
        add(f"{start}1x1", inputs, 64, 1)
        add(f"{start}5x5_1", inputs, 48, 1)
        add(f"{start}5x5_2", 48, 64, 5)
        add(f"{start}3x3dbl_1", inputs, 64, 1)
        add(f"{start}3x3dbl_2", 64, 96, 3)
        add(f"{start}3x3dbl_3", 96, 96, 3)
        add(f"{start}_pool", inputs, pooled, 1)
        inputs = 64 + 64 + 96 + pooled
    add("Mixed_6a.branch3x3", inputs, 384, 3)
    add("Mixed_6a.branch3x3dbl_1", inputs, 64, 1)
    add("Mixed_6a.branch3x3dbl_2", 64, 96, 3)
    add("Mixed_6a.branch3x3dbl_3", 96, 96, 3)
    inputs += 384 + 96
    for block, middle in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        start = f"Mixed_{block}.branch"
        add(f"{start}1x1", inputs, 192, 1)
        add(f"{start}7x7_1", inputs, middle, 1)
        add(f"{start}7x7_2", middle, middle, 1, 7)
        add(f"{start}7x7_3", middle, 192, 7, 1)
        add(f"{start}7x7dbl_1", inputs, middle, 1)
        add(f"{start}7x7dbl_2", middle, middle, 7, 1)
        add(f"{start}7x7dbl_3", middle, middle, 1, 7)
        add(f"{start}7x7dbl_4", middle, middle, 7, 1)
        add(f"{start}7x7dbl_5", middle, 192, 1, 7)
        add(f"{start}_pool", inputs, 192, 1)
    add("AuxLogits.conv0", 768, 128, 1)
    add("AuxLogits.conv1", 128, 768, 5)
    shapes.update(linear("AuxLogits.fc", 768, 1000))
    add("Mixed_7a.branch3x3_1", inputs, 192, 1)
    add("Mixed_7a.branch3x3_2", 192, 320, 3)
    add("Mixed_7a.branch7x7x3_1", inputs, 192, 1)
    add("Mixed_7a.branch7x7x3_2", 192, 192, 1, 7)
    add("Mixed_7a.branch7x7x3_3", 192, 192, 7, 1)
    add("Mixed_7a.branch7x7x3_4", 192, 192, 3)
    inputs += 320 + 192
    for block in ("7b", "7c"):
        start = f"Mixed_{block}.branch"
        add(f"{start}1x1", inputs, 320, 1)
        add(f"{start}3x3_1", inputs, 384, 1)
        add(f"{start}3x3_2a", 384, 384, 1, 3)
        add(f"{start}3x3_2b", 384, 384, 3, 1)
        add(f"{start}3x3dbl_1", inputs, 448, 1)
        add(f"{start}3x3dbl_2", 448, 384, 3)
        add(f"{start}3x3dbl_3a", 384, 384, 1, 3)
        add(f"{start}3x3dbl_3b", 384, 384, 3, 1)
        add(f"{start}_pool", inputs, 192, 1)
        inputs = 320 + 2 * 384 + 2 * 384 + 192
    return {**shapes, **linear("fc", inputs, 1000)}


def mobilenet_v2() -> Shapes:
    shapes: Shapes = {"features.0.0.weight": (32, 3, 3, 3), **norm("features.0.1", 32)}
    inputs, block = 32, 0
    widths = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for expansion, outputs, repeats in widths:
        for _ in range(repeats):
            block += 1
            start, hidden, part = f"features.{block}.conv", inputs * expansion, 0
            if expansion > 1:
                shapes[f"{start}.0.0.weight"] = (hidden, inputs, 1, 1)
                shapes.update(norm(f"{start}.0.1", hidden))
                part = 1
            shapes[f"{start}.{part}.0.weight"] = (hidden, 1, 3, 3)
            shapes.update(norm(f"{start}.{part}.1", hidden))
            shapes[f"{start}.{part + 1}.weight"] = (outputs, hidden, 1, 1)
            shapes.update(norm(f"{start}.{part + 2}", outputs))
            inputs = outputs
    shapes["features.18.0.weight"] = (1280, 320, 1, 1)
    return {**shapes, **norm("features.18.1", 1280), **linear("classifier.1", 1280, 1000)}
