"""The flags of the commands that use a saved model, and the model that they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from embedding_learning.cli.parser import add
from embedding_learning.cli.train_flags import add_flags as add_train_flags
from embedding_learning.config import BATCH_SIZE, ENGINES, MOST_WORKERS, WORKERS
from embedding_learning.runtime.flag_values import check_range, device_numbers

if TYPE_CHECKING:
    from embedding_learning.inference.embedding_model import EmbeddingModel


def add_flags(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Adds the model, the devices that it computes on, and how its images are decoded.

    `more` ends the help on the model, if the command takes another file instead of it.
    """
    add_model(parser, more)
    add_devices(parser)


def add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Adds only the model, which is then loaded on the CPU."""
    text = "a trained network: PREFIX.params, its run's folder PREFIX.run, or PREFIX"
    text += more
    parser.add_argument("model_file", metavar="MODEL", help=text)
    text = "the network's backbone, for a file of the original example, which does not name it"
    parser.add_argument("--model", metavar="NAME", help=text)
    parser.set_defaults(gpus=[], exif_orientation=None, resize=None, resize_to=None, engine="mxnet")


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Adds the devices that embed, and how images are decoded. `check` checks these flags."""
    add(parser, "--gpus", "", "list of gpus to use, e.g. 0 or 0,2,5; empty means using cpu")
    add(parser, "--batch-size", BATCH_SIZE, "images that are computed at once, over all devices")
    add(parser, "--workers", WORKERS, "threads that decode images; 0: none except the main one")
    text = (
        "what computes the embeddings: mxnet, onnxruntime (on a CPU; faster), or auto (onnxruntime "
        "if it is installed, for 1,000 images or more; the default)"
    )
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], metavar="WORD", help=text)
    add_train_flags(parser, ("exif_orientation", "resize", "resize_to"))
    # If they are not given, the model's description decides.
    parser.set_defaults(exif_orientation=None, resize=None, resize_to=None)


def check(options: argparse.Namespace) -> None:
    """Reads the list of GPUs; raises UsageError if a flag is out of range."""
    options.gpus = device_numbers("--gpus", options.gpus)
    check_range("batch_size", options.batch_size, 1)
    check_range("workers", options.workers, 0, MOST_WORKERS)


def load(options: argparse.Namespace) -> EmbeddingModel:
    """Loads the model on the devices of the flags. Raises UsageError if it cannot be used."""
    # Imported only now: MXNet takes seconds to import, and --help does not need it.
    from embedding_learning.inference.embedding_model import load_model
    from embedding_learning.runtime.devices import find_devices

    return load_model(
        options.model_file,
        find_devices(options.gpus),
        model=options.model,
        exif_orientation=options.exif_orientation,
        resize=options.resize,
        resize_to=options.resize_to,
        engine=options.engine,
    )
