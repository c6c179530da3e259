"""Embeds the test images of a data set with a saved model, for several commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from embedding_learning.config import TestImages
from embedding_learning.data import datasets
from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.data.datasets.splits import keep_decodable, log_split
from embedding_learning.data.preprocessing import (
    ORIGINAL_PREPROCESSING,
    PixelsFromFiles,
    Preprocessing,
    find_decodable,
    read_square,
)
from embedding_learning.evaluation.confusions import Confusion, find_confusions
from embedding_learning.evaluation.metrics import Measurement, compute_metrics
from embedding_learning.evaluation.neighbors import find_nearest
from embedding_learning.runtime.progress import progress_bar

if TYPE_CHECKING:
    from embedding_learning.inference.embedding_model import EmbeddingModel

# Side of the photographs in plots, in pixels.
THUMBNAIL = 224
# The nearest images of each test image that plots show.
_NEIGHBORS = 8


@dataclass(frozen=True, eq=False)
class EmbeddedSplit:
    """A split and the embeddings of its test images.

    Attributes
    ----------
    split : Split
    queries : float32 array (n, d)
        Embeddings of ``split.test``.
    gallery : float32 array (m, d), optional
        Embeddings of ``split.gallery``, if the split has one.
    preprocessing : Preprocessing
        How the model sees the images, and how plots show them.
    """

    split: Split
    queries: np.ndarray
    gallery: np.ndarray | None
    preprocessing: Preprocessing = ORIGINAL_PREPROCESSING

    def measure(self, metrics: Sequence[str]) -> Measurement:
        """Computes metrics of the test images, searched in the gallery or among each other."""
        split = self.split
        return compute_metrics(
            self.queries,
            split.test.labels,
            metrics,
            self.gallery,
            None if split.gallery is None else split.gallery.labels,
            split.groups,
        )

    @cached_property
    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """The eight images nearest to each test image, or all if there are fewer; searched once.

        Distances, float32, and rows of ``split.searched``, int64, both (n, at most 8). Images of
        the query's group are left out, and the end of a list may be empty: distance infinite, row
        -1.
        """
        k = min(_NEIGHBORS, len(self.split.searched) - (self.gallery is None))
        if k == 0:
            shape = len(self.queries), 0
            return np.empty(shape, np.float32), np.empty(shape, np.int64)
        return find_nearest(self.queries, k, self.gallery, self.split.groups)

    @cached_property
    def confusions(self) -> list[Confusion]:
        """The classes whose test images have a nearest image of another class."""
        _, rows = self.nearest
        nearest = np.full(len(self.queries), -1)
        if rows.size:
            nearest = np.where(rows[:, 0] >= 0, self.split.searched.labels[rows[:, 0]], -1)
        return find_confusions(self.split.test.labels, nearest)


def embed_split(
    model: EmbeddingModel, images: TestImages, batch_size: int, workers: int
) -> EmbeddedSplit:
    """Embeds the test images of a data set. Blocks until all are embedded.

    Raises UsageError or DataError if an image is missing or cannot be decoded; with
    `images.skip_bad_images` only if that leaves none.
    """
    split = datasets.load_dataset(
        images.data_path,
        images.cache_dir,
        images.train_classes,
        images.dataset,
        model.description["bbox"] if images.bbox is None else images.bbox,
        images.classes,
        default_train_classes=model.description["train_classes"],
    )
    split = datasets.hold_out_validation_classes(split, images.held_out, images.held_out_fold)
    if images.skip_bad_images:
        split = _without_bad_images(split, workers, model.preprocessing)
    log_split(split)

    gallery = None
    if split.gallery is not None:
        gallery = embed_images(model, split.gallery, batch_size, workers)
    queries = embed_images(model, split.test, batch_size, workers)
    return EmbeddedSplit(split, queries, gallery, model.preprocessing)


def embed_images(
    model: EmbeddingModel, images: ImageSet, batch_size: int, workers: int
) -> np.ndarray:
    """Returns the embeddings of images, float32 (n, d). Blocks until all are embedded.

    Raises DataError if an image is missing or cannot be decoded.
    """
    pixels = PixelsFromFiles(images, model.description["image_size"], model.preprocessing)
    size = model.choose_batch_size(len(images), batch_size)
    batches = model.embed_batches(pixels, size, workers)
    return np.concatenate(list(progress_bar(batches, "Embedding")))


def _without_bad_images(split: Split, workers: int, preprocessing: Preprocessing) -> Split:
    """Returns the split without test images that cannot be decoded; logs each of these.

    Raises DataError if none of the images that test, or of the gallery, can be decoded.
    """
    train, *searched = split.parts
    rows = [np.arange(len(train))]
    for part in searched:
        good = find_decodable(part, THUMBNAIL, workers, preprocessing)
        rows.append(np.flatnonzero(good))
    return keep_decodable(split, rows)


def thumbnail_reader(part: ImageSet, preprocessing: Preprocessing) -> Callable[[int], np.ndarray]:
    """Returns a function that reads the photograph of a row as the model sees it.

    It is square and cut to the image's box: RGB, uint8 (THUMBNAIL, THUMBNAIL, 3).
    """

    def read_thumbnail(row: int) -> np.ndarray:
        box = None if part.boxes is None else part.boxes[row]
        return read_square(part.paths[row], box, THUMBNAIL, preprocessing)

    return read_thumbnail
