"""A whole run of either program: `python -m embedding_learning.original.whole_run SETTINGS`.

A process of its own, so that its memory can be told. SETTINGS is a JSON file. Log lines go to the
error output; the last line of the standard output is the peak memory in bytes.
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

_TRAIN = Path(__file__).resolve().parents[2] / "train.py"


def main() -> None:
    """Trains as the settings say."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if settings["original"] is None:
        _train_here(settings["flags"])
    else:
        _train_original(settings)
    print(read_peak_memory(), flush=True)


def _train_here(flags: list[str]) -> None:
    # The command as a user starts it, but in this process, whose memory is measured.
    sys.argv = ["train.py", *flags]
    try:
        runpy.run_path(str(_TRAIN), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def _train_original(settings: Mapping[str, Any]) -> None:
    # It never seeds Python's numbers, by which it mirrors and crops.
    random.seed(settings["seed"])
    numbers = source.Numbers(*settings["numbers"])
    training = source.load(Path(settings["original"]), settings["flags"], numbers)
    if settings["backbone"]:
        training.net.base_net.load_parameters(settings["backbone"], ctx=training.context)
        # It initializes what is there already, which Gluon leaves as it is.
        warnings.filterwarnings("ignore", ".*already initialized", UserWarning)
    training.train(training.opt.epochs, training.context)


def read_peak_memory() -> int:
    """The most bytes in memory that this process had, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # The kernel's getrusage also counts what the parent had when it started this process.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
