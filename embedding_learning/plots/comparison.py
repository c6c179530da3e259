"""A comparison's Recall@1: means with error bars, and each seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedding_learning.comparison import CRITERION, Outcome, spread
from embedding_learning.plots import paper


def spreads(
    outcomes: Sequence[Outcome],
    pairs: Sequence[tuple[str, str]],
    select_on: str,
    caption: str,
    path: Path,
) -> None:
    pass
