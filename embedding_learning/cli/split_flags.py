"""The flags of the commands that use a data set: which images, and how they are split."""

from __future__ import annotations

import argparse

from embedding_learning.cli.parser import add_choice
from embedding_learning.cli.train_flags import add_flags as add_train_flags
from embedding_learning.config import TestImages
from embedding_learning.data import datasets
from embedding_learning.errors import UsageError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; without --bbox or --no-bbox boxes are used as in the model's training."""
    add_train_flags(
        parser,
        ("data_path", "dataset", "bbox", "train_classes", "cache_dir", "skip_bad_images"),
    )
    text = "which classes test: those that do not train, or all of them, searched among each other"
    add_choice(parser, "--test", datasets.TEST_CHOICES, text)
    parser.set_defaults(bbox=None)


def check(options: argparse.Namespace) -> None:
    """Raises UsageError if flags that split the data are out of range or contradict another."""
    if options.train_classes is not None and options.train_classes < 1:
        raise UsageError(
            f"--train-classes {options.train_classes}: must be at least 1; --test all tests every "
            "class"
        )
    if options.train_classes is not None and options.test == "all":
        raise UsageError("--train-classes: --test all tests every class; leave one of them out")


def test_images(options: argparse.Namespace) -> TestImages:
    """Returns the test images that the flags name."""
    return TestImages(
        data_path=options.data_path,
        cache_dir=options.cache_dir,
        dataset=options.dataset,
        train_classes=options.train_classes,
        bbox=options.bbox,
        classes=options.test,
        skip_bad_images=options.skip_bad_images,
    )
