"""`embed`: writes the embeddings of any number of images to a file."""

from __future__ import annotations

import argparse
import os

from embedding_learning.cli import model_flags
from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.cli.train_flags import add_flags as add_train_flags
from embedding_learning.data import datasets
from embedding_learning.data.datasets import ImageSet, unlabeled
from embedding_learning.errors import DataError, Interrupted, UsageError
from embedding_learning.inference.embed import embed
from embedding_learning.inference.resumable_output import check_output
from embedding_learning.runtime.progress import log_to_terminal


def main(arguments: list[str]) -> int:
    """Writes the file, or resumes it; returns 0."""
    options = _parse(arguments)
    check_output(options.output)
    with log_to_terminal():
        model = model_flags.load(options)
        if options.data_path is None:
            images = unlabeled.read(options.inputs)
        else:
            images = _load_data_set(options, model.description["bbox"])
        try:
            count = embed(
                model,
                images,
                options.output,
                batch_size=options.batch_size,
                workers=options.workers,
                skip_bad=options.skip_bad_images,
                overwrite=options.overwrite,
            )
        except Interrupted as interruption:
            message = f"interrupted{_resume_hint(options.output)}"
            raise Interrupted(interruption.number, message) from None
        except DataError as error:
            raise DataError(f"{error}{_resume_hint(options.output)}") from None
    left_out = f" {len(images) - count} left out." if count < len(images) else ""
    classes = set(images.class_names) - {unlabeled.UNLABELED}
    of_classes = f" of {len(classes)} classes" if classes else ""
    print(f"{options.output}: {count} images{of_classes}, {model.dimension} dimensions.{left_out}")
    return 0


def _resume_hint(output: str) -> str:
    """Returns the end of a message that says how to resume; empty if nothing has been embedded."""
    if not os.path.exists(f"{output}.partial"):
        return ""
    return f"; {output}.partial holds what is done, and the same command resumes from it"


def _load_data_set(options: argparse.Namespace, use_boxes: bool) -> ImageSet:
    """Returns all images of the data set that the flags name, also those that train."""
    return datasets.load_dataset(
        options.data_path,
        options.cache_dir,
        name=options.dataset,
        use_boxes=use_boxes,
        test="all",
    ).test


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning embed",
        description="Write the embeddings of images to FILE.npy, path, label and group of each row "
        "to FILE.csv, and the digest of the model to FILE.npy.json. Former files are replaced once "
        "the new ones are complete. After a kill the same command resumes where it stopped.",
    )
    model_flags.add_flags(parser)
    text = (
        "an image, a folder of images at any depth, a .txt file that lists images (# begins a "
        "comment), or - for such a list on the standard input; in a folder of class folders, whose "
        "images are all in two or more folders directly in it, each image gets the name of its "
        "folder as label"
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=text)
    text = "the .npy file to write"
    parser.add_argument("--output", type=expand_path, required=True, metavar="FILE", help=text)
    text = "embed all images of a data set, as train.py takes it, with labels, boxes and groups"
    parser.add_argument("--data-path", type=expand_path, metavar="PATH", help=text)
    text = f"data set in --data-path: {', '.join(datasets.NAMES)}"
    parser.add_argument("--dataset", choices=datasets.NAMES, metavar="NAME", help=text)
    add_train_flags(parser, ("cache_dir", "skip_bad_images"))
    text = (
        "discard an unfinished FILE of another model, other images, or another batch size or engine"
    )
    parser.add_argument("--overwrite", action="store_true", help=text)
    options = parser.parse_intermixed_args(arguments)
    model_flags.check(options)
    if bool(options.inputs) == (options.data_path is not None):
        raise UsageError("INPUT, --data-path: name images or a data set, one of the two")
    if options.dataset and options.data_path is None:
        raise UsageError("--dataset: has no effect: it is for --data-path; leave it out")
    return options
