"""A whole run of either program: `python -m embedding_learning.original.whole_run SETTINGS`.

A process of its own, so that its memory can be told. SETTINGS is a JSON file. Log lines go to the
error output; the last line of the standard output is the peak memory in bytes.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedding_learning.original import source


def main() -> None:
    """Trains as the settings say."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if settings["original"] is None:
        _train_here(settings["flags"])
    else:
        _train_original(settings)
    print(peak_memory(), flush=True)


def _train_here(flags: list[str]) -> None:
    from embedding_learning.cli import train_flags
    from embedding_learning.training import log_lines, run

    with log_lines.log_to_terminal():
        run.run(train_flags.parse(flags), flags)


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


def peak_memory() -> int:
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
