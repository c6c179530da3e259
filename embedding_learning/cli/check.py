"""`check`: decode every image of a data set and list all its faults at once."""

from __future__ import annotations

import numpy as np

from embedding_learning.cli.parser import Parser
from embedding_learning.cli.train_flags import add_flags, parse
from embedding_learning.config import TrainConfig
from embedding_learning.data import datasets
from embedding_learning.data.datasets.splits import list_recall_warnings
from embedding_learning.data.preprocessing import Preprocessing, find_decoding_errors
from embedding_learning.errors import DataError, UsageError
from embedding_learning.runtime.progress import log_to_terminal

# Whether a file can be decoded does not depend on this size.
_SIZE = 64
# The flags of train.py that decide which images are read and whether they can be trained on.
_FLAGS = (
    "data_path", "dataset", "bbox", "train_classes", "cache_dir", "workers", "held_out",
    "held_out_fold", "small_classes", "batch_k", "batch_size", "total_batch_size", "classes",
    "gpus", "cpu_contexts", "preset", "exif_orientation",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Prints a line for each fault, a summary, and what else training would refuse.

    Returns 0 if there are no faults, else 2.
    """
    config = _parse(arguments)
    data = config.data
    preprocessing = Preprocessing(exif_orientation=data.exif_orientation)
    with log_to_terminal():
        split = datasets.load_dataset(
            data.path, data.cache_dir, data.train_classes, data.dataset, data.bbox
        )
        faults = [
            fault
            for part in split.parts
            for fault in find_decoding_errors(part, _SIZE, data.workers, preprocessing).values()
        ]
    for fault in faults:
        print(fault)
    for line in list_recall_warnings(split):
        print(line)
    sizes = np.bincount(split.train.labels)
    of_sizes = f", of {sizes.min()} to {sizes.max()} images" if len(sizes) else ""
    print(
        f"{split.name}: {sum(map(len, split.parts))} images, {len(faults)} of them bad; "
        f"{len(sizes)} classes train{of_sizes}."
    )
    # Imported only now: it imports MXNet, and what is refused above does not need it.
    from embedding_learning.data.build import fit_to_training

    try:
        fit_to_training(split, config)
    except (UsageError, DataError) as error:
        print(f"Training would refuse: {error}")
        return 2
    return 2 if faults else 0


def _parse(arguments: list[str]) -> TrainConfig:
    parser = Parser(
        prog="python -m embedding_learning check",
        description="Decode every image of a data set, list all its faults, and say whether "
        "train.py would accept it with these flags.",
    )
    add_flags(parser, _FLAGS)
    parser.parse_args(arguments)
    return parse(arguments, saves=False)
