"""Opens the data of a run: the data set, its decoded images, and the batches of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from embedding_learning.config import TRAIN_CROPS, DataConfig, TrainConfig
from embedding_learning.data import datasets
from embedding_learning.data.batches import BalancedBatches, SequentialBatches
from embedding_learning.data.crops import (
    Crop,
    CropOfPhotograph,
    CropOfSquare,
    RandomResizedCrop,
    photograph_size,
)
from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.data.datasets.splits import keep_decodable, log_split
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import (
    AT_MOST,
    SQUARE,
    Pixels,
    PixelsFromFiles,
    Preprocessing,
    find_decodable,
)
from embedding_learning.errors import DataError, UsageError
from embedding_learning.evaluation.groups import Groups


@dataclass(frozen=True)
class Data:
    """The batches of a run.

    Attributes
    ----------
    train : BalancedBatches
    test : SequentialBatches
        The images searched for; among each other, unless there is a gallery.
    gallery : SequentialBatches, optional
        The images searched in; classes are numbered as in `test`.
    beta_terms : ndarray of int (values, j)
        The entries of beta that add up to each class's or image's value.
    title : str
        The data set, and which part of each image is used.
    digest : str
        Equal for equal classes, labels, boxes, groups and file names, whatever the folders' names.
    test_classes : list of str
        The name of each class of the test images.
    groups : Groups, optional
        The groups of the test images and of those that are searched.
    """

    train: BalancedBatches
    test: SequentialBatches
    gallery: SequentialBatches | None
    beta_terms: np.ndarray
    title: str
    digest: str
    test_classes: list[str] = field(default_factory=list)
    groups: Groups | None = None

    def close(self) -> None:
        """Stops the threads that make batches."""
        for batches in (self.train, self.test, self.gallery):
            if batches:
                batches.close()


def read_split(config: TrainConfig) -> Split:
    """Returns the images that train and those that test; decodes none.

    Raises UsageError or DataError if flags and data do not fit.
    """
    data = config.data
    split = datasets.load_dataset(
        data.path, data.cache_dir, data.train_classes, data.dataset, data.bbox
    )
    split = fit_to_training(split, config)
    log_split(split)
    return split


def fit_to_training(split: Split, config: TrainConfig) -> Split:
    """Removes validation classes and small classes from the training images.

    Raises UsageError or DataError if the rest cannot train.
    """
    data = config.data
    if not len(split.train):
        raise DataError(
            f"{data.path}: none of its images train; two classes at least have to train "
            "and one to test: list images as train, add classes, or name other data with "
            "--data-path"
        )
    split = datasets.hold_out_validation_classes(split, data.held_out, data.held_out_fold)
    train, _ = fit_to_batches(split.train, config)
    classes = len(train.class_names)
    if data.classes not in (None, classes):
        raise UsageError(
            f"--classes {data.classes}: the data has {classes} classes to train; give that "
            "number, or leave the flag out"
        )
    return replace(split, train=train)


def open_data(split: Split, config: TrainConfig, rank: int = 0, group_size: int = 1) -> Data:
    """Returns the batches; decodes images that the pixel cache lacks.

    A worker gets its part of each training batch. If `group_size` workers make a step together, it
    also gets its part of the images that are searched for or in, else all of these.

    Raises
    ------
    DataError
        If a file is missing or cannot be decoded.
    UsageError
        If there are more workers than images that are searched for or in.
    """
    parts = split.parts
    opened = _open_parts(parts, config.data)
    rows = [good for _, good in opened]
    bad = sum(map(len, parts)) - sum(map(len, rows))
    if bad:
        logging.warning("%d images that cannot be decoded are left out.", bad)
        split = keep_decodable(split, rows)
        train, kept = fit_to_batches(split.train, config)
        split = replace(split, train=train)
        parts = split.parts
        rows[0] = rows[0][kept]
    fewest = min(len(searched) for searched in parts[1:])
    batch, data, processes = config.batch, config.data, config.devices.processes
    if fewest < processes:
        raise UsageError(
            f"--workers {processes}: only {fewest} images are searched for or in, of which "
            "each worker embeds its part; launch fewer"
        )
    sources = [pixels.take(kept) for (pixels, _), kept in zip(opened, rows)]

    searched = [
        SequentialBatches(
            source,
            images.labels,
            batch.total,
            data.crop_size,
            data.workers,
            process=(rank, group_size) if group_size > 1 else (0, 1),
        )
        for source, images in zip(sources[1:], parts[1:])
    ]
    beta_terms = _beta_terms(parts[0], config.method.beta_per)
    train = BalancedBatches(
        sources[0],
        parts[0].labels,
        batch.batch_k,
        config.run.seed,
        batch.total,
        data.crop_size,
        data.workers,
        process=(rank, processes),
        targets=beta_terms if config.method.beta_per != "class" else None,
        crop=_train_crop(data),
    )
    return Data(
        train=train,
        test=searched[0],
        gallery=searched[1] if split.gallery else None,
        beta_terms=beta_terms,
        title=split.title,
        digest=digest(parts),
        test_classes=parts[1].class_names,
        groups=split.groups,
    )


def fit_to_batches(images: ImageSet, config: TrainConfig) -> tuple[ImageSet, np.ndarray]:
    """Returns the training images that balanced batches can use, and their rows in `images`.

    --small-classes decides about classes of fewer than batch_k images. Raises UsageError or
    DataError if the rest cannot fill a batch.
    """
    rows_by_class = images.group_rows_by_class()
    batch, devices = config.batch, config.devices.count
    least = 1 if config.data.small_classes == "repeat" else batch.batch_k
    kept = [label for label, rows in enumerate(rows_by_class) if len(rows) >= least]
    if config.data.small_classes == "error" and len(kept) < len(rows_by_class):
        raise DataError(_explain_small_classes(images, rows_by_class, batch.batch_k))
    in_batch = batch.total // batch.batch_k
    if len(kept) < 2 * devices:
        raise UsageError(_explain_too_few_classes(len(kept), len(rows_by_class), config))
    if in_batch > len(kept):
        most = len(kept) // devices * batch.batch_k
        raise UsageError(
            f"--batch-size, --total-batch-size: a batch of {batch.total} with "
            f"--batch-k {batch.batch_k} holds {in_batch} classes, but only {len(kept)} train; "
            f"--batch-size {most} is the most for each device, which is --total-batch-size "
            f"{most * devices}"
        )
    rows = np.sort(np.concatenate([rows_by_class[label] for label in kept]))
    images = images.take(rows)
    number = np.zeros(len(rows_by_class), np.int32)
    number[kept] = np.arange(len(kept))
    names = [images.class_names[label] for label in kept]
    return replace(images, labels=number[images.labels], class_names=names), rows


def _explain_small_classes(images: ImageSet, rows_by_class: list[np.ndarray], batch_k: int) -> str:
    """Names the first class of fewer than batch_k images, and the ways out."""
    sizes = [len(rows) for rows in rows_by_class]
    small = [label for label, size in enumerate(sizes) if size < batch_k]
    lower = f"lower --batch-k to {min(sizes)}, " if min(sizes) >= 2 else ""
    return (
        f"class {images.class_names[small[0]]}: has {sizes[small[0]]} images, fewer than --batch-k "
        f"{batch_k}; {lower}leave such classes out with --small-classes drop, or repeat their "
        f"images with --small-classes repeat; {len(small)} of {len(sizes)} classes are so small"
    )


def _explain_too_few_classes(kept: int, classes: int, config: TrainConfig) -> str:
    """Says that only `kept` of the classes train, which are too few, and names the ways out."""
    devices = config.devices.count
    ways = ["let more train, by --train-classes or in the list or folder of what trains"]
    if config.data.held_out:
        ways.append("leave --held-out out")
    if kept < classes:
        ways.append("lower --batch-k, which leaves fewer classes out as too small")
    if devices > 1:
        workers = " or launch fewer workers" if config.devices.processes > 1 else ""
        ways.append(f"use fewer devices{workers}")
    trains = "1 class trains" if kept == 1 else f"{kept} classes train"
    return (
        f"{config.data.path}: {trains}, but {2 * devices} have to, two for each "
        f"device, since negatives are of other classes: {', or '.join(ways)}"
    )


def _beta_terms(images: ImageSet, beta_per: str) -> np.ndarray:
    """Returns the entries of beta that add up to each class's value, (classes, 1), or each image's.

    For images, (images, 3), equation 7 of Wu et al. (2017): a common entry, one of the class, one
    of the image. If there is only a common one, (images, 1).
    """
    classes = np.arange(len(images.class_names))
    if beta_per == "class":
        return classes[:, None]
    rows = np.arange(len(images))
    if beta_per == "common":
        return 0 * rows[:, None]
    return np.stack([0 * rows, 1 + images.labels, 1 + len(classes) + rows], axis=1)


def _train_crop(data: DataConfig) -> Crop:
    """Returns what is cut out of training images, as `_open_parts` resizes them."""
    if data.train_crop != TRAIN_CROPS[0]:
        return RandomResizedCrop(data.resize)
    if data.resize_to != SQUARE:
        return CropOfPhotograph()
    return CropOfSquare(data.image_size - data.crop_size)


def _open_parts(parts: list[ImageSet], data: DataConfig) -> list[tuple[_Rows, np.ndarray]]:
    """Returns the pixels of each part, and the rows of the images that can be decoded.

    Parts that are resized alike have one pixel cache. `RandomResizedCrop` needs the whole
    photographs, so the training images then have one of their own.
    """
    preprocessing = Preprocessing(data.exif_orientation, data.resize, data.resize_to)
    if data.train_crop == TRAIN_CROPS[0]:
        return _open_together(parts, data.image_size, preprocessing, data)
    photographs = preprocessing._replace(resize_to=AT_MOST)
    size = photograph_size(data.crop_size)
    return [
        *_open_together(parts[:1], size, photographs, data),
        *_open_together(parts[1:], data.image_size, preprocessing, data),
    ]


def _open_together(
    parts: list[ImageSet], size: int, preprocessing: Preprocessing, data: DataConfig
) -> list[tuple[_Rows, np.ndarray]]:
    """Does the work of `_open_parts` for parts that are resized alike."""
    pixels, good = _open_pixels(_join(parts), size, preprocessing, data)
    starts = np.cumsum([0, *map(len, parts)])
    return [
        (_Rows(pixels, np.arange(start, end)), np.flatnonzero(good[start:end]))
        for start, end in zip(starts, starts[1:])
    ]


def _open_pixels(
    images: ImageSet, size: int, preprocessing: Preprocessing, data: DataConfig
) -> tuple[Pixels, np.ndarray]:
    """Returns the images' pixels, from the pixel cache unless it is off, and which are good, (n,).

    Good images can be decoded; the others are found only with --skip-bad-images.
    """
    workers, skip_bad = data.workers, data.skip_bad_images
    if data.cache != "none":
        folder = Path(data.cache_dir) / "pixels"
        cached = open_pixel_cache(images, size, folder, workers, skip_bad, preprocessing)
        if cached is not None:
            return cached
    images.read_file_stats(missing_ok=skip_bad)  # Raises an error that names a missing file.
    good = np.ones(len(images), bool)
    if skip_bad:
        good = find_decodable(images, size, workers, preprocessing)
    return PixelsFromFiles(images, size, preprocessing), good


def _join(parts: list[ImageSet]) -> ImageSet:
    """Returns all images as one set, whose labels have no meaning."""
    boxes = [part.boxes for part in parts if part.boxes is not None]
    return ImageSet(
        [path for part in parts for path in part.paths],
        np.concatenate([part.labels for part in parts]),
        [],
        np.concatenate(boxes) if boxes else None,
    )


def digest(parts: list[ImageSet]) -> str:
    """Returns a SHA-256 of the parts without the folders' names and the pixels."""
    sha256 = hashlib.sha256()
    for part in parts:
        names = [os.path.basename(path) for path in part.paths]
        sha256.update(json.dumps([names, part.class_names]).encode())
        sha256.update(part.labels.astype("<i8").tobytes())
        sha256.update(b"" if part.boxes is None else part.boxes.astype("<i8").tobytes())
        # Only where there are groups: checkpoints of earlier versions have digests without them.
        if part.groups is not None:
            sha256.update(b"groups" + part.groups.astype("<i8").tobytes())
    return sha256.hexdigest()


class _Rows:
    """A selection of rows of decoded images: their `pixels`, and the `rows` (n,) among these."""

    def __init__(self, pixels: Pixels, rows: np.ndarray) -> None:
        self._pixels = pixels
        self._rows = rows
        self.shape = (len(rows), *pixels.shape[1:])

    def take(self, rows: np.ndarray) -> _Rows:
        """Returns a selection of these rows."""
        return _Rows(self._pixels, self._rows[rows])

    def __getitem__(self, row: int) -> np.ndarray:
        return self._pixels[self._rows[row]]
