"""PyTorch with the miner, margin loss and sampler of pytorch-metric-learning, and a DataLoader.

    VENV/bin/python -m tests.benchmarks.contenders.pytorch --model resnet18_v1 --data-path FOLDER

VENV is an environment of its own, with torch, pytorch-metric-learning, tqdm and the opencv-python
of requirements-common.txt. Architecture, batches, optimizers and their settings are those of this
program. The two workers of the DataLoader decode with OpenCV and cut out uint8 pixels, which the
training process normalizes; that is the cheapest way. The loss is read after each step, as usual.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from pytorch_metric_learning.losses import MarginLoss
from pytorch_metric_learning.miners import DistanceWeightedMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from embedding_learning.data.datasets import ImageSet, load_dataset
from embedding_learning.data.preprocessing import read_square, write_crop
from tests.benchmarks.contenders import torch_networks
from tests.benchmarks.contenders.protocol import (
    BATCH_K,
    CROP,
    DIMENSION,
    Done,
    StepClock,
    make_parser,
)

SIZE, WORKERS, BATCHES_AN_EPOCH = 256, 2, 200
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TrainingImages(Dataset):
    """Decoded images, cropped to their box, resized, mirrored at random, cut to a random square."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        images = self._images
        box = None if images.boxes is None else images.boxes[row]
        pixels = read_square(images.paths[row], box, SIZE)
        out = np.empty((3, CROP, CROP), np.uint8)
        top, left = random.randint(0, SIZE - CROP), random.randint(0, SIZE - CROP)
        write_crop(pixels, top, left, random.random() < 0.5, out)
        return out, int(images.labels[row])


def batches(images: ImageSet, batch_size: int) -> Iterator[list[torch.Tensor]]:
    length = BATCHES_AN_EPOCH * batch_size
    sampler = MPerClassSampler(images.labels, BATCH_K, batch_size, length)
    return iter(
        DataLoader(TrainingImages(images), batch_size, sampler=sampler, num_workers=WORKERS)
    )


def margin_loss(classes: int) -> MarginLoss:
    return MarginLoss(margin=0.2, nu=0.0, beta=1.2, learn_beta=True, num_classes=classes)


def train(
    net: nn.Module,
    loss_function: MarginLoss,
    batches: Iterator[list[torch.Tensor]],
    memory_format: torch.memory_format,
    clock: StepClock,
) -> None:
    """Trains until the clock raises Done."""
    mean, deviation = (255 * torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    miner = DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=1e-4, eps=1e-7, weight_decay=1e-4),
        torch.optim.SGD(loss_function.parameters(), lr=0.1, momentum=0.9),
    ]
    total = 0.0
    while True:
        clock.tick()
        pixels, labels = next(batches)
        images = pixels.float().sub_(mean).div_(deviation).contiguous(memory_format=memory_format)
        # The miner and the loss normalize the rows themselves.
        embeddings = net(images)
        loss = loss_function(embeddings, labels, miner(embeddings, labels))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        total += loss.item()


def main() -> None:
    parser = make_parser(__doc__)
    text = "store the channels of a pixel together; PyTorch's default stores each channel by itself"
    parser.add_argument("--channels-last", action="store_true", help=text)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    images = load_dataset(args.data_path, "").train
    backbone = torch_networks.create(args.model)
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, CROP, CROP)).numel()
    net = nn.Sequential(backbone, nn.Flatten(), nn.Linear(features, DIMENSION)).train()
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    net = net.to(memory_format=memory_format)
    # On a CPU PyTorch computes within the call: no queue has to be waited for.
    clock = StepClock(args.steps, lambda: None)
    with suppress(Done):
        loss_function = margin_loss(len(images.class_names))
        train(net, loss_function, batches(images, args.batch_size), memory_format, clock)
    clock.print_result(parameters=sum(p.numel() for p in backbone.parameters()))


if __name__ == "__main__":
    main()
