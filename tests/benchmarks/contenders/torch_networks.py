"""Backbones in PyTorch, without their classifiers.

The layers are those of the networks of the same names here; against_others compares the numbers of
parameters. MobileNet v2 and DenseNet-121 are torchvision's.
"""

from __future__ import annotations

import torch
import torchvision
from torch import nn


def create(name: str) -> nn.Module:
    """Returns the backbone of this name, from images (n, 3, height, width) to features."""
    networks = {
        "resnet50_v2": resnet50_v2,
        "resnet18_v1": resnet18_v1,
        "squeezenet1.1": squeezenet,
        "mobilenet_v2": mobilenet_v2,
        "densenet121": densenet121,
    }
    if name not in networks:
        raise SystemExit(f"{name}: not available in PyTorch; choose from {', '.join(networks)}")
    return networks[name]()


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def stem() -> list[nn.Module]:
    """Returns layers that give 64 channels and a quarter of the image's side."""
    return [
        convolution(3, 64, 7, 2),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm; He et al. (2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            convolution(outputs, outputs, 3),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


class PreActivationBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after batch norm and ReLU; He et al. (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        narrow = outputs // 4
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            convolution(inputs, narrow, 1),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            convolution(narrow, narrow, 3, stride),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            convolution(narrow, outputs, 1),
        )
        self.shortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.activation(x)
        return self.body(activated) + (self.shortcut(activated) if self.shortcut else x)


def stages(block: type[nn.Module], depths: list[int], channels: list[int]) -> list[nn.Module]:
    """Returns the blocks of all stages; each stage but the first halves the side."""
    layers: list[nn.Module] = []
    inputs = 64
    for stage, (depth, outputs) in enumerate(zip(depths, channels)):
        for block_number in range(depth):
            stride = 2 if stage > 0 and block_number == 0 else 1
            layers.append(block(inputs, outputs, stride))
            inputs = outputs
    return layers


def resnet18_v1() -> nn.Module:
    blocks = stages(BasicBlock, [2, 2, 2, 2], [64, 128, 256, 512])
    return nn.Sequential(*stem(), *blocks, nn.AdaptiveAvgPool2d(1))


def resnet50_v2() -> nn.Module:
    blocks = stages(PreActivationBottleneck, [3, 4, 6, 3], [256, 512, 1024, 2048])
    return nn.Sequential(
        nn.BatchNorm2d(3, affine=False),
        *stem(),
        *blocks,
        nn.BatchNorm2d(2048),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Fire(nn.Module):
    """A narrow 1x1 convolution, then a 1x1 and a 3x3 one in parallel; Iandola et al. (2016)."""

    def __init__(self, inputs: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, narrow, 1), nn.ReLU(inplace=True))
        self.expand1 = nn.Sequential(nn.Conv2d(narrow, wide, 1), nn.ReLU(inplace=True))
        self.expand3 = nn.Sequential(nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1(x), self.expand3(x)], 1)


def squeezenet() -> nn.Module:
    def pooling() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2),
        nn.ReLU(inplace=True),
        pooling(),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        pooling(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        pooling(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
        nn.Dropout(0.5),
    )


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(torchvision.models.mobilenet_v2().features, nn.AdaptiveAvgPool2d(1))


def densenet121() -> nn.Module:
    features = torchvision.models.densenet121().features
    return nn.Sequential(features, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
