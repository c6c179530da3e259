"""How many images a second become training batches, here and with other loaders?

    python -m tests.benchmarks.loading ../shared/data/cub_fullres --workers 2

The loaders take turns on the same files, so that changes of the machine's speed affect all alike.
The original's loader is reimplemented: each image is read, cropped, resized, normalized, mirrored
and cut in MXNet arrays in the training thread. PyTorch's DataLoader is timed if torch is installed;
its workers do the same with OpenCV and numpy and return uint8. The decoder alone is the bound.

With `--crops` the loaders are instead those of `--train-crop` and `--resize-to`, with and without
the pixel cache, each compared with the default; and the pixel cache's bytes are printed.
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
from embedding_learning.data.crops import (
    Crop,
    CropOfPhotograph,
    RandomResizedCrop,
    photograph_size,
)
from embedding_learning.data.datasets import ImageSet, load_dataset
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import (
    AT_MOST,
    SHORTER_SIDE,
    Pixels,
    PixelsFromFiles,
    Preprocessing,
    read_square,
    write_crop,
)

# isort: split
import cv2
import mxnet as mx
import numpy as np
from mxnet import nd

BATCH, BATCH_K, SIZE, CROP = 70, 5, 256, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def own_batches(
    pixels: Pixels, images: ImageSet, workers: int, crop: Crop | None = None
) -> Iterator[object]:
    """Yields this program's batches."""
    # As many classes as a batch contains; the classes of the data do not matter.
    labels = np.arange(len(images)) % (BATCH // BATCH_K)
    batches = BalancedBatches(pixels, labels, BATCH_K, 0, BATCH, CROP, workers, crop=crop)
    try:
        while True:
            yield batches.next()
    finally:
        batches.close()


def original_batches(images: ImageSet) -> Iterator[object]:
    """Yields batches that are made as in the original."""
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


def torch_batches(images: ImageSet, workers: int) -> Iterator[object] | None:
    """Returns the batches of PyTorch's DataLoader, or None if torch is not installed."""
    try:
        from torch.utils.data import DataLoader, Dataset, RandomSampler
    except ImportError:
        return None

    class TrainingImages(Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, row: int) -> np.ndarray:
            box = None if images.boxes is None else images.boxes[row]
            image = read_square(images.paths[row], box, SIZE)
            out = np.empty((3, CROP, CROP), np.uint8)
            top, left = random.randint(0, SIZE - CROP), random.randint(0, SIZE - CROP)
            write_crop(image, top, left, random.random() < 0.5, out)
            return out

    training_images = TrainingImages()
    sampler = RandomSampler(training_images, replacement=True, num_samples=10**9)
    return iter(DataLoader(training_images, BATCH, sampler=sampler, num_workers=workers))


def decoded_images(images: ImageSet) -> Iterator[object]:
    """Decodes a batch of images in one thread, and yields only the last image."""
    files = [Path(path).read_bytes() for path in images.paths[: 4 * BATCH]]
    while True:
        for start in range(0, len(files), BATCH):
            for file in files[start : start + BATCH]:
                image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
            yield image


def images_a_second(batches: Iterator[object], ahead: int, count: int) -> float:
    """Returns the rate of `count` batches; `ahead` of them may have been made before the call."""
    # Batches that were made during the turn of another loader do not count.
    for _ in range(ahead):
        next(batches)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    nd.waitall()
    return count * BATCH / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_path", help="a data set of at least 280 images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crops", action="store_true", help="compare the crops of this program")
    args = parser.parse_args()
    images = load_dataset(args.data_path, "", train_classes=None).train
    with tempfile.TemporaryDirectory() as folder:
        if args.crops:
            compare_crops(images, args.workers, args.rounds, Path(folder))
        else:
            compare_loaders(images, args.workers, args.rounds, Path(folder))


def compare_crops(images: ImageSet, workers: int, rounds: int, folder: Path) -> None:
    """Times the random crops, and prints how much the pixel cache of each takes on the disk."""
    forms: dict[str, tuple[int, Preprocessing, Crop | None]] = {
        "original": (SIZE, Preprocessing(), None),
        "shorter side": (SIZE, Preprocessing(resize_to=SHORTER_SIDE), CropOfPhotograph()),
        "random-resized": (
            photograph_size(CROP),
            Preprocessing(resize_to=AT_MOST),
            RandomResizedCrop("linear"),
        ),
    }
    loaders: list[tuple[str, Iterator[object] | None, int, int]] = []
    for name, (size, preprocessing, crop) in forms.items():
        place = folder / name
        opened = open_pixel_cache(images, size, place, workers, preprocessing=preprocessing)
        assert opened is not None
        used = sum(512 * file.stat().st_blocks for file in place.rglob("*") if file.is_file())
        print(f"{name}: {used / len(images) / 1000:.0f} KB on the disk for each image")
        decoder = PixelsFromFiles(images, size, preprocessing)
        ahead = workers + 3
        cached = own_batches(opened[0], images, workers, crop)
        loaders.append((f"{name}, pixel cache", cached, ahead, 100))
        loaders.append((f"{name}, decoding", own_batches(decoder, images, workers, crop), ahead, 8))
    rates = measure(loaders, rounds)
    for way in ("pixel cache", "decoding"):
        print_rates(
            {name: values for name, values in rates.items() if name.endswith(way)},
            f"original, {way}",
        )


def compare_loaders(images: ImageSet, workers: int, rounds: int, folder: Path) -> None:
    """Times this program's loader and others."""
    opened = open_pixel_cache(images, SIZE, folder, workers)
    assert opened is not None
    cached, _ = opened
    decoder = PixelsFromFiles(images, SIZE)
    # Name, batches, the number made ahead, the number timed.
    loaders: list[tuple[str, Iterator[object] | None, int, int]] = [
        (
            f"here, pixel cache, {workers} workers",
            own_batches(cached, images, workers),
            workers + 3,
            200,
        ),
        (
            f"here, decoding, {workers} workers",
            own_batches(decoder, images, workers),
            workers + 3,
            8,
        ),
        ("here, decoding, 1 worker", own_batches(decoder, images, 1), 4, 4),
        ("the original's loader", original_batches(images), 0, 2),
        (f"DataLoader, {workers} workers", torch_batches(images, workers), 2 * workers, 8),
        ("bound: decoder alone, 1 thread", decoded_images(images), 0, 4),
    ]
    print_rates(measure(loaders, rounds), "the original's loader")


def measure(
    loaders: list[tuple[str, Iterator[object] | None, int, int]], rounds: int
) -> dict[str, list[float]]:
    """Returns the rates of each loader; they take turns, and the first turn does not count."""
    rates: dict[str, list[float]] = {name: [] for name, batches, _, _ in loaders if batches}
    for number in range(rounds + 1):
        for name, batches, ahead, count in loaders:
            if batches:
                rate = images_a_second(batches, ahead, count)
                if number:
                    rates[name].append(rate)
    return rates


def print_rates(rates: dict[str, list[float]], base: str) -> None:
    """Prints median, minimum and maximum of each, and the median of its ratios to `base`."""
    for name, values in rates.items():
        ratio = statistics.median(v / b for v, b in zip(values, rates[base]))
        print(
            f"{name:34s} {statistics.median(values):9.0f} images/s"
            f"  ({min(values):.0f} to {max(values):.0f})  {ratio:7.2f} x {base}"
        )


if __name__ == "__main__":
    main()
