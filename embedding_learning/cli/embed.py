"""`embed`: the embeddings of any number of images, written to a file."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from embedding_learning.cli import model_flags
from embedding_learning.cli.parser import Parser
from embedding_learning.cli.train_flags import add_cache_dir
from embedding_learning.config import BATCH_SIZE, WORKERS
from embedding_learning.data import datasets
from embedding_learning.data.datasets import ImageSet, unlabeled
from embedding_learning.data.preprocessing import Pixels, PixelsFromFiles
from embedding_learning.errors import DataError, Interrupted, UsageError
from embedding_learning.inference.resumable_output import Unfinished, check_output
from embedding_learning.runtime.progress import log_to_terminal, progress_bar

if TYPE_CHECKING:
    from embedding_learning.inference.embedding_model import EmbeddingModel

# Goes up when the same model and images would give another file.
_VERSION = 2


def main(arguments: list[str]) -> int:
    """Writes the file, or goes on with it."""
    options = _parse(arguments)
    check_output(options.output)
    with log_to_terminal():
        model = model_flags.load(options)
        if options.data_path is None:
            images = unlabeled.read(options.inputs)
        else:
            images = whole_data_set(options, model.description["bbox"])
        try:
            count = embed(
                model,
                images,
                options.output,
                options.batch_size,
                options.workers,
                options.skip_bad_images,
                options.overwrite,
            )
        except Interrupted as interruption:
            told = f"interrupted{_kept(options.output)}"
            raise Interrupted(interruption.number, told) from None
        except DataError as error:
            raise DataError(f"{error}{_kept(options.output)}") from None
    left_out = f" {len(images) - count} left out." if count < len(images) else ""
    classes = set(images.class_names) - {unlabeled.UNLABELED}
    of_classes = f" of {len(classes)} classes" if classes else ""
    print(f"{options.output}: {count} images{of_classes}, {model.dimension} dimensions.{left_out}")
    return 0


def _kept(output: str) -> str:
    """How to go on, to be added to a message, if anything has been embedded."""
    if not os.path.exists(f"{output}.partial"):
        return ""
    return f"; {output}.partial holds what is done, and the same command goes on with it"


def embed(
    model: EmbeddingModel,
    images: ImageSet | Sequence[str],
    output: str,
    batch_size: int = BATCH_SIZE,
    workers: int = WORKERS,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> int:
    """Writes the embeddings of images to FILE.npy, and what its rows are of to FILE.csv.

    The files are described in `embedding_files`. Memory is bounded, but for the images' paths. What
    a process that was stopped or killed had done is gone on with if the arguments are the same; the
    bytes are the same in the end. An image that is changed meanwhile is not noticed.

    Parameters
    ----------
    model : EmbeddingModel
    images : ImageSet or sequence of str
        Images, folders and .txt lists of images, as `datasets.files.read` takes them; or a data
        set, with labels and boxes.
    output : str
        FILE.npy.
    batch_size : int
        Images that are computed at once, at most.
    workers : int
        Threads that decode images.
    skip_bad : bool
        Leave out images that cannot be decoded, with a warning for each.
    overwrite : bool
        Give up what was begun there with other arguments and is not finished. A finished output is
        replaced once the new one is.

    Returns
    -------
    int
        The number of rows.

    Raises
    ------
    DataError
        If an image is missing or cannot be decoded, or none can.
    UsageError
        If the output cannot be written, or other embeddings were begun there.
    """
    if not isinstance(images, ImageSet):
        images = unlabeled.read(images)
    if not skip_bad:
        _check_there(images.paths)
    size = model.batch_size(len(images), batch_size)
    labels = [images.class_names[label] for label in images.labels]
    identity = _identity(model, images, labels, size)
    try:
        with Unfinished(output, identity, model.dimension, overwrite) as unfinished:
            _embed_rest(model, images, size, workers, skip_bad, unfinished)
            return unfinished.finish(images.paths, labels, model.digest)
    except OSError as error:
        raise UsageError(
            f"--output {output}: cannot be written: {error.strerror or error}; remove the cause, "
            "and the same command goes on"
        ) from error


def whole_data_set(options: argparse.Namespace, use_boxes: bool) -> ImageSet:
    """All images of the data set that the flags name, whether they train or test."""
    return datasets.load(
        options.data_path,
        options.cache_dir,
        name=options.dataset,
        use_boxes=use_boxes,
        test="all",
    ).test


def _embed_rest(
    model: EmbeddingModel,
    images: ImageSet,
    size: int,
    workers: int,
    skip_bad: bool,
    unfinished: Unfinished,
) -> None:
    """Appends what is not done yet, in batches of that size."""
    pixels: Pixels = PixelsFromFiles(images, model.description["image_size"], model.preprocessing)
    faults: dict[int, str] = {}
    if skip_bad:
        pixels = _Lenient(pixels, faults)
    if unfinished.done:
        logging.info("Going on after %d of %d images.", unfinished.done, len(images))
    bar = progress_bar(range(unfinished.done, len(images)), "Embedding", "image")
    first = -(-unfinished.done // size)
    with closing(model.embed_batches(pixels, size, workers, first)) as batches:
        for vectors in batches:
            rows = list(islice(bar, len(vectors)))
            bad = [row for row in rows if row in faults]
            for row in bad:
                logging.warning("Skipped: %s", faults.pop(row))
            good = np.isin(rows, bad, invert=True)
            unfinished.append(vectors[good], len(rows), bad)
    left_out = len(unfinished.left_out)
    if left_out == len(images):
        unfinished.forget()
        raise DataError(f"none of the {left_out} images can be decoded; name others")
    if left_out:
        logging.warning("%d images that cannot be decoded are left out.", left_out)


class _Lenient:
    """Images, black in place of those that cannot be decoded; notes the reasons by row."""

    def __init__(self, pixels: Pixels, faults: dict[int, str]) -> None:
        self._pixels = pixels
        self._faults = faults
        self.shape = pixels.shape

    def __getitem__(self, row: int) -> np.ndarray:
        try:
            return self._pixels[row]
        except DataError as error:
            self._faults[int(row)] = str(error)
            return np.zeros(self.shape[1:], np.uint8)


def _check_there(paths: list[str]) -> None:
    """Raises DataError that names the first file that is not there; hours would go by before."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]}{more}: no such file; correct the list, or leave such images out with "
            "--skip-bad-images"
        )


def _identity(model: EmbeddingModel, images: ImageSet, labels: list[str], batch_size: int) -> str:
    """SHA-256 of all that the bytes of the files depend on, but for the images' pixels."""
    digest = hashlib.sha256()
    told = [_VERSION, model.description, batch_size, images.paths, labels]
    digest.update(json.dumps(told).encode())
    digest.update(b"" if images.boxes is None else images.boxes.astype("<i8").tobytes())
    digest.update(model.digest.encode())
    return digest.hexdigest()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning embed",
        description="Write the embeddings of images to FILE.npy, path and label of each row to "
        "FILE.csv, and which model it was to FILE.npy.json. Files that are there are replaced once "
        "the new ones are complete. After a kill the same command goes on where it stopped.",
    )
    model_flags.add_flags(parser)
    text = (
        "an image, a folder of images at any depth, a .txt file that lists images (# begins a "
        "comment), or - for such a list on the standard input; in a folder of class folders, whose "
        "images all lie in two or more folders directly in it, each image gets its folder's name "
        "as label"
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=text)
    text = "the .npy file to write"
    parser.add_argument("--output", required=True, metavar="FILE", help=text)
    text = "embed all images of a data set, as train.py takes it, with their labels and boxes"
    parser.add_argument("--data-path", metavar="PATH", help=text)
    text = f"what --data-path holds: {', '.join(datasets.NAMES)}"
    parser.add_argument("--dataset", choices=datasets.NAMES, metavar="NAME", help=text)
    add_cache_dir(parser, "where glyphs are drawn")
    text = "leave out images that cannot be decoded"
    parser.add_argument("--skip-bad-images", action="store_true", help=text)
    text = "give up what another model, other images or another batch size had begun in FILE"
    parser.add_argument("--overwrite", action="store_true", help=text)
    options = parser.parse_intermixed_args(arguments)
    model_flags.check(options)
    if bool(options.inputs) == (options.data_path is not None):
        raise UsageError("INPUT, --data-path: name images or a data set, one of the two")
    if options.dataset and options.data_path is None:
        raise UsageError("--dataset: has no effect: it is for --data-path; leave it out")
    return options
