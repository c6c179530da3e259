"""A store of as many images as Stanford Online Products has: building, starting warm, memory.

    python -m tests.benchmarks.store_at_scale FOLDER --images 120000

FOLDER needs 25 GB; what is written there is left, so that a second call measures the warm start
alone. The images are small drawn JPEG files, so the building time is that of resizing and writing.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import time
from pathlib import Path

from embedding_learning.data.batches import BalancedBatches
from embedding_learning.data.datasets import ImageSet, load
from embedding_learning.data.pixel_cache import open_pixel_cache

# isort: split
import cv2
import numpy as np

IMAGES_PER_CLASS, SIZE, CROP, BATCH, BATCH_K = 6, 256, 224, 70, 5


def draw(folder: Path, count: int) -> None:
    """Class folders of small noisy JPEG files, each of its own."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"{number // IMAGES_PER_CLASS:05d}" / f"{number % IMAGES_PER_CLASS}.jpg"
        if number % IMAGES_PER_CLASS == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
            cv2.imwrite(str(file), cv2.resize(pixels, (48, 48)))


def resident() -> str:
    """Of this process: what is its own, and the cache's pages that it has mapped."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    own, mapped = (
        int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1e6 for name in ("RssAnon", "RssFile")
    )
    return f"{own:.2f} GB own memory, {mapped:.2f} GB mapped pages of the store and libraries"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--batches", type=int, default=2000)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    draw(args.folder / "images", args.images)

    for occasion in ("first", "warm"):
        started = time.perf_counter()
        split = load(str(args.folder / "images"), "", train_classes=None)
        print(f"{occasion}: list read in {time.perf_counter() - started:.2f} s", end="; ")
        whole = ImageSet(
            split.train.paths + split.test.paths,
            np.concatenate([split.train.labels, split.test.labels]),
            [],
        )
        pixels, _ = open_pixel_cache(whole, SIZE, args.folder / "store", workers=4)
        print(f"ready after {time.perf_counter() - started:.2f} s in all")

    labels = np.arange(len(whole)) // IMAGES_PER_CLASS
    digests = set()
    for workers in (0, 1, 2, 4):
        batches = BalancedBatches(pixels, labels, BATCH_K, 1, BATCH, CROP, workers)
        digest = hashlib.sha256()
        for _ in range(20):
            batch = batches.next()
            digest.update(batch.data[0].asnumpy().tobytes() + batch.label[0].asnumpy().tobytes())
        digests.add(digest.hexdigest())
        batches.close()
    print(f"20 batches with 0, 1, 2 and 4 workers: {len(digests)} different sequence(s)")

    print(f"before iterating: {resident()}")
    batches = BalancedBatches(pixels, labels, BATCH_K, 2, BATCH, CROP, 2)
    started = time.perf_counter()
    for number in range(1, args.batches + 1):
        batches.next()
        if number % (args.batches // 4) == 0:
            rate = number * BATCH / (time.perf_counter() - started)
            print(f"after {number} batches ({rate:.0f} images/s): {resident()}")
    batches.close()


if __name__ == "__main__":
    main()
