"""Building time, start time and memory of a pixel cache as large as Stanford Online Products.

    python -m tests.benchmarks.store_at_scale FOLDER --images 120000

FOLDER needs 25 GB for 120,000 images. Its files stay, so that a second call measures the warm start
alone. The images are small random JPEG files: most of the building time is resizing and writing.
Then batches are compared for different numbers of workers, and memory is printed while batches are
made.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import time
from pathlib import Path

from embedding_learning.data.batches import BalancedBatches
from embedding_learning.data.datasets import ImageSet, load_dataset
from embedding_learning.data.pixel_cache import open_pixel_cache

# isort: split
import cv2
import numpy as np

IMAGES_PER_CLASS, SIZE, CROP, BATCH, BATCH_K = 6, 256, 224, 70, 5


def write_images(folder: Path, count: int) -> None:
    """Writes class folders of small random JPEG files, each with its own pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"{number // IMAGES_PER_CLASS:05d}" / f"{number % IMAGES_PER_CLASS}.jpg"
        if number % IMAGES_PER_CLASS == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
            cv2.imwrite(str(file), cv2.resize(pixels, (48, 48)))


def format_memory() -> str:
    """Returns this process's own memory and its mapped pages in words."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    own, mapped = (
        int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1e6 for name in ("RssAnon", "RssFile")
    )
    return f"{own:.2f} GB own memory, {mapped:.2f} GB mapped pages of the cache and libraries"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the images and the pixel cache")
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--batches", type=int, default=2000, help="at least 4")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    write_images(args.folder / "images", args.images)

    for start in ("first start", "warm start"):
        started = time.perf_counter()
        split = load_dataset(str(args.folder / "images"), "", train_classes=None)
        print(f"{start}: image list after {time.perf_counter() - started:.2f} s", end="; ")
        images = ImageSet(
            split.train.paths + split.test.paths,
            np.concatenate([split.train.labels, split.test.labels]),
            [],
        )
        pixels, _ = open_pixel_cache(images, SIZE, args.folder / "store", workers=4)
        print(f"pixel cache after {time.perf_counter() - started:.2f} s")

    labels = np.arange(len(images)) // IMAGES_PER_CLASS
    digests = set()
    for workers in (0, 1, 2, 4):
        batches = BalancedBatches(pixels, labels, BATCH_K, 1, BATCH, CROP, workers)
        digest = hashlib.sha256()
        for _ in range(20):
            batch = batches.next()
            digest.update(batch.data[0].asnumpy().tobytes() + batch.label[0].asnumpy().tobytes())
        digests.add(digest.hexdigest())
        batches.close()
    verdict = "the same" if len(digests) == 1 else "DIFFERENT"
    print(f"20 batches with 0, 1, 2 and 4 workers: {verdict}")

    print(f"before the batches: {format_memory()}")
    batches = BalancedBatches(pixels, labels, BATCH_K, 2, BATCH, CROP, 2)
    started = time.perf_counter()
    for number in range(1, args.batches + 1):
        batches.next()
        if number % (args.batches // 4) == 0:
            rate = number * BATCH / (time.perf_counter() - started)
            print(f"after {number} batches ({rate:.0f} images/s): {format_memory()}")
    batches.close()


if __name__ == "__main__":
    main()
