"""Formats a comparison as tables: text for a terminal, Markdown, and CSV for other programs.

There is at least one row or trial, and all have the same varied flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedding_learning.experiments.results import (
    CRITERION,
    FINAL,
    HELD_OUT,
    TEST,
    Cell,
    Row,
    Spread,
    Trial,
    metric_names,
    read_evaluations,
    trial_prefix,
)
from embedding_learning.runtime.atomic_files import format_csv

# Titles of the reported metrics, the other metrics and the epoch of a row.
LABELS = {
    TEST: ("best", "last", "best epoch"),
    HELD_OUT: ("test", "held-out", "selected epoch"),
}
TITLES = {
    TEST: ("Recall@1, best epoch", "Recall@1, last epoch"),
    HELD_OUT: ("Recall@1, test classes", "Recall@1, held-out classes"),
}
_NONE = "-"


def format_text(rows: Sequence[Row], seeds: int, select_on: str, caption: str) -> str:
    """Returns the table for a terminal: the caption, then lines with aligned columns."""
    lines = [_titles(rows, select_on), *_cells(rows, seeds)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    ]
    return "\n".join([caption, "", *table])


def format_markdown(rows: Sequence[Row], seeds: int, select_on: str, caption: str) -> str:
    """Returns the table in Markdown; the best mean of the reported Recall@1 is bold."""
    means = [row.reported[CRITERION].mean for row in rows]
    highest = max((mean for mean in means if mean is not None), default=None)
    titles = _titles(rows, select_on)
    at = titles.index(TITLES[select_on][0])
    lines = []
    for mean, cells in zip(means, _cells(rows, seeds)):
        # A varied value may be a path.
        cells = [_escape_markdown(cell) for cell in cells]
        if mean is not None and mean == highest:
            cells[at] = f"**{cells[at]}**"
        lines.append(cells)
    parts = [titles, ["---"] * len(titles), *lines]
    table = [f"| {' | '.join(cells)} |" for cells in parts]
    caption_lines = [f"{line}  " for line in _escape_markdown(caption).splitlines()]
    return "\n".join([*caption_lines, "", *table])


def _escape_markdown(text: str) -> str:
    """Escapes signs that Markdown takes as markup, in the name of a folder or in a flag."""
    return "".join(f"\\{sign}" if sign in "\\`*_<>[]#|~&" else sign for sign in text)


def _titles(rows: Sequence[Row], select_on: str) -> list[str]:
    epoch = LABELS[select_on][2]
    return [*_cell_titles(rows[0].cell), "runs", *TITLES[select_on], epoch, "seconds"]


def _cell_titles(cell: Cell) -> list[str]:
    """Returns the titles of the columns that say which runs a line is about."""
    return ["loss", "sampling", *(flag for flag, _ in cell.varied)]


def _cell_values(cell: Cell) -> list[str]:
    """Returns the values in the columns of `_cell_titles`."""
    return [cell.loss, cell.sampling, *(value for _, value in cell.varied)]


def _cells(rows: Sequence[Row], seeds: int) -> list[list[str]]:
    return [
        [
            *_cell_values(row.cell),
            str(seeds) if row.epoch.size == seeds else f"{row.epoch.size} of {seeds}",
            _format_spread(row.reported[CRITERION], 4),
            _format_spread(row.other[CRITERION], 4),
            _format_spread(row.epoch, 1),
            _format_spread(row.seconds, 1),
        ]
        for row in rows
    ]


def _format_spread(values: Spread, digits: int) -> str:
    """Returns mean and standard deviation, with a dash for a value that does not exist."""
    if values.mean is None:
        return _NONE
    deviation = _NONE if values.deviation is None else f"{values.deviation:.{digits}f}"
    return f"{values.mean:.{digits}f} ± {deviation}"


def format_rows(rows: Sequence[Row], select_on: str) -> str:
    """Returns CSV: for each cell, mean and deviation of all numbers."""
    reported, other, epoch = LABELS[select_on]
    names = list(rows[0].reported)
    columns = [f"{label}_{name}" for label in (reported, other) for name in names]
    columns += [epoch.replace(" ", "_"), "seconds"]
    lines: list[list[object]] = [
        [
            *_cell_titles(rows[0].cell),
            "runs",
            *(f"{column}_{name}" for column in columns for name in ("mean", "sd")),
        ]
    ]
    for row in rows:
        spreads = [*row.reported.values(), *row.other.values(), row.epoch, row.seconds]
        numbers = [value for spread in spreads for value in (spread.mean, spread.deviation)]
        lines.append([*_cell_values(row.cell), row.epoch.size, *numbers])
    return format_csv(lines)


def format_epochs(
    folder: Path, trials: Sequence[Trial], select_on: str, runs: Sequence[str]
) -> str:
    """Returns CSV: for each run and each epoch that was evaluated so far, every metric.

    `runs` are the names of each trial's runs. The classes of a fold are those of its number.
    """
    evaluated = [
        (trial, TEST if run == FINAL else f"{select_on} {run}".strip(), evaluation)
        for trial in trials
        for run in runs
        for evaluation in read_evaluations(trial_prefix(folder, trial, run))
    ]
    names = metric_names([evaluation.metrics for *_, evaluation in evaluated])
    lines: list[list[object]] = [
        [*_cell_titles(trials[0].cell), "seed", "tested_on", "epoch", "seconds", *names]
    ]
    for trial, tested_on, evaluation in evaluated:
        metrics = [evaluation.metrics.get(name) for name in names]
        of_trial = [*_cell_values(trial.cell), trial.seed, tested_on]
        lines.append([*of_trial, evaluation.epoch, evaluation.seconds, *metrics])
    return format_csv(lines)
