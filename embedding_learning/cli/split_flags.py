"""The flags of commands that take a data set: which images, and how they are split."""

from __future__ import annotations

import argparse

from embedding_learning.cli.parser import add, add_choice
from embedding_learning.cli.train_flags import add_data_flags
from embedding_learning.config import DATA_PATH
from embedding_learning.data import datasets
from embedding_learning.errors import UsageError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which images; whether boxes are cut is what the model was trained with, unless told."""
    add(parser, "--data-path", DATA_PATH, "as for train.py")
    add_data_flags(parser)
    text = "which classes test: those that do not train, or all of them, searched among each other"
    add_choice(parser, "--test", datasets.TEST_CHOICES, text)
    text = "leave out images that cannot be decoded"
    parser.add_argument("--skip-bad-images", action="store_true", help=text)
    parser.set_defaults(bbox=None, held_out=0)


def check(options: argparse.Namespace) -> None:
    """Raises UsageError if the flags that split the data are out of range or contradict."""
    if options.train_classes is not None and options.train_classes < 1:
        raise UsageError(
            f"--train-classes {options.train_classes}: must be at least 1; --test all tests every "
            "class"
        )
    if options.train_classes is not None and options.test == "all":
        raise UsageError("--train-classes: --test all tests every class; leave one of them out")
