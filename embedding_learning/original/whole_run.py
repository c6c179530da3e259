"""Trains either program: `python -m embedding_learning.original.whole_run SETTINGS`.

It is a process of its own, so that its memory can be measured. SETTINGS is a JSON file. Log lines
go to the error output. The last line of the standard output is the peak memory in bytes.
"""

from __future__ import annotations

import json
import random
import re
import resource
import runpy
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedding_learning.original import source


def main() -> None:
    """Trains with the settings, and prints the peak memory."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if settings["original"] is None:
        _train_here(settings["flags"])
    else:
        _train_original(settings)
    print(read_peak_memory(), flush=True)


def _train_here(flags: list[str]) -> None:
    # The same as the command of a user, but in this process, whose memory is measured.
    sys.argv = ["train.py", "train", *flags]
    try:
        runpy.run_module("embedding_learning.__main__", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def _train_original(settings: Mapping[str, Any]) -> None:
    # The original never seeds the random numbers by which it flips and crops.
    random.seed(settings["seed"])
    numbers = source.Numbers(*settings["numbers"])
    training = source.load(Path(settings["original"]), settings["flags"], numbers)
    if settings["backbone"]:
        training.net.base_net.load_parameters(settings["backbone"], ctx=training.context)
        # It initializes parameters that have values. Gluon warns of that and keeps the values.
        warnings.filterwarnings("ignore", ".*already initialized", UserWarning)
    training.train(training.opt.epochs, training.context)


def read_peak_memory() -> int:
    """Returns the peak memory of this process in bytes, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would also count the memory of the parent when it started this process.
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        if match:
            return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
