"""Images a second from files to training batches: here, the original's way, PyTorch's DataLoader.

    python -m tests.benchmarks.loading ../shared/data/cub_fullres --workers 2

The ways take turns on the same files, so that a drifting machine is fair to all. The original's way
is written anew from its description: each image is read, cropped, resized, normalised, flipped and
cut as MXNet arrays in the training thread. The DataLoader is timed where torch is installed; its
workers do the same with OpenCV and numpy and return uint8. The bound is the decoder alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from embedding_learning.data.batches import BalancedBatches
from embedding_learning.data.datasets import ImageSet, load
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import PixelsFromFiles, read_square, write_crop

# isort: split
import cv2
import mxnet as mx
import numpy as np
from mxnet import nd

BATCH, BATCH_K, SIZE, CROP = 70, 5, 256, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def here(pixels, images: ImageSet, workers: int) -> Iterator[object]:
    # As many classes as a batch holds, whatever the data.
    labels = np.arange(len(images)) % (BATCH // BATCH_K)
    batches = BalancedBatches(pixels, labels, BATCH_K, 0, BATCH, CROP, workers)
    try:
        while True:
            yield batches.next()
    finally:
        batches.close()


def original_way(images: ImageSet) -> Iterator[object]:
    mean, deviation = nd.array(MEAN), nd.array(DEVIATION)
    while True:
        batch = []
        for row in np.random.choice(len(images), BATCH, replace=False):
            image = mx.image.imread(images.paths[row])
            if images.boxes is not None:
                x, y, w, h = (int(value) for value in images.boxes[row])
                image = image[y : min(y + h, image.shape[0]), x : min(x + w, image.shape[1])]
            image = mx.image.imresize(image, SIZE, SIZE)
            image = (image.astype(np.float32) / 255.0 - mean) / deviation
            if random.random() < 0.5:
                image = nd.flip(image, axis=1)
            image, _ = mx.image.random_crop(image, (CROP, CROP))
            batch.append(nd.transpose(image, (2, 0, 1)).expand_dims(0))
        yield nd.concatenate(batch, axis=0)


def torch_way(images: ImageSet, workers: int) -> Iterator[object] | None:
    try:
        from torch.utils.data import DataLoader, Dataset, RandomSampler
    except ImportError:
        return None

    class Photographs(Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, row: int) -> np.ndarray:
            box = None if images.boxes is None else images.boxes[row]
            image = read_square(images.paths[row], box, SIZE)
            out = np.empty((3, CROP, CROP), np.uint8)
            top, left = random.randint(0, SIZE - CROP), random.randint(0, SIZE - CROP)
            write_crop(image, top, left, random.random() < 0.5, out)
            return out

    photographs = Photographs()
    sampler = RandomSampler(photographs, replacement=True, num_samples=10**9)
    return iter(DataLoader(photographs, BATCH, sampler=sampler, num_workers=workers))


def decoder_alone(images: ImageSet) -> Iterator[object]:
    """One thread; no crop, no resizing, nothing kept."""
    files = [Path(path).read_bytes() for path in images.paths[: 4 * BATCH]]
    while True:
        for start in range(0, len(files), BATCH):
            for file in files[start : start + BATCH]:
                image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
            yield image


def images_a_second(batches: Iterator[object], ahead: int, count: int) -> float:
    # What was made ahead while another way had its turn does not count.
    for _ in range(ahead):
        next(batches)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    nd.waitall()
    return count * BATCH / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_path")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    workers = args.workers
    split = load(args.data_path, "", train_classes=None)
    images = split.train
    with tempfile.TemporaryDirectory() as folder:
        stored, _ = open_pixel_cache(images, SIZE, Path(folder), workers)
        decoder = PixelsFromFiles(images, SIZE)
        # Name, batches, how many are made ahead, how many are timed.
        ways: list[tuple[str, Iterator[object] | None, int, int]] = [
            (f"here, store, {workers} workers", here(stored, images, workers), workers + 3, 200),
            (f"here, decoding, {workers} workers", here(decoder, images, workers), workers + 3, 8),
            ("here, decoding, 1 worker", here(decoder, images, 1), 4, 4),
            ("the original's way", original_way(images), 0, 2),
            (f"DataLoader, {workers} workers", torch_way(images, workers), 2 * workers, 8),
            ("bound: decoder alone, 1 thread", decoder_alone(images), 0, 4),
        ]
        rates: dict[str, list[float]] = {name: [] for name, batches, _, _ in ways if batches}
        for number in range(args.rounds + 1):
            for name, batches, ahead, count in ways:
                if batches:
                    rate = images_a_second(batches, ahead, count)
                    if number:
                        rates[name].append(rate)
        print_rates(rates, "the original's way")


def print_rates(rates: dict[str, list[float]], base: str) -> None:
    """Median, least and most of each, and the median of its round-by-round ratio to `base`."""
    for name, values in rates.items():
        ratio = statistics.median(v / b for v, b in zip(values, rates[base]))
        print(
            f"{name:34s} {statistics.median(values):9.0f} images/s"
            f"  ({min(values):.0f} to {max(values):.0f})  {ratio:7.2f} x {base}"
        )


if __name__ == "__main__":
    main()
