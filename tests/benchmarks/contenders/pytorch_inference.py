"""PyTorch's forward pass, channels last, for the benchmark `inference`.

    VENV/bin/python -m tests.benchmarks.contenders.pytorch_inference --model resnet18_v1

VENV is an environment with torch and torchvision. For each line on the standard input it embeds one
batch and prints the seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import torch
import torchvision
from torch import nn

from tests.benchmarks.contenders import torch_networks

# Names of Gluon and gluoncv, and torchvision's names of the same layers.
NAMES = {
    "squeezenet1.1": "squeezenet1_1",
    "resnet18_v1": "resnet18",
    "resnet50_v1b": "resnet50",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenetv3_large": "mobilenet_v3_large",
    "densenet121": "densenet121",
    "resnext50_32x4d": "resnext50_32x4d",
}


def create(name: str) -> nn.Module:
    """Returns a network whose classifier has as many outputs as an embedding has dimensions."""
    if name in NAMES:
        return getattr(torchvision.models, NAMES[name])(num_classes=128)
    backbone = torch_networks.create(name)
    return nn.Sequential(backbone, nn.Flatten(), nn.LazyLinear(128))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    net = create(args.model).eval()
    with torch.no_grad():
        net(torch.zeros(1, 3, 224, 224))  # determines the size of the last layer
    net = net.to(memory_format=torch.channels_last)
    images = torch.zeros(args.batch_size, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        net(images)
        for _ in sys.stdin:
            begin = time.perf_counter()
            nn.functional.normalize(net(images))
            print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
