"""Embeds any number of images into a file. An interrupted run can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from embedding_learning.config import BATCH_SIZE, WORKERS
from embedding_learning.data.datasets import ImageSet, unlabeled
from embedding_learning.data.preprocessing import Pixels, PixelsFromFiles
from embedding_learning.errors import DataError, UsageError
from embedding_learning.inference.resumable_output import ResumableOutput
from embedding_learning.runtime.progress import progress_bar

if TYPE_CHECKING:
    from embedding_learning.inference.embedding_model import EmbeddingModel

# Increase it when the same model and images would give another file.
_VERSION = 3


def embed(
    model: EmbeddingModel,
    images: ImageSet | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    batch_size: int = BATCH_SIZE,
    workers: int = WORKERS,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> int:
    """Writes the embeddings of images to FILE.npy; path, label and group of each row to FILE.csv.

    `inference.embedding_file` describes the files. Memory is bounded, except for the images' paths.
    An interrupted call can be repeated: with the same arguments it resumes, and the finished file
    has the same bytes. An image that was changed in the meantime is not noticed.

    Parameters
    ----------
    model : EmbeddingModel
    images : ImageSet, or iterable of str or path
        Images, folders and .txt lists of images, as `datasets.unlabeled` reads them; or a data set,
        with labels, boxes and groups.
    output : str or path
        FILE.npy.
    batch_size : int
        Images that are computed at once, at most.
    workers : int
        Threads that decode images.
    skip_bad : bool
        Whether to leave out images that cannot be decoded, with a warning for each. Otherwise such
        an image is an error.
    overwrite : bool
        Whether to discard an unfinished output that was started with other arguments. A finished
        output is always replaced, once the new one is complete.

    Returns
    -------
    int
        The number of rows.

    Raises
    ------
    ValueError
        If `batch_size` is below 1, or `images` is empty, or a single text or path.
    DataError
        If an image is missing or cannot be decoded, or if no image can be decoded.
    UsageError
        If the output cannot be written, or if other embeddings were started there.
    """
    if not isinstance(images, ImageSet):
        images = unlabeled.read(images)
    if not len(images):
        raise ValueError("there are no images to embed")
    output = os.fsdecode(output)
    if not skip_bad:
        _check_files_exist(images.paths)
    size = model.choose_batch_size(len(images), batch_size)
    labels = [images.class_names[label] for label in images.labels]
    groups = None
    if images.groups is not None:
        groups = [images.group_names[group] if group >= 0 else "" for group in images.groups]
    identity = _compute_identity(model, images, labels, groups, size)
    try:
        with ResumableOutput(output, identity, model.dimension, overwrite) as file:
            _embed_rest(model, images, size, workers, skip_bad, file)
            return file.finish(images.paths, labels, model.digest, groups)
    except OSError as error:
        raise UsageError(
            f"--output {output}: cannot be written: {error.strerror or error}; remove the cause, "
            "and the same command resumes"
        ) from error


def _embed_rest(
    model: EmbeddingModel,
    images: ImageSet,
    size: int,
    workers: int,
    skip_bad: bool,
    file: ResumableOutput,
) -> None:
    """Appends the images that are not done yet, in batches of that size."""
    image_size = model.description["image_size"]
    pixels: Pixels = PixelsFromFiles(images, image_size, model.preprocessing)
    errors: dict[int, str] = {}
    if skip_bad:
        pixels = _ErrorCollectingPixels(pixels, image_size, errors)
    if file.done:
        logging.info("Resuming after %d of %d images.", file.done, len(images))
    bar = progress_bar(range(file.done, len(images)), "Embedding", "image")
    first = -(-file.done // size)
    with closing(model.embed_batches(pixels, size, workers, first)) as batches:
        for vectors in batches:
            rows = list(islice(bar, len(vectors)))
            bad = [row for row in rows if row in errors]
            for row in bad:
                logging.warning("Skipped: %s", errors.pop(row))
            is_good = np.isin(rows, bad, invert=True)
            file.append(vectors[is_good], len(rows), bad)
    left_out = len(file.left_out)
    if left_out == len(images):
        file.discard()
        raise DataError(f"none of the {left_out} images can be decoded; name others")
    if left_out:
        logging.warning("%d images that cannot be decoded are left out.", left_out)


class _ErrorCollectingPixels:
    """Pixels that replaces undecodable images with black and collects the errors.

    Parameters
    ----------
    pixels : Pixels
    size : int
        The side of the black squares, in pixels.
    errors : dict of int to str
        Receives the message of each such image, by its row.
    """

    def __init__(self, pixels: Pixels, size: int, errors: dict[int, str]) -> None:
        self._pixels = pixels
        self._size = size
        self._errors = errors
        self.shape = pixels.shape

    def __getitem__(self, row: int) -> np.ndarray:
        try:
            return self._pixels[row]
        except DataError as error:
            self._errors[int(row)] = str(error)
            return np.zeros((self._size, self._size, 3), np.uint8)


def _check_files_exist(paths: list[str]) -> None:
    """Raises DataError that names the first missing file; otherwise it could come after hours."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = "is a folder, not an image" if os.path.isdir(missing[0]) else "no such file"
        raise DataError(
            f"{missing[0]}{more}: {what}; correct the list, or leave such images out with "
            "--skip-bad-images"
        )


def _compute_identity(
    model: EmbeddingModel,
    images: ImageSet,
    labels: list[str],
    groups: list[str] | None,
    batch_size: int,
) -> str:
    """Returns a SHA-256 of all that the bytes of the files depend on, except the pixels."""
    digest = hashlib.sha256()
    engine = model.choose_engine(len(images))
    sources = [_VERSION, model.description, engine, batch_size, images.paths, labels]
    if groups is not None:
        sources.append(groups)
    digest.update(json.dumps(sources).encode())
    digest.update(b"" if images.boxes is None else images.boxes.astype("<i8").tobytes())
    digest.update(model.digest.encode())
    return digest.hexdigest()
