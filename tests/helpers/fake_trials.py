"""Records of runs that were never run, for the tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from embedding_learning.experiments.results import FIRST, Trial, trial_prefix


def write_run(
    folder: Path,
    run: Trial,
    recalls: Sequence[float],
    name: str = FIRST,
    seconds: float = 2.5,
) -> Path:
    """A run whose epochs had these Recall@1, each `seconds` long; its records' file."""
    run_folder = Path(f"{trial_prefix(folder, run, name)}.run")
    run_folder.mkdir(parents=True)
    lines = []
    for epoch, recall in enumerate(recalls):
        when = {"epoch": epoch, "batch": 3, "seconds": (epoch + 1) * seconds}
        lines.append({"kind": "interval", **when, "loss": 1.0})
        found = {"recall@1": recall, "recall@2": (1 + recall) / 2}
        lines.append({"kind": "evaluation", **when, **found})
    file = run_folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
