"""The tables of a comparison, read back."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from embedding_learning.experiments import results, tables
from embedding_learning.experiments.results import (
    HELD_OUT,
    SELECTIONS,
    TEST,
    Cell,
    Row,
    Trial,
)
from tests.helpers.fake_trials import write_run

CELLS = [Cell("margin", "hard"), Cell("triplet", "hard"), Cell("triplet", "random")]
RUNS = [Trial(cell, seed) for seed in (1, 2) for cell in CELLS]


def rows_of(folder: Path, select_on: str = TEST) -> list[Row]:
    """The first cell with two seeds finished, the second with one, the third with none."""
    for run, recalls in zip(RUNS, ([0.5, 0.25], [0.5, 0.75], [0.9], [0.25, 0.75])):
        write_run(folder, run, recalls)
        if select_on == HELD_OUT and len(recalls) == 2:
            epochs = recalls.index(max(recalls)) + 1
            write_run(folder, run, [recall / 2 for recall in recalls[:epochs]], "final")
    outcomes = [results.read_outcome(folder, run, 2, select_on) for run in RUNS]
    return results.summarize(CELLS, [outcome for outcome in outcomes if outcome])


def test_the_text_has_a_line_for_each_cell_and_dashes_for_gaps(tmp_path: Path) -> None:
    shown = tables.format_text(rows_of(tmp_path), 2, TEST, "A caption.")
    assert [re.split("  +", line) for line in shown.splitlines()] == [
        ["A caption."],
        [""],
        [
            *("loss", "sampling", "runs", "Recall@1, best epoch", "Recall@1, last epoch"),
            *("best epoch", "seconds"),
        ],
        [
            *("margin", "hard", "2", "0.6250 ± 0.1768", "0.5000 ± 0.3536"),
            *("0.5 ± 0.7", "5.0 ± 0.0"),
        ],
        ["triplet", "hard", "1 of 2", "0.7500 ± -", "0.7500 ± -", "1.0 ± -", "5.0 ± -"],
        ["triplet", "random", "0 of 2", "-", "-", "-", "-"],
    ]
    starts = [line.index("0.") for line in shown.splitlines()[3:5]]
    assert starts == [shown.splitlines()[2].index("Recall@1, best")] * 2


def test_markdown_has_the_same_cells_and_the_best_in_bold(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, HELD_OUT)
    text = tables.format_text(rows, 2, HELD_OUT, "").splitlines()[2:]
    shown = tables.format_markdown(rows, 2, HELD_OUT, "data_1; --x='*|`'\nSecond.")
    caption, second, empty, titles, rule, *lines = shown.splitlines()
    assert (caption, second, empty) == (r"data\_1; --x='\*\|\`'  ", "Second.  ", "")
    assert rule == "|" + " --- |" * 7

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("|").split("|")]

    assert cells(titles)[3:5] == ["Recall@1, test classes", "Recall@1, held-out classes"]
    assert [" ".join(cells(line)).replace("**", "") for line in [titles, *lines]] == [
        " ".join(line.split()) for line in text
    ]
    assert [line.count("**") for line in lines] == [0, 2, 0]


def test_the_csv_holds_every_metric_unrounded(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    first, second, third = csv.DictReader(io.StringIO(tables.format_rows(rows, TEST)))
    assert (first["loss"], first["sampling"], first["runs"]) == ("margin", "hard", "2")
    assert float(first["best_recall@1_mean"]) == 0.625
    assert float(first["best_recall@1_sd"]) == pytest.approx(0.125 * 2**0.5, rel=1e-15)
    assert float(first["best_recall@2_mean"]) == 0.8125
    assert float(first["last_recall@1_mean"]) == 0.5
    assert float(first["best_epoch_mean"]) == 0.5 and float(first["seconds_mean"]) == 5.0
    assert second["best_recall@1_mean"] == "0.75" and second["best_recall@1_sd"] == ""
    assert third["runs"] == "0" and third["best_recall@1_mean"] == ""


@pytest.mark.parametrize("select_on", SELECTIONS)
def test_the_csv_of_epochs_holds_all_that_was_evaluated(tmp_path: Path, select_on: str) -> None:
    """Also of unfinished runs; those tested on other images are distinguished."""
    rows_of(tmp_path, select_on)
    runs = results.name_runs(select_on, folds=1)
    content = tables.format_epochs(tmp_path, RUNS, select_on, runs)
    lines = list(csv.DictReader(io.StringIO(content)))
    of_runs = [line for line in lines if line["tested_on"] == select_on]
    assert [(line["loss"], line["seed"], line["epoch"]) for line in of_runs] == [
        *(("margin", "1", "0"), ("margin", "1", "1"), ("triplet", "1", "0"), ("triplet", "1", "1")),
        *(("triplet", "1", "0"), ("margin", "2", "0"), ("margin", "2", "1")),
    ]
    assert [line["recall@1"] for line in of_runs][:3] == ["0.5", "0.25", "0.5"]
    assert [line["seconds"] for line in of_runs][:2] == ["2.5", "5.0"]
    final = [line for line in lines if line not in of_runs]
    expected = [] if select_on == TEST else ["0.25", "0.25", "0.375", "0.125", "0.375"]
    assert [line["recall@1"] for line in final] == expected
    assert {line["tested_on"] for line in final} <= {"test"}


def test_varied_flags_have_columns_in_every_table(tmp_path: Path) -> None:
    values = ["64", "a_|.pth"]
    cells = [Cell("margin", "hard", (("embed-dim", value), ("lr", "-"))) for value in values]
    trials = [Trial(cell, 1) for cell in cells]
    for trial, recall in zip(trials, (0.25, 0.5)):
        write_run(tmp_path, trial, [recall])
    outcomes = [results.read_outcome(tmp_path, trial, 1, TEST) for trial in trials]
    rows = results.summarize(cells, [outcome for outcome in outcomes if outcome])
    titles, *lines = tables.format_text(rows, 1, TEST, "").splitlines()[2:]
    assert titles.split()[:5] == ["loss", "sampling", "embed-dim", "lr", "runs"]
    assert [line.split()[2:6] for line in lines] == [
        ["64", "-", "1", "0.2500"],
        ["a_|.pth", "-", "1", "0.5000"],
    ]
    *_, last = tables.format_markdown(rows, 1, TEST, "").splitlines()
    assert last.startswith(r"| margin | hard | a\_\|.pth | - | 1 | **0.5000 ± -** | 0.5000 ± - |")
    for content, name in (
        (tables.format_rows(rows, TEST), "best_recall@1_mean"),
        (tables.format_epochs(tmp_path, trials, TEST, [results.FIRST]), "recall@1"),
    ):
        records = list(csv.DictReader(io.StringIO(content)))
        assert [(r["embed-dim"], r["lr"], r[name]) for r in records] == [
            ("64", "-", "0.25"),
            ("a_|.pth", "-", "0.5"),
        ]
