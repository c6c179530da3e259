"""The flags of all commands that take a saved model, and the model that they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from embedding_learning.cli.parser import add
from embedding_learning.cli.train_flags import add_flags as add_train_flags
from embedding_learning.config import BATCH_SIZE, MOST_WORKERS, WORKERS
from embedding_learning.runtime.flag_values import check_range, device_numbers

if TYPE_CHECKING:
    from embedding_learning.inference.embedding_model import EmbeddingModel


def add_flags(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The model, where it computes, and how its images are decoded.

    `more` ends the help on the model, where the command takes another file in its place.
    """
    add_model(parser, more)
    add_devices(parser)


def add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The model alone; it is loaded on the CPU."""
    text = "a trained network: PREFIX.params, its run's folder PREFIX.run, or PREFIX"
    text += more
    parser.add_argument("model_file", metavar="MODEL", help=text)
    text = "the network's backbone, for a file of the original example, which does not tell it"
    parser.add_argument("--model", metavar="NAME", help=text)
    parser.set_defaults(gpus=[], exif_orientation=None, resize=None)


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Where images are embedded, and how they are decoded. `check` is for these flags."""
    add(parser, "--gpus", "", "list of gpus to use, e.g. 0 or 0,2,5; empty means using cpu")
    add(parser, "--batch-size", BATCH_SIZE, "images that are computed at once, over all devices")
    add(parser, "--workers", WORKERS, "threads that decode images; 0: none beside the main one")
    add_train_flags(parser, ("exif_orientation", "resize"))
    # Where they are not given, the model's description decides.
    parser.set_defaults(exif_orientation=None, resize=None)


def check(options: argparse.Namespace) -> None:
    """Reads the list of GPUs; raises UsageError if a flag is out of range."""
    options.gpus = device_numbers("--gpus", options.gpus)
    check_range("batch_size", options.batch_size, 1)
    check_range("workers", options.workers, 0, MOST_WORKERS)


def load(options: argparse.Namespace) -> EmbeddingModel:
    """The model on the devices asked for. Raises UsageError if there is none."""
    # Only now, since MXNet takes seconds to import and --help needs none of it.
    from embedding_learning.inference.embedding_model import load_model
    from embedding_learning.runtime.devices import find_devices

    devices = find_devices(options.gpus)
    return load_model(
        options.model_file, devices, options.model, options.exif_orientation, options.resize
    )
