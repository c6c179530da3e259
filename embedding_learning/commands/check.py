"""`check`: decode every image of a data set and list all that is wrong with it at once."""

from __future__ import annotations

import argparse

import numpy as np

from embedding_learning import datasets, reporting
from embedding_learning.flags import Parser, add, check_range
from embedding_learning.images import find_faults
from embedding_learning.options import DATA_PATH, MOST_WORKERS, WORKERS, add_data_flags

# Of no consequence for whether a file can be decoded.
_SIZE = 64


def main(arguments: list[str]) -> int:
    """Prints a line per fault and a closing one; 0 if there is none, else 2."""
    options = _parse(arguments)
    with reporting.log_to_terminal():
        split = datasets.load(
            options.data_path,
            options.cache_dir,
            options.train_classes,
            options.dataset,
            options.bbox,
        )
        faults = [
            fault
            for part in split.parts
            for fault in find_faults(part, _SIZE, options.workers).values()
        ]
    for fault in faults:
        print(fault)
    sizes = np.bincount(split.train.labels)
    print(
        f"{split.name}: {sum(map(len, split.parts))} images, {len(faults)} of them bad; "
        f"{len(sizes)} classes train, of {sizes.min()} to {sizes.max()} images."
    )
    return 2 if faults else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning check",
        description="Decode every image of a data set and list all that is wrong with it.",
    )
    add(parser, "--data-path", DATA_PATH, "as for train.py")
    add(parser, "--workers", WORKERS, "threads that decode images")
    add_data_flags(parser)
    options = parser.parse_args(arguments)
    check_range("workers", options.workers, 0, MOST_WORKERS)
    return options
